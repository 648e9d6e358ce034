// SPDX-License-Identifier: Apache-2.0
// One canvas on the page: tokens, picture, figures.

const LEVELS = [0.5, 0.9, 0.99, 0.999];
const DIMMED = "rgba(10, 10, 14, 0.78)";

/** A number of operations, such as 1.23 G. */
export function shortened(number) {
  const units = ["", " k", " M", " G", " T", " P"];
  let unit = 0;
  while (number >= 999.5 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return number.toPrecision(3) + units[unit];
}

function levelOf(confidence) {
  return LEVELS.filter((least) => confidence >= least).length;
}

export class Panel {
  /** `picture` is an image element, or null. */
  constructor(title, picture) {
    const template = document.getElementById("panel");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.picture = picture;
    this.figures = {};
    this.find("h2").textContent = title;
    this.find(".picture select").addEventListener("change", () => this.draw());
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  show(name, value) {
    this.figures[name] = value;
    this.find(`[data-figure="${name}"]`).textContent = value;
  }

  fail(message) {
    const error = this.find(".error");
    error.textContent = message;
    error.hidden = false;
  }

  answer(text) {
    this.find("output").textContent += text;
  }

  take(event) {
    this[event.event]?.(event);
  }

  start(event) {
    this.total = event.steps;
    this.visual = event.visual_tokens;
    this.grids = event.images[0]?.views ?? {};
    this.imageSize = event.images[0]?.size;
    const { length, block_length: blockLength } = event.canvas;
    this.tokens = Array.from({ length }, (_, position) => {
      const token = document.createElement("li");
      token.className = "token mask";
      token.textContent = "·";
      token.title = `position ${position}: masked`;
      token.classList.toggle("block-start", position > 0 && position % blockLength === 0);
      return token;
    });
    this.find(".tokens").replaceChildren(...this.tokens);
    this.show("visual", String(this.visual));
    const select = this.find(".picture select");
    const names = Object.keys(this.grids).reverse();
    select.replaceChildren(...names.map((name) => new Option(name)));
    select.parentElement.hidden = names.length < 2;
    this.find(".picture").hidden = this.picture === null;
    this.find(".pruning").textContent = "All of the picture is looked at.";
    this.draw();
  }

  step(event) {
    this.element.querySelectorAll(".now").forEach((t) => t.classList.remove("now"));
    for (const one of event.unmasked) {
      const token = this.tokens[one.position];
      const known = one.confidence !== null;
      token.textContent = one.text.replaceAll("\n", "⏎") || "�";
      token.classList.remove("mask");
      token.classList.add("now", `level-${levelOf(one.confidence ?? 0)}`);
      const sure = known ? `, confidence ${one.confidence.toFixed(5)}` : "";
      token.title = `position ${one.position}: step ${event.step}${sure}`;
    }
    this.show("steps", `${event.step} of ${this.total}`);
    this.show("seconds", event.seconds.toFixed(2));
    this.show("flops", shortened(event.flops));
    this.show("length", `${event.computed_tokens} of ${event.sequence_length}`);
  }

  pruned(event) {
    this.kept = event.images[0]?.views;
    const share = `${event.kept} of ${this.visual}`;
    this.show("visual", share);
    const text = `Step ${event.step} left ${share} visual tokens; the others are dark.`;
    this.find(".pruning").textContent = text;
    this.draw();
  }

  end(event) {
    this.element.querySelectorAll(".now").forEach((t) => t.classList.remove("now"));
    this.tokens.slice(event.answer_tokens).forEach((t) => t.classList.add("outside"));
    this.show("steps", String(event.steps));
    this.show("seconds", event.seconds.toFixed(2));
    this.show("flops", shortened(event.flops.total));
  }

  /** The picture, dark where no patch of the chosen view is left. */
  draw() {
    if (this.picture === null || !this.imageSize) {
      return;
    }
    const canvas = this.find("canvas");
    const [width, height] = this.imageSize;
    const scale = Math.max(1, Math.round(384 / Math.max(width, height)));
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.picture, 0, 0, canvas.width, canvas.height);
    const name = this.find(".picture select").value;
    const grid = this.grids[name];
    if (this.kept && grid) {
      const left = new Set(this.kept[name].map(([row, column]) => `${row},${column}`));
      pen.fillStyle = DIMMED;
      grid.y.slice(1).forEach((bottom, row) => {
        grid.x.slice(1).forEach((right, column) => {
          if (!left.has(`${row},${column}`)) {
            const [x, y] = [grid.x[column], grid.y[row]].map((v) => Math.round(v * scale));
            const [x1, y1] = [right, bottom].map((v) => Math.round(v * scale));
            pen.fillRect(x, y, x1 - x, y1 - y);
          }
        });
      });
    }
    canvas.setAttribute("aria-label", `The picture. ${this.find(".pruning").textContent}`);
  }
}
