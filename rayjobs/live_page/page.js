// The live page: one stream of server-sent events, drawn as text and small SVGs. No library, no build.
"use strict";

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 6;
let last = null;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

function authorization() {
  const token = at("token").value.trim();
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function show(now) {
  last = now;
  document.body.dataset.version = now.version;
  link(now.alive ? "ok" : "lost", now.alive ? "live" : now.version ? "the controller is silent" : "no controller yet");
  if (!now.version) return;
  at("source").textContent = now.source;
  at("source").className = `tag ${now.source}`;
  at("reason").textContent = now.reason;
  facts(now);
  at("alarms").textContent = now.alarms.join(" · ");
  for (const button of document.querySelectorAll("[data-mode]"))
    button.setAttribute("aria-pressed", button.dataset.mode === now.mode);
  for (const button of document.querySelectorAll("[data-override]"))
    button.setAttribute("aria-pressed", button.dataset.override === now.override);
  at("guards").replaceChildren(...now.guards.map(light));
  at("states").replaceChildren(...now.states.map((state) =>
    element("li", `${state.server}: cluster ${state.cluster}, novelty ${number(state.novelty, 2)}` +
      (state.novelty > 1 ? " (never seen)" : ""))));
  groups(now.groups);
}

function facts(now) {
  const rows = [
    ["Mode", now.mode + (now.mode === "blend" ? ` ${now.blend_percent} %` : "")],
    ["Asked", now.by || "nobody"],
    ["Tardiness", `${number(now.art, 3)} per request (baseline ${number(now.reference.art, 3)})`],
    ["Errors", now.errors === null ? "–" : `${number(100 * now.errors, 2)} %`],
    ["Decided", `${clock(now.decided)}, in ${number(now.latency_ms.total)} ms`],
  ];
  at("facts").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function light(guard) {
  const item = element("li", `${guard.name} ${guard.count}`);
  item.className = guard.speaks ? "on" : "";
  item.append(element("span", guard.speaks ? " speaks now" : "", { class: "word" }));
  return item;
}

function groups(list) {
  for (const group of list) {
    let box = at(`group-${group.name}`);
    if (!box) {
      box = element("div", undefined, { class: "group", id: `group-${group.name}` });
      box.append(element("div", undefined, { class: "scroll", tabindex: 0, role: "region", "aria-label": group.name }), chart(`weights-${group.name}`));
      at("groups").append(box);
    }
    box.firstChild.replaceChildren(table(group));
  }
}

function chart(id) {
  const made = shape("svg", { id, viewBox: "0 0 900 100", preserveAspectRatio: "none", role: "img" });
  made.append(shape("title", {}));
  return made;
}

function table(group) {
  const made = element("table");
  const caption = element("caption");
  caption.append(element("strong", group.request_type), element("span",
    ` ${number(group.rate_rps, 0)} requests/s, p50 ${number(group.p50_ms)} ms, p99 ${number(group.p99_ms)} ms,` +
    ` deadline ${number(group.deadline_ms)} ms`));
  const head = element("tr");
  for (const name of ["Server", "weight", "req/s", "p50 ms", "p99 ms", "errors", "policy", "baseline"])
    head.append(element("th", name, { scope: "col" }));
  const body = element("tbody");
  group.servers.forEach((server, index) => body.append(row(group, server, index)));
  const top = element("thead");
  top.append(head);
  made.append(caption, top, body);
  return made;
}

function row(group, server, index) {
  const made = element("tr", undefined, { "data-server": server.name });
  if (server.down || server.rate_rps === 0) made.className = "silent";
  const name = element("td");
  const key = shape("svg", { viewBox: "0 0 1 1" });
  key.append(shape("rect", { width: 1, height: 1, class: `c${index % COLOURS}` }));
  const patch = element("span", undefined, { class: "key", "aria-hidden": "true" });
  patch.append(key);
  name.append(patch, server.name + (server.down ? " (down)" : server.rate_rps === 0 ? " (silent)" : ""));
  made.append(name);
  const late = server.p99_ms > group.deadline_ms;
  const cells = [
    [server.weight], [number(server.rate_rps, 0)], [number(server.p50_ms)],
    [number(server.p99_ms) + (late ? " late" : ""), late], [server.errors, server.errors > 0],
    [server.policy ?? "–"], [server.baseline],
  ];
  for (const [text, bad] of cells) made.append(element("td", text, bad ? { class: "late" } : {}));
  return made;
}

function history(data) {
  const points = data.points;
  if (last && last.groups && points.length > 1) {
    last.groups.forEach((group, g) => weights(at(`weights-${group.name}`), points, g, group));
    timeline(points);
  }
  at("log").replaceChildren(...data.decisions.reverse().map((entry) => {
    const item = element("li");
    const words = entry.alarms.length ? `ALARM ${entry.alarms.join(", ")}` : entry.applied ? "changed" : "would change";
    item.append(element("time", clock(entry.time)), `${entry.source}: ${entry.reason} (${words})`);
    return item;
  }));
}

const across = (points) => {
  const end = points[points.length - 1].time;
  const span = Math.max(end - points[0].time, 60);
  return (time) => 900 - (900 * (end - time)) / span;
};

function weights(svg, points, g, group) {
  const x = across(points);
  svg.querySelectorAll("polyline").forEach((line) => line.remove());
  const columns = points[0].in_force[g].length;
  for (let s = 0; s < columns; s += 1) {
    const steps = points.map((point) => {
      const sum = point.in_force[g].reduce((a, b) => a + b, 0);
      return `${x(point.time).toFixed(1)},${(96 - (92 * point.in_force[g][s]) / sum).toFixed(1)}`;
    });
    svg.append(shape("polyline", { points: steps.join(" "), class: `c${s % COLOURS}` }));
  }
  svg.querySelector("title").textContent = `Shares of ${group.name} over the last 15 minutes, now ` +
    group.servers.map((server) => `${server.name} weight ${server.weight}`).join(", ");
}

function timeline(points) {
  const x = across(points);
  const rows = points.find((point) => point.cluster)?.cluster.length ?? 0;
  let svg = at("states-chart");
  if (!svg) at("timeline").append(svg = chart("states-chart"));
  svg.querySelectorAll("rect").forEach((rect) => rect.remove());
  points.forEach((point, index) => {
    const next = points[index + 1];
    if (!point.cluster || !next) return;
    point.cluster.forEach((cluster, s) => svg.append(shape("rect", {
      x: x(point.time).toFixed(1), width: Math.max(x(next.time) - x(point.time), 0.5).toFixed(1),
      y: (100 * s) / rows + 2, height: 100 / rows - 4, class: `c${cluster % COLOURS}`, "stroke-width": 0,
    })));
  });
  svg.querySelector("title").textContent = "Cluster of each server over the last 15 minutes, a row per server";
}

function link(kind, text) {
  if (at("link").textContent === text) return;
  at("link").className = kind;
  at("link").textContent = text;
}

async function follow() {
  const answer = await fetch("/v1/live/events", { headers: authorization() });
  if (!answer.ok) throw new Error(answer.status === 401 ? "enter the token" : `status ${answer.status}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) show(JSON.parse(part.slice(6)));
    document.documentElement.dataset.drawn = "true";
  }
}

async function refreshHistory() {
  try {
    const answer = await fetch("/v1/history", { headers: authorization() });
    if (answer.ok) history(await answer.json());
  } catch (error) {
    link("lost", "no answer; trying again");
  }
}

async function order(button) {
  at("answer").textContent = "…";
  const answer = await fetch("/v1/orders", {
    method: "POST", headers: { "Content-Type": "application/json", ...authorization() }, body: button.dataset.order,
  });
  const body = await answer.json();
  at("answer").textContent = answer.ok ? "ordered; it takes effect with the next decision" : body.detail;
}

async function forever() {
  for (;;) {
    try {
      await follow();
    } catch (error) {
      link("lost", error.message === "enter the token" ? error.message : "no answer; trying again");
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

at("orders").addEventListener("submit", (event) => event.preventDefault());
for (const button of document.querySelectorAll("[data-order]"))
  button.addEventListener("click", () => order(button).catch(() => { at("answer").textContent = "no answer"; }));
forever();
refreshHistory();
setInterval(refreshHistory, 5000);
