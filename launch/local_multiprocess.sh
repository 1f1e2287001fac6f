#!/usr/bin/env bash
# Trains as N processes of this machine that talk over gloo, on its CPU: what a cluster does, small.
#
#   launch/local_multiprocess.sh N CONFIG WORKDIR [training options]
#   launch/local_multiprocess.sh 2 configs/household.py:smoke runs/two
#
# Costs: the memory of N runs and a little more time than one process takes with the same cores.
# Process 0 writes to the terminal, the others to WORKDIR/process-K.log. Ctrl-C saves; killed or
# stopped, the same command goes on.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# < 3)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local_multiprocess.sh N CONFIG WORKDIR [training options]" >&2
  exit 2
fi
count=$1 config=$2 workdir=$3
[[ $workdir == /* ]] || workdir=$caller/$workdir

bash launch/venv.sh requirements.txt
port=$(.venv/bin/python -c 'import socket as s; print(s.create_server(("", 0)).getsockname()[1])')
mkdir -p "$workdir"
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo

pids=()
for ((k = 0; k < count; k++)); do
  command=(.venv/bin/python -m atod_jax.train "--config=$config" "--workdir=$workdir" "${@:4}"
    "--coordinator=127.0.0.1:$port" "--num_processes=$count" "--process_id=$k")
  echo "+ ${command[*]}" >&2
  if ((k == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >>"$workdir/process-$k.log" 2>&1 &
  fi
  pids+=($!)
done
trap 'kill -TERM ${pids[@]+"${pids[@]}"} 2>/dev/null || true' INT TERM

status=0
while ((${#pids[@]})); do
  sleep 1 || true # Ctrl-C ends it
  left=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
    else
      code=0
      wait "$pid" || code=$?
      ((status)) || status=$code
    fi
  done
  pids=(${left[@]+"${left[@]}"})
  # 130 and 143: stopped in good order. After any other failure the rest would wait in vain.
  if [[ ! $status =~ ^(0|130|143)$ ]] && ((${#pids[@]})); then
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
done
exit "$status"
