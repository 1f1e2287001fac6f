#!/usr/bin/env bash
# Runs the tests in .venv, which it makes or brings up to date first.
#
#   launch/test.sh                 the default tests: no network, no accelerator
#   launch/test.sh --slow          the slow ones instead: learning runs, notebooks, killed processes
#   launch/test.sh --parity        the live comparison with transformers on torch, which it installs
#   launch/test.sh -x -k name      whatever else is given goes to pytest
#
# Costs: minutes on two CPU cores; --parity adds 200 MB (CPU build) to 3 GB (CUDA build) once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch=torch==2.13.0
selection=()
arguments=()
for argument in "$@"; do
  case $argument in
    --slow | --parity) selection=(-m "${argument#--}") ;;
    *) arguments+=("$argument") ;;
  esac
done

bash launch/venv.sh requirements.txt tests/requirements.txt
if [[ ${selection[1]:-} == parity ]] && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  echo "+ .venv/bin/python -m pip install $torch" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$torch"
fi

# Two processes: most of the time goes into compiling, which uses one core at a time.
command=(.venv/bin/python -m pytest -q -n 2 --dist worksteal ${selection[@]+"${selection[@]}"}
  ${arguments[@]+"${arguments[@]}"})
echo "+ ${command[*]}" >&2
exec "${command[@]}"
