// Loss surfaces, drawn with WebGL 2 from the numbers that stand in #data; it asks for nothing else.
"use strict";
(async () => {
const $ = id => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);

// -- numbers: one block of float32, its bytes sorted by their place in a number, which packs better -----------------

async function unpack(text, lengths) {
  const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const sorted = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = sorted.length / 4, bytes = new Uint8Array(sorted.length);
  for (let place = 0; place < 4; place++)
    for (let i = 0; i < count; i++) bytes[4 * i + place] = sorted[place * count + i];
  const numbers = new Float32Array(bytes.buffer);
  let start = 0;
  return lengths.map(length => numbers.subarray(start, start += length));
}

const note = text => $("charts").before(element("p", {class: "note"}, text));
function element(tag, attributes = {}, text) {
  const svg = ["svg", "g", "line", "circle", "text", "path", "rect", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text != null) made.textContent = text;
  return made;
}
if (!("DecompressionStream" in window)) return note("The surfaces need a browser of 2023 or later.");
const ARRAYS = await unpack(DATA.block, DATA.lengths);
const mapped = (indices) => Object.fromEntries(Object.entries(indices).map(([name, index]) => [name, ARRAYS[index]]));
const GRIDS = DATA.grids.map(grid => ({...grid, nx: grid.x.length, ny: grid.y.length, meshes: new Map()}));
const NETWORKS = DATA.networks.map((network, index) => ({
  ...network, index, grid: GRIDS[network.grid] || null, meshes: {}, path: network.path && mapped(network.path),
  values: mapped(network.values),
}));
const DRAWN = NETWORKS.filter(network => network.grid), PARTS = DATA.parts;

// -- numbers as text -----------------------------------------------------------------------------------------------

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const written = v => String(v).replace(/-/g, "−");
const short = v => !isFinite(v) ? "not finite" : written(
  Math.abs(v) >= 1e5 ? v.toExponential(2) : Math.abs(v) >= 100 ? v.toFixed(0) : Math.abs(v) >= 10 ? v.toFixed(1)
  : Math.abs(v) >= 1 ? v.toFixed(2) : +v.toPrecision(2));

// -- what is chosen, and quantities with the one scale that all states share ----------------------------------------

const VIEW = {turn: -0.9, tilt: 0.5, zoom: 1};
const state = {
  quantity: DATA.start, view: "3d", slider: DATA.slider, at: 0, step: 0, axis: 0, cut: 0, hover: null, flat: 0,
  overview: null, chosen: new Set(), ...VIEW,
};
const QUANTITIES = {
  log: {label: "log loss", title: "loss (log scale)", values: "loss", lift: v => v > 0 ? Math.log10(v) : NaN},
  loss: {label: "loss", title: "loss", values: "loss", lift: v => v},
  accuracy: {label: "accuracy", title: "accuracy", values: "accuracy", lift: v => v},
};
for (const [name, quantity] of Object.entries(QUANTITIES)) {
  let low = Infinity, high = -Infinity;
  for (const network of DRAWN)
    for (const value of network.values[quantity.values] || []) {
      const lifted = quantity.lift(value);
      if (isFinite(lifted)) { low = Math.min(low, lifted); high = Math.max(high, lifted); }
    }
  if (low > high) { delete QUANTITIES[name]; continue; }
  if (name === "accuracy") [low, high] = [0, 1];
  Object.assign(quantity, {low, high: high > low ? high : low + 1});
  quantity.height = value => (quantity.lift(value) - quantity.low) / (quantity.high - quantity.low);
  quantity.ticks = ticks(quantity.low, quantity.high, name === "log");
}
if (!QUANTITIES[state.quantity]) state.quantity = Object.keys(QUANTITIES)[0];
if (!state.quantity) DRAWN.length = 0;  // nowhere a finite number
const quantity = () => QUANTITIES[state.quantity];

/** Round values within a range (of logarithms): [share of the range, label]. */
function ticks(low, high, log, about = 6) {
  const round = (from, to) => {
    const rough = (to - from) / about, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough), values = [];
    for (let k = Math.ceil(from / step - 1e-9); k * step <= to + 1e-9 * step; k++) values.push(k * step);
    return values;
  };
  let values = log ? [] : round(low, high);
  if (log) {
    const every = Math.ceil((high - low) / 12), steps = high - low > 6 ? [1] : high - low > 2.6 ? [1, 3] : [1, 2, 5];
    for (let power = Math.floor(low); power <= high; power += every)
      for (const step of steps) values.push(power + Math.log10(step));
    values = values.filter(v => v >= low && v <= high);
    if (values.length < 3) values = round(10 ** low, 10 ** high).filter(v => v > 0).map(Math.log10);
  }
  return values.map(v => [(v - low) / (high - low), written(+(log ? 10 ** v : v).toPrecision(3))]);
}
// -- colours --------------------------------------------------------------------------------------------------------

// series: Okabe and Ito's, a brighter set in the dark; sheet: lightness rises evenly, for colour-blind eyes as well
const LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#3D9BD1", "#B87A00", "#7F6BB3", "#777777"];
const DARK = ["#5AB4F0", "#FF9257", "#3CCBA0", "#E79CC6", "#8FD0F5", "#F0B840", "#AF9BE3", "#AAAAAA"];
const RAMP = ["#2b1a4a", "#33306f", "#2f4f8c", "#2a6e97", "#2f8c97", "#46a98d", "#79c37c", "#b7d873", "#f2e98b"];
const ACCENT = "#ff6a3d";
const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
function ramp(share) {
  const place = clamp(share, 0, 1) * (RAMP.length - 1), i = Math.min(Math.floor(place), RAMP.length - 2);
  const from = rgb(RAMP[i]), to = rgb(RAMP[i + 1]);
  return from.map((v, k) => Math.round(v + (to[k] - v) * (place - i)));
}
const night = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const isDark = () => (root.dataset.theme || (night.matches ? "dark" : "light")) === "dark";
const colour = index => (isDark() ? DARK : LIGHT)[index % LIGHT.length];
const inks = {};  // the page's own colours, read once a frame
function readInks() {
  const style = getComputedStyle(root);
  for (const name of ["soft", "faint", "rule", "wall", "sans"])
    inks[name] = style.getPropertyValue(`--${name}`).trim();
}

// -- panels: one part of the names runs on the slider, the others stand side by side ---------------------------------

let panels = [];
function columns() {
  if (state.chosen.size)
    return DRAWN.filter(network => state.chosen.has(network.index)).map(one => ({title: one.name, states: [one]}));
  const beside = PARTS.map((_, part) => part).filter(part => part !== state.slider), cells = new Map();
  const stops = state.slider < 0 ? 1 : PARTS[state.slider].values.length;
  for (const network of DRAWN) {
    if (!network.keys) {  // a name of its own stands beside all states
      cells.set(network.name, {order: [-1], title: network.name, states: Array(stops).fill(network), fixed: true});
      continue;
    }
    for (const key of network.keys) {
      const order = beside.map(part => key[part]);
      const title = beside.map(part => PARTS[part].values[key[part]]).join(" · ");
      const cell = cells.get(`${order}`) || {order, title, states: Array(stops)};
      cell.states[state.slider < 0 ? 0 : key[state.slider]] = network;
      cells.set(`${order}`, cell);
    }
  }
  const compare = (a, b) => a.map((v, i) => v - b[i]).find(v => v) || 0;
  return [...cells.values()].sort((a, b) => compare(a.order, b.order));
}

