#!/usr/bin/env bash
# Makes the shipped household models again, from nothing.
#
#   launch/household_models.sh [OUT]      OUT defaults to runs/household_models
#
# Costs: about an hour on two CPU cores. Killed? The same command goes on where it was.
# The results are Hugging Face folders in OUT/models; atod_jax/assets/household holds a copy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-runs/household_models}

bash launch/venv.sh requirements.txt

train() {  # config with its variant, name of the model it makes, more options
  if [[ -f $out/models/$2/config.json ]]; then
    echo "have $out/models/$2" >&2
    return
  fi
  local command=(.venv/bin/python -m atod_jax.train "--config=configs/$1,export=$out/models/$2"
    "--workdir=$out/runs/$2" "${@:3}")
  echo "+ ${command[*]}" >&2
  "${command[@]}"
}

train household_sft.py:stage=student_base student-base
train "household_sft.py:stage=student,start=$out/models/student-base" student
train household_sft.py:stage=teacher_good teacher-good-sft
train "household_teacher.py:start=$out/models/teacher-good-sft,steps=24" teacher-good \
  --config.algorithm.grpo.reward.invalid_penalty=0.1
train household_sft.py:stage=teacher_mid teacher-mid-sft
train "household_teacher.py:start=$out/models/teacher-mid-sft,steps=70" teacher-mid

# The pair that thinks aloud before it acts: the student is its teacher, un-sharpened.
train household_sft.py:stage=student_base,thoughts teacher-good-thoughts
train "household_sft.py:stage=student,thoughts,start=$out/models/teacher-good-thoughts" \
  student-thoughts

echo "Models: $out/models; numbers before and after: $out/runs/*/report.md"
