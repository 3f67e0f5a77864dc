// Charts of the live page as SVG, drawn in pixels so that their text is never stretched. Called by parts.js.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 6;
const HEIGHT = 150, LEFT = 64, RIGHT = 8, TOP = 8, BOTTOM = 20;

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A chart under a heading that names what it shows and in which unit.
function figure(id) {
  const made = element("figure"), svg = shape("svg", { id, class: "chart", role: "img" });
  // Before the history arrives: screen readers announce an image without a name as its file.
  svg.append(shape("title", {}, "Chart, waiting for its history"));
  made.append(element("figcaption", "", { id: `${id}-scale` }), svg, element("p", "", { class: "legend", id: `${id}-legend` }));
  return made;
}

const clockShort = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const span_s = (points) => Math.max(points[points.length - 1].time - points[0].time, 60);
const past = (points) => `last ${number(span_s(points) / 60, 0)} min`;

// Round numbers from 0 to at least `top`, three to five of them.
function ticks(top) {
  const rough = Math.max(top, 1e-9) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  return Array.from({ length: Math.ceil(top / step - 1e-9) + 1 }, (_, index) => index * step);
}

// Full minutes (or 5, 15) within the time that is shown.
function times(points) {
  const end = points[points.length - 1].time, span = span_s(points);
  const step = span > 600 ? 300 : span > 150 ? 60 : 30, found = [];
  for (let at = Math.ceil((end - span) / step) * step; at <= end; at += step) found.push(at);
  return found.length > 6 ? found.filter((_, index) => index % 2 === 0) : found;
}

// Draws `series`, each {values, class}: one value per point, null where it is unknown.
function plot(svg, points, { series, unit, top, limit, title, caption, legend }) {
  const width = Math.max(svg.clientWidth || svg.parentNode.clientWidth, 220);
  const end = points[points.length - 1].time, span = span_s(points);
  const marks = ticks(top), highest = marks[marks.length - 1] || 1;
  const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (end - time) / span);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(value, highest) / highest);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  [...svg.children].forEach((child) => child.tagName === "title" || child.remove());
  for (const mark of marks) {
    svg.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark), class: "grid" }));
    svg.append(shape("text", { x: LEFT - 5, y: y(mark) + 4, "text-anchor": "end" },
      `${parseFloat(mark.toPrecision(6))}${mark === highest ? ` ${unit}` : ""}`));
  }
  for (const time of times(points)) {
    svg.append(shape("line", { x1: x(time), x2: x(time), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4, class: "grid" }));
    svg.append(shape("text", { x: Math.min(x(time), width - 20), y: HEIGHT - 4, "text-anchor": "middle" }, clockShort(time)));
  }
  if (limit !== undefined && limit <= highest)
    svg.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(limit), y2: y(limit), class: "limit" }));
  for (const { values, name } of series)
    for (const steps of pieces(values)) svg.append(shape("polyline", {
      points: steps.map((index) => `${x(points[index].time).toFixed(1)},${y(values[index]).toFixed(1)}`).join(" "), class: name,
    }));
  write(at(`${svg.id}-scale`), `${caption}, ${past(points)}`);
  write(at(`${svg.id}-legend`), legend);
  write(svg.querySelector("title"), title);
}

// Runs of indices whose values are known.
function pieces(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value === null || value === undefined) return;
    const last = found[found.length - 1];
    if (last && last[last.length - 1] === index - 1) last.push(index);
    else found.push([index]);
  });
  return found;
}

// Which state a server was in over time, as a strip.
function strip(svg, points, s) {
  const end = points[points.length - 1].time, span = span_s(points);
  const x = (time) => 1000 * (1 - (end - time) / span);
  [...svg.children].forEach((child) => child.remove());
  for (const [from, to, cluster] of runs(points, s)) svg.append(shape("rect", {
    x: x(from).toFixed(1), width: Math.max(x(to) - x(from), 1).toFixed(1), y: 0, height: 10,
    class: `c${cluster % COLOURS}`, "stroke-width": 0,
  }));
}

// Spans of time in which a server stayed in one cluster; none where the cluster is unknown.
function runs(points, s) {
  const found = [];
  points.slice(0, -1).forEach((point, index) => {
    if (!point.cluster) return;
    const before = found[found.length - 1], until = points[index + 1].time;
    if (before && before[1] === point.time && before[2] === point.cluster[s]) before[1] = until;
    else found.push([point.time, until, point.cluster[s]]);
  });
  return found;
}
