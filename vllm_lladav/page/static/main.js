// SPDX-License-Identifier: Apache-2.0
// The form: what is asked, and where the answers go.

import { Panel } from "./panel.js";
import { curlOf, pythonOf } from "./snippets.js";
import { chunksOf, modelNames } from "./sse.js";

const by = (id) => document.getElementById(id);
const TITLES = { exact: "Exact", fast: "Fast", pruned: "Pruned" };
const MOST_SHOWN = 2048; // Pixels of a side that is sent; the model tiles no more.

/** The chosen picture: its file name, data URL and element; null for none. */
let picture = null;
let running = null;

function xargsOf(mode) {
  const rate = mode === "pruned" ? Number(by("prune-rate").value) : 0;
  return {
    live_canvas: 1,
    denoising: mode === "fast" ? "fast" : "exact",
    prune_rate: rate,
  };
}

function bodyOf(mode) {
  const content = [{ type: "text", text: by("question").value }];
  if (picture) {
    content.unshift({ type: "image_url", image_url: { url: picture.url } });
  }
  return {
    model: by("model").value,
    messages: [{ role: "user", content }],
    max_tokens: Number(by("max-tokens").value),
    temperature: 0,
    stream: true,
    vllm_xargs: xargsOf(mode),
  };
}

function chosenModes() {
  const mode = document.querySelector("[name=mode]:checked").value;
  return mode === "compare" ? Object.keys(TITLES) : [mode];
}

// --- picture ---------------------------------------------------------------------

async function choose(name, blob) {
  const element = new Image();
  const held = URL.createObjectURL(blob);
  element.src = held;
  try {
    await element.decode();
  } catch {
    say(`${name} is no picture that this browser can read.`);
    return;
  } finally {
    URL.revokeObjectURL(held);
  }
  picture = { name, url: await dataUrl(element, blob), element };
  by("preview").src = picture.url;
  by("preview").alt = `The chosen picture: ${name}`;
  by("preview").hidden = by("no-picture").hidden = false;
  for (const button of by("samples").children) {
    button.setAttribute("aria-pressed", String(button.dataset.sample === name));
  }
  changed();
}

function dataUrl(element, blob) {
  const longest = Math.max(element.naturalWidth, element.naturalHeight);
  const isSent = ["image/png", "image/jpeg", "image/webp"].includes(blob.type);
  if (longest <= MOST_SHOWN && isSent) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    });
  }
  const scale = Math.min(1, MOST_SHOWN / longest);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(element.naturalWidth * scale);
  canvas.height = Math.round(element.naturalHeight * scale);
  canvas.getContext("2d").drawImage(element, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

async function chooseSample(name) {
  const response = await fetch(`samples/${name}`);
  await choose(name, await response.blob());
}

function chooseNone() {
  picture = null;
  by("preview").hidden = by("no-picture").hidden = true;
  for (const button of by("samples").children) {
    button.setAttribute("aria-pressed", "false");
  }
  changed();
}

// --- asking ----------------------------------------------------------------------

function say(text) {
  by("status").textContent = text;
}

async function run(mode, panel, signal) {
  panel.element.classList.add("current");
  try {
    for await (const chunk of chunksOf(bodyOf(mode), by("key").value, signal)) {
      if (chunk.lladav) {
        panel.take(chunk.lladav);
      } else if (chunk.choices.length) {
        panel.answer(chunk.choices[0].delta.content ?? "");
      }
    }
  } catch (error) {
    panel.fail(signal.aborted ? "Stopped." : error.message);
  } finally {
    panel.element.classList.remove("current");
  }
}

async function ask() {
  running = new AbortController();
  const { signal } = running;
  by("submit").disabled = true;
  by("stop").disabled = false;
  by("comparison").hidden = true;
  const panels = chosenModes().map((mode) => {
    return [mode, new Panel(TITLES[mode], picture?.element ?? null)];
  });
  by("results").replaceChildren(...panels.map(([, panel]) => panel.element));
  // One after the other: they would take each other's time.
  for (const [mode, panel] of panels) {
    if (!signal.aborted) {
      say(`${TITLES[mode]}: denoising …`);
      await run(mode, panel, signal);
    }
  }
  say(signal.aborted ? "Stopped." : "Done.");
  if (panels.length > 1) {
    compare(panels.map(([, panel]) => panel));
  }
  by("submit").disabled = false;
  by("stop").disabled = true;
}

function compare(panels) {
  const rows = panels.map((panel) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = panel.find("h2").textContent;
    row.append(head);
    for (const name of ["steps", "seconds", "flops", "visual"]) {
      row.insertCell().textContent = panel.figures[name] ?? "";
    }
    row.insertCell().textContent = panel.find("output").textContent;
    return row;
  });
  by("comparison").querySelector("tbody").replaceChildren(...rows);
  by("comparison").hidden = false;
}

function changed() {
  const body = bodyOf(chosenModes()[0]);
  const hasKey = by("key").value !== "";
  by("curl").textContent = curlOf(body, picture?.name ?? null, hasKey);
  by("python").textContent = pythonOf(body, picture?.name ?? null, hasKey);
}

async function loadModels() {
  try {
    const names = await modelNames(by("key").value);
    by("model").replaceChildren(...names.map((name) => new Option(name)));
    say("");
  } catch (error) {
    say(`The server does not say what it serves (${error.message}). A key goes into Settings.`);
  }
  changed();
}

// --- events ----------------------------------------------------------------------

by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
by("ask").addEventListener("input", changed);
by("stop").addEventListener("click", () => running.abort());
by("key").addEventListener("change", loadModels);
by("no-picture").addEventListener("click", chooseNone);
by("samples").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) {
    chooseSample(button.dataset.sample);
  }
});
by("file").addEventListener("change", () => {
  const [file] = by("file").files;
  if (file) {
    choose(file.name, file);
  }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  by("drop").addEventListener(name, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) {
      choose(file.name, file);
    }
  });
}
document.addEventListener("click", async (event) => {
  const source = event.target.dataset?.copy;
  if (!source) {
    return;
  }
  const text = by(source);
  try {
    await navigator.clipboard.writeText(text.textContent);
    say("Copied.");
  } catch {
    // Only pages of https, or of this machine, may write there.
    getSelection().selectAllChildren(text);
    say("Selected; copy it with the keyboard.");
  }
});

await loadModels();
await chooseSample("triangles.png");
