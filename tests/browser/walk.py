"""Every ordered pair of the explorer's states, drawn one after the other by a browser, without a kernel.

The states are described by the explorer itself, once; the browser then walks through all pairs of them with the very
code that draws them in a notebook, and compares what stands on the page with a page that was never in another state.
"""

import itertools
import json
import pathlib

import landscape
import landscape.explorer.panels as panels

HERE = pathlib.Path(panels.__file__).parent
CHOICES = {
    "kind": ("3-D", "contour", "both"),
    "quantity": ("loss", "accuracy"),
    "scale": ("auto", "linear", "log"),
    "directions": ("random", "eigenvectors", "between"),
    "space": ("quantized", "latent"),
}


def states(models, data, names, **settings):
    """Yield what is chosen, and the explorer that shows it, for all that some choices combine to."""
    explorer = landscape.explore(models, data, **settings)
    for values in itertools.product(*(CHOICES[name] for name in names)):
        chosen = {name: options[0] for name, options in CHOICES.items()} | dict(zip(names, values, strict=True))
        if chosen["quantity"] == "accuracy" and chosen["scale"] != "auto":
            continue
        for name, value in chosen.items():
            explorer.controls[name].value = value
        yield chosen, explorer


# what a reader sees of a picture: titles, kinds of axes, ticks, ranges, and the numbers of every trace
PAGE = """
<!doctype html><meta charset="utf-8"><body><style>__CSS__</style><script type="module">
const { default: widget } = await import(URL.createObjectURL(new Blob([__ESM__], { type: "text/javascript" })));
const packed = Uint8Array.from(atob(__LIBRARY__), (c) => c.charCodeAt(0));
const states = __STATES__;

function model(state) {
  const handlers = [], values = { library: packed, cameras: {}, linked: true, busy: "", ...state };
  return {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; },
    save_changes: () => {},
    on: (_, call) => handlers.push(call),
    off: () => {},
    show(next) { Object.assign(values, next); handlers.forEach((call) => call()); },
  };
}

function opened(state) {
  const el = document.body.appendChild(document.createElement("div"));
  el.style.width = "320px";
  const own = model(state);
  return { el, own, close: widget.render({ model: own, el }), ready: once(el) };
}
const once = (el) => new Promise((done) => el.addEventListener("landscape-drawn", done, { once: true }));

const tidy = (value) => ArrayBuffer.isView(value) || Array.isArray(value)
  ? Array.from(value, tidy) : typeof value === "number" ? Number(value.toPrecision(9)) : value ?? null;
const axisOf = (a) => a && { title: a.title.text, type: a.type, range: tidy(a.range), values: tidy(a.tickvals),
  texts: tidy(a.ticktext), shown: a.visible, mode: a.tickmode, labels: a.showticklabels };

window.seen = (el) => Object.fromEntries([...el.querySelectorAll(".landscape-figure")]
  .filter((box) => box.style.display !== "none").map((box) => {
    const gd = box.querySelector(".landscape-plot"), layout = gd._fullLayout;
    const axes = {};
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\\d*$/.test(key)) axes[key] = axisOf(layout[key]);
      if (/^scene\\d*$/.test(key)) {
        for (const letter of "xyz") axes[key + letter] = axisOf(layout[key][letter + "axis"]);
        axes[key + "camera"] = tidy(Object.values(layout[key].camera.eye));
      }
      if (/^coloraxis\\d*$/.test(key)) {
        const bar = layout[key].colorbar;
        axes[key] = [layout[key].cmin, layout[key].cmax, layout[key].showscale, bar?.title?.text,
          tidy(bar?.tickvals), tidy(bar?.ticktext)];
      }
    }
    return [box.className.split("-").at(-1), {
      head: box.querySelector(".landscape-head").textContent, axes,
      notes: layout.annotations.map((note) => note.text), legend: layout.showlegend,
      size: [layout.width, layout.height],
      traces: gd._fullData.map((trace) => [trace.type, trace.name, trace.visible, tidy(trace.x), tidy(trace.y),
        tidy(trace.z), trace.line?.color, trace.contours?.start, trace.contours?.size, trace.scene, trace.xaxis]),
    }];
  }));

// coarse pixels: without a GPU they are most of the time, and what is compared is what plotly was told
const coarse = { plotGlPixelRatio: 0.25 };
opened(states[0]).close();
const { react, purge, relayout } = await globalThis.landscapePlotly;
const drawn = (gd, data, layout, config) => react(gd, data, layout, { ...config, ...coarse });
globalThis.landscapePlotly = Promise.resolve({ react: drawn, purge, relayout });

window.fresh = async (index) => {
  const one = opened(states[index]);
  await one.ready;
  const found = window.seen(one.el);
  one.close();
  one.el.remove();
  return found;
};

window.walk = async (order, expected) => {
  const texts = expected.map((one) => JSON.stringify(one)), wrong = [];
  const one = opened(states[order[0]]);
  await one.ready;
  for (let k = 1; k < order.length; k++) {
    const drawn = once(one.el);
    one.own.show(states[order[k]]);
    await drawn;
    if (JSON.stringify(window.seen(one.el)) !== texts[order[k]]) wrong.push([order[k - 1], order[k]]);
  }
  one.close();
  one.el.remove();
  return wrong;
};
Object.assign(window, { opened, states, ready: true });
</script>
"""


def page(described):
    """Return a page that can draw each of the states: a list of {"figures": …, "cuts": …}."""
    import base64

    fill = {
        "__CSS__": (HERE / "explorer.css").read_text(),
        "__ESM__": json.dumps((HERE / "picture.js").read_text()),
        "__LIBRARY__": json.dumps(base64.b64encode(panels.library()).decode()),
        "__STATES__": json.dumps(described).replace("</", "<\\/"),
    }
    text = PAGE
    for name, value in fill.items():
        text = text.replace(name, value)
    return text
