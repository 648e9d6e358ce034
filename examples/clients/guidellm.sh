#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# GuideLLM: a small load of texts, or of pictures. `sh guidellm.sh text`
#
# It counts tokens itself: TOKENIZER is the directory of the checkpoint. It streams.
set -eu

trial=$1
url=${BASE_URL:-http://localhost:8000/v1}
extras='{}'
if [ "$trial" = xargs ]; then extras='{"body": {"vllm_xargs": {"steps": 16}}}'; fi
backend=$(cat << END
{
  "kind": "openai_http", "target": "${url%/v1}", "model": "${MODEL:-lladav-tiny}",
  "extras": $extras
}
END
)
set -- --data kind=synthetic_text,prompt_tokens=32,output_tokens=32
if [ "$trial" = picture ]; then
  set -- "$@" --data kind=synthetic_image,width=96,height=96,content=noise
fi
guidellm run --backend "$backend" \
    --profile kind=concurrent,streams=2 --constraint kind=max_requests,count=4 \
    --tokenizer "kind=hf_auto,model=$TOKENIZER" \
    --output "kind=json,path=$(mktemp -d)/report.json" "$@"
