"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const addressOf = (run) => `#${encodeURIComponent(run.name)}`;
const chosen = Math.max(0, page.runs.findIndex((run) => addressOf(run) === location.hash));
const data = page.runs[chosen];
const get = (id) => document.getElementById(id);
const seedColours = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];
const viridis = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

function add(parent, tag, text, name) {
  const node = parent.appendChild(document.createElement(tag));
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

function fillSelect(select, entries) {
  for (const [value, text] of entries) add(select, "option", text).value = value;
}

function short(value) {
  if (value === null || value === undefined) return "-";
  if (typeof value !== "number" || Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : `${+value.toPrecision(3)}`;
}

/** The source of a figure, by name. */
function source(name) {
  for (const document of Bokeh.documents) {
    const found = document.get_model_by_name(name);
    if (found) return found;
  }
  throw new Error(`no source ${name}`);
}

/** Call `draw` at most once a frame, however often it is asked to. */
function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
}

// Runs --------------------------------------------------------------------------------------------

function dot(parent, colour) {
  add(parent, "i", undefined, "dot").style.background = colour;
}

const colourOf = (k) => seedColours[k % seedColours.length];

function meanOf(rows, k) {
  const known = rows.map((row) => row[k]).filter((value) => value !== null);
  return known.length ? known.reduce((a, b) => a + b) / known.length : null;
}

/** What differs between runs, with links that choose the one that is shown. */
function showRuns() {
  if (!page.different) return;
  const { keys, rows, lost } = page.different, table = get("runs");
  get("runs-section").hidden = false;
  get("runs-note").textContent = (keys.length
    ? "Settings that are not the same in all runs, and the means of each run's seeds."
    : "No setting differs between these runs. Means of each run's seeds.")
    + " Choose the run that is shown by its name.";
  get("runs-lost").textContent = lost.length ? `Left out: ${lost.join("; ")}.` : "";
  const head = add(table, "tr"), numbers = ["interactions", "success", "return", "coverage"];
  for (const name of ["run", "seeds"]) add(head, "th", name);
  for (const name of numbers) add(head, "th", name, "number");
  for (const key of keys) add(head, "th", key);
  page.runs.forEach((run, k) => {
    const line = add(table, "tr", undefined, k === chosen ? "shown" : ""), { seeds } = run.header;
    const first = add(line, "td");
    dot(first, colourOf(k));
    const link = add(first, "a", run.name);
    link.href = addressOf(run);
    if (k === chosen) link.setAttribute("aria-current", "true");
    add(line, "td", seeds.map((row) => row[0]).join(", "));
    numbers.forEach((_, column) => add(line, "td", short(meanOf(seeds, column + 1)), "number"));
    for (const value of rows[k]) add(line, "td", value);
  });
  addEventListener("hashchange", () => location.reload());
}

// Header ------------------------------------------------------------------------------------------

function showHeader() {
  document.title = get("title").textContent = data.header.title;
  for (const [name, value] of data.header.facts) {
    const line = add(get("facts"), "div");
    add(line, "dt", name);
    add(line, "dd", value);
  }
  const table = get("seeds"), names = ["seed", "interactions", "success", "return", "coverage", "minutes"];
  const head = add(table, "tr");
  for (const name of names) add(head, "th", name, "number");
  for (const row of data.header.seeds) {
    const line = add(table, "tr");
    for (const value of row) add(line, "td", short(value), "number");
  }
  if (data.header.seeds.length > 1) {
    const line = add(table, "tr");
    add(line, "th", "mean", "number");
    for (let k = 1; k < names.length; k++) add(line, "td", short(meanOf(data.header.seeds, k)), "number");
    const different = data.header.different;
    get("different").textContent = different.length
      ? `Beside the seed, these settings differ between the seeds: ${different.join(", ")}.`
      : "The seeds differ in nothing but the seed.";
  }
}

// Learning curves ---------------------------------------------------------------------------------

/** The lines of a metric: seeds and their mean, or of several runs their means. */
function linesOf(key) {
  if (page.runs.length === 1) {
    const { seeds, mean } = data.curves[key];
    const each = seeds.map((own, k) => ({ ...own, of: `seed ${own.seed}`, colour: colourOf(k), width: 1.5 }));
    return mean ? [...each, { ...mean, of: "mean", colour: "black", width: 2.5 }] : each;
  }
  return page.runs.flatMap((run, k) => {
    const curve = run.curves[key], style = { colour: colourOf(k), width: k === chosen ? 3 : 1.5 };
    if (!curve) return [];
    if (curve.mean) return [{ ...curve.mean, of: run.name, ...style }];
    return curve.seeds.map((own) => ({ ...own, of: `${run.name}, seed ${own.seed}`, ...style }));
  });
}

function showCurves() {
  const keys = [...new Set([data, ...page.runs].flatMap((run) => Object.keys(run.curves)))];
  if (!keys.length) {
    get("curves").textContent = "Nothing is logged yet.";
    return;
  }
  fillSelect(get("curve-key"), keys.map((key) => [key, key]));
  const draw = () => {
    const lines = linesOf(get("curve-key").value), bands = lines.filter((line) => line.low);
    const column = (name) => lines.map((line) => line[name]);
    source("curve_lines").data = Object.fromEntries(["x", "y", "colour", "width"].map((name) => [name, column(name)]));
    source("curve_points").data = {
      x: column("x").flat(), y: column("y").flat(),
      of: lines.flatMap((line) => line.x.map(() => line.of)),
      colour: lines.flatMap((line) => line.x.map(() => line.colour)),
    };
    source("curve_bands").data = {
      x: bands.map((line) => [...line.x, ...line.x.toReversed()]),
      y: bands.map((line) => [...line.low, ...line.high.toReversed()]),
      colour: bands.map((line) => line.colour),
    };
    const told = [];
    if (page.runs.length > 1) told.push("colours as in the table of runs; the run that is shown has the thick line");
    if (bands.length) {
      told.push(page.runs.length > 1 ? "lines: means over seeds; bands: their 95% bootstrap intervals, for runs of several seeds"
        : `black: mean of ${lines.length - 1} seeds and its 95% bootstrap interval`);
    }
    get("curve-note").textContent = told.join("; ");
  };
  get("curve-key").addEventListener("change", draw);
  draw();
}

// Explored states ---------------------------------------------------------------------------------

function showMap() {
  const map = data.map;
  if (map.missing) {
    get("map-controls").hidden = true;
    get("map").textContent = map.missing;
    return;
  }
  fillSelect(get("map-object"), map.objects.map((name, k) => [k, name]));
  fillSelect(get("map-seed"), map.seeds.map((own, k) => [k, own.seed]));
  get("map-object").value = Math.max(0, map.objects.indexOf(map.counted[0]));
  get("map-seed").parentElement.hidden = map.seeds.length === 1;
  if (map.kind === "none") {
    get("map-colour").value = "step";
    get("map-colour").querySelector("[value=z]").remove();
  }
  if (map.no_bonus !== null) {
    get("map-colour").querySelector("[value=bonus]").remove();
    get("bonus-note").textContent = `No colour by bonus: ${map.no_bonus}.`;
  }
  const from = get("map-from"), to = get("map-to");
  const seedOf = () => map.seeds[get("map-seed").value];
  const setRange = () => {
    const last = seedOf().step.at(-1);
    const step = Math.max(1, Math.round(last / 200)), max = step * Math.ceil(last / step);
    for (const slider of [from, to]) Object.assign(slider, { min: 0, max, step });
    from.value = 0;
    to.value = max;
  };
  const draw = oncePerFrame(() => {
    const own = seedOf(), k = +get("map-object").value, last = own.step.at(-1);
    const low = +from.value, high = +to.value;
    const by = get("map-colour").value, shade = shades(by, own);
    const points = { x: [], y: [], step: [], z: [], colour: [] };
    for (let i = 0; i < own.step.length; i++) {
      if (own.step[i] < low || own.step[i] > high) continue;
      points.x.push(own.x[k][i]);
      points.y.push(own.y[k][i]);
      points.step.push(own.step[i]);
      points.z.push(own.z[i]);
      points.colour.push(by === "z" ? own.palette[own.z_colour[i]] : shade.colour(i));
    }
    source("map_points").data = points;
    const cells = { left: [], right: [], bottom: [], top: [] };
    let share = "";
    if (own.first && map.counted.includes(map.objects[k])) {
      const [columns, rows] = map.grid.bins;
      const width = (map.grid.high[0] - map.grid.low[0]) / columns, height = (map.grid.high[1] - map.grid.low[1]) / rows;
      own.first[k].forEach((first, cell) => {
        if (first >= 0 && first <= high) return;
        const left = map.grid.low[0] + width * Math.floor(cell / rows), bottom = map.grid.low[1] + height * (cell % rows);
        cells.left.push(left);
        cells.right.push(left + width);
        cells.bottom.push(bottom);
        cells.top.push(bottom + height);
      });
      const visited = columns * rows - cells.left.length;
      share = `; ${visited} of ${columns * rows} cells visited by then, the others grey`;
    }
    source("map_cells").data = cells;
    get("map-note").textContent = `interactions ${low.toLocaleString("en")} to ${Math.min(high, last).toLocaleString("en")}: ${points.x.length.toLocaleString("en")} places drawn${share}`;
    showLegend(get("map-legend"), by === "z" ? map.legend : shade);
  });
  get("map-colour").addEventListener("change", draw);
  get("map-object").addEventListener("change", () => { draw(); brushed.box = null; showBrushed(); drawPath(); });
  get("map-seed").addEventListener("change", () => { setRange(); draw(); showBrushed(); drawPath(); });
  from.addEventListener("input", () => { if (+from.value > +to.value) to.value = from.value; draw(); });
  to.addEventListener("input", () => { if (+to.value < +from.value) from.value = to.value; draw(); });
  for (const slider of [from, to]) slider.addEventListener("change", showBrushed);
  if (!data.rollouts.missing) {
    get("map-seed").value = map.seeds.findIndex((own) => own.seed === data.rollouts.seed);
    source("map_brush").active = matchMedia("(pointer: fine)").matches; // else a finger scrolls
  }
  get("region-clear").addEventListener("click", () => { brushed.box = null; showBrushed(); });
  setRange();
  draw();
  showBrushed();
}

// Who went there ----------------------------------------------------------------------------------

const brushed = { box: null };

/** A box was drawn on the map. */
function brush({ x0, x1, y0, y1 }) {
  brushed.box = { left: Math.min(x0, x1), right: Math.max(x0, x1), bottom: Math.min(y0, y1), top: Math.max(y0, y1) };
  showBrushed();
}

/** A place on the map was tapped: a box about it. */
function brushAt(x, y) {
  const { low, high } = data.map, reach = 0.03 * Math.max(high[0] - low[0], high[1] - low[1]);
  brush({ x0: x - reach, x1: x + reach, y0: y - reach, y1: y + reach });
}

/** Whether the map shows the seed that plays. */
function ofPlayer() {
  return data.map.seeds[get("map-seed").value].seed === data.rollouts.seed;
}

/** List the rollouts, and the episodes of the interactions chosen, that went into the box. */
function showBrushed() {
  const box = brushed.box, list = get("region-list"), told = data.rollouts;
  const region = source("map_region");
  region.data = Object.fromEntries(["left", "right", "bottom", "top"].map((side) => [side, box ? [box[side]] : []]));
  list.replaceChildren();
  get("region-clear").hidden = !box;
  if (told.missing) return;
  if (!ofPlayer()) {
    get("region-note").textContent = `Seed ${told.seed} plays below: choose it to see who went where.`;
    return;
  }
  if (!box) {
    get("region-note").textContent = "Draw a box, or tap a place: what went there is listed here, and plays.";
    return;
  }
  const low = +get("map-from").value, high = +get("map-to").value, k = +get("map-object").value;
  const found = told.rollouts.map((own, index) => {
    if (own.began !== null && (own.began < low || own.began > high)) return [index, -1];
    const [x, y] = own.path[k];
    return [index, x.findIndex((_, t) => x[t] >= box.left && x[t] <= box.right && y[t] >= box.bottom && y[t] <= box.top)];
  }).filter(([, step]) => step >= 0);
  for (const [index, step] of found) {
    const button = add(add(list, "li"), "button", `${nameOf(index)}: there at step ${step}`);
    button.type = "button";
    button.addEventListener("click", () => { bringUp(index, 0); play(true); });
  }
  const training = found.filter(([index]) => told.rollouts[index].began !== null).length;
  get("region-note").textContent = `${training} recorded episodes of training and ${found.length - training} rollouts went there.`;
}

/** Draw on the map the way that plays, up to the step that is shown. */
function drawPath() {
  if (data.map.missing || data.rollouts.missing) return;
  const own = data.rollouts.rollouts[player.index], [x, y] = own.path[+get("map-object").value];
  const shown = ofPlayer() ? player.step + 1 : 0;
  source("map_path").data = { x: x.slice(0, shown), y: y.slice(0, shown) };
  source("map_here").data = shown ? { x: [x[player.step]], y: [y[player.step]] } : { x: [], y: [] };
}

/** The shades of a seed's visits by interaction or bonus; a few extreme bonuses share the last ones. */
function shades(by, own) {
  const values = own[by === "step" ? "step" : "bonus"] || [0];
  const sorted = by === "step" ? [0, values.at(-1)] : [...values].sort((a, b) => a - b);
  const spare = Math.floor(0.02 * sorted.length), low = sorted[spare], high = sorted.at(-1 - spare);
  return {
    bounds: [`${by === "step" ? "interaction" : "bonus"} ${short(low)}`, short(high)],
    colour: (i) => viridis[Math.max(0, Math.min(9, Math.floor((10 * (values[i] - low)) / (high - low || 1))))],
  };
}

function showLegend(node, legend) {
  node.replaceChildren();
  if (legend.bounds) {
    add(node, "span", legend.bounds[0]);
    add(node, "span", "", "bar").style.background = `linear-gradient(90deg, ${viridis.join(", ")})`;
    add(node, "span", legend.bounds[1]);
    return;
  }
  if (legend.labels.length) add(node, "span", legend.title);
  for (const [label, colour] of legend.labels) {
    const item = add(node, "span");
    dot(item, colour);
    item.append(label);
  }
}

// Rollouts ----------------------------------------------------------------------------------------

const player = { index: 0, step: 0, playing: null, images: new Map() };

function showRollouts() {
  const told = data.rollouts;
  if (told.missing) {
    get("rollouts").hidden = true;
    get("rollouts-note").textContent = told.missing;
    return;
  }
  get("rollouts-note").textContent = told.note;
  get("screens").hidden = told.no_pictures !== null;
  for (const figure of document.querySelectorAll(".of-slots")) figure.hidden = !told.slots;
  for (const [k, colour] of (told.slots ? told.slots.colours : []).entries()) {
    const figure = add(get("each-slot"), "figure");
    Object.assign(add(figure, "canvas"), { width: 64, height: 64 });
    const caption = add(figure, "figcaption");
    dot(caption, colour);
    caption.append(`slot ${k}`);
  }
  showLegend(get("z-legend"), told.legend);
  const groups = [["Rollouts by z", (own) => own.began === null], ["Episodes of training", (own) => own.began !== null]];
  for (const [label, belongs] of groups) {
    const entries = told.rollouts.map((own, k) => [k, own]).filter(([, own]) => belongs(own));
    if (!entries.length) continue;
    const group = add(get("rollout"), "optgroup");
    group.label = label;
    fillSelect(group, entries.map(([k]) => [k, nameOf(k)]));
  }
  get("rollout").addEventListener("change", () => choose(+get("rollout").value));
  const points = source("z_points");
  points.selected.properties.indices.change.connect(() => {
    const [index] = points.selected.indices;
    if (index !== undefined && index !== player.index) { choose(index); play(true); }
  });
  get("step").addEventListener("input", () => { play(false); goTo(+get("step").value); });
  get("play").addEventListener("click", () => play(!player.playing));
  document.addEventListener("keydown", onKey);
  choose(0);
}

/** Say which rollout or episode this is. */
function nameOf(index) {
  const own = data.rollouts.rollouts[index];
  const random = own.began !== null && own.began < data.rollouts.random_until ? ", random actions" : "";
  const which = own.began === null ? `${index + 1}` : `at ${own.began.toLocaleString("en")}${random}`;
  return `${which}: ${own.z.startsWith("(") ? "z " : ""}${own.z}, return ${short(own.total)}${own.success ? ", success" : ""}`;
}

function onKey(event) {
  const target = event.target, slider = target === get("step");
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (!slider && target.closest && target.closest("select, input, summary, button:not(#play)")) return;
  const last = data.rollouts.rollouts[player.index].length, count = data.rollouts.rollouts.length;
  const moves = {
    ArrowLeft: () => { play(false); goTo(Math.max(0, player.step - 1)); },
    ArrowRight: () => { play(false); goTo(Math.min(last, player.step + 1)); },
    ArrowUp: () => choose((player.index + count - 1) % count),
    ArrowDown: () => choose((player.index + 1) % count),
    " ": () => play(!player.playing),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
}

function choose(index) {
  player.index = index;
  const own = data.rollouts.rollouts[index];
  get("rollout").value = index;
  const points = source("z_points");
  const dot = index < points.data.z.length ? [index] : [];
  if (points.selected.indices[0] !== dot[0]) points.selected.indices = dot;
  get("step").max = own.length;
  drawStrips(own);
  goTo(0);
}

/** Choose a rollout and step from elsewhere on the page; the keys then move the player. */
function bringUp(index, step) {
  play(false);
  choose(index);
  goTo(step);
  get("player").scrollIntoView({ block: "nearest" });
  get("step").focus({ preventScroll: true });
}

function play(wanted) {
  if (Boolean(player.playing) === wanted) return;
  get("play").textContent = wanted ? "Pause" : "Play";
  if (!wanted) {
    cancelAnimationFrame(player.playing);
    player.playing = null;
    return;
  }
  if (player.step >= data.rollouts.rollouts[player.index].length) goTo(0);
  let before = null, passed = 0;
  const advance = (now) => {
    const last = data.rollouts.rollouts[player.index].length;
    passed += before === null ? 0 : ((now - before) / 1000) * data.rollouts.fps;
    before = now;
    const steps = Math.floor(passed);
    passed -= steps;
    if (steps) goTo(Math.min(last, player.step + steps));
    if (player.step >= last) { player.playing = 1; play(false); return; }
    player.playing = requestAnimationFrame(advance);
  };
  player.playing = requestAnimationFrame(advance);
}

function goTo(step) {
  player.step = step;
  const own = data.rollouts.rollouts[player.index];
  get("step").value = step;
  const result = own.succeeds[step] ? ", success" : "";
  get("step-note").textContent = `${step} of ${own.length}${result}`;
  const shown = Math.max(0, own.steps.findLastIndex((each) => each <= step));
  if (own.pictures.length) drawPicture(get("frame"), own.pictures[shown]);
  if (own.slots.length) {
    const canvases = [get("slots"), get("reconstruction"), ...get("each-slot").querySelectorAll("canvas")];
    canvases.forEach((canvas, tile) => drawPicture(canvas, own.slots[shown], tile));
  }
  for (const strip of get("strips").children) {
    const values = own.series[strip.dataset.name];
    strip.querySelector("b").textContent = step < values.length ? short(values[step]) : "-";
    strip.querySelector(".cursor").style.left = `${(100 * step) / own.length}%`;
  }
  drawPath();
}

/** Draw a picture, or a square tile of it, on a canvas, once it is decoded, unless another one was asked for meanwhile. */
function drawPicture(canvas, address, tile) {
  canvas.wanted = address;
  let image = player.images.get(address);
  if (!image) {
    image = new Image();
    image.src = address;
    player.images.set(address, image);
  }
  const paint = () => {
    if (canvas.wanted !== address) return;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    const { naturalWidth: wide, naturalHeight: high } = image;
    const part = tile === undefined ? [0, 0, wide, high] : [tile * high, 0, high, high];
    context.drawImage(image, ...part, 0, 0, canvas.width, canvas.height);
  };
  if (image.complete) paint(); else image.addEventListener("load", paint, { once: true });
}

/** One chart for each series, all on the axis of the slider. */
function drawStrips(own) {
  get("strips").replaceChildren();
  for (const [name, values] of Object.entries(own.series)) {
    const alike = data.rollouts.rollouts.filter((other) => (other.began === null) === (own.began === null));
    const every = alike.flatMap((other) => other.series[name]);
    let low = every[0], high = every[0];
    for (const value of every) { low = Math.min(low, value); high = Math.max(high, value); }
    const strip = add(get("strips"), "div", undefined, "strip");
    strip.dataset.name = name;
    const label = add(strip, "div", name, "name");
    add(label, "b");
    const chart = add(strip, "div", undefined, "chart");
    const svg = chart.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    svg.setAttribute("viewBox", "0 0 1000 100");
    svg.setAttribute("preserveAspectRatio", "none");
    const line = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    const points = values.map((value, t) =>
      `${((1000 * t) / own.length).toFixed(1)},${(95 - (90 * (value - low)) / (high - low || 1)).toFixed(1)}`);
    line.setAttribute("points", points.join(" "));
    add(chart, "span", short(high), "bound").style.top = "1px";
    add(chart, "span", short(low), "bound").style.bottom = "1px";
    add(chart, "div", undefined, "cursor");
    const scrub = (event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      const box = chart.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      play(false);
      goTo(Math.round(share * own.length));
    };
    chart.addEventListener("pointerdown", scrub);
    chart.addEventListener("pointermove", scrub);
  }
}

// Slots at their worst ----------------------------------------------------------------------------

function showFailures() {
  const { slots } = data.rollouts;
  if (!slots) return;
  get("failures-section").hidden = false;
  get("failures-note").textContent = `The worst of ${slots.frames.toLocaleString("en")} frames of the rollouts and episodes above, by measures that need no labels: `
    + "slots that are lost, that share an object, that jump, and that are reconstructed worst. The frame is on the left, its slots on the right; choose one to play from there.";
  for (const own of slots.cases) {
    const button = add(get("failures"), "button");
    button.type = "button";
    Object.assign(add(button, "img"), { src: own.picture, alt: "" });
    const why = add(button, "span");
    for (const k of own.slots) dot(why, slots.colours[k]);
    why.append(own.why);
    const kind = data.rollouts.rollouts[own.rollout].began === null ? "rollout" : "episode";
    add(button, "span", `${kind} ${nameOf(own.rollout)}; step ${own.step}`, "note");
    button.addEventListener("click", () => bringUp(own.rollout, own.step));
  }
}

// A served page -----------------------------------------------------------------------------------

/** Choose the place of the next live rollout's z. */
function aimAt(u, v) {
  get("live-u").value = u.toFixed(2);
  get("live-v").value = v.toFixed(2);
}

function showLive() {
  if (!data.live) return;
  get("follow-label").hidden = false;
  setInterval(followRun, 3000);
  if (data.rollouts.missing) return;
  get("live").hidden = false;
  const { choice } = data.live;
  for (const id of ["live-u", "live-v"]) get(id).parentElement.hidden = choice !== "place";
  get("live-category").parentElement.hidden = choice !== "category";
  get("live-roll").addEventListener("click", rollOut);
}

/** Load the page anew once the run has another checkpoint, but not under a film. */
async function followRun() {
  const answer = await fetch("version").catch(() => null);
  get("follow-label").classList.toggle("note", !answer);
  if (!answer || !get("follow").checked || player.playing) return;
  if ((await answer.text()) !== data.live.version) location.reload();
}

/** Roll out the z that is chosen, add it to the others, and play it. */
async function rollOut() {
  const button = get("live-roll"), note = get("live-note");
  button.disabled = true;
  note.textContent = "rolling out ...";
  const wanted = new URLSearchParams(["u", "v", "category", "start"].map((name) => [name, get(`live-${name}`).value]));
  wanted.set("version", data.live.version);
  const answer = await fetch(`rollout?${wanted}`).catch(() => null);
  const own = answer ? await answer.json() : { error: "the server has ended" };
  button.disabled = false;
  note.textContent = own.error || "";
  if (own.error) return;
  const index = data.rollouts.rollouts.push(own) - 1;
  let group = get("live-group");
  if (!group) {
    group = add(get("rollout"), "optgroup");
    Object.assign(group, { id: "live-group", label: "Live rollouts" });
  }
  fillSelect(group, [[index, nameOf(index)]]);
  choose(index);
  play(true);
}

// Settings ----------------------------------------------------------------------------------------

function showConfig() {
  const { rows, seeds } = data.config, table = get("config");
  const lines = rows.map(([key, values, meaning]) => {
    const line = add(table, "tr", undefined, values.length > 1 ? "changed" : "");
    add(line, "td", key);
    add(line, "td", values.length > 1 ? values.map((value, k) => `seed ${seeds[k]}: ${value}`).join("; ") : values[0]);
    add(line, "td", meaning);
    return line;
  });
  get("config-find").addEventListener("input", () => {
    const words = get("config-find").value.toLowerCase();
    for (const line of lines) line.hidden = !line.textContent.toLowerCase().includes(words);
  });
}

async function main() {
  showRuns();
  showHeader();
  showConfig();
  for (const item of data.figures) await Bokeh.embed.embed_item(item);
  showCurves();
  showMap();
  showRollouts();
  showFailures();
  showLive();
  document.body.dataset.ready = "yes";
}

main();
