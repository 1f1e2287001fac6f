"use strict";
// Everything shown is set as text, never as markup: what an environment says stays text.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#0b6fc2", "#d55e00", "#009e73", "#cc79a7", "#b98300", "#3ba7d8", "#9a3c80", "#777777"];
const DASHES = ["", "6 3", "2 2", "8 3 2 3"];

function make(kind, attributes, ...children) {
  const node = kind.startsWith("svg:")
    ? document.createElementNS(SVG, kind.slice(4)) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, name === "title" ? visible(value) : value);
  }
  for (const child of children.flat()) if (child !== null) node.append(typeof child === "string" ? visible(child) : child);
  return node;
}
// What a browser obeys rather than shows, such as marks that turn a line around, as \u202e.
function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(/[\ud800-\udfff]/gu, "\ufffd").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}
const number = (x) => x === null || x === undefined || !isFinite(x) ? "–"
  : Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001) ? x.toExponential(1) : String(+x.toPrecision(3));
const percent = (x) => (100 * x).toFixed(1);

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// ---------------------------------------------------------------------------- curves

function style(run, part) {
  return { colour: COLOURS[run % COLOURS.length], dash: DASHES[(part + Math.floor(run / COLOURS.length)) % DASHES.length] };
}

function path(points, x, y) {
  return points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
}

