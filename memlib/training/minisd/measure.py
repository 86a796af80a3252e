"""What a trained MiniSD shows: which prompts it memorized, and how well it draws what it was not shown twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from memlib.base.errors import InputError
from memlib.base.store import Store
from memlib.judging.estimates import Estimate, mean_interval, share_interval
from memlib.metrics import metrics_for
from memlib.models.minisd.ingredients import RENDERINGS
from memlib.models.minisd.paths import minisd_folder
from memlib.models.minisd.prompt_sets import COLUMNS, HELD_OUT, corpus, held_out_pictures, training_pictures, write_csv
from memlib.models.minisd.scenes import COLOURS, Background, Scene, paint, paint_background
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import PromptSet, load_prompts
from memlib.sampling.batches import decode

SEEDS = tuple(range(10))
NEEDED = 9  # of 10 seeds, as `clip` selects its memorized prompts (Section 3)


def similarity_to_training(store: Store, substrate, metric, prompts: PromptSet, seeds: Sequence[int]) -> np.ndarray:
    """Copy similarity [N, S] of each prompt's pictures to its training picture (the nearest of six for a template)."""
    pictures = store.pictures(substrate, encode_prompts(substrate, prompts.prompts), seeds)
    vectors = metric(pictures)
    return np.stack([(vectors[i] @ metric(training_pictures(name)).T).max(1) for i, name in enumerate(prompts.table["training_picture"])])


def copies_by_level(similarity: np.ndarray, copies: Sequence[int], threshold: float) -> dict[int, Estimate]:
    """Share of prompts reproduced with at least nine tenths of the seeds, by copies an epoch, with Wilson's interval."""
    needed = int(np.ceil(NEEDED / len(SEEDS) * similarity.shape[1]))
    found = (similarity >= threshold).sum(1) >= needed
    copies = np.asarray(copies)
    return {int(level): share_interval(found[copies == level]) for level in np.unique(copies)}


def background_colours(pictures: np.ndarray) -> np.ndarray:
    """The two named colours nearest to most of a picture's border, [..., 2] as indices into COLOURS, commonest first.

    The border is the outer four pixels, where things seldom reach.
    """
    pictures = np.asarray(pictures)
    mask = np.ones(pictures.shape[-3:-1], bool)
    mask[4:-4, 4:-4] = False
    border = pictures[..., mask, :].astype(np.float32)
    named = np.array(list(COLOURS.values()), np.float32)
    nearest = ((border[..., None, :] - named) ** 2).sum(-1).argmin(-1)
    counts = (nearest[..., None] == np.arange(len(named))).sum(-2)
    return np.argsort(-counts, axis=-1, kind="stable")[..., :2]


def background_right(pictures: np.ndarray, kinds: Sequence[str], colours: Sequence[str]) -> np.ndarray:
    """Whether each picture [N, S, H, W, 3] has the background its caption names: bool [N, S].

    Plain: the commonest named colour of the border is the right one. Two colours: among all colour pairs of that kind, the
    painted border nearest to the picture's is the one named; the two may be swapped in stripes and checks.
    """
    right = np.zeros(pictures.shape[:2], bool)
    names = list(COLOURS)
    commonest = background_colours(pictures)
    mask = np.ones(pictures.shape[2:4], bool)
    mask[4:-4, 4:-4] = False
    templates: dict[str, tuple[list[tuple[str, str]], np.ndarray]] = {}
    for i, (kind, colour) in enumerate(zip(kinds, colours, strict=True)):
        if kind == "plain":
            right[i] = commonest[i, :, 0] == names.index(colour)
            continue
        if kind not in templates:
            pairs = [(a, b) for a in names for b in names if a != b]
            templates[kind] = (pairs, np.stack([paint_background(Background(kind, *pair)) for pair in pairs])[:, mask].astype(np.float32))
        pairs, painted = templates[kind]
        for s in range(pictures.shape[1]):
            distance = ((painted - pictures[i, s][mask].astype(np.float32)) ** 2).mean((1, 2))
            first, second = colour.split("; ")
            best = pairs[int(distance.argmin())]
            # Stripes, dots and checks in swapped roles are the same two colours; a gradient has a direction.
            right[i, s] = best == (first, second) or (kind in ("stripes", "checks") and set(best) == {first, second})
    return right


def retrieval(copy, pictures: np.ndarray, scenes: Sequence[Scene], within: int = 5) -> np.ndarray:
    """Whether the main thing is among the `within` concepts nearest to each picture [N, S, H, W, 3]: bool [N, S].

    A concept is as near as the scene drawn with that concept in the main thing's place, by the copy descriptor and in the
    nearest of the three renderings (a reference caption names none): the rest of the scene being right, only the main
    thing decides. By chance: `within` in the number of concepts.
    """
    ingredients = corpus().ingredients
    right = np.zeros(pictures.shape[:2], bool)
    for i, scene in enumerate(scenes):
        drawn = [paint(replace(scene.with_main(k), rendering=r), ingredients) for k in range(len(ingredients.concepts)) for r in RENDERINGS]
        vectors = copy(np.stack(drawn)).reshape(len(ingredients.concepts), len(RENDERINGS), -1)
        near = np.einsum("sd,krd->skr", copy(pictures[i]), vectors).max(2)
        right[i] = (near > near[:, [scene.main.concept]]).sum(1) < within
    return right