function arrange() {
  $("stage").replaceChildren();
  panels = columns().map((column, index) => {
    const figure = element("figure"), caption = element("figcaption"), name = element("b"), told = element("span");
    const canvas = element("canvas", {tabindex: 0, role: "img"}), tip = element("div", {class: "tip"});
    caption.append(name, told);
    figure.append(caption, canvas, tip);
    $("stage").append(figure);
    const panel = {...column, index, figure, name, told, canvas, tip, context: canvas.getContext("2d")};
    listen(panel);
    return panel;
  });
  const n = panels.length;
  $("stage").style.setProperty("--n", n <= 4 ? Math.max(n, 1) : n <= 6 || n === 9 ? 3 : 4);
  $("stage").classList.toggle("several", n > 1);
  const values = state.slider < 0 || state.chosen.size ? [] : PARTS[state.slider].values;
  states.fit(values, state.slider < 0 ? "" : PARTS[state.slider].name);
  const paths = panels.flatMap(panel => panel.states).filter(one => one && one.path);
  const longest = Math.max(0, ...paths.map(one => one.path.x.length));
  training.fit(Array.from({length: longest}, (_, i) => i === 0 || i === longest - 1 ? String(i) : ""), "checkpoint");
  $("beside").hidden = !DATA.slides || (PARTS.length < 2 && PARTS[0].values.length < 2);
  $("all").hidden = !state.chosen.size;
  const rest = PARTS.filter((_, part) => part !== state.slider);
  const called = part => part.name || part.values.slice(0, 3).join(", ") + (part.values.length > 3 ? " …" : "");
  const swap = rest.length ? `Side by side: ${rest.map(called).join(" × ")}` : "One after another";
  $("beside").textContent = `${swap} ⇄`;
  const grid = cutGrid();
  if (grid) {
    $("cut").max = (state.axis ? grid.nx : grid.ny) - 1;
    if (state.cut === null || state.cut > +$("cut").max) state.cut = closest(grid[state.axis ? "x" : "y"], 0);
    $("cut").value = state.cut;
  }
  measure();
}

/** The two states that the slider stands between, and how far it has gone from one to the other. */
function between(panel) {
  const last = panel.states.length - 1, place = Math.min(state.at, last), i = Math.floor(place), share = place - i;
  const here = panel.states[i], next = panel.states[Math.min(i + 1, last)];
  if (here && next) return [here, next, share];
  const one = share < 0.5 ? here : next;
  return one ? [one, one, 0] : null;
}
const nearest = panel => panel.states[Math.round(Math.min(state.at, panel.states.length - 1))] || null;
const cutGrid = () => {
  const panel = panels.find(nearest) || panels[0];
  return panel && panel.states.find(one => one).grid;
};

// -- meshes: heights from 0 to 1 with slopes, upsampled by Catmull-Rom; a gap stays a gap ----------------------------

function closest(steps, value) {
  const gaps = steps.map(v => Math.abs(v - value));
  return gaps.indexOf(Math.min(...gaps));
}
const half = (grid, axis) => { const ends = grid[axis]; return (ends.at(-1) - ends[0]) / 2; };
const normal = (grid, axis, value) => (value - grid[axis][0]) / half(grid, axis) - 1;

function mesh(network) {
  if (network.meshes[state.quantity]) return network.meshes[state.quantity];
  const {grid} = network, {nx, ny} = grid, raw = network.values[quantity().values];
  const fine = clamp(Math.floor(72 / (Math.max(nx, ny) - 1)), 1, 8);
  const height = Float32Array.from(raw || Array(nx * ny).fill(NaN), quantity().height);
  const X = (nx - 1) * fine + 1, Y = (ny - 1) * fine + 1, within = v => clamp(v, 0, 1);
  const spline = (a, b, c, d, t) => {
    if (t === 0) return b;
    if (!isFinite(a)) a = b;
    if (!isFinite(d)) d = c;
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  };
  const refined = (count, index, get) => {
    const i = Math.min(Math.floor(index / fine), count - 2), at = k => get(clamp(k, 0, count - 1));
    return index % fine === 0 ? get(index / fine) : spline(at(i - 1), at(i), at(i + 1), at(i + 2), index / fine - i);
  };
  const rows = new Float32Array(X * ny), z = new Float32Array(X * Y);
  for (let x = 0; x < X; x++)
    for (let j = 0; j < ny; j++) rows[x * ny + j] = refined(nx, x, i => height[i * ny + j]);
  for (let x = 0; x < X; x++)
    for (let y = 0; y < Y; y++) z[x * Y + y] = within(refined(ny, y, j => rows[x * ny + j]));
  const places = axis => {
    const steps = grid[axis].map(value => normal(grid, axis, value)), out = [];
    for (let i = 0; i < steps.length - 1; i++)
      for (let k = 0; k < fine; k++) out.push(steps[i] + (steps[i + 1] - steps[i]) * k / fine);
    return [...out, steps.at(-1)];
  };
  const px = places("x"), py = places("y"), vertices = new Float32Array(X * Y * 4);
  const slope = (a, b, from, to, own) => {
    if (!isFinite(a)) a = own;
    if (!isFinite(b)) b = own;
    return isFinite(own) && to > from ? (b - a) / (to - from) : 0;
  };
  for (let x = 0; x < X; x++)
    for (let y = 0; y < Y; y++) {
      const own = z[x * Y + y], x0 = Math.max(x - 1, 0), x1 = Math.min(x + 1, X - 1);
      const y0 = Math.max(y - 1, 0), y1 = Math.min(y + 1, Y - 1), gap = !isFinite(own);
      vertices.set([gap ? 0 : own, slope(z[x0 * Y + y], z[x1 * Y + y], px[x0], px[x1], own),
        slope(z[x * Y + y0], z[x * Y + y1], py[y0], py[y1], own), gap ? 0 : 1], 4 * (x * Y + y));
    }
  return network.meshes[state.quantity] = {height, X, Y, px, py, vertices};
}

/** The height of a grid between its points, NaN beside a gap and outside. */
function heightAt(network, x, y) {
  const {grid} = network, {height} = mesh(network);
  const find = axis => {
    const value = grid[axis][0] + ((axis === "x" ? x : y) + 1) * half(grid, axis), steps = grid[axis];
    const share = (value - steps[0]) / (steps.at(-1) - steps[0]), last = steps.length - 2;
    let i = clamp(Math.floor(share * (last + 1)), 0, last);  // right at once where steps are even
    while (i > 0 && steps[i] > value) i--;
    while (i < last && steps[i + 1] < value) i++;
    return [i, (value - steps[i]) / (steps[i + 1] - steps[i])];
  };
  if (Math.abs(x) > 1.000001 || Math.abs(y) > 1.000001) return NaN;
  const [i, a] = find("x"), [j, b] = find("y"), up = b > 0 ? 1 : 0;
  const row = k => height[k] * (1 - b) + height[k + up] * b, k = i * grid.ny + j;
  return row(k) * (1 - a) + row(a > 0 ? k + grid.ny : k) * a;
}
const mixedHeight = ([a, b, share], x, y) =>
  share ? heightAt(a, x, y) * (1 - share) + heightAt(b, x, y) * share : heightAt(a, x, y);

