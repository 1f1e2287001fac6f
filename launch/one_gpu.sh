#!/usr/bin/env bash
# One GPU, twelve minutes: a pretrained model learns real household games. Supervised student and
# teacher first, then ATOD, OPD and GRPO from the same student; a table and a picture at the end.
#
#   launch/one_gpu.sh MODEL GAMES [--out=DIR] [--minutes=N] [--plan]
#   launch/one_gpu.sh smollm2 $ALFWORLD_DATA
#   launch/one_gpu.sh --tiny       the same stages with the shipped tiny models, minutes on a CPU
#
# Costs: the set-up of launch/venv.sh with CUDA once (3 GB), then 12 minutes at most and 15 GB of
# disk. Stopped or killed? The same command goes on; finished stages are not run again.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
files=(requirements.txt)
[[ " $* " == *" --tiny "* || " $* " == *" --plan "* ]] || files+=(launch/cuda.txt)

bash launch/venv.sh "${files[@]}"

# From where it was called, so that relative paths mean what they say.
repo=$PWD
cd "$caller"
PYTHONPATH=$repo${PYTHONPATH:+:$PYTHONPATH} exec "$repo/.venv/bin/python" -P -m configs.one_gpu "$@"
