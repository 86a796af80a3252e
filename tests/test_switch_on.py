"""The switch-on sweep: crossings by hand, and pictures against diffusers' own guidance switch on a tiny checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memlib.base.errors import InputError
from memlib.experiment.run import Experiment
from memlib.probes.switch_on import comes_back, crossing_step, prediction_error, sweep, swept_score, switch_steps
from memlib.sampling.batches import initial_latents

SWITCHES = [0, 2, 4, 8]


def test_crossings_by_hand():
    similarity = [
        [1.0, 0.9, 0.5, 0.1],  # halfway between 2 and 4
        [1.0, 1.0, 1.0, 0.5],  # from 1.0 to 0.5, threshold 0.7: three fifths of the way from 4 to 8
        [0.6, 0.9, 0.1, 0.1],  # no copy even with guidance from the start
        [0.9, 0.9, 0.8, 0.7],  # at the threshold is a copy
        [0.9, 0.5, 0.9, 0.1],  # the first crossing counts
    ]
    found = crossing_step(np.array(similarity), SWITCHES, 0.7)
    assert np.allclose(found, [3, 4 + 4 * 0.6, np.nan, np.nan, 1], equal_nan=True)
    assert comes_back(np.array(similarity), 0.7).tolist() == [False, False, True, False, True]


def test_one_step_shows_no_crossing():
    assert np.isnan(crossing_step(np.array([[0.9], [0.1]]), [0], 0.7)).all()


def test_errors_are_in_steps_of_a_50_step_schedule():
    error = prediction_error(np.array([10.0, 4.0, np.nan, 3.0]), np.array([5, 5, 5, -1]), steps=25)
    assert np.allclose(error, [10, -2, np.nan, np.nan], equal_nan=True)


def test_steps_of_the_sweep():
    assert switch_steps(10, 4) == [0, 4, 8] and switch_steps(1, 2) == [0]
    for every in (0, -1, 2.0, True):
        with pytest.raises(InputError, match="switched on at every"):
            switch_steps(10, every)


def test_pictures_equal_diffusers_with_its_guidance_switched_on(sd1_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path))
    run = Experiment(str(sd1_tiny), n_seeds=1, steps=4, guidance=5.0, dtype="float32", store=tmp_path / "store")
    group = run.group("figures", 1)
    pictures = sweep(group, [0, 2, 4])
    assert pictures.shape[:3] == (1, 1, 3) and (pictures[:, :, 0] == group.pictures()).all()
    assert swept_score(group, "similarity to original", pictures) is None
    made = run.store.made
    assert (sweep(group, [0, 2, 4]) == pictures).all() and run.store.made == made

    pipe = run.substrate.pipe
    usual, pipe.scheduler = pipe.scheduler, run.substrate.scheduler("ddim", 4)
    try:
        for column, switch in ((1, 2), (2, 4)):

            def change(pipe, index, t, tensors, switch=switch):
                # The pipeline guides only above 1. With the empty prompt on both sides it is under zero guidance until the prompt comes in here.
                if index + 1 == switch:
                    tensors["prompt_embeds"] = both
                return tensors

            uncond, cond = pipe.encode_prompt("", "cpu", 1, False)[0], pipe.encode_prompt(group.prompts.prompts[0], "cpu", 1, False)[0]
            both = torch.cat([uncond, cond])
            expected = pipe(
                prompt_embeds=uncond, negative_prompt_embeds=uncond, latents=initial_latents([0], run.substrate.latent_shape), num_inference_steps=4,
                guidance_scale=5.0, output_type="np", callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"],
            ).images[0]  # fmt: skip
            assert np.abs(pictures[0, 0, column].astype(int) - (expected * 255).round().astype(int)).max() <= 1
    finally:
        pipe.scheduler = usual