// -- WebGL: one hidden canvas, whose picture is copied into every panel ----------------------------------------------

const VERTEX = `#version 300 es
in vec2 place; in vec4 from, to;  // height, its two slopes, and 1 where there is a number
uniform mat4 camera; uniform float share, rise, ground, onFloor;
out vec3 point, normal; out float there;
void main() {
  vec4 m = mix(from, to, share);
  point = vec3(place, m.x); there = min(from.w, to.w);
  normal = vec3(-m.yz * rise * .5, 1.);  // half the slope: steep walls keep their colour
  gl_Position = camera * vec4(place, mix(m.x * rise, ground, onFloor), 1.);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 point, normal; in float there; out vec4 color;
uniform sampler2D ramp; uniform float levels[24]; uniform int count;
uniform float onFloor, flatness, dark, cut; uniform vec2 across; uniform vec3 eye, accent;
void main() {
  vec3 base = texture(ramp, vec2(clamp(point.z, 0., 1.) * .996 + .002, .5)).rgb;
  float width = max(fwidth(point.z), 1e-5), away = 1e3;
  for (int i = 0; i < 24; i++) { if (i >= count) break; away = min(away, abs(point.z - levels[i]) / width); }
  float along = dot(point.xy, across), slice = abs(along - cut) / max(fwidth(along), 1e-5);
  if (there < .999) discard;
  // no lines where they would be a black wall, nor on a plateau at a level's very height
  float line = (1. - smoothstep(.35, 1.25, away)) * smoothstep(.06, .012, width) * smoothstep(2e-5, 2e-4, width);
  if (onFloor > .5) {
    color = vec4(mix(base * .9, mix(base, vec3(1.), .38 * line), dark), 1.) * max(.10, line * .75);
    return;
  }
  vec3 up = normalize(normal); if (!gl_FrontFacing) up = -up;
  vec3 light = normalize(vec3(-.35, .55, 1.)), half_ = normalize(light + normalize(eye));
  float shade = mix(.66 + .42 * max(dot(up, light), 0.), 1., flatness), shine = pow(max(dot(up, half_), 0.), 28.) * .16;
  vec3 lit = base * shade + shine * (1. - flatness);
  lit = mix(lit, mix(vec3(1.), base * .35, step(.62, point.z)), line * .5);
  color = vec4(mix(accent, lit, smoothstep(.7, 1.5, slice)), 1.);
}`;
const glCanvas = document.createElement("canvas");
const gl = glCanvas.getContext("webgl2", {alpha: true, antialias: true, premultipliedAlpha: true});
let program = null, uniforms = {}, uploaded = new Map();

function build() {
  const compiled = (type, text) => {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  };
  [program, uniforms, uploaded] = [gl.createProgram(), {}, new Map()];
  compiled(gl.VERTEX_SHADER, VERTEX);
  compiled(gl.FRAGMENT_SHADER, FRAGMENT);
  ["place", "from", "to"].forEach((name, index) => gl.bindAttribLocation(program, index, name));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) { program = null; return; }
  gl.useProgram(program);
  const pixels = new Uint8Array(256 * 4);
  for (let i = 0; i < 256; i++) pixels.set([...ramp(i / 255), 255], 4 * i);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
  gl.enable(gl.DEPTH_TEST);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
}
const uniform = name => uniforms[name] ??= gl.getUniformLocation(program, name);
function uploadedOnce(key, make) {
  if (!uploaded.has(key)) uploaded.set(key, make());
  return uploaded.get(key);
}
function bufferOf(kind, content) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(kind, buffer);
  gl.bufferData(kind, content, gl.STATIC_DRAW);
  return buffer;
}
/** Where the vertices of a mesh lie, and the triangles between them; all networks on a grid share them. */
function layout(grid, {X, Y, px, py}) {
  return uploadedOnce(grid, () => {
    const places = new Float32Array(X * Y * 2), triangles = new Uint32Array((X - 1) * (Y - 1) * 6);
    let next = 0;
    for (let x = 0; x < X; x++) for (let y = 0; y < Y; y++) places.set([px[x], py[y]], 2 * (x * Y + y));
    for (let x = 0; x < X - 1; x++)
      for (let y = 0; y < Y - 1; y++, next += 6) {
        const a = x * Y + y, b = a + Y;
        triangles.set([a, b, a + 1, a + 1, b, b + 1], next);
      }
    return {
      places: bufferOf(gl.ARRAY_BUFFER, places), triangles: bufferOf(gl.ELEMENT_ARRAY_BUFFER, triangles),
      count: triangles.length,
    };
  });
}

function drawSheet(panel, [from, to, share], camera) {
  const {width, height} = panel.canvas;
  if (glCanvas.width < width || glCanvas.height < height) {
    glCanvas.width = Math.max(glCanvas.width, width);
    glCanvas.height = Math.max(glCanvas.height, height);
  }
  gl.viewport(0, 0, width, height);
  gl.clearColor(0, 0, 0, 0);
  gl.depthMask(true);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  const mine = layout(from.grid, mesh(from)), levels = new Float32Array(24), shown = quantity().ticks.slice(0, 24);
  const bind = (index, buffer, size) => {
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(index);
    gl.vertexAttribPointer(index, size, gl.FLOAT, false, 0, 0);
  };
  const vertices = one => uploadedOnce(mesh(one), () => bufferOf(gl.ARRAY_BUFFER, mesh(one).vertices));
  const [first, second] = [vertices(from), vertices(to)];
  bind(0, mine.places, 2);
  bind(1, first, 4);
  bind(2, second, 4);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mine.triangles);
  shown.forEach(([place], i) => levels[i] = place);
  gl.uniformMatrix4fv(uniform("camera"), false, camera.matrix);
  gl.uniform1fv(uniform("levels"), levels);
  gl.uniform1i(uniform("count"), shown.length);
  const axis = state.axis ? "x" : "y", cut = from.grid[axis][Math.min(state.cut, from.grid[axis].length - 1)];
  const single = {share, rise: rise(), ground: ground(), flatness: state.flat, dark: +isDark()};
  for (const [name, value] of Object.entries({...single, cut: normal(from.grid, axis, cut)}))
    gl.uniform1f(uniform(name), value);
  gl.uniform2f(uniform("across"), state.axis, 1 - state.axis);
  gl.uniform3fv(uniform("eye"), camera.away);
  gl.uniform3fv(uniform("accent"), rgb(ACCENT).map(v => v / 255));
  for (const onFloor of state.flat < 0.98 ? [1, 0] : [0]) {
    gl.depthMask(!onFloor);
    gl.uniform1f(uniform("onFloor"), onFloor);
    gl.drawElements(gl.TRIANGLES, mine.count, gl.UNSIGNED_INT, 0);
  }
  panel.context.drawImage(glCanvas, 0, glCanvas.height - height, width, height, 0, 0, panel.width, panel.height);
}

