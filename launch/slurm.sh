#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster, one process per GPU.
#
#   launch/slurm.sh [sbatch options] -- --config=CONFIG --workdir=FOLDER [training options]
#   launch/slurm.sh --nodes=2 --partition=gpu -- --config=configs/webshop.py --workdir=runs/shop
#
# Costs: nodes x 8 GPUs until the run is done, a day at a time. The repository, its .venv and the
# workdir must lie on a file system that all nodes share. Five minutes before the time is up the run
# saves and the job is queued again; so is one that is preempted. The same command resumes any run.
#SBATCH --job-name=atod
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=INT@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [[ -z ${SLURM_JOB_ID:-} ]]; then # on the login node: set up, then hand this file to Slurm
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  options=()
  while (($#)) && [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  if (($# < 2)); then
    echo "usage: launch/slurm.sh [sbatch options] -- --config=... --workdir=..." >&2
    exit 2
  fi
  bash launch/venv.sh requirements.txt launch/cuda.txt
  command=(sbatch ${options[@]+"${options[@]}"} launch/slurm.sh "${@:2}")
  echo "+ ${command[*]}" >&2
  exec "${command[@]}"
fi

cd "$SLURM_SUBMIT_DIR" # Slurm runs a copy of this file from elsewhere
# All GPUs of a node stay visible to its processes: JAX gives each its own by SLURM_LOCALID. The
# first process to end must not take the others with it: they may still be saving.
command=(srun --kill-on-bad-exit=0 .venv/bin/python -m atod_jax.train "$@" --distributed)
echo "+ ${command[*]}" >&2
status=0
"${command[@]}" || status=$?
if ((status == 130)); then # it saved because the time is nearly up; scancel would give 143
  echo "+ scontrol requeue $SLURM_JOB_ID" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
