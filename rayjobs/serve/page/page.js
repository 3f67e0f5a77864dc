// The live page: one stream of server-sent events, drawn as text and by charts.js. No library, no build.
"use strict";

const at = (id) => document.getElementById(id);
let last = null;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

function authorization() {
  const token = at("token").value.trim();
  return token ? { Authorization: `Bearer ${token}` } : {};
}

// Writes only changed text, so that a screen reader's cursor and a selection keep their place.
function write(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

function dress(node, name) {
  if (node.className !== name) node.className = name;
}

// Makes `parent` have one child per item.
function each(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, index) => {
    if (!parent.children[index]) parent.append(make(item, index));
    fill(parent.children[index], item, index);
  });
}

function show(now) {
  last = now;
  document.body.dataset.version = now.version;
  link(now.alive ? "ok" : "lost", now.alive ? "live" : now.version ? "the controller is silent" : "no controller has run yet");
  if (!now.version) return;
  write(at("source"), now.source);
  dress(at("source"), `tag ${now.source}`);
  write(at("reason"), now.reason);
  facts(now);
  write(at("alarms"), now.alarms.join(" · "));
  for (const button of document.querySelectorAll("[data-mode]"))
    button.setAttribute("aria-pressed", button.dataset.mode === now.mode);
  for (const button of document.querySelectorAll("[data-override]"))
    button.setAttribute("aria-pressed", button.dataset.override === now.override);
  at("percent").placeholder = number(now.canary_percent, 0);
  each(at("guards"), now.guards, () => element("li"), light);
  each(at("states"), now.states, () => keyed("li"), (item, state) => {
    item.querySelector("rect").setAttribute("class", `c${state.cluster % COLOURS}`);
    write(item.lastElementChild, `${state.server}: cluster ${state.cluster}, novelty ${number(state.novelty, 2)}` +
      (state.novelty > 1 ? " (novel)" : ""));
  });
  now.groups.forEach(group);
}

function facts(now) {
  const rows = [
    ["Mode", now.mode + (now.mode === "canary" ? ` ${now.canary_percent} %` : "")],
    ["Requested by", now.by || "–"],
    ["Tardiness", `${number(now.art, 3)} per request (baseline ${number(now.reference.art, 3)})`],
    ["Errors", now.errors === null ? "–" : `${number(100 * now.errors, 2)} %`],
    ["Decided", `${clock(now.decided)}, in ${number(now.latency_ms.total)} ms`],
  ];
  const cells = rows.flatMap(([name, value]) => [["dt", name], ["dd", value]]);
  each(at("facts"), cells, ([tag]) => element(tag), (node, [, text]) => write(node, text));
}

function light(item, guard) {
  dress(item, guard.speaks ? "on" : "");
  write(item, `${guard.name} ${guard.count}`);
  if (guard.speaks) item.append(element("span", " active", { class: "aloud" }));
}

// An element with a colour key before its text.
function keyed(tag, attributes = {}) {
  const made = element(tag, undefined, attributes);
  const patch = element("span", undefined, { class: "key", "aria-hidden": "true" });
  const key = shape("svg", { viewBox: "0 0 1 1" });
  key.append(shape("rect", { width: 1, height: 1 }));
  patch.append(key);
  made.append(patch, element("span"));
  return made;
}

function group(now) {
  let box = at(`group-${now.name}`);
  if (!box) {
    box = element("div", undefined, { class: "group", id: `group-${now.name}` });
    const scroll = element("div", undefined,
      { class: "scroll", tabindex: 0, role: "region", "aria-label": `Servers of ${now.request_type}` });
    scroll.append(table());
    box.append(scroll, figure(`weights-${now.name}`));
    at("groups").append(box);
  }
  write(box.querySelector("caption strong"), now.request_type);
  write(box.querySelector("caption span"),
    ` ${number(now.rate_rps, 0)} requests/s, p50 ${number(now.p50_ms)} ms, p99 ${number(now.p99_ms)} ms,` +
    ` deadline ${number(now.deadline_ms)} ms`);
  each(box.querySelector("tbody"), now.servers, row, (made, server) => fill(made, server, now.deadline_ms));
}

// Explicit roles: the phone layout shows rows as grids, which would hide the table from screen readers.
function table() {
  const made = element("table", undefined, { role: "table" });
  const caption = element("caption");
  caption.append(element("strong"), element("span"));
  const head = element("tr", undefined, { role: "row" });
  for (const name of ["Server", "weight", "req/s", "p50 ms", "p99 ms", "errors", "policy", "baseline"])
    head.append(element("th", name, { scope: "col", role: "columnheader" }));
  const top = element("thead", undefined, { role: "rowgroup" });
  top.append(head);
  made.append(caption, top, element("tbody", undefined, { role: "rowgroup" }));
  return made;
}

function row(server, index) {
  const made = element("tr", undefined, { role: "row" });
  const name = keyed("th", { scope: "row", role: "rowheader" });
  name.querySelector("rect").setAttribute("class", `c${index % COLOURS}`);
  made.append(name);
  for (let cell = 0; cell < 7; cell += 1) made.append(element("td", "", { role: "cell" }));
  return made;
}

function fill(made, server, deadline_ms) {
  const silent = server.down || server.rate_rps === 0;
  made.dataset.server = server.name;
  dress(made, silent ? "silent" : "");
  write(made.cells[0].lastElementChild, server.name + (server.down ? " (down)" : silent ? " (silent)" : ""));
  const late = server.p99_ms > deadline_ms;
  const cells = [
    [server.weight], [number(server.rate_rps, 0)], [number(server.p50_ms)], [number(server.p99_ms), late],
    [server.errors, server.errors > 0], [server.policy ?? "–"], [server.baseline],
  ];
  cells.forEach(([text, bad], index) => {
    const cell = made.cells[index + 1];
    dress(cell, bad ? "late" : "");
    write(cell, index === 3 && late ? `${text} late` : text);
  });
}

function history(data) {
  const points = data.points;
  if (last && last.groups && points.length > 1) {
    last.groups.forEach((group, g) => weights(at(`weights-${group.name}`), points, g, group));
    timeline(points);
  }
  each(at("log"), data.decisions.reverse(), () => {
    const item = element("li");
    item.append(element("time"), element("span"));
    return item;
  }, (item, entry) => {
    write(item.firstElementChild, clock(entry.time));
    write(item.lastElementChild, `${entry.source}: ${entry.reason} (${words(entry)})`);
  });
}

function words(entry) {
  const more = entry.alarms.filter((alarm) => alarm !== entry.reason);
  const done = entry.applied ? "changed" : last && last.mode !== "shadow" ? "not changed" : "would change";
  return entry.alarms.length ? ["ALARM", ...more].join(" ") + (entry.applied ? ", changed" : "") : done;
}

function link(kind, text) {
  dress(at("link"), kind);
  write(at("link"), text);
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
  const wanted = JSON.parse(button.dataset.order), percent = at("percent").value;
  if (wanted.mode === "canary" && percent !== "") wanted.canary_percent = Number(percent);
  const answer = await fetch("/v1/orders", {
    method: "POST", headers: { "Content-Type": "application/json", ...authorization() }, body: JSON.stringify(wanted),
  });
  const body = await answer.json();
  at("answer").textContent = answer.ok ? "order written; the controller applies it within one interval" : body.detail;
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
