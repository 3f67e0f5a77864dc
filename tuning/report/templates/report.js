// Draws the figures in the page's colours, again when the colour scheme or the width changes.
"use strict";
(() => {
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

  const AXIS = {
    gridcolor: "--grid", zeroline: false, linecolor: "--line", tickcolor: "--line", automargin: true,
    tickfont: { color: "--muted" }, title: { font: { color: "--muted", size: 12 }, standoff: 10 }, fixedrange: true,
  };
  // The plotly template of every page: fonts, lines and colours that a figure does not set itself.
  const TEMPLATE = {
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "--ink" },
      margin: { l: 8, r: 14, t: 12, b: 8 },
      colorway: [1, 2, 3, 4, 5, 6].map((number) => `--series-${number}`),
      xaxis: { ...AXIS, showgrid: false, ticks: "outside", ticklen: 4 }, yaxis: AXIS,
      hoverlabel: { bgcolor: "--panel", bordercolor: "--line", font: { color: "--ink" } },
      hovermode: "x unified", showlegend: false,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: "--ink" } },
    },
    data: {
      parcoords: [{ labelfont: { size: 13 }, tickfont: { color: "--muted" }, rangefont: { color: "rgba(0,0,0,0)" } }],
    },
  };

  // On a narrow screen a legend above the plot replaces long labels at the ends of the lines.
  function layoutOf(figure, width) {
    const annotations = figure.layout.annotations || [];
    const labels = annotations.filter((one) => one.name === "end-label");
    const longest = Math.max(0, ...labels.map((one) => one.text.replace(/<[^>]*>/g, "").length));
    const template = structuredClone(TEMPLATE);
    if (width >= NARROW_PX || longest <= 9) {
      template.layout.margin.r += 7 * longest;
      return { ...figure.layout, template };
    }
    template.layout.showlegend = true;
    template.layout.margin.r = 8;
    return { ...figure.layout, template, annotations: annotations.filter((one) => one.name !== "end-label") };
  }

  function draw(element) {
    if (element.offsetParent === null) return;
    const figure = JSON.parse(element.querySelector("script").textContent);
    Plotly.react(element, coloured(figure.traces), coloured(layoutOf(figure, element.clientWidth)), SETTINGS);
  }

  const drawAll = () => document.querySelectorAll(".figure").forEach(draw);

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
        // A page opened from a folder may not write to the clipboard; the user copies the selection instead.
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
