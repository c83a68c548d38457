"use strict";
(() => {
  const chart = document.querySelector(".chart"), readout = document.getElementById("readout");
  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.onclick = () => navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent)
      .then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Select and copy"; });
  }
  if (!chart || !readout) return;
  const from = Number(chart.dataset.from), until = Number(chart.dataset.until), plain = "Values stand here while the pointer is on a chart. Drag to zoom, double-click to see all.";
  readout.textContent = plain;
  for (const title of chart.querySelectorAll("rect > title")) {
    title.parentNode.dataset.words = title.textContent;
    title.remove();
  }
  const mark = name => { const div = document.createElement("div"); div.className = name; div.hidden = true; chart.append(div); return div; };
  const cross = mark("cross"), pick = mark("pick");
  let zoom = 1, shift = 0, begun = null;
  const view = () => chart.querySelector(".view").getBoundingClientRect();
  const part = event => { const box = view(); return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)); };
  const whole = at => shift + at / zoom;
  const left = at => { const box = view(); return box.left - chart.getBoundingClientRect().left + chart.scrollLeft + at * box.width; };
  const apply = () => { chart.style.setProperty("--zoom", zoom); chart.style.setProperty("--shift", shift); };
  chart.onpointermove = event => {
    const at = part(event), words = event.target.dataset && event.target.dataset.words;
    cross.hidden = false;
    cross.style.left = left(at) + "px";
    readout.textContent = ((from + whole(at) * (until - from)) / 1000).toFixed(2) + " s" + (words ? "  |  " + words : "");
    if (begun === null) return;
    pick.hidden = false;
    pick.style.left = left(Math.min(begun, at)) + "px";
    pick.style.width = Math.abs(at - begun) * view().width + "px";
  };
  chart.onpointerleave = () => { cross.hidden = pick.hidden = true; begun = null; readout.textContent = plain; };
  chart.onpointerdown = event => { if (event.button === 0 && event.clientX >= view().left) { begun = part(event); event.preventDefault(); } };
  chart.onpointerup = event => {
    const end = part(event), low = Math.min(begun, end), high = Math.max(begun, end);
    pick.hidden = true;
    if (begun !== null && high - low > 0.01 && zoom / (high - low) < 500) {
      shift = whole(low);
      zoom /= high - low;
      apply();
    }
    begun = null;
  };
  chart.ondblclick = () => { zoom = 1; shift = 0; apply(); };
})();
