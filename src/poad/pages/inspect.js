// The inspector's page. Whatever a model or a world wrote goes into text nodes and nowhere else.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const LONG = 24;  // tokens of an action that still fit into a table, a column each
  const byId = (id) => document.getElementById(id);

  const flats = data.episodes.map(poad.layOut);
  const state = {
    dials: { ...data.dials },
    method: data.methods.findIndex((m) => m.names.includes(data.method)),
    every: true,        // every method side by side, or the chosen one alone
    scale: "method",    // one colour scale for each method, or one for all
    filter: "all", order: "seed",
    seed: null,
    at: null,           // {pane, token} that is looked at
  };
  let panes = [];       // what is shown: {episode, flat, credits, cells, ...}

  // Elements.

  const { element, drawn, known, choice } = poad;
  const text = (number) => data.texts[number];
  const number = (value, digits = 3) => (known(value) ? value.toFixed(digits).replace(/^-(0\.0+)$/, "$1").replace("-", "−") : "–");
  const signed = (value) => (known(value) && value > 0 ? "+" : "") + number(value);
  const percent = (value) => (known(value) ? (100 * value).toFixed(value < 0.1 ? 2 : 1) + " %" : "–");
  const chance = (logprob) => (known(logprob) ? Math.exp(Math.min(0, logprob)) : null);
  const visible = (piece) => piece.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";
  const named = (method) => method.names.join(", ");

  // Credit.

  function compute(pane) {
    pane.credits = data.methods.map((method) => poad.credit(pane.flat, method, state.dials));
    const largest = pane.credits.map((c) => Math.max(1e-9, ...c.advantage.map(Math.abs)));
    pane.largest = largest;
  }
  function color(cell, value, largest) {
    const share = Math.min(1, Math.abs(value) / largest);
    const shade = Math.round(8 + 72 * share);
    cell.style.background = share < 1e-6 ? ""
      : `color-mix(in srgb, var(--${value > 0 ? "up" : "down"}) ${shade}%, transparent)`;
  }
  function surprise(index) {
    const { delta } = poad.credit(flats[index], data.methods[state.method], state.dials);
    return Math.max(0, ...delta.map(Math.abs));
  }

  // Episodes to choose from.

  const seeds = [...new Set(data.episodes.map((e) => e.seed))];
  const withSeed = (seed) => data.episodes.map((_, i) => i).filter((i) => data.episodes[i].seed === seed);

  function chosenSeeds() {
    const fits = {
      all: () => true,
      failed: (some) => some.some((i) => data.episodes[i].success === false),
      successful: (some) => some.some((i) => data.episodes[i].success === true),
      differ: (some) => new Set(some.map((i) => data.episodes[i].success)).size > 1,
    }[state.filter];
    const most = (measure) => (seed) => -Math.max(...withSeed(seed).map(measure));
    const rank = {
      seed: (seed) => seed,
      longest: most((i) => data.episodes[i].turns.length),
      surprising: most(surprise),
      return: (seed) => -most((i) => data.episodes[i].return ?? 0)(seed),
    }[state.order];
    const ranks = new Map(seeds.map((seed) => [seed, rank(seed)]));
    return seeds.filter((seed) => fits(withSeed(seed))).sort((a, b) => ranks.get(a) - ranks.get(b));
  }
  function showEpisodes() {
    const shown = chosenSeeds();
    if (!shown.includes(state.seed)) state.seed = shown.length ? shown[0] : null;
    byId("episodes").replaceChildren(...shown.map((seed) => {
      const some = withSeed(seed).map((i) => data.episodes[i]);
      const outcome = some.map((e) => (e.success === null ? "·" : e.success ? "✓" : "✗")).join(" ");
      const spoken = some.map((e) => (e.success ? "success" : e.success === null ? "" : "no success")).join(", ");
      return element("button", {
        type: "button", "data-seed": seed, "aria-pressed": seed === state.seed,
        "aria-label": `seed ${seed}, ${spoken}`,
        onclick: () => { state.seed = seed; showEpisodes(); },
      }, `${outcome} ${seed} · ${some.map((e) => number(e.return, 2)).join(" / ")}`);
    }));
    if (!shown.length) byId("episodes").append(element("p", { class: "soft" }, "No episode is like this."));
    showPanes();
  }
  function showFilters() {
    const filters = { all: "All", failed: "Failed", successful: "Successful" };
    if (data.agents.length > 1) filters.differ = "Outcomes differ";
    const orders = {
      seed: "by seed", longest: "longest first", surprising: "most surprising first (largest |δ|)",
      return: "lowest return first",
    };
    byId("filters").replaceChildren(
      ...Object.entries(filters).map(([key, label]) => element("button", {
        type: "button", "data-filter": key, "aria-pressed": state.filter === key,
        onclick: (event) => {
          state.filter = key;
          for (const other of byId("filters").querySelectorAll("button")) {
            other.setAttribute("aria-pressed", other === event.currentTarget);
          }
          showEpisodes();
        },
      }, label)),
      choice("Order", "order", orders, state.order, (value) => { state.order = value; showEpisodes(); }),
    );
  }

  // Sliders.

  const DIALS = [
    ["gamma", "γ", "discount between actions"],
    ["gamma_token", "γ token", "discount inside an action"],
    ["lam", "λ", "trace between actions"],
    ["lam_token", "λ token", "trace inside an action"],
    ["lam_actor", "λ actor", "trace inside an action, for advantages alone"],
    ["beta", "β", "share of the critic's values inside actions that advantages use"],
  ];
  const OWN = { gamma_token: "each method's own", lam_token: "each method's own", lam_actor: "as λ token" };

  function dial([key, label, meaning]) {
    const own = OWN[key], value = state.dials[key];
    const range = element("input", { type: "range", min: 0, max: 1, step: 0.005, id: key, "aria-label": `${label}: ${meaning}` });
    const field = element("input", { type: "number", min: 0, max: 1, step: "any", "aria-label": `${label}, as a number` });
    const box = own ? element("input", { type: "checkbox", id: `${key}-own`, checked: value === null }) : null;
    const set = (next) => {
      state.dials[key] = next;
      range.disabled = field.disabled = next === null;
      if (next !== null) { range.value = next; if (Number(field.value) !== next || field.value === "") field.value = next; }
      refresh();
    };
    range.addEventListener("input", () => set(Number(range.value)));
    field.addEventListener("input", () => {
      const next = Number(field.value);
      if (field.value !== "" && next >= 0 && next <= 1) set(next);
    });
    if (box) box.addEventListener("change", () => set(box.checked ? null : Number(range.value)));
    range.value = field.value = value ?? 1;
    range.disabled = field.disabled = value === null;
    const made = element("div", { class: "dial", title: meaning }, element("label", { for: key }, label), range, field);
    if (box) made.append(element("label", { class: "own" }, box, ` ${own}`));
    return made;
  }
  function showDials() {
    byId("sliders").replaceChildren(...DIALS.slice(0, 4).map(dial));
    const more = element("details", {}, element("summary", {}, "More rates"), ...DIALS.slice(4).map(dial));
    more.append(choice("λ actor counts", "trace", { token: "decisions", bit: "bits of entropy" }, state.dials.trace,
      (value) => { state.dials.trace = value; refresh(); }));
    byId("switches").replaceChildren(
      choice("Colour by", "method", Object.fromEntries(data.methods.map((m, i) => [i, named(m)])), String(state.method),
        (value) => { state.method = Number(value); if (state.order === "surprising") showEpisodes(); else rebuild(); }),
      choice("Show", "every", { yes: "every method side by side", no: "this method alone" }, "yes",
        (value) => { state.every = value === "yes"; rebuild(); }),
      choice("Colour scale", "scale", { method: "one for each method", episode: "the same for all methods" }, state.scale,
        (value) => { state.scale = value; refresh(); }),
      element("button", { type: "button", id: "reset", onclick: () => { state.dials = { ...data.dials }; showDials(); refresh(); } },
        "Rates of the run"),
      more,
    );
  }

  // An episode.

  function showPanes() {
    const some = state.seed === null ? [] : withSeed(state.seed);
    panes = some.map((i) => ({ index: i, episode: data.episodes[i], flat: flats[i] }));
    panes.forEach(compute);
    rebuild();
  }
  function rebuild() {
    closeToken();
    byId("panes").className = panes.length > 1 ? "two" : "";
    byId("panes").replaceChildren(...panes.map(paneOf));
    refresh();
  }
  function ending(episode) {
    const outcome = episode.success === null ? "Outcome unknown" : episode.success ? "Success" : "No success";
    const how = { terminated: "the world ended the episode", truncated: "the episode reached its limit", unfinished: "the record stops here" };
    return `${outcome}: ${how[episode.ending]} after ${episode.turns.length} turn${episode.turns.length === 1 ? "" : "s"}. Return ${number(episode.return)}.`;
  }
  function paneOf(pane, index) {
    const { episode } = pane;
    pane.cells = data.methods.map(() => []);  // by method and token
    const section = element("section", { "data-pane": index, "aria-label": `Episode ${episode.seed}` });
    const who = data.agents[episode.agent];
    section.append(element("h2", {}, `Seed ${episode.seed}${who ? `, ${who}` : ""}`), element("p", { class: "ending" }, ending(episode)));
    pane.chart = element("div", { class: "chart" });
    section.append(pane.chart);
    let first = 0;
    episode.turns.forEach((turn, t) => {
      section.append(turnOf(pane, turn, t, first));
      first += turn.ids.length;
    });
    return section;
  }
  function turnOf(pane, turn, t, first) {
    const article = element("article", {},
      element("header", {}, element("b", {}, `Turn ${t + 1}`), element("span", {}, `value ${number(turn.value[0])}`)),
      element("pre", {}, text(turn.prompt)));
    if (turn.cut !== undefined) article.append(element("p", { class: "soft" }, text(turn.cut)));
    if (turn.form !== undefined) article.append(element("pre", { class: "soft" }, text(turn.form)));
    if (turn.offered) article.append(offers(turn));
    else article.append(element("pre", { class: "gain" }, text(turn.action)));
    const rows = methodsShown();
    article.append(turn.ids.length <= LONG ? table(pane, turn, first, rows) : strips(pane, turn, first, rows));
    const steps = turn.duration === 1 ? "" : `, ${turn.duration} primitive steps`;
    const reward = element("b", { class: turn.reward > 0 ? "gain" : turn.reward < 0 ? "loss" : "" }, signed(turn.reward));
    const footer = element("footer", {}, element("span", {}, "reward ", reward, steps));
    if (turn.invalid) footer.append(element("b", { class: "loss" }, "The world did not offer this action."));
    article.append(footer);
    return article;
  }
  const methodsShown = () => (state.every ? data.methods.map((_, m) => m) : [state.method]);

  function offers(turn) {
    const grid = element("div", { class: "offer" });
    for (const [action, share, chosen] of turn.offered) grid.append(...bar((chosen ? "▸ " : "") + text(action), share, percent(share), chosen));
    if (turn.more) grid.append(element("span", { class: "soft" }, `and ${turn.more[0]} more`), element("i"), element("span", { class: "right soft" }, percent(turn.more[1])));
    return grid;
  }
  function bar(label, share, figure, chosen) {
    const cls = chosen ? "chosen" : "other", inner = element("i");
    inner.style.width = `${100 * Math.min(1, Math.max(0, share ?? 0))}%`;
    return [element("span", { class: cls }, label), element("i", { class: cls, "aria-hidden": "true" }, inner), element("span", { class: `right ${cls}` }, figure)];
  }

  // Tokens.

  function cell(pane, turn, j, i, m, label) {
    const forced = !turn.choice[j];
    const made = element("button", {
      type: "button", class: forced ? "cell forced" : "cell", tabindex: -1,
      "data-token": i, "data-method": m,
    }, label);
    pane.cells[m][i] = made;
    return made;
  }
  function table(pane, turn, first, rows) {
    const head = element("tr", {}, element("th", { scope: "col" }, "method"));
    turn.pieces.forEach((piece, j) => head.append(element("th", { scope: "col", class: turn.choice[j] ? "mono" : "mono forced" }, visible(text(piece)))));
    const body = rows.map((m) => element("tr", { class: m === state.method ? "shown" : "" },
      element("th", { scope: "row" }, named(data.methods[m])),
      ...turn.ids.map((_, j) => element("td", {}, cell(pane, turn, j, first + j, m, "")))));
    return element("div", { class: "scroll" }, element("table", { class: "credit" }, element("thead", {}, head), element("tbody", {}, ...body)));
  }
  function strips(pane, turn, first, rows) {
    return element("div", {}, ...rows.map((m) => element("div", { class: "strip" },
      element("b", {}, `${named(data.methods[m])} `), element("br"),
      ...turn.ids.map((_, j) => {
        const piece = text(turn.pieces[j]), made = cell(pane, turn, j, first + j, m, piece || "∅");
        made.dataset.text = "1";
        return made;
      }))));
  }
  function describeCell(pane, i, m) {
    const t = pane.flat.turn[i], turn = pane.episode.turns[t], j = i - pane.flat.turn.indexOf(t);
    const earned = pane.credits[m].mask[i] ? `advantage ${signed(pane.credits[m].advantage[i])}` : turn.choice[j] ? "no credit" : "forced";
    return `token ${visible(text(turn.pieces[j]))}, ${data.methods[m].names[0]}, ${earned}`;
  }

  // Whatever depends on the rates is written here, into elements that stay.
  function refresh() {
    for (const pane of panes) {
      compute(pane);
      const all = Math.max(...pane.largest);
      pane.cells.forEach((row, m) => row.forEach((made, i) => {
        const { advantage, mask } = pane.credits[m];
        if (!made.dataset.text) made.textContent = mask[i] ? signed(advantage[i]) : pane.flat.choice[i] ? "none" : "–";
        color(made, mask[i] ? advantage[i] : 0, state.scale === "episode" ? all : pane.largest[m]);
        made.setAttribute("aria-label", describeCell(pane, i, m));
      }));
      showChart(pane);
    }
    const all = Math.max(1e-9, ...panes.flatMap((p) => p.largest));
    byId("legend").replaceChildren(
      element("span", {}, state.scale === "episode" ? `−${number(all, 2)}` : "worse"), element("span", { class: "scale", "aria-hidden": "true" }),
      element("span", {}, state.scale === "episode" ? `+${number(all, 2)}` : "better"),
      element("span", {}, state.scale === "episode" ? "advantage; dashed: forced tokens" : "advantage, each method on its own scale; dashed: forced tokens"));
    enterable();
    if (state.at) showToken();
  }

  // The value along the episode.

  function showChart(pane) {
    const { flat, episode } = pane, judged = pane.credits[state.method], method = data.methods[state.method];
    const at = flat.turn.map((_, i) => i).filter((i) => judged.slot[i]);
    const W = Math.max(280, pane.chart.clientWidth - 30), H = 176, left = 40, right = 8, top = 8, bottom = 22;
    const values = at.map((i) => flat.value[i]), targets = at.map((i) => judged.target[i]);
    const everything = [0, ...values, ...(method.uses_critic ? targets : []), ...flat.reward];
    const low = Math.min(...everything), most = Math.max(...everything);
    const high = most - low < 1e-4 ? low + 1 : most;
    const x = (i) => left + ((i + 0.5) / Math.max(1, flat.turn.length)) * (W - left - right);
    const y = (v) => top + ((high - v) / (high - low)) * (H - top - bottom);
    const svg = drawn("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Values, targets and rewards along the episode, by ${method.names[0]}` });
    const svgText = [];
    for (const v of [low, (low + high) / 2, high]) {
      svg.append(drawn("line", { class: "grid", x1: left, x2: W - right, y1: y(v), y2: y(v) }));
      svgText.push([left - 6, y(v) + 4, number(v, 2), "end"]);
    }
    episode.turns.forEach((turn, t) => {
      const first = flat.turn.indexOf(t);
      if (first < 0) return;
      const end = first + turn.ids.length - 1;
      if (t) svg.append(drawn("line", { class: "turn", x1: x(first - 0.5), x2: x(first - 0.5), y1: top, y2: H - bottom }));
      const step = Math.ceil(episode.turns.length / (W / 34));
      if (t % step === 0) svgText.push([x((first + end) / 2), H - 6, `${t + 1}`, "middle"]);
      if (turn.reward) svg.append(drawn("line", { class: "reward", x1: x(end), x2: x(end), y1: y(0), y2: y(turn.reward) }));
    });
    const line = (cls, ys) => drawn("polyline", { class: cls, "vector-effect": "non-scaling-stroke", points: at.map((i, k) => `${x(i)},${y(ys[k])}`).join(" ") });
    if (method.uses_critic) svg.append(line("target", targets));
    svg.append(line("value", values));
    at.forEach((i, k) => svg.append(drawn("circle", { class: "dot", cx: x(i), cy: y(values[k]), r: at.length > 80 ? 1.5 : 3 })));
    pane.mark = drawn("line", { class: "mark", x1: -999, x2: -999, y1: top, y2: H - bottom });
    svg.append(pane.mark);
    pane.markAt = x;
    svgText.forEach(([tx, ty, words, anchor]) => svg.append(drawn("text", { x: tx, y: ty, "text-anchor": anchor }, words)));
    const nearest = (event) => {
      const box = svg.getBoundingClientRect(), scale = Math.min(box.width / W, box.height / H);
      const u = (event.clientX - box.left - (box.width - W * scale) / 2) / scale;
      return at.reduce((best, i) => (Math.abs(x(i) - u) < Math.abs(x(best) - u) ? i : best), at[0]);
    };
    if (at.length) {
      svg.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") look(pane, nearest(event)); });
      svg.addEventListener("click", (event) => look(pane, nearest(event)));
    }
    pane.chart.replaceChildren(svg, element("p", { class: "soft" },
      element("span", { class: "gain" }, "— value before each decision"),
      method.uses_critic ? element("span", { class: "loss" }, "  ‑‑ target") : "", "  ▮ reward, by turn"));
  }

  // One token.

  function look(pane, token, method = null) {
    if (method !== null && method !== state.method && !state.every) return;
    state.at = { pane, token, method: method ?? state.method };
    showToken();
  }
  function closeToken() {
    state.at = null;
    byId("token").className = "empty";
    byId("token").replaceChildren(element("p", { class: "soft" },
      "Point at a token, tap it, or reach it by the Tab and arrow keys, to see everything that is known of it."));
    document.body.classList.remove("open");
    for (const other of document.querySelectorAll(".cell.here")) other.classList.remove("here");
    for (const pane of panes) if (pane.mark) { pane.mark.setAttribute("x1", -999); pane.mark.setAttribute("x2", -999); }
  }
  function pairs(entries) {
    return element("dl", {}, ...entries.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]));
  }
  function showToken() {
    const { pane, token, method } = state.at, t = pane.flat.turn[token], turn = pane.episode.turns[t];
    const j = token - pane.flat.turn.indexOf(t), panel = byId("token"), forced = !turn.choice[j];
    for (const other of document.querySelectorAll(".cell.here")) other.classList.remove("here");
    pane.cells.forEach((row) => row[token] && row[token].classList.add("here"));
    for (const other of panes) {
      const place = other === pane ? pane.markAt(token) : -999;
      if (other.mark) { other.mark.setAttribute("x1", place); other.mark.setAttribute("x2", place); }
    }
    const after = forced ? 1 : chance(turn.logprob[j]), before = forced ? (turn.before ? 1 : null) : turn.before ? chance(turn.before[j]) : null;
    const facts = [["id", String(turn.ids[j])], ["place", `turn ${t + 1}, token ${j + 1}/${turn.ids.length}`]];
    if (forced) facts.push(["choice", "forced: no other token could stand here"]);
    facts.push(["probability", percent(after)]);
    if (data.before) facts.push([`by ${data.before}`, percent(before)]);
    facts.push(["value before it", number(turn.value[j])]);
    if (!forced) facts.push(["entropy", turn.entropy ? `${number(turn.entropy[j])} nats` : "–"]);
    const children = [
      element("button", { type: "button", class: "close", "aria-label": "Close", onclick: closeToken }, "✕"),
      element("h2", { class: "mono" }, visible(text(turn.pieces[j]))), pairs(facts),
    ];
    if (!forced && known(after) && known(before)) children.push(element("h3", {}, `ratio to ${data.before}`), ratio(after / before));
    children.push(element("h3", {}, "credit by method"), creditTable(pane, token, method));
    if (turn.alternatives && turn.alternatives[j].length) children.push(element("h3", {}, "alternatives here"), alternatives(turn, j));
    panel.replaceChildren(...children);
    panel.className = "";
    document.body.classList.add("open");
  }
  function creditTable(pane, token, method) {
    const rows = data.methods.map((m, k) => {
      const c = pane.credits[k];
      return element("tr", { class: k === method ? "shown" : "", "data-row": m.names[0] },
        element("td", {}, named(m)),
        element("td", {}, c.slot[token] ? signed(c.delta[token]) : "–"),
        element("td", {}, c.mask[token] ? signed(c.advantage[token]) : "–"),
        element("td", {}, c.learns[token] ? number(c.target[token]) : "–"));
    });
    return element("table", {}, element("thead", {}, element("tr", {}, ...["", "δ", "advantage", "target"].map((h) => element("th", {}, h)))), element("tbody", {}, ...rows));
  }
  /* A ratio of probabilities on a logarithmic axis from 1/8 to 8, with the clip range drawn. */
  function ratio(value) {
    const W = 300, x = (r) => 10 + ((Math.log2(Math.min(8, Math.max(1 / 8, r))) + 3) / 6) * (W - 20);
    const low = Math.max(0.13, 1 - data.clip), high = 1 + data.clip;
    const svg = drawn("svg", { viewBox: `0 0 ${W} 30`, role: "img", "aria-label": `ratio ${number(value)}, clip range ${number(1 - data.clip, 2)} to ${number(high, 2)}` });
    svg.append(drawn("line", { x1: 10, x2: W - 10, y1: 11, y2: 11, stroke: "currentColor", "stroke-opacity": 0.4 }),
      drawn("rect", { x: x(low), width: x(high) - x(low), y: 4, height: 14, fill: "var(--line)", "fill-opacity": 0.3 }),
      drawn("circle", { cx: x(value), cy: 11, r: 5, fill: "currentColor" }));
    for (const r of [0.125, 0.5, 1, 2, 8]) svg.append(drawn("text", { x: x(r), y: 29, "text-anchor": "middle" }, r === 0.125 ? "1/8" : r === 0.5 ? "1/2" : String(r)));
    return element("div", {}, svg, element("span", {}, `${number(value)} (clip range ${number(1 - data.clip, 2)} to ${number(high, 2)})`));
  }
  function alternatives(turn, j) {
    const grid = element("div", { class: "bars" });
    for (const [piece, share, earlier, taken] of turn.alternatives[j]) {
      const figure = data.before ? `${percent(earlier)} → ${percent(share)}` : percent(share);
      const whole = /\S \S/.test(text(piece));  // where actions are chosen as a whole
      grid.append(...bar(whole ? text(piece) : visible(text(piece)), share, figure, taken));
    }
    return grid;
  }

  // Pointer and keyboard.

  const cellOf = (event) => (event.target instanceof Element ? event.target.closest(".cell") : null);
  function lookAt(made) {
    const pane = panes[Number(made.closest("[data-pane]").dataset.pane)];
    look(pane, Number(made.dataset.token), Number(made.dataset.method));
  }
  /* One token of each episode can be reached by Tab; arrows go on from there. */
  function enterable() {
    for (const pane of panes) {
      const row = pane.cells[state.method] ?? [];
      const index = Math.max(0, row.findIndex((made, i) => made && pane.flat.choice[i]));
      if (row[index] && !row.some((made) => made && made.tabIndex === 0)) row[index].tabIndex = 0;
    }
  }
  const area = byId("panes");
  area.addEventListener("pointerover", (event) => { const made = cellOf(event); if (made && event.pointerType === "mouse") lookAt(made); });
  area.addEventListener("click", (event) => { const made = cellOf(event); if (made) lookAt(made); });
  area.addEventListener("focusin", (event) => { const made = cellOf(event); if (made && made.matches(":focus-visible")) lookAt(made); });
  area.addEventListener("keydown", (event) => {
    const made = cellOf(event);
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!made || !step) return;
    const pane = panes[Number(made.closest("[data-pane]").dataset.pane)], rows = methodsShown();
    const row = rows.indexOf(Number(made.dataset.method)) + step[1];
    const next = pane.cells[rows[row]]?.[Number(made.dataset.token) + step[0]];
    event.preventDefault();
    if (!next) return;
    made.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    lookAt(next);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") closeToken(); });

  let width = 0;
  window.addEventListener("resize", () => {
    if (width !== document.body.clientWidth) panes.forEach(showChart);
    width = document.body.clientWidth;
  });

  byId("notes").textContent = data.notes.join(" ");
  if (data.episodes.length < 2) byId("choose").hidden = true;
  showFilters();
  showDials();
  showEpisodes();
})();
