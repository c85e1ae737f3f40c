"use strict";
// Selects policies: the fragment of the address names the selected one, so that links, Back and a reload keep it.

const plots = () => [...document.querySelectorAll(".js-plotly-plot")];
const rowOf = name => document.getElementById(`trial-${name}`);
const selectedName = () => decodeURIComponent((/^#(?:trial|map)-(.+)$/.exec(location.hash) || [])[1] || "");

function markSelected() {
  const name = selectedName();
  for (const marked of document.querySelectorAll(".selected")) marked.classList.remove("selected");
  if (!name) return;
  for (const kind of ["trial", "map"]) document.getElementById(`${kind}-${name}`)?.classList.add("selected");
  for (const point of document.querySelectorAll(".point[data-name]")) {
    point.classList.toggle("selected", point.dataset.name === name);
  }
}

function openRow(name) {
  const row = rowOf(name);
  if (!row) return;
  location.hash = `trial-${name}`;
  const link = row.querySelector("a, summary") || row;
  if (link === row) row.setAttribute("tabindex", "-1");
  link.focus({ preventScroll: true });
}

// Points of a plot. All of them are one stop of the Tab key; arrow keys move between them, from left to right.

function pointsOf(plot) {
  const found = [];
  for (const trace of plot.querySelectorAll(".scatterlayer .trace")) {
    const number = trace.__data__?.[0]?.trace?.index;
    const data = plot.data[number];
    if (!data?.customdata) continue;
    for (const element of trace.querySelectorAll(".points path.point")) {
      const place = element.__data__.i;
      found.push({ element, curve: number, place, name: String(data.customdata[place]), text: data.hovertext[place], x: data.x[place] });
    }
  }
  return found.sort((one, other) => one.x - other.x);
}

function plainText(html) {
  const lines = html.split("<br>").filter(line => line);
  return new DOMParser().parseFromString(lines.join("; "), "text/html").body.textContent;
}

function prepare(plot) {
  const points = pointsOf(plot);
  const first = points.find(point => point.name === selectedName()) || points.find(point => rowOf(point.name)) || points[0];
  for (const point of points) {
    const element = point.element;
    element.dataset.name = point.name;
    element.dataset.key = `${point.curve}-${point.place}`;
    element.setAttribute("role", rowOf(point.name) ? "link" : "img");
    element.setAttribute("aria-label", plainText(point.text));
    element.setAttribute("tabindex", point === first ? "0" : "-1");
  }
  markSelected();
}

function show(plot, point) {
  const axes = point.element.closest(".subplot")?.classList[1] || "xy";
  Plotly.Fx.hover(plot, [{ curveNumber: point.curve, pointNumber: point.place }], axes);
}

function move(plot, element, step) {
  const points = pointsOf(plot);
  const place = points.findIndex(point => point.element === element);
  const next = points[Math.min(points.length - 1, Math.max(0, step(place, points.length)))];
  element.setAttribute("tabindex", "-1");
  next.element.setAttribute("tabindex", "0");
  next.element.focus({ preventScroll: true });
}

const STEPS = {
  ArrowRight: place => place + 1, ArrowUp: place => place + 1,
  ArrowLeft: place => place - 1, ArrowDown: place => place - 1,
  Home: () => 0, End: (place, count) => count - 1,
};

for (const plot of plots()) {
  prepare(plot);
  plot.on("plotly_afterplot", () => prepare(plot));
  plot.on("plotly_click", event => openRow(String(event.points[0].customdata)));
  const cursor = style => { for (const layer of plot.querySelectorAll(".nsewdrag")) layer.style.cursor = style; };
  plot.on("plotly_hover", event => cursor(rowOf(String(event.points[0].customdata)) ? "pointer" : ""));
  plot.on("plotly_unhover", () => cursor(""));
  plot.addEventListener("focusin", event => {
    const point = pointsOf(plot).find(one => one.element === event.target);
    if (point) show(plot, point);
  });
  plot.addEventListener("focusout", () => Plotly.Fx.unhover(plot));
  plot.addEventListener("keydown", event => {
    if (!event.target.matches(".point")) return;
    if (event.key === "Enter") openRow(event.target.dataset.name);
    else if (STEPS[event.key]) move(plot, event.target, STEPS[event.key]);
    else return;
    event.preventDefault();
  });
}
addEventListener("hashchange", markSelected);
markSelected();

// Copies the text of an element. A page that was opened from a file may have no clipboard, so its text is selected.

async function copyText(button) {
  const source = document.getElementById(button.dataset.copy);
  let said = "copied";
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    getSelection().selectAllChildren(source);
    if (!document.execCommand("copy")) said = "press Ctrl+C";
  }
  button.textContent = said;
  document.getElementById("said").textContent = said;
  setTimeout(() => { button.textContent = "copy"; }, 2500);
}

addEventListener("click", event => {
  const button = event.target.closest("button[data-copy]");
  if (button) copyText(button);
});