/** Without WebGL: the measured points as a map, each a rectangle of its colour. */
function drawPlainMap(panel, network, camera) {
  const {grid} = network, {height} = mesh(network), {context} = panel;
  const edges = axis => {
    const at = grid[axis].map(value => normal(grid, axis, value));
    return [at[0], ...at.slice(1).map((v, i) => (v + at[i]) / 2), at.at(-1)];
  };
  const xs = edges("x"), ys = edges("y");
  for (let i = 0; i < grid.nx; i++)
    for (let j = 0; j < grid.ny; j++) {
      const value = height[i * grid.ny + j];
      if (!isFinite(value)) continue;
      const [x0, y0] = camera.project(xs[i], ys[j], 0), [x1, y1] = camera.project(xs[i + 1], ys[j + 1], 0);
      context.fillStyle = `rgb(${ramp(value)})`;
      context.fillRect(x0, y1, x1 - x0 + 0.5, y0 - y1 + 0.5);
    }
}

// -- camera ---------------------------------------------------------------------------------------------------------

const RISE = 1.25, FLOOR = -0.42;
const rise = () => RISE * (1 - state.flat * 0.999), ground = () => FLOOR * (1 - state.flat) - 0.001;
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

/** All panels look through the same camera; a map is the view from above. */
function cameraOf(width, height) {
  const tilt = state.tilt + (Math.PI / 2 - 1e-3 - state.tilt) * state.flat;
  const turn = state.turn + (-Math.PI / 2 - state.turn) * state.flat, distance = 6.9 / state.zoom;
  const away = [Math.cos(tilt) * Math.cos(turn), Math.cos(tilt) * Math.sin(turn), Math.sin(tilt)];
  const eye = away.map((v, i) => v * distance + (i === 2 ? 0.33 * (1 - state.flat) : 0));
  const right = [-Math.sin(turn), Math.cos(turn), 0];
  const up = [away[1] * right[2] - away[2] * right[1], away[2] * right[0] - away[0] * right[2],
    away[0] * right[1] - away[1] * right[0]];
  const lens = (4.1 + 1.5 * state.flat) * Math.min(1, width / height * 0.93), near = 0.5, far = 30;
  const rows = [right.map(v => v * lens * height / width), up.map(v => v * lens), away, away];
  const matrix = new Float32Array(16), scale = [1, 1, (far + near) / (near - far), -1];
  const shift = [0, 0, 2 * far * near / (near - far), 0];
  rows.forEach((row, r) => {
    for (let c = 0; c < 3; c++) matrix[4 * c + r] = row[c] * scale[r];
    matrix[12 + r] = -dot(row, eye) * scale[r] + shift[r];
  });
  const project = (x, y, z) => {
    const [a, b, w] = [0, 1, 3].map(r => matrix[r] * x + matrix[4 + r] * y + matrix[8 + r] * z + matrix[12 + r]);
    return [(a / w * 0.5 + 0.5) * width, (0.5 - b / w * 0.5) * height];
  };
  const ray = (px, py) => {  // from the eye through a pixel
    const sx = (2 * px / width - 1) * width / height / lens, sy = (1 - 2 * py / height) / lens;
    return [0, 1, 2].map(i => -away[i] + right[i] * sx + up[i] * sy);
  };
  return {matrix, eye, away, project, ray, width, height};
}

/** March along a ray until it is under the sheet; the nearest grid point, or null. */
function pick(panel, px, py) {
  const pair = between(panel), camera = panel.camera;
  if (!pair || !camera) return null;
  const direction = camera.ray(px, py), {grid} = pair[0];
  const near = dot(camera.eye, camera.away);  // as far as the middle of the plane is
  for (let far = near - 2.5; far < near + 3; far += 0.02) {
    const [x, y, z] = camera.eye.map((v, i) => v + direction[i] * far);
    if (z <= mixedHeight(pair, x, y) * rise()) {
      const index = (axis, place) => closest(grid[axis], grid[axis][0] + (place + 1) * half(grid, axis));
      return [index("x", x), index("y", y)];
    }
  }
  return null;
}

/** Whether the sheet hides a point from the eye. */
function isHidden(pair, camera, [x, y, z]) {
  if (state.flat > 0.5) return false;
  for (let far = 0.06; far < 3; far += 0.06) {
    const height = mixedHeight(pair, x + camera.away[0] * far, y + camera.away[1] * far);
    if (height * rise() > z + camera.away[2] * far + 0.02) return true;
  }
  return false;
}

// -- one panel ------------------------------------------------------------------------------------------------------

function fitted(canvas, width, height) {
  const density = Math.min(devicePixelRatio || 1, 2), context = canvas.getContext("2d");
  const [w, h] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  context.textBaseline = "middle";
  return context;
}
function stroke(context, points, style, width = 1, dash = []) {
  context.strokeStyle = style;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.beginPath();
  let pen = false;
  for (const [x, y] of points) {
    if (isFinite(y)) context[pen ? "lineTo" : "moveTo"](x, y);
    pen = isFinite(y);
  }
  context.stroke();
  context.setLineDash([]);
}
function write(context, text, [x, y], align = "center", style = inks.soft, size = 11, weight = "") {
  context.fillStyle = style;
  context.font = `${weight} ${size}px ${inks.sans}`;
  context.textAlign = align;
  context.fillText(text, x, y);
}

function draw(panel) {
  const {width, height} = panel, shown = nearest(panel), pair = between(panel);
  if (!width) return;
  const context = fitted(panel.canvas, width, height);
  caption(panel, shown);
  panel.camera = null;
  panel.tip.classList.remove("on");
  if (!pair || !mesh(pair[0]).height.some(isFinite)) {
    const why = pair ? `no ${quantity().values} here` : "not measured";
    return write(context, why, [width / 2, height / 2], "center", inks.soft, 13);
  }
  const camera = panel.camera = cameraOf(width, height);
  drawBox(panel, camera);
  if (program) drawSheet(panel, pair, camera);
  else drawPlainMap(panel, shown || pair[0], camera);
  drawAxes(panel, camera, pair[0].grid);
  mark(panel, pair, [0, 0], "#fff", "#1d2330", 4);  // the network itself
  if (shown && shown.path) drawPath(panel, pair, shown.path);
  if (state.hover && shown && state.hover[0] < shown.grid.nx && state.hover[1] < shown.grid.ny) {
    const {grid} = shown, at = mark(panel, pair, [grid.x[state.hover[0]], grid.y[state.hover[1]]], ACCENT, "#fff", 5);
    if (at) tell(panel, shown, at);
  }
}

function caption(panel, shown) {
  const sliding = state.slider >= 0 && !state.chosen.size && !panel.fixed;
  const stop = sliding ? PARTS[state.slider].values[Math.round(state.at)] : "";
  const gaps = shown ? (shown.values[quantity().values] || []).filter(v => !isFinite(quantity().lift(v))).length : 0;
  const missing = gaps ? ` · ${gaps} of ${shown.grid.nx * shown.grid.ny} points not drawn` : "";
  panel.name.textContent = [panel.title, stop].filter(Boolean).join(" · ") || DATA.title;
  panel.told.textContent = shown ? shown.note + missing : "not measured";
  panel.figure.style.setProperty("--c", colour(panel.index));
  const view = state.view === "map" || !program ? "map" : "3-D surface";
  const label = `${panel.name.textContent}: ${quantity().title}, ${view}. ${panel.told.textContent}`;
  panel.canvas.setAttribute("aria-label", label);
}

