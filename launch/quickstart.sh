#!/usr/bin/env bash
# Trains a tiny agent with ATOD on generated household games and writes a report. Needs no
# accelerator, no account and no downloaded data; the models it starts from are in the repository.
#
#   launch/quickstart.sh [WORKDIR]        WORKDIR defaults to runs/quickstart
#
# Costs: the set-up of launch/venv.sh once, then some minutes on two CPU cores (configs/quickstart.py
# states the time). Killed or pre-empted? The same command goes on from the last checkpoint.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
workdir=${1:-$PWD/runs/quickstart}
[[ $workdir == /* ]] || workdir=$caller/$workdir

bash launch/venv.sh requirements.txt

command=(.venv/bin/python -m atod_jax.train --config=configs/quickstart.py "--workdir=$workdir")
echo "+ ${command[*]}" >&2
"${command[@]}"

echo "Report: $workdir/report.md"
