// Keys, charts and remembered fields of the console. Every page can be read without this file.
"use strict";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const typing = (target) => target.closest("input, textarea, select, [contenteditable]") !== null;

// ---- keys

const PAGES = {
  o: "", t: "/turns", n: "/episodes", i: "/interactions", r: "/review", c: "/candidates", f: "/forecast", l: "/releases", p: "/privacy",
};
let gone = 0; // when `g` was pressed

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const key = event.key;
  if (Date.now() - gone < 1500 && key in PAGES) {
    location.href = "/console" + PAGES[key];
  } else if (key === "g") {
    gone = Date.now();
    return;
  } else if (key === "?") {
    document.getElementById("keys")?.showModal();
  } else if (key === "/") {
    document.querySelector("[data-search]")?.focus();
  } else if (key === "j" || key === "k") {
    move(key === "j" ? 1 : -1);
  } else if (key === "m" && document.activeElement.closest("li.marked")) {
    document.activeElement.closest("li.marked").querySelector("input").click();
  } else {
    const marked = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (!marked) return;
    const why = marked.form?.elements.why;
    if (marked.tagName === "SUMMARY") openCorrection(marked);
    else if (marked.value === "reject" && why && !why.value.trim()) rejectWith(why, marked);
    else marked.click();
  }
  gone = 0;
  event.preventDefault();
});

// Enter in a review's fields decides nothing by itself; after `x` it rejects with the reason that was written.
function rejectWith(why, button) {
  why.focus();
  why.onkeydown = (event) => {
    if (event.key !== "Enter" || event.isComposing || !why.value.trim()) return;
    event.preventDefault();
    button.click();
  };
}

function openCorrection(summary) {
  summary.parentElement.open = true;
  summary.parentElement.querySelector("textarea").focus();
}

function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")];
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(Math.max(at + step, 0), rows.length - 1)]?.focus();
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.submitter?.value === "reject" && form.elements.why && !form.elements.why.value.trim()) {
    event.preventDefault();
    form.elements.why.focus();
  }
});

for (const field of document.querySelectorAll("[data-remember]")) {
  const name = "afterword." + field.dataset.remember;
  field.value ||= localStorage.getItem(name) || "";
  field.addEventListener("change", () => localStorage.setItem(name, field.value));
}

// ---- charts

const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3]];
const colours = () => [css("--accent"), css("--bad"), css("--good"), css("--soft")];

function axes(values) {
  const look = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  return [{ ...look }, { ...look, size: 56, values }];
}

function plot(place, x, series, options) {
  const width = () => Math.max(place.clientWidth - 24, 200);
  const chart = new uPlot(
    {
      width: width(),
      height: options.height,
      axes: axes(options.values),
      scales: { x: { time: options.time }, y: options.y || {} },
      series: [{ label: options.label }].concat(
        series.map((one, i) => ({
          label: one.name, stroke: colours()[i % 4], dash: DASHES[i % 4], width: 2, spanGaps: false, points: { size: 5 },
          value: (_, v) => (v === null || v === undefined ? "–" : options.show(v)),
        })),
      ),
      hooks: { draw: [(u) => marks(u, options.marks || [])] },
    },
    [x, ...series.map((one) => one.y)],
    place,
  );
  new ResizeObserver(() => chart.setSize({ width: width(), height: options.height })).observe(place);
  return chart;
}

function marks(u, list) {
  const context = u.ctx;
  context.save();
  context.strokeStyle = css("--soft");
  context.setLineDash([3, 3]);
  for (const mark of list) {
    const x = u.valToPos(mark.x, "x", true);
    if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
    context.beginPath();
    context.moveTo(x, u.bbox.top);
    context.lineTo(x, u.bbox.top + u.bbox.height);
    context.stroke();
  }
  context.restore();
}

const percent = (v) => `${Math.round(100 * v)} %`;

function weeks(figure) {
  const data = JSON.parse(figure.dataset.chart);
  const place = document.createElement("div");
  place.className = "plot";
  figure.append(place);
  const names = { acceptance: "taken", correction: "corrected", retry: "retried", abandonment: "given up" };
  const series = Object.entries(data.series).map(([name, y]) => ({ name: names[name] || name, y }));
  plot(place, data.x, series, {
    height: 240, time: true, label: "week of", marks: data.marks, show: percent, y: { range: [0, 1] },
    values: (_, ticks) => ticks.map(percent),
  });
}

async function curves(place) {
  const answer = await fetch(place.dataset.curves, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(`the curves cannot be read (${answer.status})`);
  const data = await answer.json();
  if (!data.x.length) {
    place.replaceChildren(Object.assign(document.createElement("p"), { className: "dim", textContent: "No step yet." }));
    return data;
  }
  const box = document.createElement("div");
  box.className = "curves";
  place.replaceChildren(box);
  for (const alert of data.alerts) {
    const line = Object.assign(document.createElement("p"), { className: "notice bad" });
    line.textContent = `Step ${alert.step}: ${alert.says}`;
    place.prepend(line);
  }
  for (const one of data.curves) {
    if (one.y.every((v) => v === null)) continue;
    const part = document.createElement("div");
    const title = document.createElement("p");
    title.textContent = `${one.name}, step ${data.x.at(-1)} of ${data.steps}`;
    part.append(title);
    box.append(part);
    plot(part, data.x, [{ name: one.name, y: one.y }], {
      height: 180, time: false, label: "step", show: (v) => v.toPrecision(3),
    });
  }
  return data;
}

function show(place) {
  const again = Number(place.dataset.live || 0);
  curves(place)
    .catch((error) => {
      place.replaceChildren(Object.assign(document.createElement("p"), { className: "notice bad", textContent: String(error.message) }));
    })
    .then((data) => {
      if (again && data?.done) location.reload(); // its result is there now
    })
    .finally(() => {
      if (again) setTimeout(() => document.contains(place) && show(place), 1000 * again);
    });
}

document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

for (const place of document.querySelectorAll("[data-reload]")) {
  setTimeout(() => location.reload(), 1000 * Number(place.dataset.reload));
}

document.querySelectorAll("[data-chart]").forEach(weeks);
document.querySelectorAll("[data-curves]").forEach(show);

// ---- a part that cannot be loaded says so, and is asked for again

document.body.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  if (status === 401) location.reload();
});
document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status >= 400) event.detail.shouldSwap = event.detail.xhr.status !== 401;
});
