// Parts of the live page: groups with their servers, states, the gain, changes and alarms. Called by page.js.
"use strict";

const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);

// An element with a colour key before its text.
function keyed(tag, attributes) {
  const made = element(tag, undefined, attributes), patch = element("span", undefined, { class: "key", "aria-hidden": "true" });
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
    const charts = element("div", undefined, { class: "charts" });
    charts.append(...["shares", "times", "late"].map((kind) => figure(`${kind}-${now.name}`)));
    box.append(scroll, charts);
    at("groups").append(box);
  }
  write(box.querySelector("caption strong"), now.request_type);
  write(box.querySelector("caption span"), ` ${number(now.rate_rps, 0)} requests/s, p50 ${number(now.p50_ms)} ms, ` +
    `p99 ${number(now.p99_ms)} ms, deadline ${number(now.deadline_ms)} ms, ${percent(now.late_share)} late` +
    (now.from_arrival ? "; from arrival, hold included; servers: without it" : ""));
  each(box.querySelector("tbody"), now.servers, row, (made, server) => fill(made, server, now.deadline_ms));
}

const COLUMNS = ["Server", "share set", "policy", "baseline", "req/s", "p50 ms", "p99 ms", "late", "errors"];

// Explicit roles: the phone layout shows rows as grids, which would hide the table from screen readers.
function table() {
  const made = element("table", undefined, { role: "table" });
  const caption = element("caption");
  caption.append(element("strong"), element("span"));
  const head = element("tr", undefined, { role: "row" });
  for (const name of COLUMNS) head.append(element("th", name, { scope: "col", role: "columnheader" }));
  const top = element("thead", undefined, { role: "rowgroup" });
  top.append(head);
  made.append(caption, top, element("tbody", undefined, { role: "rowgroup" }));
  return made;
}

function row(server, index) {
  const made = element("tr", undefined, { role: "row" });
  const name = keyed("th", { scope: "row", role: "rowheader" });
  name.querySelector("rect").setAttribute("class", `c${index % COLOURS}`);
  // Shares on one scale: the bar is in force, the tall mark is the policy's, the short one the baseline's.
  const bar = shape("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  bar.append(shape("rect", { class: `now c${index % COLOURS}`, y: 2, height: 6 }), shape("rect", { class: "wanted", y: 0, height: 10, width: 1 }),
    shape("rect", { class: "before", y: 6, height: 4, width: 1 }));
  name.append(bar);
  made.append(name);
  for (let cell = 1; cell < COLUMNS.length; cell += 1) made.append(element("td", "", { role: "cell" }));
  return made;
}

function fill(made, server, deadline_ms) {
  const silent = server.down || server.rate_rps === 0;
  made.dataset.server = server.name;
  dress(made, silent ? "silent" : "");
  write(made.cells[0].children[1], server.name + (server.down ? " (down)" : silent ? " (silent)" : ""));
  const [now, wanted, before] = made.querySelectorAll(".bar rect");
  now.setAttribute("width", 100 * server.share);
  wanted.setAttribute("x", 100 * (server.policy_share ?? -1));
  before.setAttribute("x", 100 * server.baseline_share);
  const late = server.p99_ms > deadline_ms;
  const cells = [
    [percent(server.share)], [percent(server.policy_share)], [percent(server.baseline_share)], [number(server.rate_rps, 0)],
    [number(server.p50_ms)], [number(server.p99_ms), late], [percent(server.late_share)], [server.errors, server.errors > 0],
  ];
  cells.forEach(([text, bad], index) => {
    dress(made.cells[index + 1], bad ? "late" : "");
    write(made.cells[index + 1], text);
  });
}

function charts(points, group, g) {
  const shares = (name, s) => points.map((point) => (point[name] ? point[name][g][s] : null));
  const servers = group.servers.map((server) => server.index);
  const both = servers.flatMap((s, index) => [
    { values: shares("in_force", s), name: `c${index % COLOURS}` }, { values: shares("policy", s), name: `c${index % COLOURS} dashed` },
  ]);
  const top = Math.max(...both.flatMap(({ values }) => values.map((value) => value ?? 0)));
  plot(at(`shares-${group.name}`), points, {
    series: both.map(({ values, name }) => ({ values: values.map((value) => (value === null ? null : 100 * value)), name })),
    unit: "%", top: 100 * top, caption: "Share set for each server, %",
    legend: "Solid: in force. Dashed: what the policy wants. Colours as in the table.",
    title: `Shares set for ${group.name}: ` + group.servers.map((server) => `${server.name} ${percent(server.share)}`).join(", "),
  });
  const of = (name) => points.map((point) => point.groups[g][name]);
  plot(at(`times-${group.name}`), points, {
    series: [{ values: of("p50_ms"), name: "c0" }, { values: of("p99_ms"), name: "c1" }],
    unit: "ms", top: Math.max(...of("p99_ms"), 1), limit: group.deadline_ms,
    caption: group.from_arrival ? "Time from arrival, hold included, ms" : "Response time, ms",
    legend: `Blue: p50. Orange: p99. Red line: deadline, ${number(group.deadline_ms)} ms.`,
    title: `Response times of ${group.name}, now p50 ${number(group.p50_ms)} ms and p99 ${number(group.p99_ms)} ms`,
  });
  const late = of("late_share").map((share) => (share === null ? null : 100 * share));
  plot(at(`late-${group.name}`), points, {
    series: [{ values: late, name: "c1" }], unit: "%", top: Math.max(...late, 1), caption: "Late requests, %",
    legend: "Answered after the deadline.", title: `Late requests of ${group.name}, now ${percent(group.late_share)}`,
  });
}

