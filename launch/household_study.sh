#!/usr/bin/env bash
# ATOD, OPD and GRPO from the same weak student, against a mediocre and a good teacher, two seeds.
#
#   launch/household_study.sh [OUT] [STEPS]     defaults: runs/household_study, 80
#
# Costs: ten runs, about 5 minutes each on one core; two run side by side. Killed? Same command.
# Ends with OUT/comparison.md and OUT/comparison.png.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-runs/household_study}
steps=${2:-80}

bash launch/venv.sh requirements.txt
python=.venv/bin/python
# One thread per run: tiny matrices gain nothing from two, two runs do.
export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false ${XLA_FLAGS:-}"
mkdir -p "$out"

# shellcheck disable=SC2016 # the inner bash expands its own variables
for seed in 0 1; do
  for run in grpo,teacher=mid atod,teacher=mid opd,teacher=mid atod,teacher=good opd,teacher=good; do
    [[ -f $out/$run-$seed/report.md ]] || echo "$run $seed"
  done
done | xargs -P 2 -L 1 bash -c '
  command=('"$python"' -m atod_jax.train "--config=configs/household.py:algo=$2,steps='"$steps"',seed=$3"
    "--workdir=$1/$2-$3")
  echo "+ ${command[*]}" >&2
  "${command[@]}" > "$1/$2-$3.log" 2>&1 || { tail -n 3 "$1/$2-$3.log" >&2; exit 255; }' run "$out"

"$python" -m atod_jax.compare --out="$out" "$out"/*-[01]
