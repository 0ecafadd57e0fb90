"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const length = data.tokens.length;
const byId = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
// weights[layer][head] is the lower triangle, row by row, of 255 times the square root of each weight
const weights = data.weights.map((layer) => layer.map(bytes));
const routes = data.routes.map((layer) => layer.experts.map(bytes));
const weight = (map, row, column) => (column > row ? 0 : (map[(row * (row + 1)) / 2 + column] / 255) ** 2);
const tokens = [...document.querySelectorAll(".token")];
const figures = [...document.querySelectorAll("figure")];
let chosen = Math.max(0, length - 2); // the token whose predictions are shown
let pointed = null; // {figure, row}
let pinned = null;

function share(value) {
  return (100 * value).toFixed(value < 0.0995 ? 1 : 0) + "%";
}

function sourceOf(figure) {
  const { layer, head } = figure.dataset;
  if (head === undefined) return { rows: routes[layer].length, value: (row, column) => routes[layer][row][column] };
  return { rows: length, value: (row, column) => weight(weights[layer][head], row, column) };
}

function draw(figure) {
  const canvas = figure.querySelector("canvas"), source = sourceOf(figure), context = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const [low, high] = [style.backgroundColor, style.color].map((colour) => colour.match(/[\d.]+/g).map(Number));
  const image = context.createImageData(length, source.rows);
  for (let row = 0; row < source.rows; row++)
    for (let column = 0; column < length; column++) {
      const part = Math.sqrt(source.value(row, column)), at = 4 * (row * length + column);
      for (let channel = 0; channel < 3; channel++)
        image.data[at + channel] = low[channel] + part * (high[channel] - low[channel]);
      image.data[at + 3] = 255;
    }
  context.putImageData(image, 0, 0);
}

function shade() {
  const focus = pointed || pinned;
  const source = focus && sourceOf(focus.figure);
  const marked = focus && focus.figure.dataset.head !== undefined ? focus.row : chosen;
  tokens.forEach((token, column) => {
    const part = source ? Math.sqrt(source.value(focus.row, column)) : data.shades[column];
    token.style.setProperty("--p", part.toFixed(3));
    token.style.setProperty("--c", source ? "var(--mark)" : "var(--hot)");
    token.classList.toggle("chosen", column === marked);
  });
  for (const figure of figures) {
    const line = figure.querySelector("i"), row = focus && focus.figure === figure ? focus.row : chosen;
    const rows = sourceOf(figure).rows, shown = figure.dataset.head !== undefined || (focus && focus.figure === figure);
    line.style.cssText = `display:${shown ? "block" : "none"};top:${(100 * row) / rows}%;height:${100 / rows}%`;
    figure.classList.toggle("pinned", Boolean(pinned) && pinned.figure === figure);
  }
  byId("status").textContent = focus ? describe(focus, source) : describeToken();
}

function describe(focus, source) {
  const { layer, head } = focus.figure.dataset;
  const columns = tokens.map((_, column) => column).filter((column) => source.value(focus.row, column) > 0);
  if (head === undefined) {
    const { index } = data.routes[layer];
    return `block ${index}, expert ${focus.row}: ${columns.length} of ${length} tokens`;
  }
  columns.sort((a, b) => source.value(focus.row, b) - source.value(focus.row, a));
  const listed = columns.slice(0, 4).map((c) => `“${data.tokens[c]}” (${c}) ${share(source.value(focus.row, c))}`);
  return `block ${data.layers[layer]}, ${focus.figure.dataset.name}, token ${focus.row} “${data.tokens[focus.row]}” reads ${listed.join(", ")}`;
}

function describeToken() {
  const loss = data.losses[chosen], next = data.tokens[chosen + 1];
  const parts = [`token ${chosen} “${data.tokens[chosen]}”`];
  if (loss !== null) parts.push(`loss ${loss.toFixed(2)}`);
  if (next !== undefined) parts.push(`next “${next}”, loss ${data.losses[chosen + 1].toFixed(2)}`);
  return parts.join(" · ");
}

function cell(row, tag, text) {
  const made = row.appendChild(document.createElement(tag));
  made.textContent = text;
  return made;
}

function showLens() {
  const table = byId("lens"), next = data.ids[chosen + 1];
  table.replaceChildren();
  const head = table.insertRow();
  for (const text of ["read after", "1st", "2nd", "3rd", "4th", "5th"].slice(0, 1 + data.lens[chosen][0].length)) cell(head, "th", text);
  data.lens[chosen].forEach((predictions, layer) => {
    const row = table.insertRow();
    cell(row, "th", layer ? `block ${layer - 1}` : "embedding");
    for (const [id, part] of predictions) {
      const made = cell(row, "td", data.words[id] + " ");
      cell(made, "small", share(part));
      made.style.setProperty("--p", part);
      made.classList.toggle("actual", id === next);
    }
  });
}

function choose(token) {
  chosen = Math.max(0, Math.min(length - 1, token));
  pinned = pinned && pinned.figure.dataset.head !== undefined ? { figure: pinned.figure, row: chosen } : pinned;
  shade();
  showLens();
}

function rowAt(event, figure) {
  const box = figure.querySelector(".map").getBoundingClientRect(), rows = sourceOf(figure).rows;
  return Math.max(0, Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows)));
}

tokens.forEach((token, column) => token.addEventListener("click", () => choose(column)));
byId("text").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) choose(chosen + step);
});
for (const figure of figures) {
  const map = figure.querySelector(".map");
  map.addEventListener("pointermove", (event) => {
    pointed = { figure, row: rowAt(event, figure) };
    shade();
  });
  map.addEventListener("pointerleave", () => {
    pointed = null;
    shade();
  });
  map.addEventListener("click", (event) => {
    const row = rowAt(event, figure), same = pinned && pinned.figure === figure && pinned.row === row;
    pinned = same ? null : { figure, row };
    pointed = null;
    if (figure.dataset.head === undefined) shade();
    else choose(row);
  });
}
const paint = () => figures.forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
paint();
choose(chosen);
