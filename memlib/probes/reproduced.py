"""What a trained MiniSD shows: which prompts it reproduces, and how well it draws what it was not shown twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from memlib.judging.estimates import Estimate, mean_interval, share_interval
from memlib.metrics import metrics_for
from memlib.models.minisd.drawn import background_right, retrieval
from memlib.models.minisd.prompt_sets import HELD_OUT, corpus, held_out_pictures
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import PromptSet, load_prompts
from memlib.sampling.batches import decode
from memlib.sampling.stored import PictureStore

SEEDS = tuple(range(10))
NEEDED = 9  # of 10 seeds, as `clip` selects its memorized prompts (Section 3)
REPEATED = ("duplicated", "template")  # the roles of prompt sets of what training shows more than once
FOUND = ("seeds_tried", "seeds_above", "mean_similarity", "memorized")  # what `find_memorized` adds to the columns of a prompt set


def similarity_to_training(store: PictureStore, substrate: Substrate, metric: Any, prompts: PromptSet, seeds: Sequence[int]) -> np.ndarray:
    """Copy similarity [N, S] of each prompt's pictures to its training picture (the nearest of six for a template)."""
    pictures = store.pictures(substrate, encode_prompts(substrate, prompts.prompts), seeds)
    vectors = metric(pictures)
    return np.stack([(vectors[i] @ metric(substrate.data.training_pictures(name)).T).max(1) for i, name in enumerate(prompts.table["training_picture"])])


def copies_by_level(similarity: np.ndarray, copies: Any, threshold: float) -> dict[int, Estimate]:
    """Share of prompts reproduced with at least nine tenths of the seeds, by copies an epoch, with Wilson's interval."""
    needed = int(np.ceil(NEEDED / len(SEEDS) * similarity.shape[1]))
    found = (similarity >= threshold).sum(1) >= needed
    copies = np.asarray(copies)
    return {int(level): share_interval(found[copies == level]) for level in np.unique(copies)}


def find_memorized(store: PictureStore, substrate: Substrate, metric: Any, prompts: PromptSet) -> list[dict[Any, Any]]:
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


def reproduced(substrate: Substrate, store: PictureStore) -> list[dict[Any, Any]]:
    """Which of the repeated prompts, pairs and templates, a model reproduces: one row each (`find_memorized`)."""
    metric = metrics_for(substrate).copy
    return [row for name in REPEATED for row in find_memorized(store, substrate, metric, load_prompts(substrate.data.sets[name]))]


def memorized_pairs(rows: Sequence[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Tell how many of `reproduced`'s rows a model reproduces, and return the pairs among these: templates have no picture of their own."""
    memorized = [row for row in rows if row["memorized"]]
    print(f"{len(memorized)} of {len(rows)} repeated prompts are reproduced with at least {NEEDED} of {len(SEEDS)} seeds by {model}")
    return [row for row in memorized if row["group"] == "duplicated"]


@torch.no_grad()
def reconstructed(substrate: Substrate, pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] after encoding and decoding by the substrate's autoencoder."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = x.to(substrate.device, substrate.dtype).split(64)
    latents = torch.cat([substrate.vae.encode(part).latent_dist.mean.float() for part in parts])
    return decode(substrate, latents * substrate.vae.config.scaling_factor)


def quality(store: PictureStore, substrate: Substrate, metrics: Any, count: int, seeds: Sequence[int]) -> dict[str, Estimate]:
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
