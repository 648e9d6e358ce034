// SPDX-License-Identifier: Apache-2.0
// A request as others would send it; its picture is a file beside them.

import { SERVER } from "./sse.js";

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A command for a shell. `file` is the picture's name, or null. */
export function curlOf(body, file, hasKey) {
  const mark = "PICTURE";
  const json = JSON.stringify(withPicture(body, file && mark), null, 2);
  const data = quoted(json).replace(mark, `'"$(base64 -w0 ${quoted(file ?? "")})"'`);
  const lines = [
    `curl -N ${quoted(new URL("v1/chat/completions", SERVER).href)}`,
    "-H 'Content-Type: application/json'",
    ...(hasKey ? [`-H "Authorization: Bearer $KEY"`] : []),
    `-d ${data}`,
  ];
  return lines.join(" \\\n  ");
}

/** A script for the `openai` package. */
export function pythonOf(body, file, hasKey) {
  const { model, messages, max_tokens: maxTokens, vllm_xargs: xargs } = body;
  const text = messages[0].content.at(-1).text;
  const start = messages[0].content[0].image_url?.url.split(",")[0];
  return [
    ...(file ? ["import base64"] : []),
    ...(hasKey ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    `key = ${hasKey ? `os.environ["KEY"]` : `"none"`}`,
    `client = OpenAI(base_url=${JSON.stringify(new URL("v1", SERVER).href)}, api_key=key)`,
    `content = [{"type": "text", "text": ${JSON.stringify(text)}}]`,
    ...(file
      ? [
          `picture = base64.b64encode(open(${JSON.stringify(file)}, "rb").read()).decode()`,
          `url = {"url": f"${start},{picture}"}`,
          `content.insert(0, {"type": "image_url", "image_url": url})`,
        ]
      : []),
    "for chunk in client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    `    messages=[{"role": "user", "content": content}],`,
    `    max_tokens=${maxTokens},`,
    "    temperature=0,",
    "    stream=True,",
    `    extra_body={"vllm_xargs": ${JSON.stringify(xargs)}},`,
    "):",
    "    if chunk.choices:",
    `        print(chunk.choices[0].delta.content or "", end="")`,
    "    else:",
    "        print(chunk.lladav)",
  ].join("\n");
}

function withPicture(body, mark) {
  const copy = structuredClone(body);
  const [first] = copy.messages[0].content;
  if (mark && first.image_url) {
    first.image_url.url = `${first.image_url.url.split(",")[0]},${mark}`;
  }
  return copy;
}
