// Draw the spread of each score: a point an image, a box (median, quartiles, whiskers) over the images that are shown.
// Pointing at a point, or the arrow keys, name the image and mark it in all plots; a click or Enter opens its report.
"use strict";
{
  const plots = [...document.querySelectorAll("canvas[data-score]")].map((canvas) => ({ canvas, score: data.scores[canvas.dataset.score] }));
  const tip = document.getElementById("tip");
  const margin = { left: 76, right: 12, top: 8, bottom: 22 }, rowHeight = 44, near = 14;
  let marked = -1;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const quantile = (sorted, share) => {
    const place = (sorted.length - 1) * share, below = Math.floor(place), above = Math.ceil(place);
    return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
  };
  const ticks = (low, high) => {
    const rough = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
    const digits = Math.max(0, -Math.floor(Math.log10(step)));
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push([at, at.toFixed(digits)]);
    return found;
  };
  const layOut = (plot) => {
    const { score, canvas } = plot;
    plot.rows = [["registered", score.values], ...(score.before ? [["affine only", score.before]] : [])];
    const all = plot.rows.flatMap(([, values]) => values.filter((value) => value !== null));
    let low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    const pad = (high - low) * 0.04 || Math.abs(high) * 0.05 || 1;
    [low, high] = [low - pad, high + pad];
    const width = canvas.clientWidth, height = margin.top + margin.bottom + rowHeight * plot.rows.length;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    canvas.style.height = height + "px";
    plot.x = (value) => margin.left + ((value - low) / (high - low)) * (width - margin.left - margin.right);
    plot.y = (row, at) => margin.top + rowHeight * (row + 0.5 + 0.55 * ((((at + 1) * 0.618034) % 1) - 0.5)); // golden ratio: apart
    Object.assign(plot, { width, height, low, high });
  };
  const draw = (plot) => {
    const { canvas, score, rows, x, y, width, height } = plot;
    const pen = canvas.getContext("2d");
    const [ink, soft, line, accent, bad] = ["ink", "soft", "line", "accent", "bad"].map(colour);
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    for (const [value, text] of ticks(plot.low, plot.high)) {
      pen.fillStyle = line;
      pen.fillRect(x(value), margin.top, 1, rowHeight * rows.length);
      pen.fillStyle = soft;
      pen.fillText(text, x(value), height - 6);
    }
    const dot = (value, row, at, size) => {
      pen.beginPath();
      pen.arc(x(value), y(row, at), size, 0, 7);
      pen.fill();
    };
    rows.forEach(([name, values], row) => {
      const tone = row ? soft : accent, middle = margin.top + rowHeight * (row + 0.5);
      pen.fillStyle = ink;
      pen.textAlign = "left";
      pen.fillText(name, 0, middle + 4);
      const sorted = values.filter((value, at) => value !== null && isShown[at]).sort((a, b) => a - b);
      pen.globalAlpha = 0.7;
      values.forEach((value, at) => {
        if (value === null || !isShown[at]) return;
        const isUnusual = !row && score.unusual.includes(at);
        pen.fillStyle = isUnusual ? bad : tone;
        dot(value, row, at, isUnusual ? 3.5 : 2.2);
      });
      pen.globalAlpha = 1;
      if (!sorted.length) return;
      const [first, median, third] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
      const inside = sorted.filter((value) => value >= first - 1.5 * (third - first) && value <= third + 1.5 * (third - first));
      pen.strokeStyle = tone;
      pen.strokeRect(x(first), middle - 14, x(third) - x(first), 28);
      pen.beginPath();
      for (const [from, to] of [[inside[0], first], [third, inside[inside.length - 1]]]) {
        pen.moveTo(x(from), middle);
        pen.lineTo(x(to), middle);
      }
      pen.stroke();
      pen.fillStyle = ink;
      pen.fillRect(x(median) - 1, middle - 14, 2, 28);
      if (marked >= 0 && values[marked] !== null && isShown[marked]) {
        pen.strokeStyle = ink;
        pen.lineWidth = 2;
        pen.fillStyle = !row && score.unusual.includes(marked) ? bad : tone;
        dot(values[marked], row, marked, 5);
        pen.stroke();
        pen.lineWidth = 1;
      }
    });
  };
  const drawAll = () => plots.forEach(draw);
  const mark = (plot, at) => {
    tip.hidden = at < 0;
    if (at === marked && at < 0) return;
    marked = at;
    requestAnimationFrame(drawAll);
    if (at < 0) return;
    tip.textContent = `${data.scans[at]}: ${plot.score.values[at]?.toFixed(plot.score.digits) ?? "n/a"}${data.verdicts[at] ? ", " + data.verdicts[at] : ""}`;
    const box = plot.canvas.getBoundingClientRect();
    const left = box.left + plot.x(plot.score.values[at] ?? plot.low), room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = Math.max(8, Math.min(left - tip.offsetWidth / 2, room)) + "px";
    tip.style.top = Math.max(4, box.top + margin.top - tip.offsetHeight - 2) + "px";
  };
  const nearest = (plot, event) => {
    const box = plot.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    let best = -1, least = near;
    plot.rows.forEach(([, values], row) => values.forEach((value, at) => {
      if (value === null || !isShown[at]) return;
      const distance = Math.hypot(plot.x(value) - px, plot.y(row, at) - py);
      if (distance < least) [best, least] = [at, distance];
    }));
    return best;
  };
  const open = (at) => { if (at >= 0 && data.links[at]) location.href = data.links[at]; };
  for (const plot of plots) {
    const { canvas, score } = plot;
    canvas.tabIndex = 0;
    canvas.addEventListener("pointermove", (event) => mark(plot, nearest(plot, event)));
    canvas.addEventListener("pointerleave", () => mark(plot, -1));
    canvas.addEventListener("blur", () => mark(plot, -1));
    canvas.addEventListener("click", (event) => open(nearest(plot, event)));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Enter") open(marked);
      if (!step) return;
      event.preventDefault();
      const order = [...score.values.keys()].filter((at) => score.values[at] !== null && isShown[at]);
      order.sort((a, b) => score.values[a] - score.values[b]);
      const place = order.indexOf(marked);
      mark(plot, order[place < 0 ? (step > 0 ? 0 : order.length - 1) : Math.max(0, Math.min(order.length - 1, place + step))] ?? -1);
    });
  }
  const again = () => { plots.forEach(layOut); drawAll(); };
  document.addEventListener("images", again);
  addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}
