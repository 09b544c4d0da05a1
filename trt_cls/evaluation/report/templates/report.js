"use strict";
document.documentElement.classList.add("scripted");

const data = JSON.parse(document.getElementById("data").textContent);
const cells = new Map(data.cells.map((cell) => [`${cell[0]},${cell[1]}`, cell]));
const viewer = document.getElementById("viewer");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function percent(share) {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

function open(title, ...content) {
  document.getElementById("viewer-title").textContent = title;
  document.getElementById("viewer-content").replaceChildren(...content);
  if (!viewer.open) viewer.showModal();
  viewer.scrollTop = 0;
}

function picture([path, confidence, thumbnail]) {
  const frame = element("div", { className: "frame" });
  if (thumbnail) frame.append(element("img", { src: thumbnail, alt: "" }));
  const caption = element("figcaption", { title: path }, percent(confidence), element("small", { textContent: path }));
  return element("figure", {}, frame, caption);
}

function openCell(key) {
  const [truth, prediction, count, images] = cells.get(key);
  const right = truth === prediction;
  const title = right ? `${data.classes[truth]}, right` : `${data.classes[truth]}, taken for ${data.classes[prediction]}`;
  const order = right ? "the least sure first" : "the surest first";
  const shown = images.length === count ? `${count} images, ${order}` : `${images.length} of ${count} images, ${order}`;
  const seen = images.filter((image) => image[2]);
  const named = images.filter((image) => !image[2]);
  const content = [element("p", { textContent: count === 1 ? "1 image" : shown })];
  if (seen.length) content.push(element("div", { className: "pictures" }, ...seen.map(picture)));
  if (named.length) {
    const items = named.map(([path, confidence]) => element("li", { textContent: `${path} · ${percent(confidence)}` }));
    content.push(element("ul", {}, ...items));
  }
  open(title, ...content);
}

function cellLink(text, cell) {
  return element("button", { className: "link", textContent: text, onclick: () => openCell(`${cell[0]},${cell[1]}`) });
}

function confusions(heading, found, other) {
  const links = found.sort((a, b) => b[2] - a[2]).map((cell) => cellLink(`${data.classes[cell[other]]}: ${cell[2]}`, cell));
  const list = links.length
    ? element("ul", {}, ...links.map((link) => element("li", {}, link)))
    : element("p", { textContent: "nothing" });
  return element("div", {}, element("h3", { textContent: heading }), list);
}

function openClass(index) {
  const name = data.classes[index];
  const mistakes = data.cells.filter((cell) => cell[0] !== cell[1]);
  const right = cells.get(`${index},${index}`);
  const columns = element("div", { className: "two" },
    confusions(`${name} was taken for`, mistakes.filter((cell) => cell[0] === index), 1),
    confusions(`Taken for ${name}`, mistakes.filter((cell) => cell[1] === index), 0));
  open(name, right ? cellLink(`Right: ${right[2]}`, right) : "Never right", columns);
}

function sortBy(heading) {
  const table = heading.closest("table");
  const column = [...heading.parentNode.children].indexOf(heading);
  const numeric = heading.dataset.sort === "number";
  const before = heading.getAttribute("aria-sort");
  const direction = before ? (before === "ascending" ? "descending" : "ascending") : "ascending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column].textContent.trim(), row]);
  rows.sort(([a], [b]) => sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true })));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const heading of document.querySelectorAll("th[data-sort]")) {
  const button = element("button", { className: "sort", onclick: () => sortBy(heading) }, ...heading.childNodes);
  heading.append(button);
}

document.addEventListener("click", ({ target }) => {
  if (target === viewer) viewer.close();
  const button = target.closest("button");
  if (button?.dataset.cell) openCell(button.dataset.cell);
  if (button?.dataset.class) openClass(Number(button.dataset.class));
});
