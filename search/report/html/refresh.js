// Reads the page again while its search runs, and keeps where the reader is: scrolling, focus, opened details, zoom.

const KEY = `skipsearch ${location.pathname}`;
const refresh = document.getElementById("refresh");

function remembered() {
  try { return JSON.parse(sessionStorage.getItem(KEY)) || {}; } catch { return {}; }
}

function anchor() {
  const seen = [...document.querySelectorAll("main [id]")].filter(one => one.getBoundingClientRect().height);
  return seen.find(one => one.getBoundingClientRect().top >= 0) || seen.at(-1);
}

function focusPath() {
  const active = document.activeElement;
  if (active?.dataset?.key) return { plot: active.closest(".js-plotly-plot").id, key: active.dataset.key };
  if (active?.dataset?.copy) return { query: `[data-copy="${CSS.escape(active.dataset.copy)}"]` };
  if (active?.matches?.("details[id] > summary")) return { query: `#${CSS.escape(active.parentElement.id)} > summary` };
  if (active?.id) return { query: `#${CSS.escape(active.id)}` };
  const link = active?.getAttribute?.("href");
  return link ? { query: `a[href="${CSS.escape(link)}"]` } : null;
}

function remember() {
  const element = anchor();
  const zoom = Object.fromEntries(plots().filter(plot => !plot.layout.xaxis.autorange)
    .map(plot => [plot.id, [plot.layout.xaxis.range, plot.layout.yaxis.range]]));
  const state = {
    anchor: element?.id, top: element?.getBoundingClientRect().top,
    sideways: [...document.querySelectorAll(".scroll")].map(one => one.scrollLeft),
    open: [...document.querySelectorAll("details[open][id]")].map(one => one.id),
    refresh: refresh ? refresh.checked : true, focus: focusPath(), zoom,
  };
  try { sessionStorage.setItem(KEY, JSON.stringify(state)); } catch { /* a browser without storage for files */ }
}

function scrollBack(state) {
  const element = document.getElementById(state.anchor);
  if (element) scrollBy({ top: element.getBoundingClientRect().top - state.top, behavior: "instant" });
}

async function restore(state) {
  for (const name of state.open || []) document.getElementById(name)?.setAttribute("open", "");
  for (const [name, [x, y]] of Object.entries(state.zoom || {})) {
    const plot = document.getElementById(name);
    if (plot) await Plotly.relayout(plot, { "xaxis.range": x, "yaxis.range": y });
  }
  document.querySelectorAll(".scroll").forEach((one, place) => { one.scrollLeft = (state.sideways || [])[place] || 0; });
  const focus = state.focus;
  const focused = focus && document.querySelector(focus.query || `#${CSS.escape(focus.plot)} [data-key="${focus.key}"]`);
  if (focused) focused.focus({ preventScroll: true });
  scrollBack(state);
}

function sayAge() {
  const age = document.getElementById("age");
  const minutes = Math.floor((Date.now() - Date.parse(age.dataset.written)) / 60000);
  if (minutes < 15) age.textContent = minutes < 1 ? "Written just now." : `Written ${minutes} min ago.`;
  else age.textContent = `Written ${minutes} min ago: a trial takes long, or the search was killed.`;
}

function reloadWhenDue() {
  if (!refresh.checked) return;
  if (document.hidden || !getSelection().isCollapsed) setTimeout(reloadWhenDue, 2000);
  else location.reload();
}

addEventListener("pagehide", remember);
if (performance.getEntriesByType("navigation")[0]?.type === "reload") {
  const state = remembered();
  if (refresh) refresh.checked = state.refresh !== false;
  if (state.anchor) {
    history.scrollRestoration = "manual";
    restore(state);
    // The browser scrolls to the fragment once more when it has loaded the page.
    addEventListener("load", () => setTimeout(() => scrollBack(state)));
  }
}
if (refresh) {
  document.getElementById("refreshing").classList.remove("hide");
  let timer = setTimeout(reloadWhenDue, 1000 * refresh.dataset.seconds);
  refresh.addEventListener("change", () => {
    clearTimeout(timer);
    timer = setTimeout(reloadWhenDue, 1000 * refresh.dataset.seconds);
  });
  sayAge();
  setInterval(sayAge, 10000);
}
