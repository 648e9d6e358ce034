#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# llm: extra-openai-models.yaml names the server. `sh llm.sh picture`
set -eu

picture=$(dirname "$0")/../../docs/picture.png
# The default is ~/.config/io.datasette.llm.
LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH
cat > "$LLM_USER_PATH/extra-openai-models.yaml" << END
- model_id: lladav
  model_name: ${MODEL:-lladav-tiny}
  api_base: ${BASE_URL:-http://localhost:8000/v1}
  vision: true
  supports_schema: true
END

case $1 in
  text) llm -m lladav --no-stream -o max_tokens 64 "Describe a picture." ;;
  picture) llm -m lladav --no-stream -o max_tokens 64 -a "$picture" "Describe the picture." ;;
  streaming) llm -m lladav -o max_tokens 64 -a "$picture" "Describe the picture." ;;
  structured) llm -m lladav --schema "color, shape" -a "$picture" "Describe the picture." ;;
esac
