"""The basin: a toy flow whose basin is known in closed form, widths by hand, and a tiny checkpoint for reproduction and the store."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from scipy.stats import spearmanr

from memlib.base.errors import InputError
from memlib.experiment.run import Experiment
from memlib.experiment.settings import Settings
from memlib.metrics import MetricSet
from memlib.models.data import SubstrateData
from memlib.probes import basin as basin_module
from memlib.probes.basin import Basin, displaced, noise_level
from memlib.probes.basin_width import half_distance, rank_correlation, widths
from memlib.prompts.embedding import Embedding, Tokens
from memlib.sampling.stored import PictureStore

SHAPE = (4, 12, 12)
ATTRACTOR, ELSEWHERE = 0.8, -0.8
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
            "steps_offset": 1, "prediction_type": "epsilon"}  # fmt: skip


class Toy:
    """Latents whose noise part is at most `reach` times the norm of noise flow to one point, all others to another.

    With x = sqrt(abar) a + sigma e the DDIM step towards a keeps e, so that a state is in the basin if and only if |e| <= reach sqrt(D). A
    state of the axis has |e| near sqrt(D); noise added at r norms makes it sqrt(1 + r^2) sqrt(D). The half distance is sqrt(reach^2 - 1)
    at every step.
    """

    name, data, revision, weights_hash = "toy", SubstrateData(), None, "toy"
    device, dtype, latent_shape, resolution = torch.device("cpu"), torch.float32, SHAPE, 12

    def __init__(self, reach):
        self.reach, self.starts = reach, []
        self.vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0), decode=lambda z, return_dict: (z[:, :3],))

    def scheduler(self, kind, steps):
        solver = DDIMScheduler(**SCHEDULE)
        solver.set_timesteps(steps)
        return solver

    def batch_size(self):
        return 16

    def unet(self, latents, t, encoder_hidden_states, return_dict):
        self.starts.append(int(t))
        abar = float(DDIMScheduler(**SCHEDULE).alphas_cumprod[int(t)])
        noise = (latents - math.sqrt(abar) * ATTRACTOR) / math.sqrt(1 - abar)
        inside = noise.flatten(1).norm(dim=1) <= self.reach * math.sqrt(math.prod(SHAPE))
        # The first half of the batch is without the prompt and never attracted.
        inside[: len(inside) // 2] = False
        goal = torch.where(inside, ATTRACTOR, ELSEWHERE).view(-1, 1, 1, 1)
        return ((latents - math.sqrt(abar) * goal) / math.sqrt(1 - abar),)


class ToyGroup:
    """As much of a group and its experiment as a basin asks for; the score is 1 at the attractor and 0 elsewhere."""

    def __init__(self, folder, reach, prompts=6, seeds=5, steps=10):
        tokens = Tokens(torch.arange(prompts)[:, None].expand(-1, 77), tuple("p" * prompts), torch.ones(prompts).long(), torch.zeros(prompts), 0)
        self.embedding = Embedding(torch.zeros(prompts, 77, 4) + torch.arange(prompts)[:, None, None], tokens)
        self.experiment = Settings(Toy(reach), PictureStore(folder), MetricSet({}), tuple(range(seeds)), steps, guidance=1.0)

    def __len__(self):
        return len(self.embedding)

    def pictures(self):
        value = round((ATTRACTOR / 2 + 0.5) * 255)
        return np.full((len(self), len(self.experiment.seeds), 12, 12, 3), value, np.uint8)

    def score_of(self, name, pictures):
        return None if name == "similarity to original" else (pictures.mean((2, 3, 4)) > 128).astype(float)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(basin_module, "uncond_states", lambda substrate: torch.zeros(1, 77, 4))

    def make(reach=1.5, **sizes):
        return ToyGroup(tmp_path / "store", reach, **sizes)

    return make


# a basin known in closed form


@pytest.mark.slow
@pytest.mark.parametrize("reach", [1.2, 1.5, 2.0])
def test_the_half_distance_of_a_known_basin_is_found(toy, reach):
    cut = Basin(toy(reach), (0, 4, 8))
    radii = [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1]
    found = widths(cut.similarity("noise", radii) >= 0.5, radii)
    expected = math.sqrt(reach**2 - 1)
    # Within half the spacing of the radii, the same at every step.
    assert all(abs(e.value - expected) < 0.16 for e in found.half)
    assert all(e.low <= e.value <= e.high for e in found.half) and not found.at_least.any()
    assert abs(found.narrowing.value) < 0.1


def test_what_cannot_be_measured_is_none_and_zero_guidance_leaves_the_axis(toy):
    cut = Basin(toy(), (0, 4, 8))
    assert cut.similarity("noise", [0.0, 1.0], "original") is None
    apart = cut.unguided_distance()
    assert apart.shape == (6, 5, 3) and np.allclose(apart[..., 0], 0)
    # Both keep the noise part; they differ by sqrt(abar) times the difference of the two goals, less what they had at step 0.
    assert (np.diff(apart, axis=-1) > 0).all()


def test_only_the_rest_of_the_run_is_done_and_nothing_twice(toy):
    group = toy(steps=10)
    first = Basin(group, (0, 8)).pictures(8, "noise", [0.0, 0.5, 1.0])
    made, cost = group.experiment.store.made, group.experiment.cost.evaluations
    assert made == 2 * 30 and first.shape == (3, 6, 5, 12, 12, 3)
    # The axis (10 steps of 30) and two continued steps of 60, two rows each.
    assert cost == 2 * (10 * 30 + 2 * 60)
    group.experiment.substrate.unet = None
    assert (Basin(group, (0, 8)).pictures(8, "noise", [0.0, 0.5, 1.0]) == first).all()
    assert group.experiment.store.made == made and group.experiment.cost.evaluations == cost


def test_a_run_that_is_stopped_keeps_its_batches(toy):
    group = toy()
    whole, calls = group.experiment.substrate.unet, []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) > 10 * 2 + 3:  # the axis in two batches, and into the second batch of continued runs
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    group.experiment.substrate.unet = stops
    with pytest.raises(KeyboardInterrupt):
        Basin(group, (8,)).pictures(8, "noise", [1.0])
    assert group.experiment.store.made == 16
    group.experiment.substrate.unet = whole
    Basin(group, (8,)).pictures(8, "noise", [1.0])
    assert group.experiment.store.made == 30


def test_rays_are_the_same_whatever_else_is_asked(toy, tmp_path):
    together = Basin(toy(), (0, 8)).pictures(8, "noise", [0.5, 1.0])
    group = toy()
    group.experiment.store = PictureStore(tmp_path / "other")
    alone = Basin(group, (8,)).pictures(8, "noise", [1.0])
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    group.experiment.store = PictureStore(tmp_path / "third")
    redrawn = Basin(group, (8,), draw=1).pictures(8, "noise", [1.0])
    assert (redrawn != alone).any()


@pytest.mark.parametrize("steps, words", [((10,), "cut at step 10"), ((-1,), "cut at step -1"), ((4, 2), "rising order"), ((), "at least one")])
def test_steps_outside_the_schedule_are_refused(toy, steps, words):
    with pytest.raises(InputError, match=words):
        Basin(toy(), steps)


def test_schedulers_with_a_memory_are_refused(toy):
    group = toy()
    group.experiment.scheduler = "dpm"
    with pytest.raises(InputError, match="'dpm', which remembers"):
        Basin(group, (2,))


# displacements


def test_displacements_by_hand():
    draw = torch.Generator().manual_seed(0)
    latents, direction = torch.randn(4, 32, 32, generator=draw) * 3, torch.randn(4, 32, 32, generator=draw)
    for kind in ("noise", "mixed", "unguided"):
        assert torch.equal(displaced(latents, kind, 0.0, direction, 0.5), latents)
    moved = displaced(latents, "noise", 1.5, direction, 0.5) - latents
    assert float(moved.norm()) == pytest.approx(1.5 * 0.5 * 64, rel=1e-5)
    assert float(torch.nn.functional.cosine_similarity(moved.flatten(), direction.flatten(), dim=0)) == pytest.approx(1, abs=1e-5)
    for radius in (0.3, 0.7, 1.0):
        assert float(displaced(latents, "mixed", radius, direction, 0.5).std()) == pytest.approx(3, rel=0.05)
    assert torch.allclose(displaced(latents, "unguided", 1.0, direction, 0.5), direction)


@pytest.mark.parametrize("kind, radius, words", [("far", 1.0, "Unknown kind"), ("noise", -1.0, "radius of -1"), ("mixed", 1.1, "up to 1")])
def test_displacements_that_are_not_possible(kind, radius, words):
    with pytest.raises(InputError, match=words):
        displaced(torch.zeros(4, 2, 2), kind, radius, torch.ones(4, 2, 2), 1.0)


def test_noise_levels_are_those_of_the_schedule():
    ddim, euler = DDIMScheduler(**SCHEDULE), EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ddim.set_timesteps(10)
    euler.set_timesteps(10)
    assert noise_level(ddim, 3) == pytest.approx(math.sqrt(1 - float(ddim.alphas_cumprod[ddim.timesteps[3]])))
    assert noise_level(euler, 0) == pytest.approx(float(euler.sigmas[0])) and noise_level(euler, 0) > 10


# widths


def test_half_distances_by_hand():
    radii = [0, 1, 2, 4]
    shares = np.array([[1, 1, 0, 0], [1, 0.75, 0.25, 0], [1, 0.6, 0.8, 0.1], [0.4, 0.2, 0, 0], [1, 1, 0.9, 0.7]])
    # The third row rises by chance: 0.6 and 0.8 become 0.7 and 0.7, and 1/2 lies a third of the way from 2 to 4.
    assert np.allclose(half_distance(shares, radii), [1.5, 1.5, 2 + 2 * 0.2 / 0.6, 0, 4])


def funnel(half, radii, prompts=40, seeds=3):
    """Flags of a basin whose half distances by step are `half`, spread over prompts."""
    spread = np.random.default_rng(0).normal(0, 0.15, (prompts, seeds, 1, 1))
    return (np.asarray(radii) <= np.asarray(half)[:, None] + spread).astype(float)


def test_narrowing_and_order_of_a_funnel_a_tube_and_a_horn():
    radii = np.arange(0, 4.01, 0.25)
    down, level, up = (widths(funnel(half, radii), radii) for half in ([3, 2, 1], [2, 2, 2], [1, 2, 3]))
    assert down.narrowing.value == pytest.approx(2, abs=0.15) and down.narrowing.low > 0 and down.order.value == 1 == down.order.low
    assert up.narrowing.high < 0 and up.order.value == -1
    assert level.narrowing.value == level.order.value == 0
    assert (down.half[0].n_prompts, down.half[0].n_seeds) == (40, 3)


def test_a_basin_wider_than_the_largest_distance_says_so_and_one_prompt_has_no_interval():
    radii = [0.0, 0.5, 1.0]
    found = widths(funnel([5, 0.5], radii, prompts=1), radii)
    assert found.at_least.tolist() == [True, False] and found.half[0].value == 1 and math.isnan(found.half[0].low)


@pytest.mark.parametrize(
    "flags, radii, words",
    [(np.zeros((2, 2, 2)), [0, 1], "flags"), (np.full((2, 1, 1, 2), 0.5), [0, 1], "flags"), (np.zeros((2, 1, 1, 2)), [1, 0], "radii")],
)
def test_widths_of_what_does_not_fit(flags, radii, words):
    with pytest.raises(InputError, match=words):
        widths(flags, radii)


def test_the_rank_correlation_is_scipys_and_knows_flat_shares():
    draw = np.random.default_rng(3)
    inside = (draw.random((30, 2, 5)) < np.array([0.9, 0.5, 0.6, 0.3, 0.3])).astype(float)
    found, steps = rank_correlation(inside, [0, 8, 16, 24, 32]), [0, 8, 16, 24, 32]
    assert found.value == pytest.approx(spearmanr(steps, inside.mean((0, 1))).statistic) and found.low <= found.value <= found.high
    turned = rank_correlation(inside, steps, sign=-1)
    assert (turned.value, turned.low, turned.n_prompts, turned.n_seeds) == pytest.approx((-found.value, -found.high, 30, 2))
    assert rank_correlation(np.ones((12, 2, 3)), [0, 1, 2]).value == 0
    with pytest.raises(InputError, match="two steps or more"):
        rank_correlation(inside[..., :1], [0])


# on a checkpoint of Stable Diffusion's classes


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_an_unmoved_trajectory_ends_at_the_plain_picture(sd1_tiny, tmp_path, scheduler, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path))
    run = Experiment(str(sd1_tiny), n_seeds=2, steps=4, dtype="float32", scheduler=scheduler, store=tmp_path / "store")
    group = run.group("figures", 2)
    cut = Basin(group, (0, 2, 3))
    plain = group.pictures().astype(int)
    for step in cut.steps:
        # A distance too small to see: the continued run itself has to give the picture again.
        near = cut.pictures(step, "noise", [0.0, 1e-6])
        assert (near[0] == plain).all() and np.abs(near[1].astype(int) - plain).max() <= 1
        assert (cut.pictures(step, "mixed", [1.0])[0] != plain).any()
    assert cut.similarity("noise", [0.0, 1e-6]) is None
