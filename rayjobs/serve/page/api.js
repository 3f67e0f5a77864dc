// The HTTP API as a page, made from openapi.json; no other resource is loaded.
"use strict";

const make = (tag, text, into) => {
  const element = document.createElement(tag);
  element.textContent = text;
  return into.appendChild(element);
};

const kind = (schema) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `list of ${kind(schema.items) || "anything"}`;
  if (schema.type === "object" && schema.additionalProperties) return `name → ${kind(schema.additionalProperties) || "anything"}`;
  return schema.type || "anything";
};

const table = (schema, into) => {
  const required = new Set(schema.required || []);
  const scroll = make("div", "", into);
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  const body = make("tbody", "", make("table", "", scroll));
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const row = make("tr", "", body);
    make("td", name + (required.has(name) ? "" : " (optional)"), row);
    make("td", kind(field), row);
  }
};

const shown = (schema, all, into, seen) => {
  const name = schema && schema.$ref && kind(schema);
  const found = name ? all[name] : schema;
  if (!found || seen.has(name)) return;
  if (name) {
    seen.add(name);
    make("h3", name, into);
    make("p", found.description || "", into);
  }
  if (found.properties) table(found, into);
  const inner = JSON.stringify(found.properties || found).match(/schemas\/\w+/g) || [];
  for (const part of new Set(inner)) shown({ $ref: `#/components/${part}` }, all, into, seen);
};

const draw = (document_) => {
  const into = document.getElementById("operations");
  const { schemas: all, securitySchemes: tokens } = document_.components;
  into.replaceChildren();
  for (const [path, methods] of Object.entries(document_.paths)) {
    for (const [method, about] of Object.entries(methods)) {
      const card = make("details", "", into);
      card.className = "card";
      make("summary", `${method.toUpperCase()} ${path}: ${about.description || about.summary}`, card);
      const needs = about.security.flatMap(Object.keys).map((role) => tokens[role].description);
      make("p", needs.length ? `It needs a bearer token. ${needs.join(", or: ")}.` : "It needs no token.", card);
      const answer = about.responses["200"];
      const parts = [["It takes", about.requestBody], ["It answers", answer]];
      for (const [title, part] of parts) {
        const schema = part && part.content && part.content["application/json"] && part.content["application/json"].schema;
        if (!schema || !Object.keys(schema).length) continue;
        make("h2", title, card);
        shown(schema, all, card, new Set());
      }
    }
  }
};

const read = async () => {
  const entry = document.getElementById("entry"), token = document.getElementById("token").value.trim();
  const answer = await fetch("/openapi.json", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  entry.hidden = entry.hidden && answer.status !== 401;
  if (answer.status === 401) throw new Error("enter the token");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  draw(await answer.json());
};

const attempt = () => read().catch((error) => {
  document.getElementById("operations").textContent = `openapi.json cannot be read: ${error.message}`;
});
document.getElementById("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt();
});
attempt();
