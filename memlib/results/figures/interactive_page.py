"""The page of the interactive figure: style, markup and script, with places (@NAME@) that memlib.results.figures.interactive fills."""

PAGE = """<div class="memlib-switch" id="@ID@">
<style>
.memlib-switch {
  --ink: #1f2328; --soft: #57606a; --ground: #ffffff; --rule: #c4cbd2; --trace: #0b6aa2; --copy: #a4500b; --mark: #7a1fa2;
  color: var(--ink); background: var(--ground); border: 1px solid var(--rule); border-radius: .4rem; padding: .8rem 1rem;
  max-width: 52rem; font-size: .95rem; line-height: 1.4;
}
html[data-theme="dark"] .memlib-switch, body[data-jp-theme-light="false"] .memlib-switch {
  --ink: #e8eaed; --soft: #b3bcc6; --ground: #14181e; --rule: #49525c; --trace: #6cb8e6; --copy: #f0a85c; --mark: #d9a5f5;
}
@media (prefers-color-scheme: dark) {
  html:not([data-theme]) body:not([data-jp-theme-light]) .memlib-switch {
    --ink: #e8eaed; --soft: #b3bcc6; --ground: #14181e; --rule: #49525c; --trace: #6cb8e6; --copy: #f0a85c; --mark: #d9a5f5;
  }
}
html[data-theme] .bd-content div.cell_output .text_html:has(.memlib-switch) { background: none !important; padding: 0 !important; }
.memlib-switch .choices { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; margin-bottom: .5rem; }
.memlib-switch .choices label, .memlib-switch .slide label { font-weight: 600; margin-right: .4rem; }
.memlib-switch select {
  max-width: min(24rem, 70vw); padding: .15rem .3rem;
  color: var(--ink); background: var(--ground); border: 1px solid var(--soft); border-radius: .25rem;
}
.memlib-switch .slide input { width: 100%; accent-color: var(--mark); margin: .3rem 0; }
.memlib-switch select:focus-visible, .memlib-switch input:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
.memlib-switch .stage { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.memlib-switch figure { margin: 0; width: 9rem; }
html .memlib-switch.memlib-switch figure img {
  width: 9rem; height: 9rem; object-fit: contain; background: none !important; padding: 0 !important; border-radius: 0; display: block; margin: 0;
}
html .memlib-switch.memlib-switch noscript img { width: 100%; height: auto; padding: 0 !important; }
.memlib-switch figcaption { color: var(--soft); font-size: .82rem; text-align: center; margin: .2rem 0 0; }
.memlib-switch svg { flex: 1 1 20rem; min-width: 0; width: 100%; height: auto; font-size: 12px; }
.memlib-switch svg text { fill: var(--ink); }
.memlib-switch .frame { fill: none; stroke: var(--rule); }
.memlib-switch .grid { stroke: var(--rule); stroke-width: .6; }
.memlib-switch .trace { fill: none; stroke: var(--trace); stroke-width: 2; }
.memlib-switch .copy { fill: none; stroke: var(--copy); stroke-width: 2; }
.memlib-switch .bound { stroke: var(--ink); stroke-dasharray: 5 4; }
.memlib-switch .predicted { stroke: var(--soft); stroke-dasharray: 2 3; stroke-width: 1.5; }
.memlib-switch .now { stroke: var(--mark); stroke-width: 1.2; }
.memlib-switch circle { fill: var(--mark); stroke: var(--ground); stroke-width: 1.5; }
.memlib-switch .said { min-height: 2.8em; margin: .5rem 0 0; }
</style>
<div class="live" hidden>
<div class="choices">
<span><label for="@ID@-prompt">Prompt</label><select id="@ID@-prompt" class="prompt">@PROMPTS@</select></span>
<span><label for="@ID@-seed">Seed</label><select id="@ID@-seed" class="seed">@SEEDS@</select></span>
</div>
<div class="slide">
<label for="@ID@-step">Guidance is on from</label><output for="@ID@-step" class="when"></output>
<input id="@ID@-step" class="step" type="range" min="0" max="@LAST@" step="1" value="0">
</div>
<div class="stage">
<figure><img class="picture" src="@FIRST@" alt="Picture with guidance from step 0 on"><figcaption>picture</figcaption></figure>
<figure class="from-training" hidden><img src="@FIRST@" alt="Training picture"><figcaption>training picture</figcaption></figure>
<svg viewBox="0 0 480 330" role="img" aria-label="Trace under zero guidance and similarity by switch-on step"></svg>
</div>
<p class="said" role="status" aria-live="polite"></p>
</div>
<noscript><p>This figure can be dragged where scripts are allowed. Guidance switched on later and later, from left to right:</p>
<img src="@STRIP@" alt="@STRIP_ALT@"></noscript>
<script type="application/json" class="data">@DATA@</script>
<script>
(() => {
  const root = document.getElementById("@ID@");
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const data = JSON.parse(root.querySelector("script.data").textContent);
  const find = (name) => root.querySelector(name);
  const [prompt, seed, slider, svg] = [".prompt", ".seed", ".step", "svg"].map(find);
  const left = 46, right = 470, panels = {trace: [18, 140], copy: [176, 298]};
  let story, points = {};

  const add = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    svg.append(node);
    return node;
  };
  const across = (step) => left + (right - left) * step / story.trace.length;
  const up = ([top, bottom], low, high, value) => bottom - (bottom - top) * (value - low) / (high - low);
  const line = (xs, ys, place) => xs.map((x, i) => (i ? "L" : "M") + across(x).toFixed(1) + " " + place(ys[i]).toFixed(1)).join("");

  function axes(panel, title, low, high, ticks) {
    const [top, bottom] = panel;
    add("rect", {class: "frame", x: left, y: top, width: right - left, height: bottom - top});
    add("text", {x: left, y: top - 5}, title);
    for (const tick of ticks) {
      const y = up(panel, low, high, tick);
      add("line", {class: "grid", x1: left, x2: right, y1: y, y2: y});
      add("text", {x: left - 5, y: y + 4, "text-anchor": "end"}, String(tick));
    }
  }

  function draw() {
    svg.replaceChildren();
    const steps = story.trace.length, most = Math.max(...story.trace) || 1;
    const unit = 10 ** Math.floor(Math.log10(most)), tick = [5, 2, 1].map((m) => m * unit).find((m) => m <= most);
    const high = most * 1.08, trace = (value) => up(panels.trace, 0, high, value);
    axes(panels.trace, "pull of the prompt under zero guidance", 0, high, [0, Number(tick.toPrecision(2))]);
    add("path", {class: "trace", d: line([...story.trace.keys()], story.trace, trace)});
    points = {trace: [story.trace, trace]};
    if (story.similarity) {
      const low = Math.min(0, ...story.similarity), copy = (value) => up(panels.copy, low, 1.02, value);
      axes(panels.copy, story.measure + ", by the step at which guidance starts", low, 1.02, [0, 0.5, 1]);
      if (data.threshold !== null) {
        add("line", {class: "bound", x1: left, x2: right, y1: copy(data.threshold), y2: copy(data.threshold)});
        add("text", {x: right - 3, y: copy(data.threshold) - 4, "text-anchor": "end"}, "copy from here up");
      }
      add("path", {class: "copy", d: line(story.switches, story.similarity, copy)});
      points.copy = [story.similarity, copy];
    } else {
      add("text", {x: left, y: panels.copy[0] + 20}, "similarity: not measured");
    }
    for (let k = 0; k <= steps; k += Math.max(1, Math.round(steps / 5)))
      add("text", {x: across(k), y: panels.copy[1] + 15, "text-anchor": "middle"}, String(k));
    add("text", {x: (left + right) / 2, y: panels.copy[1] + 29, "text-anchor": "middle"}, "step");
    if (story.predicted >= 0) {
      const x = across(story.predicted), end = x > (left + right) / 2;
      add("line", {class: "predicted", x1: x, x2: x, y1: panels.trace[0], y2: panels.copy[1]});
      add("text", {x: x + (end ? -4 : 4), y: panels.trace[0] + 13, "text-anchor": end ? "end" : "start"}, "predicted transition");
    }
    points.now = add("line", {class: "now", y1: panels.trace[0], y2: panels.copy[1]});
    points.marks = {trace: add("circle", {r: 5.5, class: "on-trace"}), copy: add("circle", {r: 5.5, class: "on-copy"})};
  }

  function show() {
    const at = Number(slider.value), step = story.switches[at], steps = story.trace.length;
    const when = step >= steps ? "never" : "step " + step + " of " + steps + " (t = " + story.times[step] + ")";
    const x = across(Math.min(step, steps));
    for (const end of ["x1", "x2"]) points.now.setAttribute(end, x);
    const heights = {trace: points.trace[1](story.trace[Math.min(step, steps - 1)]), copy: points.copy && points.copy[1](story.similarity[at])};
    for (const [name, mark] of Object.entries(points.marks)) {
      mark.setAttribute("visibility", heights[name] === undefined ? "hidden" : "visible");
      mark.setAttribute("cx", name === "trace" ? across(Math.min(step, steps - 1)) : x);
      mark.setAttribute("cy", heights[name] === undefined ? 0 : heights[name]);
    }
    let said = step >= steps ? "Guidance is never on, so the prompt has no say." : "Guidance from " + when + ".";
    if (story.similarity) {
      const value = story.similarity[at];
      said += " " + story.measure[0].toUpperCase() + story.measure.slice(1) + " " + value.toFixed(2);
      said += data.threshold === null ? "." : value >= data.threshold ? ": a copy." : ": not a copy.";
    }
    said += story.predicted < 0 ? " The trace has no transition." : " The trace puts the transition at step " + story.predicted + ".";
    const picture = find(".picture");
    picture.src = story.pictures[at];
    picture.alt = "Picture with guidance from " + when;
    find(".when").textContent = when;
    find(".said").textContent = said;
    slider.setAttribute("aria-valuetext", said);
    svg.setAttribute("aria-label", "Pull of the prompt under zero guidance and similarity by switch-on step. " + said);
    root.dataset.step = step;
  }

  function choose() {
    story = data.prompts[Number(prompt.value)].stories[Number(seed.value)];
    slider.max = story.switches.length - 1;
    const training = find(".from-training");
    training.hidden = !story.training;
    if (story.training) training.querySelector("img").src = story.training;
    draw();
    show();
  }

  prompt.addEventListener("change", choose);
  seed.addEventListener("change", choose);
  slider.addEventListener("input", show);
  find(".live").hidden = false;
  choose();
})();
</script>
</div>
"""
