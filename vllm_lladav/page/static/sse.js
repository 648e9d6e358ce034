// SPDX-License-Identifier: Apache-2.0
// Asks the server, which the page's address names: behind a proxy it may have a prefix.

export const SERVER = new URL("..", document.baseURI);

function headersFor(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function checked(response) {
  if (response.ok) {
    return response;
  }
  const text = await response.text();
  let message = response.statusText;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // It is no error of the API, such as the page of a proxy.
  }
  throw new Error(`${response.status}: ${message}`);
}

/** Names of the models that the server answers with. */
export async function modelNames(key) {
  const url = new URL("v1/models", SERVER);
  const response = await checked(await fetch(url, { headers: headersFor(key) }));
  return (await response.json()).data.map((model) => model.id);
}

/** The chunks of a streamed chat completion, as they come. */
export async function* chunksOf(body, key, signal) {
  const response = await checked(
    await fetch(new URL("v1/chat/completions", SERVER), {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headersFor(key) },
      body: JSON.stringify(body),
      signal,
    }),
  );
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) {
        const chunk = JSON.parse(line.slice("data: ".length));
        if (chunk.error) {
          throw new Error(chunk.error.message);
        }
        yield chunk;
      }
    }
  }
}