function chart(title, caption, lines, { low = null, high = null, levels = [], label = "training step", named = false } = {}) {
  const shown = lines.filter((line) => line.points.length);
  if (!shown.length) return null;
  const W = 360, H = 200, left = 44, right = 8, top = 8, bottom = 30;
  const xs = shown.flatMap((l) => l.points.map((p) => p[0]));
  const ys = shown.flatMap((l) => l.points.map((p) => p[1])).concat(levels.map((l) => l.value));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [low ?? Math.min(...ys), high ?? Math.max(...ys)];
  if (y1 - y0 < 1e-9) { y0 -= 0.5; y1 += 0.5; }
  const x = (v) => left + (W - left - right) * (x1 > x0 ? (v - x0) / (x1 - x0) : 0.5);
  const y = (v) => H - bottom - (H - top - bottom) * (v - y0) / (y1 - y0);
  const svg = make("svg:svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  for (const f of [0, 0.5, 1]) {
    const [v, u] = [y0 + f * (y1 - y0), x0 + f * (x1 - x0)];
    svg.append(make("svg:line", { class: "axis", x1: left, x2: W - right, y1: y(v), y2: y(v) }),
      make("svg:text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, number(v)),
      make("svg:text", { x: x(u), y: H - 16, "text-anchor": f === 0 ? "start" : f === 1 ? "end" : "middle" }, number(u)));
  }
  svg.append(make("svg:text", { x: W / 2, y: H - 3, "text-anchor": "middle" }, label));
  for (const level of levels) {
    svg.append(make("svg:line", { x1: left, x2: W - right, y1: y(level.value), y2: y(level.value), stroke: level.colour, "stroke-dasharray": "1 3", "stroke-width": 1.5 },
      make("svg:title", {}, `${level.name}: ${number(level.value)}`)));
  }
  for (const line of shown) {
    const { colour, dash } = line.style;
    if (line.band) {
      const there = line.band.map((b) => [b[0], b[1]]), back = line.band.map((b) => [b[0], b[2]]).reverse();
      svg.append(make("svg:path", { d: path(there.concat(back), x, y) + "Z", fill: colour, opacity: 0.15 }));
    }
    svg.append(make("svg:path", { d: path(line.points, x, y), fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": dash }));
    for (const [a, b] of line.points.length < 40 ? line.points : []) {
      svg.append(make("svg:circle", { cx: x(a), cy: y(b), r: 2.4, fill: colour }, make("svg:title", {}, `${line.name}, ${number(a)}: ${number(b)}`)));
    }
  }
  return make("figure", {}, make("h3", {}, title), svg, make("figcaption", {}, caption, named ? legend(shown) : null));
}

function legend(lines) {
  return make("div", { class: "legend" }, lines.map(({ name, style: { colour, dash } }) => make("span", {},
    make("svg:svg", { viewBox: "0 0 34 10" }, make("svg:line", { x1: 0, x2: 34, y1: 5, y2: 5, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash })), ` ${name}`)));
}

function curves(data) {
  const of = (names, few) => data.runs.flatMap((run, r) => names.map((name, n) => ({
    name: `${run.name} ${few ? few[n] : name}`, points: run.metrics[name] || [], style: style(r, n) })));
  const success = data.runs.map((run, r) => ({
    name: run.name, points: run.curve.map((p) => [p[0], 100 * p[1]]),
    band: run.curve.map((p) => [p[0], 100 * p[2], 100 * p[3]]), style: style(r, 0) }));
  const levels = data.runs.filter((run) => run.teacher !== null).map((run) => ({
    name: `teacher of ${run.name}`, value: 100 * run.teacher, colour: style(data.runs.indexOf(run), 0).colour }));
  const gaps = data.runs.flatMap((run, r) => {
    const steps = run.gaps, picked = [...new Set([0, Math.floor(steps.length / 2), steps.length - 1])].filter((i) => i >= 0 && steps[i]);
    return picked.map((i, n) => ({ name: `${run.name} step ${steps[i][0]}`, style: style(r, n),
      points: steps[i][1].map((v, k) => [k + 1, v]).filter((p) => p[1] !== null) }));
  });
  const phases = [...new Set(data.runs.flatMap((run) => Object.keys(run.metrics)))].filter((n) => n.startsWith("seconds/") && n !== "seconds/step");
  const charts = [
    chart("Success on held-out tasks, %", "Bands: 95 % intervals over tasks. Dotted: the teacher on the final tasks.", success, { low: 0, high: 100, levels }),
    chart("Success while training, %", "Share of the episodes of each step that were solved.", of(["rollout/success"]).map((l) => ({ ...l, points: l.points.map((p) => [p[0], 100 * p[1]]) })), { low: 0, high: 100 }),
    chart("kappa and rho", "Weights of the teacher's signal (solid) and of the reward (dashed).", of(["mix/kappa", "mix/rho"], ["kappa", "rho"]), { low: 0 }),
    chart("Sizes of the two signals", "Mean size per token of the teacher's part (solid) and of the reward's part (dashed) of the advantage.", of(["opd/abs_mean", "rl/abs_mean"], ["teacher's", "reward's"]), { low: 0 }),
    chart("Gap to the teacher, nats a token", "Mean of log p_student - log p_teacher: all tokens (solid), first token of a command (dashed).", of(["kl/token", "kl/verb"], ["all", "first"])),
    chart("Gap to the teacher by turn number", "Mean |log p_student - log p_teacher| of the n-th turns: first step shown (solid), middle (dashed), last (dotted).", gaps, { low: 0, label: "turn" }),
    chart("Entropy of the student, nats", "Falls to nothing when a policy stops exploring.", of(["student/entropy", "loss/entropy"]).filter((l, i, all) => l.points.length && !(l.name.endsWith("loss/entropy") && all.some((m) => m.name === l.name.replace("loss", "student") && m.points.length))), { low: 0 }),
    chart("Valid actions, %", "Responses that hold an action the environment takes.", of(["rollout/valid_actions"]).map((l) => ({ ...l, points: l.points.map((p) => [p[0], 100 * p[1]]) })), { low: 0, high: 100 }),
    chart("Tokens per turn", "Mean length of a response.", of(["rollout/action_tokens"]), { low: 0 }),
    chart("Turns per episode", "Shorter where tasks are solved sooner.", of(["rollout/turns"]), { low: 0 }),
    ...data.runs.slice(0, 4).map((run) => chart(`Seconds by phase, ${run.name}`, "",
      phases.map((name, i) => ({ name: name.slice(8), points: run.metrics[name] || [], style: style(i, i) })), { low: 0, named: true })),
  ];
  const names = legend(data.runs.map((run, r) => ({ name: `${run.name} (${run.folder})`, style: style(r, 0) })));
  const rows = data.runs.flatMap((run) => run.results.map((r) => make("tr", {}, [run.name, r.temperature, r.before, r.after, r.teacher].map((v) => make("td", {}, v ?? "–")))));
  $("curves").replaceChildren(...[names, make("div", { class: "charts" }, charts),
    charts.some((c) => c) || rows.length ? null : make("p", { class: "soft" }, "Nothing of a training is known here."),
    ...(rows.length ? [make("h2", {}, "Before and after, % of the final tasks [95 % interval]"), make("table", {},
      make("tr", {}, ["run", "temperature", "before", "after", "teacher"].map((t) => make("th", {}, t))), rows)] : [])].filter((part) => part));
  return charts.some((c) => c) || rows.length > 0;
}

// ---------------------------------------------------------------------------- episodes

const stream = (turn, name) => (turn.streams || {})[name] || null;
const minus = (a, b) => a && b ? a.map((v, i) => v === null || b[i] === null ? null : v - b[i]) : null;
// name -> what a token is coloured by
const MODES = {
  "advantage": (t) => stream(t, "advantage"),
  "teacher's part: kappa w (log p_teacher - log p_student)": (t) => stream(t, "distill"),
  "reward's part: rho A": (t) => minus(stream(t, "advantage"), stream(t, "distill")),
  "gap: log p_teacher - log p_student": (t) => minus(stream(t, "teacher"), stream(t, "student")),
  "entropy of the student": (t) => stream(t, "entropy"),
  "ratio to the sampler - 1": (t) => (minus(stream(t, "student"), stream(t, "sampler")) || []).map((v) => v === null ? null : Math.exp(v) - 1),
  "log p when it was sampled": (t) => stream(t, "sampler"),
};
let data, drawn = true, shown = [], state = { episode: null, turn: 0, beside: "", mode: "" };
const filters = {};

const spreadOf = (e) => Math.max(0, ...e.turns.map((t) => t.d ?? 0));
const repeats = (e) => {
  const counts = new Map();
  for (const { command } of e.turns) counts.set(command, (counts.get(command) || 0) + 1);
  return Math.max(0, ...counts.values());
};
const LENGTHS = ["1 to 5", "6 to 10", "11 to 20", "21 to 40", "more than 40"]; // turns
const lengthOf = (e) => LENGTHS[[5, 10, 20, 40].filter((most) => e.turns.length > most).length];
const OFTEN = 4; // times the same command, from which the list says so
const where = (e) => `${data.runs[e.run].name} · ${e.set}${e.step === null ? "" : ` step ${e.step}`}`;

function addFilter(name, values, label = (v) => v) {
  const select = make("select", { onchange: refill });
  select.append(make("option", { value: "" }, "all"));
  for (const value of values) select.append(make("option", { value: String(value) }, String(label(value))));
  filters[name] = select;
  $("filters").append(make("label", {}, name, select));
}

function setUp() {
  const values = (f) => [...new Set(data.episodes.flatMap(f))].filter((v) => v !== null && v !== "");
  const steps = values((e) => e.step).sort((a, b) => a - b);
  addFilter("run", data.runs.map((_, i) => i), (i) => data.runs[i].name);
  addFilter("played for", values((e) => e.set));
  addFilter("step", steps);
  addFilter("task type", values((e) => e.kind).sort());
  addFilter("outcome", ["won", "lost"]);
  addFilter("stopped by", values((e) => e.stop));
  addFilter("problem", ["any", ...values((e) => e.turns.map((t) => t.problem || "")).sort()]);
  addFilter("turns", LENGTHS.filter((name) => data.episodes.some((e) => lengthOf(e) === name)));
  const order = make("select", { onchange: refill });
  for (const name of ["as recorded", "surprise: largest disagreement", "longest", "shortest", "most invalid actions", "one command most often"]) order.append(make("option", {}, name));
  filters.order = order;
  $("filters").append(make("label", {}, "order", order));
}

function refill() {
  const is = (name) => filters[name].value;
  const invalid = (e) => e.turns.filter((t) => !t.valid).length;
  shown = data.episodes.filter((e) =>
    (!is("run") || e.run === +is("run")) && (!is("played for") || e.set === is("played for")) &&
    (!is("step") || String(e.step) === is("step")) && (!is("task type") || e.kind === is("task type")) &&
    (!is("turns") || lengthOf(e) === is("turns")) &&
    (!is("outcome") || e.success === (is("outcome") === "won")) && (!is("stopped by") || e.stop === is("stopped by")) &&
    (!is("problem") || e.turns.some((t) => is("problem") === "any" ? t.problem : t.problem === is("problem"))));
  const by = [null, (e) => -spreadOf(e), (e) => -e.turns.length, (e) => e.turns.length, (e) => -invalid(e), (e) => -repeats(e)][filters.order.selectedIndex];
  if (by) shown = shown.map((e, i) => [by(e), i, e]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((t) => t[2]);
  $("count").textContent = `${shown.length} of ${data.episodes.length} episodes`;
  $("list").replaceChildren(...shown.map((e) => make("li", {}, make("button", { type: "button", class: e.success ? "won" : "lost", "data-id": e.id, onclick: () => go(e.id, 0) },
    `${e.success ? "✓ won" : "✗ lost"} ${e.task}`, make("br"), make("span", { class: "soft" }, `${where(e)} · ${e.turns.length} turns${spreadOf(e) ? ` · d ${number(spreadOf(e))}` : ""}${repeats(e) >= OFTEN ? ` · one command ${repeats(e)} times` : ""}`)))));
  mark();
}

function mark() {
  for (const button of $("list").querySelectorAll("button")) {
    const now = state.episode && button.dataset.id === state.episode.id;
    button.setAttribute("aria-current", now);
    if (now) button.scrollIntoView({ block: "nearest" });
  }
}

function strip(e) {
  const most = (name) => Math.max(1e-9, ...e.turns.map((t) => t[name] ?? 0));
  const names = ["d", "h", "w"].filter((n) => e.turns.some((t) => t[n] !== undefined && t[n] !== null));
  if (!names.length) return null;
  const bars = e.turns.map((turn, k) => {
    const svg = make("svg:svg", { viewBox: "0 0 26 66" });
    names.forEach((name, i) => {
      const height = 54 * (turn[name] ?? 0) / most(name);
      svg.append(make("svg:rect", { x: 2 + 8 * i, y: 56 - height, width: 6, height: Math.max(height, 0.5), fill: COLOURS[[1, 4, 0][i]] }));
    });
    svg.append(make("svg:text", { x: 13, y: 65, "text-anchor": "middle", style: "font-size:9px" }, String(k + 1)));
    const title = `turn ${k + 1}: ${names.map((n) => `${n} ${number(turn[n])}`).join(", ")}`;
    return make("button", { type: "button", title, "aria-label": title, onclick: () => go(e.id, k) }, svg);
  });
  const words = { d: "d, disagreement (orange)", h: "h, uncertainty (yellow)", w: "w, weight of the turn (blue)" };
  return make("div", {}, make("div", { class: "strip" }, bars), make("div", { class: "soft" }, names.map((n) => words[n]).join(" · ")));
}

function tokens(e, turn, box, scale) {
  if (!turn.pieces) return make("pre", { class: "said" }, turn.response);
  const values = MODES[state.mode](turn) || [];
  const asked = Object.fromEntries(turn.instead || []);
  const nodes = turn.pieces.map((piece, i) => {
    const v = values[i] ?? null, share = v === null ? 0 : Math.min(1, Math.abs(v) / scale);
    const sign = v === null || share < 0.02 ? "" : v > 0 ? " up" : " down";
    const colour = v > 0 ? "70,150,230" : "240,130,50";
    const title = v === null ? piece : `${state.mode}: ${number(v)}`;
    const show = (event) => {
      for (const other of box.parentNode.querySelectorAll(".on")) other.classList.remove("on");
      event.currentTarget.classList.add("on");
      box.replaceChildren(...about(turn, i, asked[i]));
    };
    return make("span", { class: `token${sign}${asked[i] ? " asked" : ""}`, style: `background: rgba(${colour},${(0.6 * share).toFixed(2)})`, title, tabindex: 0, onclick: show, onfocus: show }, piece);
  });
  return make("pre", { class: "said" }, nodes);
}

function about(turn, i, choices) {
  const at = (name) => (stream(turn, name) || [])[i] ?? null;
  const [a, part, s, t, p, h] = ["advantage", "distill", "student", "teacher", "sampler", "entropy"].map(at);
  const lines = [`token ${i + 1}: ${JSON.stringify(turn.pieces[i])}`];
  if (a !== null) lines.push(`advantage ${number(a)}` + (part === null ? "" : ` = teacher's part ${number(part)} + reward's part ${number(a - part)}`));
  if (t !== null && s !== null) lines.push(`log p: student ${number(s)}, teacher ${number(t)}, gap ${number(t - s)} nats`);
  if (p !== null) lines.push(`log p when it was sampled ${number(p)}` + (s === null ? "" : `, ratio ${number(Math.exp(s - p))}`));
  if (h !== null) lines.push(`entropy of the student before it ${number(h)} nats`);
  if (choices) lines.push("the teacher would rather have said: " + choices.map(([word, logp]) => `${JSON.stringify(word)} ${(100 * Math.exp(logp)).toFixed(1)} %`).join(", "));
  return lines.map((line) => make("div", {}, line));
}

function turnCard(e, turn, k, scale) {
  const facts = ["d", "h", "w"].filter((n) => turn[n] !== undefined && turn[n] !== null).map((n) => `${n} ${number(turn[n])}`);
  if (turn.reward) facts.push(`reward ${number(turn.reward)}`);
  if (turn.replayed) facts.push("played for the student");
  const trouble = turn.problem || (turn.valid ? "" : "invalid");
  const box = make("div", { class: "numbers", "aria-live": "polite" });
  return make("article", { class: "turn", "data-turn": k },
    make("header", {}, make("h3", {}, make("a", { href: `#e=${encodeURIComponent(e.id)}&t=${k + 1}` }, `turn ${k + 1}`)),
      make("span", { class: "soft" }, facts.join(" · ")), trouble ? make("strong", { class: "bad" }, `✗ ${trouble}`) : null),
    turn.prompt ? make("details", {}, make("summary", { class: "soft" }, "prompt as the model read it"), make("pre", {}, turn.prompt)) : null,
    make("div", { class: "soft" }, "sees"), make("pre", {}, turn.observation),
    make("div", { class: "soft" }, "says"), tokens(e, turn, box, scale), box,
    make("div", { class: "soft" }, "does"), make("pre", {}, turn.command));
}

function column(e) {
  const values = e.turns.flatMap((t) => (t.pieces && MODES[state.mode](t)) || []).filter((v) => v !== null).map(Math.abs).sort((a, b) => a - b);
  const scale = Math.max(1e-9, values[Math.floor(0.95 * (values.length - 1))] || 0);
  return make("div", {}, make("h2", {}, e.task),
    make("p", { class: "soft" }, `${where(e)} · ${e.kind} · `, make("strong", { class: e.success ? "good" : "bad" }, e.success ? "✓ won" : "✗ lost"),
      ` · stopped by ${e.stop} after ${e.turns.length} turns · score ${number(e.score)} · ${e.turns.filter((t) => !t.valid).length} invalid actions`),
    strip(e), e.turns.map((turn, k) => turnCard(e, turn, k, scale)));
}

function detail() {
  const e = state.episode;
  if (!e) { $("detail").replaceChildren(make("p", { class: "soft" }, "No episode is chosen: click one, or press j.")); return; }
  const usable = Object.keys(MODES).filter((name) => e.turns.some((t) => (MODES[name](t) || []).length));
  if (!usable.includes(state.mode)) state.mode = usable.find((n) => n !== "teacher's part: kappa w (log p_teacher - log p_student)") || "";
  const modes = make("select", { onchange: (event) => { state.mode = event.target.value; detail(); } },
    usable.map((name) => make("option", { selected: name === state.mode ? "" : null }, name)));
  const same = data.episodes.filter((o) => o.task === e.task && o.id !== e.id);
  if (!same.some((o) => o.id === state.beside)) state.beside = "";
  const beside = make("select", { onchange: (event) => { state.beside = event.target.value; detail(); } },
    make("option", { value: "" }, same.length ? `nothing (${same.length} there)` : "nothing: no other episode of this task"),
    same.map((o) => make("option", { value: o.id, selected: o.id === state.beside ? "" : null }, `${where(o)} ${o.success ? "won" : "lost"}`)));
  const other = same.find((o) => o.id === state.beside);
  $("detail").replaceChildren(
    make("p", {}, usable.length ? make("label", {}, "tokens coloured by ", modes, " ") : null, make("label", {}, "beside it ", beside)),
    make("p", { class: "soft" }, "Blue and underlined: above zero. Orange and dotted: below. ▾: the teacher would rather have said something else; choose a token to see."),
    make("div", { class: other ? "sides two" : "sides" }, column(e), other ? column(other) : null));
  const card = $("detail").querySelector(`[data-turn="${state.turn}"]`);
  if (card) { card.classList.add("now"); card.scrollIntoView({ block: state.turn ? "start" : "nearest" }); }
  if (!state.turn) $("detail").scrollTop = 0;
}

function go(id, turn) { location.hash = `e=${encodeURIComponent(id)}&t=${turn + 1}`; }
function view(name) {
  $("curves").hidden = name !== "curves"; $("episodes").hidden = name !== "episodes";
  $("show-curves").setAttribute("aria-pressed", name === "curves"); $("show-episodes").setAttribute("aria-pressed", name === "episodes");
}

function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const e = data.episodes.find((o) => o.id === wanted.get("e"));
  if (!e) { view(location.hash === "#episodes" || (!drawn && location.hash !== "#curves") ? "episodes" : "curves"); if (!state.episode) detail(); return; }
  const same = state.episode === e;
  state.episode = e;
  state.turn = Math.max(0, Math.min(e.turns.length - 1, (+wanted.get("t") || 1) - 1));
  view("episodes");
  mark(); // before the turn, which stays in sight where list and turns share one column
  if (same && $("detail").querySelector("[data-turn]")) {
    for (const card of $("detail").querySelectorAll(".turn.now")) card.classList.remove("now");
    const card = $("detail").querySelector(`[data-turn="${state.turn}"]`);
    if (card) { card.classList.add("now"); card.scrollIntoView({ block: "start" }); }
  } else detail();
}

function next(by, wanted = () => true) {
  let i = shown.indexOf(state.episode);
  for (i += by; i >= 0 && i < shown.length; i += by) if (wanted(shown[i])) return go(shown[i].id, 0);
}

const KEYS = {
  j: () => next(1), k: () => next(-1), f: () => next(1, (e) => !e.success),
  n: () => state.episode && go(state.episode.id, Math.min(state.turn + 1, state.episode.turns.length - 1)),
  p: () => state.episode && go(state.episode.id, Math.max(state.turn - 1, 0)),
  c: () => { location.hash = "curves"; }, e: () => { location.hash = "episodes"; },
};

function dark(on) { document.documentElement.classList.toggle("dark", on); }

unpacked($("data").textContent).then((found) => {
  data = found;
  $("title").textContent = document.title = visible(data.title);
  $("note").textContent = data.note;
  dark(matchMedia("(prefers-color-scheme: dark)").matches);
  $("theme").addEventListener("click", () => dark(!document.documentElement.classList.contains("dark")));
  $("show-curves").addEventListener("click", KEYS.c);
  $("show-episodes").addEventListener("click", KEYS.e);
  drawn = curves(data);
  setUp(); refill(); follow();
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /SELECT|INPUT/.test(event.target.tagName)) return;
    if (KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
  });
  document.body.dataset.ready = String(Math.round(performance.now()));
}).catch((error) => { $("title").textContent = `This page is damaged: ${error}`; });
