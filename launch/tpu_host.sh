#!/usr/bin/env bash
# One host of a TPU slice: mounts the share, installs, trains. launch/tpu_pod.sh runs it on all.
#
#   tpu_host.sh IP:/NAME --config=CONFIG --workdir=FOLDER [more options]
#
# Costs: three minutes the first time, seconds after that. Expects atod_jax.tar.gz where it starts.
set -euo pipefail

if ! mountpoint -q /mnt/atod; then
  sudo apt-get -qq update
  sudo apt-get -qq install -y nfs-common
  sudo mkdir -p /mnt/atod
  sudo mount -t nfs -o hard "$1" /mnt/atod
fi

# A run that lost its terminal still holds the chips: it is asked to save and to go.
pkill -TERM -f 'atod_jax[.]train' || true
while pgrep -f 'atod_jax[.]train' >/dev/null; do sleep 5; done

tar xzf atod_jax.tar.gz
cd atod_jax
python3 -m pip install --quiet --user uv==0.13.9 # the images' own Python is too old
"$HOME/.local/bin/uv" python install --quiet 3.12
PYTHON=$("$HOME/.local/bin/uv" python find --no-project 3.12)
PYTHON=$PYTHON bash launch/venv.sh requirements.txt launch/tpu.txt

command=(.venv/bin/python -m atod_jax.train "${@:2}" --distributed)
echo "+ ${command[*]}" >&2
exec "${command[@]}"
