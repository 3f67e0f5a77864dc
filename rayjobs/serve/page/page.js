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
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hourCycle: "h23" });

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

const PATIENCE_MS = 5000; // a connection that stays open without an answer, as of a broken tunnel

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
  document.body.classList.toggle("silent", !now.alive);
  // No decision of the last 15 minutes: what is shown, if anything, is older.
  if (!now.groups) return;
  write(at("source"), now.source);
  // In shadow nothing of it is in force: grey.
  dress(at("source"), `tag ${now.mode === "shadow" ? "hold" : now.source}`);
  write(at("reason"), now.reason);
  facts(now);
  write(at("meaning"), now.meaning);
  each(at("alarms"), now.alarms, () => {
    const item = element("li");
    item.append(element("span"), element("code"));
    return item;
  }, (item, alarm) => {
    write(item.firstElementChild, alarm.text);
    write(item.lastElementChild, alarm.command);
  });
  for (const button of document.querySelectorAll("[data-mode]"))
    button.setAttribute("aria-pressed", button.dataset.mode === now.mode);
  for (const button of document.querySelectorAll("[data-override]"))
    button.setAttribute("aria-pressed", button.dataset.override === now.override);
  at("percent").placeholder = number(now.canary_percent, 0);
  each(at("guards"), now.guards, () => element("li"), light);
  admission(now.admission);
  holding(now.holding);
  states(now.states);
  now.groups.forEach(group);
}

function facts(now) {
  const before = now.reference.windows ? `; ${number(now.reference.art, 3)} under the baseline` : "";
  const data_s = now.data_time === null ? null : Math.max(now.time - now.data_time, 0);
  const rows = [
    ["Mode", now.mode + (now.mode === "canary" ? ` ${now.canary_percent} %` : "")],
    ["Lateness (ART)", `${number(now.art, 3)} per request${before}`],
    ["Failed requests", percent(now.errors, 2)],
    ["Age of the data", data_s === null ? "no usable statistics yet" : `${number(data_s, 0)} s`],
    ["Last decision", `${clock(now.decided)}, took ${number(now.latency_ms.total)} ms`],
    ["Advice from", now.by || "–"],
  ];
  const cells = rows.flatMap(([name, value]) => [["dt", name], ["dd", value]]);
  each(at("facts"), cells, ([tag]) => element(tag), (node, [, text]) => write(node, text));
}

function admission(found) {
  at("admission").hidden = !found;
  if (!found) return;
  write(at("admission-rule"), `${found.rule}, ${number(found.percent, 0)} %`);
  dress(at("admission-rule"), `tag ${found.percent > 0 ? "policy" : "hold"}`);
  write(at("admission-reason"), found.reason);
  each(at("admission-groups"), found.groups, () => {
    const line = element("tr", undefined, { role: "row" });
    const cells = Array.from({ length: 6 }, () => element("td", "", { role: "cell" }));
    line.append(element("th", "", { scope: "row", role: "rowheader" }), ...cells);
    return line;
  }, (line, group) => {
    const texts = [
      group.name, number(group.rate_rps), percent(group.refused_share, 2), percent(group.spared_share, 2),
      percent(group.late_share, 2), String(group.in_flight), group.limit === null ? "none" : number(group.limit),
    ];
    texts.forEach((text, index) => write(line.children[index], text));
  });
  const sums = found.since_start;
  write(at("admission-sum"), `Since the controller started: ${sums.offered} requests, ${sums.refused} refused, ${sums.spared} let in `
    + `beyond the limit; ${sums.late} late, ${sums.late_beyond} of them while requests were beyond a limit.`);
}

function holding(found) {
  at("holding").hidden = !found;
  if (!found) return;
  write(at("holding-state"), found.state);
  dress(at("holding-state"), `tag ${found.holds ? "policy" : "hold"}`);
  const slots = found.slots.length ? `; slots ${found.slots.map((count) => count ?? "no limit").join(", ")}` : "";
  write(at("holding-reason"), `${found.reason}; order ${found.order}${slots}`);
  each(at("holding-groups"), found.groups, () => {
    const line = element("tr", undefined, { role: "row" });
    const cells = Array.from({ length: 8 }, () => element("td", "", { role: "cell" }));
    line.append(element("th", "", { scope: "row", role: "rowheader" }), ...cells);
    return line;
  }, (line, group) => {
    const texts = [
      group.name, number(group.rate_rps), percent(group.would_share, 2), percent(group.held_share, 2),
      number(group.hold_ms), number(group.hold_p99_ms), percent(group.refused_share, 2), percent(group.late_share, 2),
      String(group.in_line),
    ];
    texts.forEach((text, index) => write(line.children[index], text));
  });
  const sums = found.since_start;
  write(at("holding-sum"), `Since the controller started: ${sums.asked} requests, ${sums.held} held, ${sums.would} would have been, `
    + `${sums.refused} refused, ${sums.hopeless} refused as they would have been late, ${sums.gone} left while they were held; ${sums.late} late from arrival on.`);
}

function light(item, guard) {
  if (!item.firstChild) item.append(element("strong"), element("span"));
  dress(item, guard.speaks ? "on" : guard.count ? "" : "idle");
  write(item.firstChild, `${guard.name} ${guard.count}`);
  write(item.lastChild, (guard.speaks ? " acts now. " : " ") + guard.meaning);
}

function history(data) {
  const points = data.points;
  if (last && last.groups && points.length > 1) {
    last.groups.forEach((group, g) => charts(points, group, g));
    document.querySelectorAll("#states .strip").forEach((svg, s) => strip(svg, points, s));
    if (last.states.length) write(at("states-note"), `Strips: the state over the ${past(points)}, a colour per state.`);
  }
  if (last && last.groups) gain(last, data.gain);
  log(data.events);
}

function link(kind, text) {
  dress(at("link"), kind);
  write(at("link"), text);
}

// Not /v1/live/events: a stream is an ongoing request, by which Ray Serve scales and each replica has few.
async function look() {
  const answer = await fetch("/v1/live", { headers: authorization(), signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Error(answer.status === 401 ? "enter the token" : `status ${answer.status}`);
  show(await answer.json());
  document.documentElement.dataset.drawn = "true";
}

async function refreshHistory() {
  try {
    const answer = await fetch("/v1/history", { headers: authorization(), signal: AbortSignal.timeout(PATIENCE_MS) });
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
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const body = await answer.json();
  const then = body.controller ? "the controller applies it within one interval" : "no controller is running to apply it";
  at("answer").textContent = answer.ok ? `order written; ${then}` : body.detail;
}

async function forever() {
  for (;;) {
    try {
      await look();
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
