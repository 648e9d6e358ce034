#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# AIPerf: a small load of texts, or of pictures. `sh aiperf.sh text`
#
# It counts tokens itself: TOKENIZER is the directory of the checkpoint.
set -eu

# With it set, AIPerf 0.13.0 takes the directory for a name on the hub.
unset HF_HUB_OFFLINE

url=${BASE_URL:-http://localhost:8000/v1}
extras='{"ignore_eos": true}'
case $1 in
  text) set -- ;;
  picture) set -- --image-width-mean 96 --image-height-mean 96 ;;
  xargs)
    set --
    extras='{"ignore_eos": true, "vllm_xargs": {"steps": 16}}'
    ;;
esac
aiperf profile --model "${MODEL:-lladav-tiny}" --url "${url%/v1}" \
    --endpoint-type chat --streaming --tokenizer "$TOKENIZER" \
    --synthetic-input-tokens-mean 32 --output-tokens-mean 32 \
    --extra-inputs "$extras" --request-count 4 --concurrency 2 \
    --artifact-dir "$(mktemp -d)" --ui-type none "$@"
