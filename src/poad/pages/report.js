// The curves of one run or several: hover, zoom, logarithms, smoothing, five kinds of x.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { element, drawn, known, choice } = poad;
  const byId = (id) => document.getElementById(id);
  // Okabe and Ito's colours, which all kinds of colour vision tell apart, darkened or lightened by theme.
  const LIGHT = ["#0072b2", "#b34a00", "#00785a", "#a3407c", "#7a6a00", "#2a7fa8", "#444444", "#8a5a2b"];
  const DARK = ["#56b4e9", "#f0944d", "#3fc79a", "#e08fc0", "#e5d44a", "#9ad3f5", "#c8c8c8", "#d0a070"];
  const DASHES = ["", "8 3", "12 3 3 3", "4 2"];
  const X = { env_steps: "environment steps", tokens: "tokens", wall_seconds: "wall seconds", cpu_seconds: "CPU seconds", iteration: "iterations" };
  const PAUSE = 2000; // milliseconds between two questions to a training
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const state = { x: "env_steps", log: false, smooth: 0, range: null, hidden: new Set(), at: null };
  const panels = [];

  const color = (r) => (dark.matches ? DARK : LIGHT)[r % LIGHT.length];
  const dash = (r) => DASHES[Math.floor(r / LIGHT.length + (data.runs.length > 1 ? r : 0)) % DASHES.length];
  /* Earlier runs are drawn wider and below later ones, so that curves that coincide show all colours. */
  const width = (r) => 1.8 + 1.7 * Math.min(3, data.runs.length - 1 - r);
  const short = (v) => {
    if (!known(v)) return "–";
    const size = Math.abs(v);
    for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (size >= unit) return `${Number((v / unit).toPrecision(3))}${letter}`;
    return String(Number(v.toPrecision(3))).replace("-", "−");
  };

  // Numbers.

  /* Exponential moving average, corrected for its start; what is unknown stays unknown. */
  function smoothed(values) {
    if (!state.smooth) return values;
    let sum = 0, weight = 0;
    return values.map((v) => {
      if (!known(v)) return null;
      sum = state.smooth * sum + (1 - state.smooth) * v;
      weight = state.smooth * weight + (1 - state.smooth);
      return sum / weight;
    });
  }
  function ticks(low, high, count) {
    const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
    const nice = [1, 2, 5, 10].map((k) => k * step).find((s) => (high - low) / s <= count) ?? step;
    const found = [];
    for (let v = Math.ceil(low / nice) * nice; v <= high + 1e-9 * nice && found.length < 99; v += nice) found.push(Math.abs(v) < 1e-12 ? 0 : v);
    return found;
  }
  const powers = (low, high) => {
    const found = [];
    for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) if (10 ** k >= low * 0.999 && 10 ** k <= high * 1.001) found.push(10 ** k);
    return found.length > 1 ? found : [low, high];
  };
  const shown = () => data.runs.map((_, r) => r).filter((r) => !state.hidden.has(r));
  const xs = (r) => data.runs[r].x[state.x] ?? [];

  // A panel.

  function panelOf(panel, size) {
    const readout = element("div", { class: "readout", "aria-live": "off" });
    const box = element("div", { class: "box" });
    const figure = element("figure", { class: "panel", "data-key": panel.key },
      element("figcaption", {}, panel.label, panel.note ? element("small", {}, panel.note) : ""), box, readout);
    const made = { panel, box, readout, size, figure };
    panels.push(made);
    return figure;
  }

  function draw(made) {
    const { panel, box, size } = made, runs = shown().filter((r) => data.runs[r].y[panel.key]);
    const W = Math.max(160, box.clientWidth), H = size === "large" ? 208 : 144;
    const left = 44, right = 10, top = 8, bottom = 22;
    const curves = runs.map((r) => ({ r, x: xs(r), raw: data.runs[r].y[panel.key], y: smoothed(data.runs[r].y[panel.key]) }));
    const dots = panel.key === "success" ? runs.flatMap((r) => dotsOf(r)) : [];
    const everyX = [...curves.flatMap((c) => c.x), ...dots.map((d) => d.x)].filter(known);
    const [from, to] = state.range ?? [0, Math.max(...everyX, 1e-9)];
    const log = state.log && !panel.limits;
    const inside = (c, k) => known(c.x[k]) && c.x[k] >= from && c.x[k] <= to && known(c.y[k]) && (!log || c.y[k] > 0);
    const values = curves.flatMap((c) => c.y.filter((_, k) => inside(c, k)));
    const svg = drawn("svg", { viewBox: `0 0 ${W} ${H}`, tabindex: 0, role: "img", "aria-label": `${panel.label} against ${X[state.x]}` });
    made.svg = svg;
    if (!values.length && !dots.length) {
      box.replaceChildren(element("p", { class: "soft" }, log ? "No value above 0 here." : "Nothing to draw yet."));
      made.readout.replaceChildren();
      made.svg = null;
      return;
    }
    let [low, high] = panel.limits ?? [Math.min(...values), Math.max(...values)];
    if (!panel.limits && !log) {
      const flat = high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high));  // but for rounding
      const room = flat ? Math.abs(high) * 0.1 || 1 : 0.05 * (high - low);
      low -= room;
      high += room;
    }
    if (log && low === high) { low /= 2; high *= 2; }
    const px = (v) => left + ((v - from) / (to - from || 1)) * (W - left - right);
    const share = (v) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
    const py = (v) => top + (1 - share(v)) * (H - top - bottom);
    for (const v of log ? powers(low, high) : ticks(low, high, size === "large" ? 5 : 4)) {
      svg.append(drawn("line", { class: "grid", x1: left, x2: W - right, y1: py(v), y2: py(v) }));
      svg.append(drawn("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, short(v)));
    }
    for (const v of ticks(from, to, Math.max(2, Math.floor(W / 90)))) svg.append(drawn("text", { x: px(v), y: H - 6, "text-anchor": "middle" }, short(v)));
    const clip = `clip-${panels.indexOf(made)}`;
    svg.append(drawn("clipPath", { id: clip }));
    svg.lastChild.append(drawn("rect", { x: left - 3, y: 0, width: W - left - right + 6, height: H - bottom + 4 }));
    const lines = drawn("g", { "clip-path": `url(#${clip})` });
    svg.append(lines);
    const path = (c, ys, first, last) => {
      let pen = "M", d = "";
      for (let k = first; k < last; k++) {
        if (!known(c.x[k]) || !known(ys[k]) || (log && ys[k] <= 0)) { pen = "M"; continue; }
        d += `${pen}${px(c.x[k]).toFixed(1)} ${py(ys[k]).toFixed(1)}`;
        pen = "L";
      }
      return d;
    };
    for (const c of curves) {
      const look = { stroke: color(c.r), "stroke-width": width(c.r), "stroke-linejoin": "round", "data-run": c.r };
      const early = panel.averaged ? data.runs[c.r].early : 0;
      if (state.smooth) lines.append(drawn("path", { ...look, d: path(c, c.raw, 0, c.raw.length), "stroke-width": 1, "stroke-opacity": 0.35 }));
      if (early) lines.append(drawn("path", { ...look, d: path(c, c.y, 0, Math.min(early + 1, c.y.length)), "stroke-dasharray": "1 4", class: "early" }));
      lines.append(drawn("path", { ...look, d: path(c, c.y, early, c.y.length), "stroke-dasharray": dash(c.r), class: "curve" }));
      const real = c.y.map((_, k) => k).filter((k) => inside(c, k));
      if (real.length < 3) for (const k of real) lines.append(drawn("circle", { cx: px(c.x[k]), cy: py(c.y[k]), r: 3, fill: color(c.r) }));
    }
    for (const d of dots) {
      lines.append(drawn("line", { x1: px(d.x), x2: px(d.x), y1: py(d.low), y2: py(d.high), stroke: color(d.r), "stroke-width": 1.6 }),
        drawn("circle", { class: "dot", cx: px(d.x), cy: py(d.y), r: 4, fill: color(d.r), stroke: "var(--card)" }));
    }
    made.cursor = drawn("line", { class: "cursor", x1: -99, x2: -99, y1: top, y2: H - bottom });
    made.zoom = drawn("rect", { class: "zoom", x: 0, y: top, width: 0, height: H - top - bottom });
    svg.append(made.cursor, made.zoom);
    Object.assign(made, { px, curves, from, to, left, W, right });
    box.replaceChildren(svg);
    listen(made);
    point(made);
  }
  function dotsOf(r) {
    const run = data.runs[r], x = xs(r);
    return run.evaluations.map((e) => ({ ...e, r, x: x[e.at] })).filter((e) => known(e.x));
  }

  // Pointing and zooming.

  function valueAt(made, event) {
    const box = made.svg.getBoundingClientRect(), scale = Math.min(box.width / made.W, box.height / Number(made.svg.getAttribute("viewBox").split(" ")[3]));
    const u = (event.clientX - box.left - (box.width - made.W * scale) / 2) / scale;
    const t = (u - made.left) / (made.W - made.left - made.right);
    return made.from + Math.min(1, Math.max(0, t)) * (made.to - made.from);
  }
  function listen(made) {
    const { svg } = made;
    let start = null;
    svg.addEventListener("pointerdown", (event) => { if (event.button === 0) start = valueAt(made, event); });
    svg.addEventListener("pointermove", (event) => {
      const here = valueAt(made, event);
      if (start !== null && event.pointerType === "mouse" && event.buttons) {
        const [a, b] = [made.px(Math.min(start, here)), made.px(Math.max(start, here))];
        made.zoom.setAttribute("x", a);
        made.zoom.setAttribute("width", b - a);
      }
      pointAll(here);
    });
    svg.addEventListener("pointerup", (event) => {
      const here = valueAt(made, event), begun = start;
      start = null;
      made.zoom.setAttribute("width", 0);
      if (begun !== null && event.pointerType === "mouse" && Math.abs(made.px(begun) - made.px(here)) > 8) {
        state.range = [Math.min(begun, here), Math.max(begun, here)];
        redraw();
      } else pointAll(here);
    });
    svg.addEventListener("pointerleave", () => { start = null; made.zoom.setAttribute("width", 0); });
    svg.addEventListener("dblclick", zoomOut);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") { zoomOut(); return; }
      if (!step || !made.curves.length) return;
      event.preventDefault();
      const places = made.curves[0].x.filter((v) => known(v) && v >= made.from && v <= made.to);
      const k = state.at === null ? (step > 0 ? -1 : places.length) : nearest(places, state.at);
      pointAll(places[Math.min(places.length - 1, Math.max(0, k + step))]);
    });
  }
  const nearest = (places, v) => places.reduce((best, x, k) => (known(x) && Math.abs(x - v) < Math.abs(places[best] - v) ? k : best), 0);
  function pointAll(value) { state.at = value; panels.forEach(point); }
  function point(made) {
    if (!made.svg || made.box.offsetParent === null) return;
    const at = state.at;
    if (at === null || at < made.from || at > made.to) {
      made.readout.replaceChildren(`${X[state.x]}: point at a curve`);
      made.cursor.setAttribute("x1", -99); made.cursor.setAttribute("x2", -99);
      return;
    }
    made.cursor.setAttribute("x1", made.px(at)); made.cursor.setAttribute("x2", made.px(at));
    const told = made.curves.map((c) => {
      const k = nearest(c.x, at), mark = element("b", {}, short(c.y[k]));
      mark.style.color = color(c.r);
      return [data.runs.length > 1 ? `${data.runs[c.r].name} ` : "", mark, "  "];
    });
    made.readout.replaceChildren(`${short(at)}: `, ...told.flat());
  }
  function zoomOut() { state.range = null; redraw(); }

  // The page.

  function redraw() {
    panels.forEach(draw);
    byId("zoom-out").hidden = state.range === null;
  }
  function swatch(r) {
    const svg = drawn("svg", { viewBox: "0 0 38 14", "aria-hidden": "true" });
    svg.append(drawn("line", { x1: 0, x2: 38, y1: 7, y2: 7, stroke: color(r), "stroke-width": Math.min(7, width(r)), "stroke-dasharray": dash(r) }));
    return svg;
  }
  function showRuns() {
    byId("runs").replaceChildren(...(data.runs.length < 2 ? [] : data.runs.map((run, r) => element("button", {
      type: "button", "data-run": r, "aria-pressed": !state.hidden.has(r),
      onclick: () => { if (!state.hidden.delete(r)) state.hidden.add(r); showRuns(); redraw(); },
    }, swatch(r), element("span", {}, run.name)))));
  }
  function showControls() {
    const offered = Object.fromEntries(Object.entries(X).filter(([key]) => data.runs.some((run) => (run.x[key] ?? []).some(known))));
    const out = element("output", {}, "0");
    byId("controls").replaceChildren(
      choice("By", "x", offered, state.x, (value) => { state.x = value; state.range = null; state.at = null; redraw(); }),
      element("label", {}, element("input", { type: "checkbox", id: "log", onchange: (event) => { state.log = event.target.checked; redraw(); } }), " logarithmic"),
      element("label", {}, "Smoothing ", element("input", {
        type: "range", id: "smooth", min: 0, max: 0.98, step: 0.02, value: 0,
        oninput: (event) => { state.smooth = Number(event.target.value); out.textContent = event.target.value; redraw(); },
      }), " ", out),
      element("button", { type: "button", id: "zoom-out", hidden: true, onclick: zoomOut }, "Zoom out"),
      element("span", { class: "soft" }, "Drag over a curve to zoom; arrow keys move the cursor."),
    );
  }
  function showPanels() {
    byId("curves").replaceChildren(...data.groups.flatMap(({ name, panels: some, large }) => [
      element("h2", {}, name),
      element("div", { class: large ? "figures" : "figures small" }, ...some.map((panel) => panelOf(panel, large ? "large" : "small"))),
    ]));
  }

  /* Build the panels anew: at first, and when a run that goes on has numbers of another kind. */
  function build() {
    panels.length = 0;
    if (!data.groups.length) {
      byId("curves").replaceChildren(element("p", { class: "soft" }, "No training iteration has been logged yet."));
      return;
    }
    showControls();
    showRuns();
    showPanels();
    redraw();
  }

  /* Ask the training for its newest numbers every other second, until nobody answers. An answer without
     numbers means that a file is just being written. */
  function follow() {
    let failures = 0;
    const ask = async () => {
      try {
        const answer = await fetch("data", { cache: "no-store" });
        failures = 0;
        if (!answer.ok) {
          setTimeout(ask, PAUSE);
          return;
        }
        const fresh = await answer.json(), kinds = (groups) => JSON.stringify(groups.map((g) => g.panels.map((p) => p.key)));
        const same = kinds(fresh.groups) === kinds(data.groups);
        Object.assign(data, { runs: fresh.runs, groups: fresh.groups });
        document.querySelector(".status").textContent = `${fresh.status} This page follows the training.`;
        if (same && data.groups.length) redraw(); else build();
      } catch {
        failures += 1;
        if (failures >= 3) {
          document.querySelector(".status").textContent = `The training has ended. Its report is ${data.live}/report.html.`;
          return;
        }
      }
      setTimeout(ask, PAUSE);
    };
    setTimeout(ask, PAUSE);
  }

  build();
  if (data.live) follow();
  let wide = 0;
  window.addEventListener("resize", () => { if (wide !== document.body.clientWidth) redraw(); wide = document.body.clientWidth; });
  dark.addEventListener("change", () => { showRuns(); redraw(); });
})();
