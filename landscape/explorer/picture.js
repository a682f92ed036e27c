// Draws what the explorer describes: a picture depends on its last description alone, never on the ones before.
// The kernel sends whole figures; here are only width, theme and cameras, which the kernel does not know.

const NAMES = ["3d", "contour", "slice"];
const ORDER = ["slice", "3d", "contour"]; // the slice follows a hand at once, the others take longer
const CONFIG = {
  scrollZoom: false, // the wheel scrolls the page
  displaylogo: false,
  modeBarButtonsToRemove: ["resetCameraDefault3d", "resetCameraLastSave3d", "tableRotation", "lasso2d", "select2d"],
};

// Unpack plotly.js once for all explorers of the page.
function library(packed) {
  globalThis.landscapePlotly ??= (async () => {
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const source = await new Response(stream).text();
    const text = `const module = {exports: {}}, define = undefined;\n${source}\nexport default module.exports;`;
    const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    return (await import(url)).default;
  })();
  return globalThis.landscapePlotly;
}

// Fit a figure into the width that there is, in the colours of the page.
function fitted(name, figure, cameras, el) {
  const ink = getComputedStyle(el).color;
  const grey = Number(ink.match(/\d+/)[0]) > 127 ? "#3c3c3c" : "#dedede"; // WebGL takes no transparent lines
  const { layout, rows = 1, columns = 1 } = figure;
  const room = (el.clientWidth - 90) / columns;
  const sizes = { "3d": 0.86 * room + 8, contour: 0.95 * room + 30, slice: 200 };
  const size = Math.min(Math.max(sizes[name], 190), name === "contour" ? 400 : 440);
  Object.assign(layout, { width: el.clientWidth, height: rows * size + 12, font: { ...layout.font, color: ink } });
  Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
  for (const title of layout.annotations ?? []) title.font = { ...title.font, size: 13 };
  for (const [key, part] of Object.entries(layout)) {
    if (/^[xy]axis\d*$/.test(key)) Object.assign(part, { gridcolor: grey, linecolor: grey, zerolinecolor: grey });
    if (!/^scene\d*$/.test(key)) continue;
    for (const axis of [part.xaxis, part.yaxis, part.zaxis])
      Object.assign(axis, { backgroundcolor: "rgba(0,0,0,0)", gridcolor: grey, linecolor: grey, color: ink });
    for (const axis of room < 260 ? [part.xaxis, part.yaxis] : []) {
      axis.showticklabels = false; // they would cover the sheet
      axis.title.text = axis.title.text.split(" ").at(-1); // "Direction 1" would be cut
    }
    part.camera = cameras[key] ?? cameras.all ?? part.camera;
  }
  for (const trace of figure.data) if (trace.meta === "cut") trace.line.color = ink;
  return figure;
}

function render({ model, el }) {
  el.classList.add("landscape-picture");
  const boxes = {};
  for (const name of NAMES) {
    const box = (boxes[name] = document.createElement("div"));
    box.className = `landscape-figure landscape-${name}`;
    box.innerHTML = "<div class=landscape-head><b></b> <span></span></div><div class=landscape-plot></div>";
    el.append(box);
  }
  const note = document.createElement("div");
  note.className = "landscape-note";
  el.append(note);

  function described(name) {
    const cuts = model.get("cuts"), text = name === "slice" ? cuts.slice : model.get("figures")[name];
    return text && [text, name === "slice" ? "[]" : (cuts[name] ?? "[]")];
  }

  async function paint(name) {
    const [head, plot] = boxes[name].children;
    if (!el.clientWidth) return; // not on the page at this moment: it will be drawn when it is
    const texts = described(name);
    boxes[name].style.display = texts ? "" : "none";
    if (!texts) return;
    const key = [...texts, JSON.stringify(model.get("cameras")), el.clientWidth, getComputedStyle(el).color].join();
    if (plot.drawn === key) return;
    const figure = JSON.parse(texts[0]);
    figure.data.push(...JSON.parse(texts[1]));
    head.children[0].textContent = figure.title;
    head.children[1].textContent = figure.caption;
    fitted(name, figure, model.get("cameras"), el);
    const first = !plot.data;
    await plotly.react(plot, figure.data, figure.layout, CONFIG);
    plot.drawn = key;
    await new Promise(requestAnimationFrame);
    if (!first) return;
    plot.on("plotly_relayouting", (event) => turned(plot, event, false));
    plot.on("plotly_relayout", (event) => turned(plot, event, true));
  }

  // Give all scenes the camera of the one that a hand turns; the kernel hears of it at the end.
  let following = false;
  async function turned(plot, event, done) {
    const scene = Object.keys(event).find((key) => /^scene\d*\.camera$/.test(key));
    if (!scene || following) return;
    const camera = event[scene], linked = model.get("linked");
    if (linked) {
      following = true;
      const others = Object.keys(plot.layout).filter((key) => /^scene\d*$/.test(key) && `${key}.camera` !== scene);
      const update = Object.fromEntries(others.map((key) => [`${key}.camera`, camera]));
      try { if (others.length) await plotly.relayout(plot, update); } finally { following = false; }
    }
    if (!done) return;
    model.set("cameras", linked ? { all: camera } : { ...model.get("cameras"), [scene.split(".")[0]]: camera });
    model.save_changes();
  }

  // Only the last state counts: what comes while a picture is drawn is drawn once, after it.
  let plotly = null, asked = false, drawing = false, gone = false;
  async function draw() {
    asked = true;
    if (drawing) return;
    drawing = true;
    try {
      plotly = await library(model.get("library"));
      while (asked && !gone) {
        asked = false;
        el.classList.toggle("landscape-stale", Boolean(model.get("busy")));
        note.textContent = model.get("busy");
        for (const name of ORDER) await paint(name);
      }
    } catch (error) {
      note.textContent = `This picture could not be drawn: ${error}`;
      console.error(error);
    } finally {
      drawing = false;
    }
    el.dispatchEvent(new Event("landscape-drawn"));
  }

  model.on("change:figures change:cuts change:cameras change:busy", draw);
  let width = 0;
  const size = new ResizeObserver(() => el.clientWidth !== width && ((width = el.clientWidth), draw()));
  size.observe(el);
  const theme = new MutationObserver(() => setTimeout(draw, 200)); // until its style has come
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-light", "class"] });
  draw();
  return () => {
    gone = true;
    size.disconnect();
    theme.disconnect();
    for (const box of Object.values(boxes)) plotly?.purge(box.children[1]);
  };
}

export default { render };
