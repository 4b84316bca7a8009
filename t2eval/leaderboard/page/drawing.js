// Pictures: lines with axes, bars, intervals; drawn as SVG, with colours from the style.
const CLASSES = 8;

function scale(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** Round numbers that divide a range into some four parts. */
function ticks(low, high, wanted = 4) {
  const span = high - low || 1;
  const raw = span / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) found.push(Number(tick.toPrecision(12)));
  return found;
}

/**
 * Lines over a common axis.
 * series: {name, points: [[x, y], …], thin, dots}; marks: {x, y, label}; level: a dashed horizontal line.
 */
function lines({ series, marks = [], level = null, label, xLabel, labels = null, width = 360, height = 210 }) {
  const points = series.flatMap((line) => line.points);
  const xs = points.map(([x]) => x);
  const ys = [...points.map(([, y]) => y), ...(level === null ? [] : [level])];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (high - low < 1e-9) [low, high] = [low - 0.05, high + 0.05];
  const room = (high - low) * 0.08;
  const x = scale(Math.min(...xs), Math.max(...xs), 46, width - 12);
  const y = scale(low - room, high + room, height - 34, 10);
  const parts = [];
  for (const tick of ticks(low - room, high + room)) {
    parts.push(svg("line", { x1: 46, x2: width - 12, y1: y(tick), y2: y(tick), class: "grid" }));
    parts.push(svg("text", { x: 41, y: y(tick) + 4, class: "tick end" }, String(tick)));
  }
  const across = labels ? unique(xs) : ticks(Math.min(...xs), Math.max(...xs), 4);
  for (const tick of across) {
    const anchor = tick === across.at(-1) && across.length > 1 && labels ? "end" : tick === across[0] && labels ? "" : "middle";
    parts.push(svg("text", { x: x(tick), y: height - 19, class: `tick ${anchor}` }, labels ? labels[tick] : String(tick)));
  }
  parts.push(svg("text", { x: (46 + width - 12) / 2, y: height - 4, class: "tick middle" }, xLabel));
  if (level !== null) parts.push(svg("line", { x1: 46, x2: width - 12, y1: y(level), y2: y(level), class: "level" }));
  series.forEach((line, number) => {
    const kind = `series c${(line.color ?? number) % CLASSES}`;
    const path = line.points.map(([px, py], place) => `${place ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
    parts.push(svg("path", { d: path, class: `${kind}${line.thin ? " thin" : ""}` }));
    if (line.dots) {
      for (const [px, py] of line.points) {
        parts.push(svg("circle", { cx: x(px), cy: y(py), r: 3, class: kind }, svg("title", {}, `${line.name}: ${fixed(py)}`)));
      }
    }
  });
  for (const mark of marks) {
    parts.push(svg("circle", { cx: x(mark.x), cy: y(mark.y), r: 6, class: "mark" }, svg("title", {}, mark.label)));
  }
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": label }, parts);
}

/** A bar of parts, each {value, kind}, over a longest sum. */
function bar(parts, longest) {
  let from = 0;
  const pieces = parts.map(({ value, kind }) => {
    const wide = longest > 0 ? (100 * value) / longest : 0;
    const piece = svg("rect", { x: from, y: 0, width: Math.max(0, wide), height: 10, class: kind });
    from += wide;
    return piece;
  });
  return svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "bar-line", "aria-hidden": "true" }, pieces);
}

/** A difference with its interval, on an axis of a given reach to both sides of zero. */
function interval(difference, low, high, reach) {
  const x = scale(-reach, reach, 2, 118);
  const kind = low !== null && low > 0 ? "up" : high !== null && high < 0 ? "down" : "even";
  return svg(
    "svg",
    { viewBox: "0 0 120 16", class: `interval ${kind}`, "aria-hidden": "true" },
    svg("line", { x1: x(0), x2: x(0), y1: 0, y2: 16, class: "zero" }),
    low === null ? null : svg("line", { x1: x(low), x2: x(high), y1: 8, y2: 8, class: "reach" }),
    svg("circle", { cx: x(difference), cy: 8, r: 3.5 }),
  );
}

/** What the colours of a picture mean. */
function legend(names) {
  return el(
    "ul",
    { class: "legend" },
    names.map((name, number) => el("li", {}, el("span", { class: `swatch c${number % CLASSES}`, "aria-hidden": "true" }), name)),
  );
}
