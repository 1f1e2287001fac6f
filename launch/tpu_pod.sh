#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, which it makes, or uses again if there is one.
#
#   SHARE=IP:/NAME launch/tpu_pod.sh NAME ZONE TYPE --config=CONFIG --workdir=/mnt/atod/FOLDER
#
# Costs: a spot slice by the hour until you delete it; the last line says how. SHARE, an NFS export
# (Filestore) in its network, is mounted at /mnt/atod: a slice that is taken away loses its disks.
# What is committed is what runs. After a preemption it waits for a new slice and goes on, as the
# same command does. CREATE=--reserved replaces --spot, VERSION=NAME the system image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# < 5)) || [[ -z ${SHARE:-} ]]; then
  echo "usage: SHARE=IP:/NAME launch/tpu_pod.sh NAME ZONE TYPE --config=... --workdir=..." >&2
  exit 2
fi
name=$1 zone=$2 type=$3
case $type in
  v5lite*) image=v2-alpha-tpuv5-lite ;;
  v5p*) image=v2-alpha-tpuv5 ;;
  v6e*) image=v2-alpha-tpuv6e ;;
  *) image=tpu-ubuntu2204-base ;;
esac

tpu() { # verb and arguments of gcloud
  local command=(gcloud compute tpus tpu-vm "$@" "--zone=$zone")
  echo "+ ${command[*]}" >&2
  "${command[@]}"
}
create() {
  tpu create "$name" "--accelerator-type=$type" "--version=${VERSION:-$image}" "${CREATE:---spot}"
}
state() { tpu describe "$name" '--format=value(state)' 2>/dev/null || true; }
train() {
  tpu scp "$archive" "$name:" --worker=all && tpu ssh "$name" --worker=all "--command=$remote"
}

archive=$(mktemp -d)/atod_jax.tar.gz
trap 'rm -r "${archive%/*}"' EXIT
git archive --format=tar.gz --prefix=atod_jax/ -o "$archive" HEAD
host="bash <(tar xzfO atod_jax.tar.gz atod_jax/launch/tpu_host.sh)"
remote="$host$(printf ' %q' "$SHARE" "${@:4}")"

[[ -n $(state) ]] || create
while found=$(state); do
  case $found in
    READY)
      status=0
      train || status=$?
      ((status)) || break
      sleep 60 # a slice that is taken away stays READY for a moment
      [[ $(state) != READY ]] || exit "$status"
      ;;
    CREATING | STARTING | RESTARTING | REPAIRING) sleep 20 ;;
    PREEMPTED | TERMINATED) tpu delete "$name" --quiet ;;
    "") create || sleep 60 ;; # none to be had just now
    *) echo "error: the slice is $found; delete it or wait" >&2 && exit 1 ;;
  esac
done
echo "The slice still costs money: gcloud compute tpus tpu-vm delete $name --zone=$zone" >&2
