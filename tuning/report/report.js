// Draws the figures in the page's colours, again when the colour scheme or the width changes.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const NARROW_PX = 440;
  const SETTINGS = { responsive: true, displayModeBar: false };

  // "--name" or "--name@0.4" becomes the colour of that CSS variable.
  function colour(token) {
    const [name, opacity] = token.split("@");
    const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    if (opacity === undefined) return hex;
    const [red, green, blue] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${red},${green},${blue},${opacity})`;
  }

  function coloured(value) {
    if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, coloured(inner)]));
    }
    return value;
  }

  function merged(base, over) {
    const result = { ...base };
    for (const [name, value] of Object.entries(over)) {
      const nested = value && typeof value === "object" && !Array.isArray(value) && result[name];
      result[name] = nested ? merged(result[name], value) : value;
    }
    return result;
  }

  function axis() {
    return {
      gridcolor: "--grid", zeroline: false, linecolor: "--line", tickcolor: "--line", automargin: true,
      tickfont: { color: "--muted" }, title: { font: { color: "--muted", size: 12 }, standoff: 10 }, fixedrange: true,
    };
  }

  function layoutOf(figure, width) {
    const labels = (figure.layout.annotations || []).filter((one) => one.name === "end-label");
    const narrow = width < NARROW_PX;
    const longest = Math.max(0, ...labels.map((one) => one.text.replace(/<[^>]*>/g, "").length));
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "--ink" },
      margin: { l: 8, r: narrow && longest > 9 ? 8 : 14 + 7 * longest, t: 12, b: 8 },
      xaxis: { ...axis(), showgrid: false, ticks: "outside", ticklen: 4 }, yaxis: axis(),
      hoverlabel: { bgcolor: "--panel", bordercolor: "--line", font: { color: "--ink" } },
      hovermode: "x unified", showlegend: narrow && longest > 9,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: "--ink" } },
    };
    const layout = merged(base, figure.layout);
    if (narrow && longest > 9) layout.annotations = layout.annotations.filter((one) => one.name !== "end-label");
    return coloured(layout);
  }

  function draw(figure) {
    const element = document.getElementById(figure.name);
    if (element.offsetParent === null) return;
    const layout = layoutOf(figure, element.clientWidth);
    Plotly.react(element, coloured(figure.traces), layout, SETTINGS);
  }

  const drawAll = () => figures.forEach(draw);

  for (const tab of document.querySelectorAll('[role="tab"]')) {
    tab.addEventListener("click", () => {
      const tabs = [...tab.parentElement.children];
      const panels = [...tab.closest(".tabs").children].slice(1);
      tabs.forEach((one, i) => {
        one.setAttribute("aria-selected", String(one === tab));
        panels[i].hidden = one !== tab;
      });
      drawAll();
    });
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        // A page opened from a folder may not be allowed to: then selecting is what is left.
        window.getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
    });
  }

  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) drawAll();
    width = window.innerWidth;
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
  document.documentElement.dataset.drawn = "true";
})();