function states(found) {
  each(at("states"), found, () => {
    const item = keyed("li");
    item.append(shape("svg", { class: "strip", viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" }));
    return item;
  }, (item, state) => {
    item.querySelector("rect").setAttribute("class", `c${state.cluster % COLOURS}`);
    write(item.children[1], `${state.server}: state ${state.cluster}, novelty ${number(state.novelty, 2)}` +
      (state.novelty > 1 ? " (novel)" : ""));
    dress(item.children[1], state.novelty > 1 ? "late" : "");
  });
  if (!found.length) write(at("states-note"), "No state is known: the last window could not be used.");
}

function gain(now, data) {
  const { predicted, measured } = data, lines = [["Predicted", prediction(predicted)], ["Measured here", measurement(measured, now)]];
  const moves = now.moves.map((move) => `${move.server} of ${move.group}: ${percent(move.from)} → ${percent(move.to)}`);
  lines.push(["It would change", moves.length ? moves.join("; ") : "nothing: it wants the shares that are in force."]);
  if (!at("gain").firstChild) at("gain").append(element("dl", undefined, { class: "words" }));
  each(at("gain").firstChild, lines.flatMap(([name, text]) => [["dt", name], ["dd", text]]), ([tag]) => element(tag),
    (node, [, text]) => write(node, text));
}

function prediction(found) {
  if (!found) return "The bundle holds no evaluation, so nothing is predicted.";
  const ratio = (name) => {
    const { ratio: value, interval } = found[name] ?? {};
    if (value === null || value === undefined) return null;
    return `${number(value, 2)} ×` + (interval ? ` (95 % interval ${number(interval[0], 2)} to ${number(interval[1], 2)})` : "");
  };
  const parts = [["mean response time", ratio("mean_ms")], ["p99", ratio("p99_ms")], ["late requests", ratio("miss_ratio")]];
  return parts.filter(([, text]) => text).map(([name, text]) => `${name} ${text}`).join(", ") +
    ` of ${found.reference}; ${found.testbed} test of the bundle, scenario ${found.scenario}, ${found.rounds} rounds.`;
}

function measurement({ policy, baseline }, now) {
  const side = (name, { windows, mean_ms, late_share }) =>
    `under the ${name} mean ${number(mean_ms)} ms, ${percent(late_share)} late (${windows} intervals)`;
  if (!policy.windows) {
    const why = now.mode === "shadow" ? "Shadow changes nothing, so its gain cannot be measured; canary would."
      : "The policy was not in force in the last 15 minutes.";
    return `${why} Now, ${side("baseline", baseline)}.`;
  }
  return `Last 15 minutes: ${side("policy", policy)}` + (baseline.windows ? `; ${side("baseline", baseline)}. ` : ". ") +
    "At different times, so the traffic may have differed.";
}

function log(events) {
  each(at("log"), events, () => {
    const item = element("li");
    item.append(element("time"), element("strong"), element("span"), element("code"));
    return item;
  }, (item, event) => {
    const [time, count, text, command] = item.children;
    dress(item, event.alarms.length ? "alarm" : "");
    write(time, event.count > 1 ? `${clock(event.first)} – ${clock(event.time)}` : clock(event.time));
    write(count, event.count > 1 ? `${event.count} × ` : "");
    write(text, words(event));
    write(command, [...new Set(event.alarms.map((alarm) => alarm.command))].join("; "));
  });
}

function words(event) {
  const more = event.alarms.map((alarm) => alarm.text).filter((text) => text !== event.reason);
  const done = event.changes ? `changed${event.changes > 1 ? ` ${event.changes} times` : ""}`
    : event.mode === "shadow" ? "would change" : "not changed";
  return `${event.alarms.length ? "ALARM " : ""}${event.source}: ${event.reason}${more.map((text) => `; ${text}`).join("")} (${done})`;
}
