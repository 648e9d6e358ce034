#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# lmms-eval: ten drawn questions, by its own model `openai` and by the one of
# examples/lmms_eval, which can say vllm_xargs. Runs in the root of the checkout.
set -eu

out=$(mktemp -d)
python examples/tiny/questions.py "$out/questions" --count 10
case $1 in
  picture)
    set -- python -m lmms_eval --model openai --force_simple
    denoising=""
    ;;
  xargs)
    set -- python examples/lmms_eval/lladav_client.py --model lladav
    denoising=",steps=16"
    ;;
esac
url=${BASE_URL:-http://localhost:8000/v1}
HF_HUB_OFFLINE=1 LLADAV_QUESTIONS="$out/questions" "$@" \
    --include_path examples/lmms_eval --tasks lladav_questions \
    --log_samples --output_path "$out/results" --model_args \
    "model=${MODEL:-lladav-tiny},base_url=$url,api_key=EMPTY,num_concurrent=2$denoising"
