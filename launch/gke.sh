#!/usr/bin/env bash
# Trains on a TPU or GPU node pool of a GKE cluster that has JobSet.
#
#   launch/gke.sh tpu|gpu IMAGE --config=CONFIG --workdir=/runs/FOLDER [training options]
#
# Costs: the nodes of launch/gke_jobset.yaml until the run is done. launch/Dockerfile makes IMAGE;
# /runs is the volume claim atod-runs, which all hosts must be able to write (ReadWriteMany). When a
# host is taken away, all start again from the last checkpoint; the same command does that too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# < 4)) || [[ ! $1 =~ ^(tpu|gpu)$ ]]; then
  echo "usage: launch/gke.sh tpu|gpu IMAGE --config=... --workdir=/runs/..." >&2
  exit 2
fi

list=
for argument in "${@:3}"; do # as a JSON list, which is YAML
  argument=${argument//\\/\\\\}
  argument=${argument//\"/\\\"}
  list+="${list:+, }\"$argument\""
done
manifest=$(<launch/gke_jobset.yaml)
manifest=${manifest//image: IMAGE/"image: $2"}
manifest=${manifest//args: ARGUMENTS/"args: [$list]"}

kube() {
  echo "+ kubectl $*" >&2
  kubectl "$@"
}
# An earlier JobSet of that name, done or not, ends here; its pods have time to save.
kube delete jobset "atod-$1" --ignore-not-found --cascade=foreground --wait
kube apply --selector="accelerator=$1" --filename=- <<<"$manifest"
host="jobset.sigs.k8s.io/jobset-name=atod-$1,batch.kubernetes.io/job-completion-index=0"
echo "What it prints, once it runs: kubectl logs --follow --selector=$host" >&2
