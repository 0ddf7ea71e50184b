"use strict";
// Nothing here is needed to read the page: marks tell their words without it, tables and legends stand as they are.

// --- words of the nearest mark under the pointer or the finger ------------------------------------
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
document.body.append(tip);
let shown = null;

function hide() {
  if (shown) { shown.classList.remove("on"); shown.closest(".thread")?.classList.remove("on"); }
  shown = null;
  tip.classList.remove("on");
}

function nearest(chart, event) {
  const box = chart.getBoundingClientRect();
  const scale = box.width / chart.viewBox.baseVal.width;
  let best = null, least = 40;
  for (const mark of chart.querySelectorAll(".mark")) {
    if (mark.closest(".off")) continue;
    const x = box.left + mark.dataset.x * scale, y = box.top + mark.dataset.y * scale;
    const distance = Math.hypot(x - event.clientX, y - event.clientY);
    if (distance < least) { least = distance; best = { mark, x, y }; }
  }
  return best;
}

function show(chart, event) {
  const found = nearest(chart, event);
  if (!found) { hide(); return; }
  if (found.mark === shown) return;
  hide();
  shown = found.mark;
  shown.classList.add("on");
  shown.closest(".thread")?.classList.add("on");
  tip.textContent = shown.dataset.text;
  tip.classList.add("on");
  const left = Math.min(Math.max(found.x - tip.offsetWidth / 2, 6), document.documentElement.clientWidth - tip.offsetWidth - 6);
  const above = found.y - tip.offsetHeight - 12;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(above > 0 ? above : found.y + 14) + window.scrollY}px`;
}

for (const chart of document.querySelectorAll("svg.chart")) {
  // The script's words replace the browser's own, which would appear a second time.
  for (const mark of chart.querySelectorAll(".mark")) {
    const title = mark.querySelector("title");
    mark.dataset.text = title.textContent;
    title.remove();
  }
  chart.addEventListener("pointermove", (event) => show(chart, event));
  chart.addEventListener("pointerdown", (event) => show(chart, event));
  chart.addEventListener("pointerleave", hide);
}

// --- tables: sorted by a column, filtered by text -------------------------------------------------
function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const value = text === "" || text === "–" ? NaN : Number(text.replace("%", "").replace("−", "-"));
  return { text: text === "–" || text === "inf" || text === "nan" ? "" : text, value };
}

function order(rows, column, descending) {
  const keys = new Map(rows.map((row) => [row, key(row, column)]));
  const known = rows.filter((row) => keys.get(row).text !== "");
  const numeric = known.every((row) => Number.isFinite(keys.get(row).value));
  const compare = (a, b) => numeric
    ? keys.get(a).value - keys.get(b).value
    : keys.get(a).text.localeCompare(keys.get(b).text, "en", { numeric: true });
  known.sort((a, b) => (descending ? -1 : 1) * compare(a, b));
  // What has no value stands last either way.
  return [...known, ...rows.filter((row) => keys.get(row).text === "")];
}

function makeSortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], given = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      body.append(...(next === "none" ? given : order(given, column, next === "descending")));
    });
  });
}

function makeFilterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 6) return;
  const line = document.createElement("p"), label = document.createElement("label");
  const field = document.createElement("input"), count = document.createElement("span");
  line.className = "filter";
  field.type = "search";
  label.append("Filter rows ", field);
  count.setAttribute("role", "status");
  line.append(label, count);
  (table.parentElement.classList.contains("scroll") ? table.parentElement : table).before(line);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${left} of ${rows.length} rows` : "";
  });
}

for (const table of document.querySelectorAll("table.filterable")) makeFilterable(table);
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);

// --- legends: each name shows or hides its series -------------------------------------------------
for (const legend of document.querySelectorAll("figure > .legend")) {
  const items = [...legend.querySelectorAll("li[data-name]")];
  if (items.length < 2) continue;
  for (const item of items) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...item.childNodes);
    button.setAttribute("aria-pressed", "true");
    item.append(button);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const series of legend.parentElement.querySelectorAll(".series[data-name]")) {
        if (series.dataset.name === item.dataset.name) series.classList.toggle("off", !on);
      }
    });
  }
}
