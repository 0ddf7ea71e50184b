"use strict";
// Shows the words of the nearest mark under the pointer or the finger. Without it each mark still has its title.
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
document.body.append(tip);
let shown = null;

function hide() {
  if (shown) shown.classList.remove("on");
  shown = null;
  tip.classList.remove("on");
}

function nearest(chart, event) {
  const box = chart.getBoundingClientRect();
  const scale = box.width / chart.viewBox.baseVal.width;
  let best = null, least = 40;
  for (const mark of chart.querySelectorAll(".mark")) {
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
