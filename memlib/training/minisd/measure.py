"""Commands on a trained MiniSD: find the prompts it memorized, print what it must show, draw the front picture."""

from __future__ import annotations

from memlib.base.errors import InputError
from memlib.base.writing import replacing
from memlib.metrics import metrics_for
from memlib.models.minisd.paths import minisd_folder
from memlib.models.minisd.prompt_sets import COLUMNS, write_csv
from memlib.models.substrate import load
from memlib.probes.reproduced import FOUND, SEEDS, copies_by_level, memorized_pairs, quality, reproduced, similarity_to_training
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.results import figures as plots
from memlib.sampling.stored import PictureStore


def find(model: str) -> None:
    """Find the prompts that `model` reproduces with at least 9 of 10 seeds; write found-MODEL.csv, and for minisd-v1 the
    set minisd-memorized."""
    rows = reproduced(load(model), PictureStore())
    write_csv(f"found-{model}", rows, COLUMNS + FOUND)
    exact = memorized_pairs(rows, model)
    if model == "minisd-v1":
        if not exact:
            raise InputError("minisd-v1 memorized no prompt; train it longer before building on it.")
        write_csv("minisd-memorized", exact, COLUMNS + FOUND)


def measure(model: str) -> None:
    """Print what MiniSD must show, from 10 seeds on the repeated prompts and 2 on 200 held-out ones."""
    substrate, store = load(model), PictureStore()
    metrics = metrics_for(substrate)
    prompts = load_prompts("minisd-duplicated")
    similarity = similarity_to_training(store, substrate, metrics.copy, prompts, SEEDS)
    levels = copies_by_level(similarity, prompts.table["copies"], metrics.copy.threshold)
    for level, share in levels.items():
        print(f"{level:4d} copies: {share:.2f} reproduced, mean similarity {similarity[prompts.table['copies'] == level].mean():.3f}")
    for name, value in quality(store, substrate, metrics, 200, (0, 1)).items():
        print(f"{name}: {value:.3f}")


def picture(model: str) -> None:
    """Write the front picture of the book: memorized prompts above held-out ones, one column a seed."""
    substrate, store = load(model), PictureStore()
    rows = {}
    for name, note in (("minisd-memorized", "memorized"), ("minisd-heldout", "not memorized")):
        prompts = load_prompts(name).sample(4, seed=1)
        for prompt, drawn in zip(prompts.prompts, store.pictures(substrate, encode_prompts(substrate, prompts.prompts), SEEDS[:8]), strict=True):
            rows[f"{prompt if len(prompt) < 46 else prompt[:45] + '…'}\n({note})"] = drawn
    plots.style()
    path = minisd_folder().parents[1] / "book" / "_static" / "minisd-memorization.png"
    with replacing(path) as partial:
        plots.montage(rows, [f"seed {s}" for s in SEEDS[:8]]).savefig(partial, format="png")
    print(f"Written to {path}")
