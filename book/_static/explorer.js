/* The edit explorer of the front page: a prompt, an edit, a seed; the pictures are cut from one sheet a prompt. */
(() => {
  const data = window.memlibExplorer;
  const root = document.getElementById("explorer");
  if (!data || !root) return;
  const byId = (name) => root.querySelector(`#explorer-${name}`);
  const selects = { prompt: byId("prompt"), edit: byId("edit"), seed: byId("seed") };
  const pictures = root.querySelector(".explorer-pictures");
  const told = root.querySelector(".explorer-told");

  const fill = (select, labels, groups) => {
    let parent = select;
    labels.forEach((label, index) => {
      if (groups && (index === 0 || groups[index] !== groups[index - 1])) {
        parent = select.appendChild(document.createElement("optgroup"));
        parent.label = groups[index];
      }
      const option = parent.appendChild(document.createElement("option"));
      option.value = index;
      option.textContent = label;
    });
  };
  fill(selects.prompt, data.prompts.map((p) => p.prompt), data.prompts.map((p) => p.group));
  fill(selects.edit, data.edits.map((e) => e.label));
  fill(selects.seed, data.seeds);
  const padding = data.edits.findIndex((e) => e.key === "h");
  selects.edit.value = padding < 0 ? 0 : padding;

  /* A picture is a figure whose image is the whole sheet, moved behind a window of one picture. */
  const columns = data.edits.length + 1;
  const cut = (prompt, column, seed, caption) => {
    const figure = document.createElement("figure");
    const frame = figure.appendChild(document.createElement("div"));
    frame.className = "explorer-frame";
    const image = frame.appendChild(document.createElement("img"));
    image.src = prompt.sheet;
    image.alt = caption;
    const across = prompt.training ? columns : columns - 1;
    image.style.width = `${across * 100}%`;
    image.style.left = `${-100 * column}%`;
    image.style.top = `${-100 * seed}%`;
    figure.appendChild(document.createElement("figcaption")).textContent = caption;
    return figure;
  };
  const number = (values, edit, seed) => (values ? values[edit][seed].toFixed(2).replace("-", "−") : null);

  const show = () => {
    const prompt = data.prompts[selects.prompt.value];
    const edit = Number(selects.edit.value);
    const seed = Number(selects.seed.value);
    const shown = [cut(prompt, 0, seed, data.edits[0].label), cut(prompt, edit, seed, data.edits[edit].label)];
    if (prompt.training) shown.push(cut(prompt, columns - 1, seed, "training picture"));
    pictures.replaceChildren(...shown);
    const training = number(prompt.scores.training, edit, seed);
    const original = number(prompt.scores.original, edit, seed);
    const parts = [];
    if (training !== null) parts.push(`similarity to the training picture ${training} (unedited ${number(prompt.scores.training, 0, seed)})`);
    if (original !== null) parts.push(`to the unedited picture ${original}`);
    const copy = data.threshold && training !== null ? (Number(training.replace("−", "-")) >= data.threshold ? " It is a copy." : " It is no copy.") : "";
    told.textContent = parts.length ? `${data.edits[edit].label}: ${parts.join(", ")}.${copy}` : "";
  };
  Object.values(selects).forEach((select) => select.addEventListener("change", show));
  root.querySelectorAll(".explorer-live").forEach((part) => { part.hidden = false; });
  root.querySelector(".explorer-static").hidden = true;
  show();
})();
