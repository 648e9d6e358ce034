// SPDX-License-Identifier: Apache-2.0
// openai for Node, chat completions. Runs in the root of the checkout.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const model = process.env.MODEL ?? "lladav-tiny";
const client = new OpenAI({
  baseURL: process.env.BASE_URL ?? "http://localhost:8000/v1",
  apiKey: "none",
});

const picture = readFileSync("docs/picture.png").toString("base64");
const url = `data:image/png;base64,${picture}`;
const withPicture = {
  role: "user",
  content: [
    { type: "image_url", image_url: { url } },
    { type: "text", text: "Describe the picture." },
  ],
};

async function ask(message, fields = {}) {
  const completion = await client.chat.completions.create({
    model,
    messages: [message],
    max_tokens: 64,
    // Fields that OpenAI does not know go straight into the body.
    ...fields,
  });
  return completion.choices[0].message.content;
}

const trials = {
  text: () => ask({ role: "user", content: "Describe a picture." }),

  picture: () => ask(withPicture),

  async streaming() {
    const stream = await client.chat.completions.create({
      model,
      messages: [withPicture],
      max_tokens: 64,
      stream: true,
      vllm_xargs: { block_length: 16 },
    });
    const pieces = [];
    for await (const chunk of stream) pieces.push(chunk.choices[0]?.delta.content ?? "");
    return pieces;
  },

  xargs: () => ask(withPicture, { vllm_xargs: { steps: 16 } }),

  structured: () => ask(withPicture, { response_format: { type: "json_object" } }),
};

const names = process.argv.slice(2);
for (const trial of names.length ? names : Object.keys(trials)) {
  const answer = [await trials[trial]()].flat();
  const pieces = answer.filter((piece) => piece);
  console.log(JSON.stringify({ trial, answer: pieces.join(""), pieces: pieces.length }));
}
