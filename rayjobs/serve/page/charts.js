// Charts of the live page as SVG: share and cluster of each server over time. Called by page.js.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 6;

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// A chart with a caption that names its axes.
function figure(id) {
  const made = element("figure");
  made.append(chart(id), element("figcaption", "", { id: `${id}-scale` }));
  return made;
}

function chart(id) {
  const made = shape("svg", { id, viewBox: "0 0 900 100", preserveAspectRatio: "none", role: "img" });
  const title = shape("title", {});
  // Before the history arrives: screen readers announce an image without a name as its file.
  title.textContent = "Chart, waiting for its history";
  made.append(title);
  return made;
}

const span_s = (points) => Math.max(points[points.length - 1].time - points[0].time, 60);
const across = (points) => {
  const end = points[points.length - 1].time, span = span_s(points);
  return (time) => 900 - (900 * (end - time)) / span;
};
const past = (points) => `the last ${number(span_s(points) / 60, 0)} min`;

function weights(svg, points, g, group) {
  const x = across(points);
  const shares = points.map((point) => {
    const sum = point.in_force[g].reduce((a, b) => a + b, 0);
    return point.in_force[g].map((weight) => weight / sum);
  });
  // The axis ends at the next tenth above the largest share, so that three servers near a third can be told apart.
  const top = Math.min(Math.ceil(10 * Math.max(...shares.flat()) + 0.01), 10) / 10;
  svg.querySelectorAll("polyline").forEach((line) => line.remove());
  for (let s = 0; s < shares[0].length; s += 1) {
    const steps = points.map((point, index) =>
      `${x(point.time).toFixed(1)},${(97 - (94 * shares[index][s]) / top).toFixed(1)}`);
    svg.append(shape("polyline", { points: steps.join(" "), class: `c${s % COLOURS}` }));
  }
  write(at(`${svg.id}-scale`), `Share of each server, 0 to ${number(100 * top, 0)} %, ${past(points)}`);
  write(svg.querySelector("title"), `Shares of ${group.name} over ${past(points)}, now ` +
    group.servers.map((server) => `${server.name} weight ${server.weight}`).join(", "));
}

function timeline(points) {
  const x = across(points);
  const rows = points.find((point) => point.cluster)?.cluster.length ?? 0;
  if (!at("states-chart")) at("timeline").append(figure("states-chart"));
  const svg = at("states-chart");
  svg.querySelectorAll("rect").forEach((rect) => rect.remove());
  for (let s = 0; s < rows; s += 1)
    for (const [from, to, cluster] of runs(points, s)) svg.append(shape("rect", {
      x: x(from).toFixed(1), width: Math.max(x(to) - x(from), 0.5).toFixed(1),
      y: (100 * s) / rows + 2, height: 100 / rows - 4, class: `c${cluster % COLOURS}`, "stroke-width": 0,
    }));
  write(at("states-chart-scale"), `A row per server, as below, ${past(points)}`);
  write(svg.querySelector("title"), `Cluster of each server over ${past(points)}, a row per server`);
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