/** The walls behind with the height's lines and labels, and the floor's frame. */
function drawBox(panel, {away, project}) {
  const {context, width} = panel, solid = 1 - state.flat, z0 = ground(), z1 = rise();
  const bx = away[0] > 0 ? -1 : 1, by = away[1] > 0 ? -1 : 1;
  const line = (...points) => stroke(context, points.map(point => project(...point)), inks.wall, 1);
  if (solid > 0.02) {
    context.globalAlpha = solid;
    for (const [share] of quantity().ticks) line([bx, -by, share * z1], [bx, by, share * z1], [-bx, by, share * z1]);
    for (const [x, y] of [[bx, by], [bx, -by], [-bx, by]]) line([x, y, z0], [x, y, z1]);
    const [left] = [[bx, -by], [-bx, by]].sort((a, b) => project(...a, 0)[0] - project(...b, 0)[0]);
    let last = Infinity;
    for (const [share, label] of quantity().ticks) {
      const [x, y] = project(...left, share * z1);
      if (width > 200 && last - y > 13) { write(context, label, [x - 7, y], "right"); last = y; }
    }
    context.globalAlpha = 1;
  }
  line([-1, -1, z0], [1, -1, z0], [1, 1, z0], [-1, 1, z0], [-1, -1, z0]);
}

function drawAxes(panel, {away, project}, grid) {
  const {context, width} = panel, roomy = width > 330, top = state.flat > 0.5;
  if (width < 130) return;
  for (const axis of ["x", "y"]) {
    const first = axis === "x", back = away[first ? 0 : 1] > 0 ? -1 : 1;
    const edge = top ? -1 : away[first ? 1 : 0] > 0 ? 1 : -1;
    const place = (t, out) => first ? project(t, edge * out, ground()) : project(edge * out, t, ground());
    for (const [share, label] of ticks(grid[axis][0], grid[axis].at(-1), false, roomy ? 4 : 2)) {
      const t = 2 * share - 1, corner = !top && Math.abs(t + back) < 0.1;  // where both axes' labels would meet
      if (!corner) write(context, label, place(t, top && !first ? 1.13 : 1.1), "center");
    }
    if (!roomy) continue;
    const at = place(0, top ? (first ? 1.2 : 1.27) : 1.42);
    context.save();
    context.translate(...at);
    if (top && !first) context.rotate(-Math.PI / 2);
    write(context, grid.axes[first ? 0 : 1], [0, 0], "center", inks.soft, 11.5);
    context.restore();
  }
}

/** A dot on the sheet with a plumb line, fainter where the sheet hides it; its place, or null at a gap. */
function mark(panel, pair, steps, fill, edge, radius) {
  const [x, y] = ["x", "y"].map((axis, i) => normal(pair[0].grid, axis, steps[i]));
  return markAt(panel, pair, x, y, mixedHeight(pair, x, y) * rise(), fill, edge, radius);
}
function markAt(panel, pair, x, y, z, fill, edge, radius) {
  const {context, camera} = panel;
  if (!isFinite(z)) return null;
  const at = camera.project(x, y, z);
  context.globalAlpha = isHidden(pair, camera, [x, y, z]) ? 0.45 : 1;
  stroke(context, [at, camera.project(x, y, ground())], inks.faint, 1.2, [2, 3]);
  context.beginPath();
  context.arc(...at, radius, 0, 2 * Math.PI);
  context.fillStyle = fill;
  context.fill();
  context.lineWidth = 1.5;
  context.strokeStyle = edge;
  context.stroke();
  context.globalAlpha = 1;
  return at;
}

/** The path of training: on the floor and on the sheet up to the checkpoint chosen, which stands at its own loss. */
function drawPath(panel, pair, path) {
  const {context, camera} = panel, {grid} = pair[0], done = Math.min(state.step, path.x.length - 1);
  const where = place => {
    const i = Math.floor(place), t = place - i, mix = part => t ? part[i] * (1 - t) + part[i + 1] * t : part[i];
    return [mix(path.x), mix(path.y)];
  };
  const spot = place => { const [x, y] = where(place); return [normal(grid, "x", x), normal(grid, "y", y)]; };
  const sheet = (x, y) => mixedHeight(pair, x, y) * rise() + 0.01;
  const until = (end, height, behind = false) => {
    const points = [];
    for (let place = 0; place < end; place += 0.2) points.push(spot(place));
    return [...points, spot(end)].map(([x, y]) => {
      const point = [x, y, height(x, y)];
      return !behind && isHidden(pair, camera, point) ? [0, NaN] : camera.project(...point);
    });
  };
  const floor = () => ground() + 0.001;
  stroke(context, until(path.x.length - 1, floor), inks.faint, 1.2, [2, 3]);
  stroke(context, until(done, floor), inks.soft, 1.5);
  stroke(context, until(path.x.length - 1, sheet, true), inks.faint, 1.2, [2, 3]);
  stroke(context, until(done, sheet), "#1d2330", 4.5);
  stroke(context, until(done, sheet), "#fff", 2.2);
  const [x, y] = spot(done), k = Math.round(done), own = quantity().values === "loss" && done === k;
  const height = own ? quantity().height(path.loss[k]) * rise() : sheet(x, y);
  markAt(panel, pair, x, y, height, ACCENT, "#fff", 6);
  panel.told.textContent = `checkpoint ${k} of ${path.x.length - 1}: loss ${short(path.loss[k])}, on the plane ` +
    `${short(path.plane[k])}; distance ${short(path.distance[k])}, off the plane ${short(path.off[k])}`;
}

function tell(panel, network, [x, y]) {
  const [i, j] = state.hover, k = i * network.grid.ny + j, {loss, accuracy, stderr} = network.values;
  const error = stderr && stderr[k] > 0 ? ` ± ${short(stderr[k])}` : "";
  panel.tip.textContent = `loss ${short(loss[k])}${error}` +
    (accuracy ? ` · accuracy ${isFinite(accuracy[k]) ? `${(100 * accuracy[k]).toFixed(1)} %` : "not finite"}` : "");
  const half = panel.tip.offsetWidth / 2 + 6;
  panel.tip.style.left = `${clamp(x, half, panel.width - half)}px`;
  panel.tip.style.top = `${panel.canvas.offsetTop + y}px`;
  panel.tip.classList.add("on");
}

const tiltTo = value => state.tilt = clamp(value, 0.04, 1.45), zoomTo = value => state.zoom = clamp(value, 0.5, 4);