@torch.no_grad()
def reconstructed(substrate, pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] after encoding and decoding by the substrate's autoencoder."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = x.to(substrate.device, substrate.dtype).split(64)
    latents = torch.cat([substrate.vae.encode(part).latent_dist.mean.float() for part in parts])
    return decode(substrate, latents * substrate.vae.config.scaling_factor)


def quality(store: Store, substrate, metrics, count: int, seeds: Sequence[int]) -> dict[str, Estimate | float]:
    """Alignment (absolute, and as a share of what real pictures reach), background and main thing on held-out prompts.

    The main thing of real pictures is judged after the autoencoder, as that of generated ones.
    """
    prompts = load_prompts("minisd-heldout").first(count)
    pictures = store.pictures(substrate, encode_prompts(substrate, prompts.prompts), seeds)
    real = held_out_pictures(count)
    table = prompts.table
    generated = metrics.alignment(pictures, prompts.prompts)
    reached = metrics.alignment(real, prompts.prompts)
    scenes = [scene for scene, _ in corpus().held_out(HELD_OUT, "combinations")[:count]]
    rebuilt = reconstructed(substrate, real)
    judged = np.concatenate([pictures, rebuilt[:, None]], 1)
    top = store.score({"score": "retrieval", "metric": metrics.copy.fingerprint, "of": judged}, lambda: retrieval(metrics.copy, judged, scenes))
    top, top_real = top[:, :-1], top[:, -1]
    single = table["places"].str.count(";").to_numpy() == 0
    alone = {"main thing in top 5, one thing": share_interval(top[single])} if single.any() else {}
    return alone | {
        "alignment": mean_interval(generated),
        "alignment of real pictures": mean_interval(reached),
        "alignment, share of real": mean_interval(generated / reached.mean()),
        "background right": share_interval(background_right(pictures, table["kind"], table["background"])),
        "background right, real pictures": share_interval(background_right(real[:, None], table["kind"], table["background"])[:, 0]),
        "main thing in top 5": share_interval(top),
        "main thing in top 5, real pictures": share_interval(top_real),
        "diversity across seeds": mean_interval(metrics.diversity(pictures)),
    }


def find_memorized(store: Store, substrate, metric, prompts: PromptSet) -> list[dict]:
    """One row a prompt with `seeds_tried`, `seeds_above`, `mean_similarity` and `memorized` (at least NEEDED of SEEDS).

    A prompt is given up as soon as too many seeds failed for it to reach NEEDED: most fail with the first two.
    """
    similarity: list[list[float]] = [[] for _ in range(len(prompts))]
    for seed in SEEDS:
        open_rows = [i for i, values in enumerate(similarity) if sum(v < metric.threshold for v in values) <= len(SEEDS) - NEEDED]
        if not open_rows:
            break
        found = similarity_to_training(store, substrate, metric, prompts.select(open_rows), (seed,))
        for i, value in zip(open_rows, found[:, 0], strict=True):
            similarity[i].append(float(value))
    rows = []
    for row, values in zip(prompts.table.to_dict("records"), similarity, strict=True):
        above = sum(v >= metric.threshold for v in values)
        rows.append({**row, "seeds_tried": len(values), "seeds_above": above, "mean_similarity": round(float(np.mean(values)), 4),
                     "memorized": int(above >= NEEDED)})  # fmt: skip
    return rows


def find(model: str) -> None:
    """Find the prompts that `model` reproduces with at least 9 of 10 seeds; write found-MODEL.csv, and for minisd-v1 the
    set minisd-memorized."""
    substrate, store = load(model), Store()
    metric = metrics_for(substrate).copy
    rows = [row for name in ("minisd-duplicated", "minisd-template") for row in find_memorized(store, substrate, metric, load_prompts(name))]
    extra = ("seeds_tried", "seeds_above", "mean_similarity", "memorized")
    write_csv(f"found-{model}", rows, COLUMNS + extra)
    memorized = [r for r in rows if r["memorized"]]
    print(f"{len(memorized)} of {len(rows)} repeated prompts are reproduced with at least {NEEDED} of {len(SEEDS)} seeds by {model}")
    if model == "minisd-v1":
        exact = [r for r in memorized if r["group"] == "duplicated"]
        if not exact:
            raise InputError("minisd-v1 memorized no prompt; train it longer before building on it.")
        write_csv("minisd-memorized", exact, COLUMNS + extra)


def measure(model: str) -> None:
    """Print what MiniSD must show, from 10 seeds on the repeated prompts and 2 on 200 held-out ones."""
    substrate, store = load(model), Store()
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
    from memlib.results import figures as plots

    substrate, store = load(model), Store()
    rows = {}
    for name, note in (("minisd-memorized", "memorized"), ("minisd-heldout", "not memorized")):
        prompts = load_prompts(name).sample(4, seed=1)
        for prompt, drawn in zip(prompts.prompts, store.pictures(substrate, encode_prompts(substrate, prompts.prompts), SEEDS[:8]), strict=True):
            rows[f"{prompt if len(prompt) < 46 else prompt[:45] + '…'}\n({note})"] = drawn
    plots.style()
    path = minisd_folder().parents[1] / "book" / "_static" / "minisd-memorization.png"
    plots.montage(rows, [f"seed {s}" for s in SEEDS[:8]]).savefig(path)
    print(f"Written to {path}")


def training_record(part: str) -> dict:
    """The log kept beside the weights: steps, minutes, hardware, loss curve."""
    path = minisd_folder() / "logs" / f"{part}.json"
    if not path.exists():
        raise InputError(f"There is no training log {path}; train the part with `python -m memlib.training.minisd train {part}`.")
    return json.loads(path.read_text())
