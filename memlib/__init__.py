"""Experiments on memorization in text-to-image diffusion models: the package behind the notebooks of an executable companion.

Data flows one way: prompts -> embedding -> edit of it -> sampling under guidance -> pictures and traces -> scores -> tables -> verdicts.

    substrates, sources, checkpoints         the models under study, by name
    prompts, embeddings, interventions       sets of prompts, their text states, and edits of these
    guidance, guidance_rules, denoising      the scale of each step, and the one denoising loop
    sampling, store                          pictures from embeddings and seeds, kept and found again
    mitigations, detectors, pruning, attack  what is done against memorization, how it is found, and whether it is still there
    experiment, group, scores, summaries     what a notebook works with: prompt sets under a run, their scores, tables of them
    metrics, stats, roc, equivalence         what is measured on pictures, with intervals
    claims, verdicts                         criteria fixed beforehand, and judging by them
    plots, book, plan, bench                 figures, the site, what a run will cost, what methods cost
    minisd, finetune                         the model in miniature, and training
"""

import warnings
from typing import Any

# diffusers' progress bars ask for notebook widgets at import; the notebooks show none.
warnings.filterwarnings("ignore", message="IProgress not found")


def mitigate(pipe: Any, name: Any, **params: Any) -> Any:
    """Put a mitigation in place on a diffusers pipeline: see `memlib.mitigations.pipeline.mitigate`."""
    from memlib.mitigations.pipeline import mitigate as put_in_place  # torch is loaded at the first call, not here

    return put_in_place(pipe, name, **params)