function listen(panel) {
  const {canvas} = panel, pointers = new Map();
  let moved = 0, gap = 0;
  const inside = event => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const leave = event => { pointers.delete(event.pointerId); gap = 0; };
  canvas.onpointerdown = event => {
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    canvas.setPointerCapture(event.pointerId);
    moved = 0;
  };
  canvas.onpointerup = event => {
    leave(event);
    const point = moved < 4 && pick(panel, ...inside(event));
    if (point) { state.cut = point[1 - state.axis]; $("cut").value = state.cut; paint(); }
  };
  canvas.onpointercancel = leave;
  canvas.onpointermove = event => {
    const before = pointers.get(event.pointerId);
    if (!before) { state.hover = pick(panel, ...inside(event)); return paint(); }
    const dx = event.clientX - before[0], dy = event.clientY - before[1];
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    moved += Math.abs(dx) + Math.abs(dy);
    state.hover = null;
    if (pointers.size === 2) {
      const [[ax, ay], [bx, by]] = [...pointers.values()], now = Math.hypot(ax - bx, ay - by);
      if (gap) zoomTo(state.zoom * now / gap);
      gap = now;
    } else if (state.flat < 0.5) { state.turn -= dx * 0.009; tiltTo(state.tilt + dy * 0.007); }
    paint();
  };
  canvas.onpointerleave = () => { state.hover = null; paint(); };
  canvas.addEventListener("wheel", event => {  // alone it scrolls the page
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomTo(state.zoom * Math.exp(-event.deltaY * 0.002));
    paint();
  }, {passive: false});
  canvas.ondblclick = () => { Object.assign(state, VIEW); paint(); };
  canvas.onkeydown = event => {
    const turns = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.07], ArrowDown: [0, -0.07]}[event.key];
    if (turns) { state.turn += turns[0]; tiltTo(state.tilt + turns[1]); }
    else if (event.key === "+" || event.key === "-") zoomTo(state.zoom * (event.key === "+" ? 1.1 : 0.91));
    else if (event.key === "0") Object.assign(state, VIEW);
    else return;
    event.preventDefault();
    paint();
  };
}

// -- the slice ------------------------------------------------------------------------------------------------------

/** The curve of a network along the cut: steps, values, standard errors. */
function curve(network) {
  const {grid, values} = network, along = state.axis ? "y" : "x", across = state.axis ? grid.nx : grid.ny;
  const row = Math.min(state.cut, across - 1), numbers = values[quantity().values];
  const errors = quantity().values === "loss" && values.stderr;
  return grid[along].map((where, i) => {
    const k = state.axis ? row * grid.ny + i : i * grid.ny + row;
    return [where, numbers ? numbers[k] : NaN, errors && isFinite(errors[k]) ? errors[k] : 0];
  });
}

function slice() {
  const canvas = $("slice"), width = canvas.clientWidth, height = 260, grid = cutGrid();
  if (!grid || !width) return;
  canvas.style.height = `${height}px`;
  const context = fitted(canvas, width, height), {lift, low, high} = quantity(), axis = state.axis ? "y" : "x";
  const drawn = panels.map(panel => [panel, between(panel)]).filter(([, pair]) => pair);
  context.font = `600 12px ${inks.sans}`;
  const longest = Math.max(30, ...drawn.map(([panel]) => context.measureText(panel.name.textContent).width));
  const [left, top, bottom] = [46, 12, 38], right = Math.min(longest + 16, width * 0.3);
  const steps = drawn.flatMap(([, [one]]) => [one.grid[axis][0], one.grid[axis].at(-1)]);
  const [from, to] = steps.length ? [Math.min(...steps), Math.max(...steps)] : [grid[axis][0], grid[axis].at(-1)];
  const X = v => left + (v - from) / (to - from) * (width - left - right);
  const Y = v => height - bottom - (v - low) / (high - low) * (height - top - bottom);
  let last = Infinity;
  for (const [share, label] of quantity().ticks) {
    const y = height - bottom - share * (height - top - bottom);
    stroke(context, [[left, y], [width - right, y]], inks.rule);
    if (last - y > 13) { write(context, label, [left - 8, y], "right"); last = y; }
  }
  for (const [share, label] of ticks(from, to, false, 4))
    write(context, label, [X(from + share * (to - from)), height - bottom + 13]);
  write(context, grid.axes[state.axis], [(left + width - right) / 2, height - 8]);
  const ends = [];
  let dashed = "";
  for (const [panel, [a, b, share]] of drawn) {
    const own = colour(panel.index), mix = (u, v) => share ? u * (1 - share) + v * share : u, next = curve(b);
    const mixed = curve(a).map(([where, value, error], i) => ({
      x: X(where), y: Y(mix(lift(value), lift(next[i][1]))),
      value: mix(value, next[i][1]), error: mix(error, next[i][2]),
    }));
    const first = panel.states[0];
    if (first && first !== a && !panel.fixed) {
      const before = curve(first).map(([where, value]) => [X(where), Y(lift(value))]);
      stroke(context, before, own, 1, [3, 3]);
      dashed = PARTS[state.slider].values[0];
    }
    for (const piece of pieces(mixed)) {
      const edge = (point, sign) => {
        const y = Y(lift(point.value + sign * point.error)), floor = height - bottom;
        return [point.x, isFinite(y) ? Math.min(y, floor) : floor];
      };
      context.fillStyle = own;
      context.globalAlpha = 0.18;
      context.beginPath();
      for (const point of piece) context.lineTo(...edge(point, 1));
      for (const point of [...piece].reverse()) context.lineTo(...edge(point, -1));
      context.fill();
      context.globalAlpha = 1;
    }
    stroke(context, mixed.map(({x, y}) => [x, y]), own, 2);
    const end = mixed.findLast(({y}) => isFinite(y));
    if (end) ends.push([end.y, panel.name.textContent, own]);
    const hovered = state.hover && mixed[state.hover[state.axis]];
    if (hovered && isFinite(hovered.y)) {
      context.beginPath();
      context.arc(hovered.x, hovered.y, 4, 0, 2 * Math.PI);
      context.fillStyle = own;
      context.fill();
    }
  }
  if (dashed) write(context, `- - ${dashed}`, [left + 8, height - bottom - 10], "left");
  ends.sort((a, b) => a[0] - b[0]);
  const spread = Math.min(15, (height - top - bottom) / Math.max(ends.length, 1));
  let y = -Infinity;
  ends.forEach(([at, name, own], i) => {
    y = Math.min(Math.max(at, y + spread), height - bottom + 6 - spread * (ends.length - 1 - i));
    write(context, clipped(context, name, right - 10), [width - right + 8, y], "left", own, 12, 600);
  });
  const across = state.axis ? "x" : "y";
  const where = grid[across][Math.min(state.cut, grid[across].length - 1)];
  $("where").textContent = written(+(+where.toFixed(12)).toPrecision(3));  // zero may be 5e-17
  $("across").textContent = grid.axes[1 - state.axis];
  Object.assign(slice, {from, to, left, right, axis, grid});
}
function pieces(points) {
  const out = [[]];
  for (const point of points) isFinite(point.y) ? out.at(-1).push(point) : out.push([]);
  return out.filter(piece => piece.length > 1);
}
function clipped(context, text, room) {
  context.font = `600 12px ${inks.sans}`;
  if (context.measureText(text).width <= room) return text;
  while (text.length > 1 && context.measureText(`${text}…`).width > room) text = text.slice(0, -1);
  return `${text.trimEnd()}…`;
}
$("slice").onpointermove = event => {
  if (!slice.grid) return;
  const {from, to, left, right, axis, grid} = slice, box = $("slice").getBoundingClientRect();
  const where = from + (event.clientX - box.left - left) / (box.width - left - right) * (to - from);
  const index = closest(grid[axis], where);
  state.hover = state.axis ? [state.cut, index] : [index, state.cut];
  paint();
};
$("slice").onpointerleave = () => { state.hover = null; paint(); };

// -- overview: every network a point with its errors -----------------------------------------------------------------

function overview() {
  const {x: choices, y: vertical} = DATA.overview;
  if (!choices.length) return;
  const [name, label] = choices.find(([key]) => key === state.overview) || choices[0], svg = $("points");
  const width = svg.clientWidth || 600, height = 300, [left, right, top, bottom] = [56, 20, 14, 44];
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const known = NETWORKS.filter(one => one.numbers[name] && one.numbers[vertical[0]]);
  const scale = (key, from, to) => {
    const ends = known.flatMap(one => [-1, 0, 1].map(sign => one.numbers[key][0] + sign * (one.numbers[key][1] || 0)));
    const low = Math.min(...ends), high = Math.max(...ends), log = key === "bits" || (low > 0 && high > 30 * low);
    const lift = log ? Math.log10 : v => v, pad = 0.08 * (lift(high) - lift(low)) || 0.5;
    const [a, b] = [lift(low) - pad, lift(high) + pad];
    const bits = key === "bits" && [...new Set(known.map(one => one.numbers.bits[0]))];
    const values = bits ? bits.map(v => [(lift(v) - a) / (b - a), v]) : ticks(a, b, log, 5);
    return {place: v => from + (lift(v) - a) / (b - a) * (to - from), values};
  };
  const X = scale(name, left, width - right), Y = scale(vertical[0], height - bottom, top);
  const add = (tag, attributes, text, parent = svg) => parent.appendChild(element(tag, attributes, text));
  for (const [share, text] of Y.values) {
    const y = height - bottom - share * (height - top - bottom);
    add("line", {class: "grid", x1: left, x2: width - right, y1: y, y2: y});
    add("text", {x: left - 8, y: y + 4, "text-anchor": "end"}, text);
  }
  const centred = (x, y, text, more = {}) => add("text", {x, y, "text-anchor": "middle", ...more}, text);
  for (const [share, text] of X.values) centred(left + share * (width - left - right), height - bottom + 18, text);
  centred((left + width - right) / 2, height - 8, label);
  const middle = (top + height - bottom) / 2;
  centred(14, middle, vertical[1], {transform: `rotate(-90 14 ${middle})`});
  const shown = new Map(panels.map(panel => [nearest(panel), colour(panel.index)]));
  const spot = one => [X.place(one.numbers[name][0]), Y.place(one.numbers[vertical[0]][0])];
  const taken = known.map(spot).map(([x, y]) => [x - 8, x + 8, y + 4]);  // where no label may stand
  for (const one of known) {
    const [[v, ve], [w, we]] = [one.numbers[name], one.numbers[vertical[0]]], [x, y] = spot(one);
    const group = add("g", {
      class: `point${shown.has(one) ? " on" : ""}`, tabindex: 0, role: "button",
      "aria-pressed": state.chosen.has(one.index), "data-network": one.index,
    });
    if (shown.has(one)) group.style.setProperty("--c", shown.get(one));
    const number = (value, error) => short(value) + (error ? ` ± ${short(error)}` : "");
    add("title", {}, `${one.name}: ${label} ${number(v, ve)}, ${vertical[1]} ${number(w, we)}`, group);
    if (ve) add("line", {x1: X.place(v - ve), x2: X.place(v + ve), y1: y, y2: y}, null, group);
    if (we) add("line", {x1: x, x2: x, y1: Y.place(w - we), y2: Y.place(w + we)}, null, group);
    add("circle", {cx: x, cy: y, r: 6}, null, group);
    const text = add("text", {x: x + 10, y: y - 9}, one.name, group), size = text.getComputedTextLength();
    const spots = [-9, 18, -25, 34].flatMap(dy => [[10, dy], [-10 - size, dy]]);
    const clear = ([dx, dy]) => x + dx > left - 40 && x + dx + size < width && y + dy > 8 && y + dy < height - 30 &&
      !taken.some(([a, b, c]) => a < x + dx + size && x + dx < b && Math.abs(c - y - dy) < 14);
    const [dx, dy] = spots.find(clear) || spots[0];
    text.setAttribute("x", x + dx);
    text.setAttribute("y", y + dy);
    taken.push([x + dx, x + dx + size, y + dy]);
    group.onclick = () => choose(one.index);
    group.onkeydown = event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(one.index);
      $("points").querySelector(`[data-network="${one.index}"]`).focus();
    };
  }
}
function choose(index) {
  if (!NETWORKS[index].grid) return;
  state.chosen.delete(index) || state.chosen.add(index);
  players.forEach(player => player.pause());
  arrange();
  now();
}

// -- sliders that play -----------------------------------------------------------------------------------------------

const ICONS = {Play: "M3 1l10 6-10 6z", Pause: "M2 1h4v12H2zM8 1h4v12H8z"};
const eased = t => t * t * (3 - 2 * t);
let running = 0;
function animate(duration, change, done = () => {}) {
  const mine = ++running, start = performance.now();
  const frame = time => {
    if (mine !== running) return;
    const share = clamp((time - start) / duration, 0, 1);
    change(share);
    now();
    if (share < 1) requestAnimationFrame(frame); else done();
  };
  if (duration) requestAnimationFrame(frame); else { change(1); paint(); done(); }
}

/** A slider over stops: moves freely, settles on a stop, plays from stop to stop. */
class Player {
  constructor(id, key, pace) {
    [this.box, this.key, this.pace, this.playing] = [$(id), key, pace, false];
    this.button = element("button", {class: "play"});
    const track = element("div", {class: "track"});
    this.input = element("input", {type: "range", min: 0, step: 0.01});
    this.stops = element("div", {class: "stops"});
    track.append(this.input, this.stops);
    this.box.append(this.button, track);
    this.button.onclick = () => this.playing ? this.pause() : this.play();
    this.input.oninput = () => { this.pause(); state[key] = +this.input.value; paint(); };
    this.input.onchange = () => this.glide(Math.round(state[key]));
    this.input.onkeydown = event => {
      const step = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1}[event.key];
      if (!step) return;
      event.preventDefault();
      this.glide(clamp(Math.round(state[key]) + step, 0, this.last));
    };
    this.face("Play");
  }
  get last() { return Math.max(this.values.length - 1, 0); }
  fit(values, name) {
    this.values = values;
    state[this.key] = this.key === "at" && !values.length ? 0 : Math.min(state[this.key], this.last);
    this.box.hidden = values.length < 2;
    this.input.max = this.last;
    this.input.value = state[this.key];
    this.input.setAttribute("aria-label", name || "state");
    this.name = name;
    this.stops.replaceChildren(...values.map((text, i) => {
      const stop = element("button", {tabindex: -1}, text);
      stop.style.left = `${100 * i / Math.max(this.last, 1)}%`;
      stop.onclick = () => this.glide(i);
      stop.hidden = !text;
      return stop;
    }));
  }
  face(name) {
    const icon = element("svg", {viewBox: "0 0 14 14"});
    icon.append(element("path", {d: ICONS[name]}));
    this.button.replaceChildren(icon);
    this.button.setAttribute("aria-label", name);
  }
  move(to) { state[this.key] = to; this.input.value = to; }
  pause() { if (this.playing) { running++; this.playing = false; this.face("Play"); } }
  glide(to) {
    const from = state[this.key];
    this.pause();
    animate(still.matches || from === to ? 0 : 500, t => this.move(t === 1 ? to : from + (to - from) * eased(t)));
  }
  play() {
    players.forEach(player => player.pause());
    if (state[this.key] >= this.last) this.move(0);
    this.playing = true;
    this.face("Pause");
    const go = () => {
      if (!this.playing) return;
      const from = state[this.key], to = Math.floor(from + 1e-6) + 1;
      if (to > this.last) return this.pause();
      const turn = still.matches ? 0 : 0.0035;  // who wants less motion sees the states one after the other
      animate(this.pace, t => {
        const share = still.matches ? Math.floor(t) : eased(Math.min(t * 1.6, 1));
        this.move(share === 1 ? to : from + (to - from) * share);
        if (this.key === "at") state.turn += turn;
      }, go);
    };
    go();
  }
  mark() {
    [...this.stops.children].forEach((stop, i) => stop.classList.toggle("now", i === Math.round(state[this.key])));
    const text = this.values[Math.round(state[this.key])] || `${this.name} ${Math.round(state[this.key])}`;
    this.input.setAttribute("aria-valuetext", text);
  }
}
const states = new Player("states", "at", 1300), training = new Player("training", "step", 350);
const players = [states, training];

// -- all of it -------------------------------------------------------------------------------------------------------

let due = 0;
const paint = () => { due ||= requestAnimationFrame(() => { due = 0; now(); }); };
function now() {
  readInks();
  panels.forEach(draw);
  slice();
  for (const [id, key] of [["quantity", "quantity"], ["view", "view"], ["along", "axis"], ["versus", "overview"]])
    for (const button of $(id).children) button.setAttribute("aria-pressed", button.dataset.key === String(state[key]));
  players.forEach(player => player.mark());
  const shown = new Map(panels.map(panel => [nearest(panel), panel]));
  for (const row of document.querySelectorAll("tr[data-network]")) {
    const panel = shown.get(NETWORKS[row.dataset.network]);
    row.classList.toggle("on", !!panel);
    if (panel) row.style.setProperty("--c", colour(panel.index));
  }
  const seen = [...shown].map(([one, panel]) => [one && one.index, panel.index]);
  const key = JSON.stringify([seen, [...state.chosen], state.overview, isDark(), $("points").clientWidth]);
  if (now.key !== key) { now.key = key; overview(); }
}
function legend() {
  const bar = element("div", {class: "ramp"});
  bar.style.background = `linear-gradient(90deg, ${RAMP})`;
  let last = -1;
  for (const [share, label] of quantity().ticks) {
    if (share - last < 0.11) continue;
    const tick = element("i", {}, label);
    tick.style.left = `${100 * share}%`;
    bar.append(tick);
    last = share;
  }
  const hint = "one scale for every state and panel · drag to turn, click to cut, double-click to reset";
  const name = element("span", {id: "drawn"}, quantity().title);
  $("scale").replaceChildren(name, bar, element("span", {class: "hint"}, hint));
}
function measure() {
  for (const panel of panels) {
    panel.width = panel.canvas.clientWidth;
    panel.height = Math.round(Math.min(panel.width * 0.86, 440));
    panel.canvas.style.height = `${panel.height}px`;
  }
  paint();
}
function segment(id, choices, change) {
  $(id).hidden = choices.length < 2;
  for (const [key, label] of choices) {
    const button = element("button", {"data-key": key}, label);
    button.onclick = () => change(key);
    $(id).append(button);
  }
}
/** Turn the camera to the side where the sheet is lowest, so that it hides no path. */
function faceLow() {
  const network = NETWORKS.find(one => one.path), side = angle => {
    let sum = 0;
    for (let place = -1; place <= 1; place += 0.1)
      for (const [x, y] of [[Math.sign(Math.cos(angle)), place], [place, Math.sign(Math.sin(angle))]])
        sum += heightAt(network, 0.999 * x, 0.999 * y) || 0;
    return sum;
  };
  const turns = [0, 1, 2, 3].map(quarter => VIEW.turn + quarter * Math.PI / 2);
  VIEW.turn = state.turn = turns.sort((a, b) => side(a) - side(b))[0];
}
function start() {
  segment("quantity", Object.entries(QUANTITIES).map(([key, {label}]) => [key, label]), key => {
    state.quantity = key;
    legend();
    paint();
  });
  segment("view", program ? [["3d", "3-D"], ["map", "map"]] : [], key => {
    const from = state.flat, to = key === "map" ? 1 : 0;
    state.view = key;
    players.forEach(player => player.pause());
    animate(still.matches ? 0 : 600, t => state.flat = from + (to - from) * eased(t));
  });
  const axes = DRAWN.length ? DRAWN[0].grid.axes.map(name => name[0].toLowerCase() + name.slice(1)) : [];
  segment("along", axes.map((name, index) => [String(index), `along ${name}`]), key => {
    state.axis = +key;
    state.cut = null;
    arrange();
  });
  state.overview = (DATA.overview.x[0] || [null])[0];
  segment("versus", DATA.overview.x, key => { state.overview = key; paint(); });
  $("beside").onclick = () => {
    players.forEach(player => player.pause());
    state.slider = state.slider + 1 < PARTS.length ? state.slider + 1 : PARTS.length > 1 ? 0 : -1;
    state.chosen.clear();
    arrange();
  };
  $("all").onclick = () => { state.chosen.clear(); arrange(); };
  $("cut").oninput = event => { state.cut = +event.target.value; paint(); };
  $("theme").onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; paint(); };
  night.addEventListener("change", paint);
  $("copy").onclick = async () => {
    getSelection().selectAllChildren($("bib"));
    try { await navigator.clipboard.writeText($("bib").textContent); } catch { document.execCommand("copy"); }
    $("copy").textContent = "Copied";
  };
  for (const row of document.querySelectorAll("tr[data-network]"))
    if (NETWORKS[row.dataset.network].grid) row.onclick = () => choose(+row.dataset.network);
}

if (gl) {
  build();
  glCanvas.addEventListener("webglcontextlost", event => {
    event.preventDefault();
    [program, state.flat] = [null, 1];
    paint();
  });
  glCanvas.addEventListener("webglcontextrestored", () => {
    build();
    state.flat = state.view === "map" ? 1 : 0;
    paint();
  });
}
if (!program) {
  state.flat = 1;
  state.view = "map";
  if (DRAWN.length) note("This browser draws no WebGL 2: maps of the measured points stand here instead of surfaces.");
}
state.cut = null;
state.at = PARTS.length && state.slider >= 0 ? PARTS[state.slider].values.length - 1 : 0;
state.step = Math.max(0, ...NETWORKS.map(one => one.path ? one.path.x.length - 1 : 0));
$("charts").hidden = $("cutting").hidden = !DRAWN.length;
$("overview").hidden = !DATA.overview.x.length;
if (NETWORKS.some(one => one.path)) faceLow();
start();
arrange();
if (DRAWN.length) legend();
new ResizeObserver(measure).observe($("stage"));
now();
window.landscape = {networks: NETWORKS, state, now};  // to try things in the console
root.dataset.ready = `${Math.round(performance.now())} ms`;
})();
