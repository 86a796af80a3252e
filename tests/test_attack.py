"""The attack against a toy denoiser whose best embedding is known, and against small models patched by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import norm
from toys import Toy, texts

from memlib.base.errors import InputError, NotMeasured
from memlib.metrics.pictures import centred
from memlib.mitigations import REGISTRY, get
from memlib.mitigations.base import Mitigation
from memlib.mitigations.ren import attention_edited
from memlib.models.substrate import load
from memlib.probes.attack import Attack, Budget, Targets, reach, start_states
from memlib.probes.attack.loss import DenoisingLoss
from memlib.probes.attack.outcomes import apart, excess, share, survival
from memlib.probes.attack.reach import times_with_guidance
from memlib.probes.attack.runs import Attacked
from memlib.probes.attack.search import search
from memlib.probes.attack.targets import clean_latents
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import uncond_states
from memlib.sampling.loop import Cost
from memlib.sampling.stored import PictureStore

PROMPTS = ["a red cat", "two dogs on a chair", "the sea"]


@pytest.fixture(scope="module")
def sd1(sd1_tiny):
    return load(sd1_tiny, "cpu", "float32")


class Known(Toy):
    """A denoiser that takes the first state of the text for the clean picture: it is right where that is the picture."""

    def unet(self, x, t, encoder_hidden_states, return_dict=False):
        a = self.scheduler().alphas_cumprod[t].view(-1, 1, 1, 1)
        clean = encoder_hidden_states[:, 0].reshape(-1, *self.latent_shape)
        epsilon = (x - a.sqrt() * clean) / (1 - a).sqrt()
        if self.prediction_type == "v_prediction":
            return ((epsilon - (1 - a).sqrt() * x) / a.sqrt(),)
        return (epsilon,)


@dataclass(frozen=True)
class Doubled(Mitigation):
    """States are doubled on their way to the model."""

    name: ClassVar[str] = "doubled"

    def edit(self, states, tokens):
        return 2 * states


def toy_loss(mitigation=None, kind="epsilon", times=None, count=2):
    clean = torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    every = torch.arange(100, 900) if times is None else times
    cost = Cost()
    found = DenoisingLoss(Known(kind), clean, texts([1.0] * count).tokens, mitigation or get("none"), "", every, torch.zeros(1, 77, 12), cost)
    return found, clean, cost


def coding(clean):
    """The states [N, 77, 12] that the toy takes for these pictures."""
    states = torch.zeros(len(clean), 77, 12)
    states[:, 0] = clean.flatten(1)
    return states


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_in_closed_form(kind):
    losses, clean, cost = toy_loss(kind=kind)
    draws = [losses.draw(torch.Generator().manual_seed(run), 4) for run in (0, 1)]
    away = torch.full((2, 12), 0.3)
    states = coding(clean)
    states[:, 0] += away
    alphas = Known().scheduler().alphas_cumprod
    expected = torch.stack([(alphas[t] / (1 - alphas[t])).mean() * 0.3**2 for t, _ in draws])
    torch.testing.assert_close(losses(states, [0, 1], draws), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses(states[1:], [1], draws[1:]), expected[1:], rtol=1e-3, atol=1e-5)
    assert cost.evaluations == 2 * (2 + 1) * 4
    assert float(losses(coding(clean), [0, 1], draws).max()) < 1e-6


def test_samples_are_spread_over_the_times():
    losses, _, _ = toy_loss(times=torch.arange(0, 80))
    for seed in range(20):
        times, noise = losses.draw(torch.Generator().manual_seed(seed), 8)
        assert (times // 10).tolist() == list(range(8)) and noise.shape == (8, 3, 2, 2)


@pytest.mark.parametrize(("mitigation", "factor"), [(None, 1.0), (Doubled(), 2.0)])
def test_the_attack_finds_the_known_optimum_also_through_an_edit(mitigation, factor):
    losses, clean, _ = toy_loss(mitigation, times=torch.arange(300, 600))
    generators = [torch.Generator().manual_seed(run) for run in (0, 1)]

    def check(states, runs):
        distance = (factor * states[:, 0] - clean[list(runs)].flatten(1)).norm(dim=1)
        return (1 - distance).numpy()[:, None]

    budget = Budget(steps=200, samples=4, lr=0.05, every=20)
    found = dict(search(losses, coding(torch.zeros_like(clean)), check, 0.9, budget, lambda run: losses.draw(generators[run], 4)))
    for run in (0, 1):
        assert 0 < found[run].steps <= 200 and found[run].steps in budget.tests
        assert np.abs(factor * found[run].states[0].astype(float) - clean[run].flatten().numpy()).max() < 0.1
        assert not found[run].states[1:].any()  # the toy looks at one state only


def quadratic(goal):
    """Losses with their optimum at `goal`, and a check by distance."""

    def losses(states, runs, draws):
        return (states - goal).square().sum((1, 2))

    def check(states, runs):
        return (1 - (states - goal).abs().amax((1, 2))).numpy()[:, None]

    return losses, check


def test_runs_end_when_they_succeed_and_do_not_touch_each_other():
    losses, check = quadratic(1.0)
    starts = torch.tensor([1.0, 0.0, -30.0]).view(3, 1, 1).expand(3, 2, 2).clone()
    budget = Budget(steps=40, samples=1, lr=0.1, every=5)
    together = dict(search(losses, starts, check, 0.95, budget, lambda run: None, at_once=2))
    assert list(together) == [0, 1, 2] and together[0].steps == 0 and 0 < together[1].steps < 40 and together[2].steps == -1
    assert np.array_equal(together[0].states, starts[0].numpy().astype(np.float16))
    seen = together[1].similarities[:, 0]
    place = budget.tests.index(together[1].steps)
    assert (seen[:place] < 0.95).all() and seen[place] >= 0.95 and np.isnan(seen[place + 1 :]).all()
    assert not np.isnan(together[2].similarities).any()
    [(_, alone)] = search(losses, starts[1:2], check, 0.95, budget, lambda run: None)
    assert alone.steps == together[1].steps and np.array_equal(alone.states, together[1].states)
    assert torch.equal(starts[1], torch.zeros(2, 2))


def test_all_pictures_of_a_test_must_be_copies():
    losses, _ = quadratic(1.0)
    found = dict(search(losses, torch.zeros(1, 1, 1), lambda s, runs: np.array([[0.9, 0.5]]), 0.8, Budget(1, 1, every=1, seeds=2), lambda run: None))
    assert found[0].steps == -1 and found[0].similarities.tolist() == [[0.9, 0.5], [0.9, 0.5]]


def test_a_gradient_that_is_no_number_ends_in_one_sentence():
    def broken(states, runs, draws):
        return states.sum((1, 2)) * float("nan")

    with pytest.raises(InputError, match="not finite in this precision"):
        dict(search(broken, torch.zeros(1, 1, 1), lambda states, runs: np.zeros((1, 1)), 1, Budget(1), lambda run: None))


def test_budgets():
    assert Budget(50, every=20).tests == (0, 20, 40, 50) and Budget(0).tests == (0,) and Budget(40, every=10).tests == (0, 10, 20, 30, 40)
    assert Budget(40, 4, every=10, sampling_steps=25).rows == 2 * 40 * 4 + 2 * 25 * 5
    for bad in ({"steps": -1}, {"samples": 0}, {"lr": 0}, {"seeds": 1.5}, {"every": True}):
        with pytest.raises(InputError, match="of the attack's budget is .*: give "):
            Budget(**bad)


# --- what the gradient sees


def test_what_the_attacker_sees_of_each_mitigation():
    for name, mitigation in REGISTRY.items():
        assert reach(mitigation).words and (reach(mitigation).patch == mitigation.through or mitigation.rewrites), name
    assert reach(get("none")).words == "nothing in the way" and reach(get("pad-mask")).words == "gradient sees its edit of the states"
    assert "gradient does not see its choice of guidance" in reach(get("dynamic-transition")).words
    assert reach(get("static-transition")).words == "gradient sees its times of guidance"
    assert (reach(get("nemo")).patch, reach(get("wanda")).patch, reach(get("ren")).patch) == ("conditional", "conditional", "guided")
    assert "before or while sampling" in reach(get("sail")).words
    assert [name for name, m in REGISTRY.items() if reach(m).text] == [name for name, m in REGISTRY.items() if m.rewrites]


def test_times_with_guidance():
    every = times_with_guidance(Toy(), get("none"), 7.5, 50, "ddim")
    assert every.tolist() == list(range(1000)) and len(times_with_guidance(Toy(), get("dynamic-transition"), 7.5, 50, "ddim")) == 1000
    # Steps stand at 981, 961, ..., 1: the first at or below 500 is 481, and 491 lies half way to the one before.
    static = times_with_guidance(Toy(), get("static-transition"), 7.5, 50, "ddim")
    assert static[0] == 0 and static[-1] in (490, 491) and len(static) == static[-1] + 1
    interval = times_with_guidance(Toy(), get("interval-guidance", outside=0.0), 7.5, 50, "ddim")
    assert 60 < interval[0] < 92 and 792 < interval[-1] < 832
    assert len(times_with_guidance(Toy(), get("none"), 0.0, 50, "ddim")) == 1000  # nothing to choose from: all


def loss_on(substrate, name, patch, embedding, **params):
    clean = torch.randn(len(embedding), *substrate.latent_shape, generator=torch.Generator().manual_seed(3))
    every = torch.arange(1000)
    losses = DenoisingLoss(substrate, clean, embedding.tokens, get(name, **params), patch, every, uncond_states(substrate), Cost())
    draws = [losses.draw(torch.Generator().manual_seed(run), 2) for run in range(len(embedding))]
    return losses, clean, draws


def by_hand(substrate, clean, draws, states):
    """The losses of single rows, one at a time."""
    alphas, found = substrate.scheduler().alphas_cumprod, []
    for x0, (times, noise), text in zip(clean, draws, states, strict=True):
        errors = []
        for t, eps in zip(times, noise, strict=True):
            noisy = alphas[t].sqrt() * x0 + (1 - alphas[t]).sqrt() * eps
            predicted = substrate.unet(noisy[None], t, encoder_hidden_states=text[None]).sample[0]
            errors.append((predicted - eps).square().mean())
        found.append(torch.stack(errors).mean())
    return torch.stack(found)


def test_the_loss_through_attention_edits_is_that_of_a_model_edited_by_hand(sd1):
    embedding = encode_prompts(sd1, PROMPTS[:2])
    losses, clean, draws = loss_on(sd1, "ren", "guided", embedding)
    leaf = embedding.states.clone().requires_grad_()
    got = losses(leaf, [0, 1], draws)
    expected = []
    for row in (0, 1):
        keep = torch.arange(77)[None] < int(embedding.tokens.lengths[row]) + 2
        with attention_edited(sd1.unet, keep, torch.tensor([1.25])), torch.no_grad():
            expected.append(by_hand(sd1, clean[row : row + 1], draws[row : row + 1], embedding.states[row : row + 1]))
    torch.testing.assert_close(got.detach(), torch.cat(expected), rtol=1e-4, atol=1e-5)
    (back,) = torch.autograd.grad(got.sum(), leaf)
    # Masked positions get no gradient, the others do: the attack sees the mask.
    lengths = embedding.tokens.lengths.tolist()
    assert all(not back[row, lengths[row] + 2 :].any() and back[row, : lengths[row] + 2].abs().sum(-1).all() for row in (0, 1))


def test_the_loss_through_an_edit_of_states_has_no_gradient_where_they_are_masked(sd1):
    embedding = encode_prompts(sd1, PROMPTS[:1])
    losses, clean, draws = loss_on(sd1, "pad-swap-eot-mask", "", embedding)
    leaf = embedding.states.clone().requires_grad_()
    got = losses(leaf, [0], draws)
    with torch.no_grad():
        expected = by_hand(sd1, clean, draws, get("pad-swap-eot-mask").apply(sd1, embedding).states)
    torch.testing.assert_close(got.detach(), expected, rtol=1e-4, atol=1e-5)
    (back,) = torch.autograd.grad(got.sum(), leaf)
    length = int(embedding.tokens.lengths[0])
    assert not back[0, length + 1 :].any() and back[0, : length + 1].abs().sum(-1).all()


# --- starts and targets


def test_starts(sd1, monkeypatch):
    monkeypatch.setattr("memlib.probes.attack.starts.reference_prompts", lambda substrate: ("snow", "a boat", PROMPTS[0]))
    embedding = encode_prompts(sd1, PROMPTS[:2])
    own = start_states(sd1, embedding, "prompt", 2)
    assert own.shape == (2, 2, 77, 32) and torch.equal(own[:, 1], embedding.states)
    random = start_states(sd1, embedding, "random", 3)
    torch.testing.assert_close(random.norm(dim=-1), embedding.states.norm(dim=-1)[:, None].expand(-1, 3, -1))
    assert torch.equal(random[1], start_states(sd1, embedding.select([1]), "random", 3)[0]) and not torch.equal(random[0, 0], random[0, 1])
    others = start_states(sd1, embedding, "other", 2)
    known = encode_prompts(sd1, ["snow", "a boat"]).states
    assert all(min(float((one - k).abs().max()) for k in known) < 1e-4 for one in others[0])  # never the picture's own prompt
    assert not torch.equal(others[0, 0], others[0, 1])
    with pytest.raises(InputError, match="2 other prompts to start from, and 3"):
        start_states(sd1, embedding, "other", 3)
    with pytest.raises(InputError, match="Unknown start 'here'"):
        start_states(sd1, embedding, "here", 1)


def test_latents_of_pictures_are_the_mean_of_the_posterior(sd1):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    with torch.no_grad():
        expected = sd1.vae.encode(centred(pictures)).latent_dist.mean * 0.18215
    torch.testing.assert_close(clean_latents(sd1, pictures), expected, rtol=1e-4, atol=1e-5)


# --- through the store


class Likeness:
    """Cosine of centred pixel values, in the place of a copy descriptor."""

    available, threshold, fingerprint = True, 0.999, "likeness"

    def __call__(self, pictures):
        flat = np.asarray(pictures, float).reshape(*pictures.shape[:-3], -1) - 127.5
        return flat / np.linalg.norm(flat, axis=-1, keepdims=True)

    def similarity(self, first, second):
        first, second = (self(x) if x.dtype == np.uint8 else x for x in (first, second))
        return (first * second).sum(-1)


def an_experiment(substrate, folder):
    return SimpleNamespace(
        substrate=substrate, metrics=SimpleNamespace(copy=Likeness()), store=PictureStore(folder), cost=Cost(), guidance=2.0, scheduler="ddim", batch_size=4
    )


def test_runs_are_kept_as_they_end_and_do_not_depend_on_each_other(sd1, tmp_path):
    x = an_experiment(sd1, tmp_path)
    budget = Budget(2, 1, every=1, sampling_steps=2)
    pictures = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
    aims = Targets("some", tuple(PROMPTS), pictures)
    # What the prompt itself gives is a copy at once.
    own = Attack(x, budget).pictures(encode_prompts(sd1, PROMPTS[0]).states, encode_prompts(sd1, PROMPTS[0]))[0, 0]
    aims = Targets("some", tuple(PROMPTS), np.concatenate([own[None], pictures[1:]]))
    attack = Attack(x, budget, "pad-mask")
    masked = attack.pictures(encode_prompts(sd1, PROMPTS[0]).states, encode_prompts(sd1, PROMPTS[0]))[0, 0]
    assert not np.array_equal(masked, own)
    found = Attack(x, budget).run(aims)
    assert found.steps.tolist() == [[0], [-1], [-1]] and found.similarities.shape == (3, 1, 3, 1) and found.states.shape == (3, 1, 77, 32)
    assert found.at_once.tolist() == [[True], [False], [False]] and found.brought_back.tolist() == [True, False, False]
    assert np.isnan(found.similarities[0, 0, 1:]).all() and found.best[0, 0] == pytest.approx(1, abs=1e-3)
    made = x.store.made
    again = Attack(x, budget).run(aims.select([2, 0]))
    assert x.store.made == made and np.array_equal(again.states, found.states[[2, 0]])  # from the store
    fresh = Attack(an_experiment(sd1, tmp_path / "other"), budget).run(aims.select([2]))
    # Adam turns a gradient into its sign at first, so that single numbers may differ by a step where it is next to nothing.
    assert (np.abs(fresh.states[0] - found.states[2]) < 1e-2).mean() > 0.99
    assert not np.array_equal(found.states[1, 0], found.starts[1, 0].astype(np.float16))
    part = found.of(np.array([False, True, True]))
    assert isinstance(part, Attacked) and part.steps.tolist() == [[-1], [-1]] and part.targets.prompts == tuple(PROMPTS[1:])
    # Another mitigation, budget or start is another run.
    keys = {str(a._key(aims, 0, 0, torch.zeros(1))) for a in (attack, Attack(x, budget), Attack(x, replace(budget, lr=0.2)))}
    assert len(keys) == 3


def test_a_pruned_model_is_attacked_pruned_for_the_pictures_own_prompt(sd1, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path / "sets"))
    monkeypatch.setattr("memlib.mitigations.weights.wanda.reference_prompts", lambda substrate: ("snow", "a boat"))
    monkeypatch.setattr("memlib.mitigations.pruning._found", {})
    x, method = an_experiment(sd1, tmp_path), get("wanda", steps=4, share=0.5, ratio=0.3)
    before = {name: value.clone() for name, value in sd1.unet.state_dict().items()}
    pictures = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = Attack(x, Budget(1, 2, every=1, sampling_steps=2), method).run(Targets("some", tuple(PROMPTS[:2]), pictures))
    assert found.steps.tolist() == [[-1], [-1]]
    assert all(torch.equal(value, before[name]) for name, value in sd1.unet.state_dict().items())
    embedding = encode_prompts(sd1, PROMPTS[:2])
    losses, clean, draws = loss_on(sd1, "wanda", "conditional", embedding, steps=4, share=0.5, ratio=0.3)
    got = losses(embedding.states, [0, 1], draws)
    from memlib.mitigations.weights import pruned

    sets = method.for_prompts(sd1, embedding.tokens)
    for row in (0, 1):
        with pruned(sd1, sets[row]), torch.no_grad():
            expected = by_hand(sd1, clean[row : row + 1], draws[row : row + 1], embedding.states[row : row + 1])
        torch.testing.assert_close(got[row : row + 1], expected, rtol=1e-4, atol=1e-5)


def test_an_attack_without_a_judge_is_not_measured(sd1, tmp_path):
    x = an_experiment(sd1, tmp_path)
    x.metrics = SimpleNamespace(copy=SimpleNamespace(available=False))
    with pytest.raises(NotMeasured, match="copy descriptor"):
        Attack(x)


# --- outcomes


def test_shares_and_their_difference():
    assert share([]) is None and share([True] * 8).value == 1 and share([True] * 8).low == pytest.approx(8 / (8 + norm.ppf(0.975) ** 2))
    # Newcombe 1998, Table II: 56/70 against 48/80, method 10.
    found = excess([True] * 56 + [False] * 14, [True] * 48 + [False] * 32)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-4)
    extreme = excess([True] * 10, [False] * 10)
    assert extreme.value == 1 and extreme.low == pytest.approx(0.6075, abs=1e-3) and extreme.high == 1
    assert excess([], [True]) is None


def test_survival_is_the_product_of_what_remains():
    curve = survival([10, 10, 20, -1, -1], 50)
    assert curve.steps.tolist() == [0, 10, 20, 50] and curve.value.tolist() == pytest.approx([1, 3 / 5, 2 / 5, 2 / 5])
    assert (curve.low <= curve.value + 1e-9).all() and (curve.high >= curve.value - 1e-9).all() and (curve.pictures, curve.failed) == (5, 2)
    none = survival([-1] * 4, 50)
    assert none.value.tolist() == [1, 1] and 0 < none.low[0] < 1 and none.failed == 4
    every = survival([0, 0, 10], 50)
    assert every.value.tolist() == pytest.approx([1 / 3, 0, 0]) and not np.isnan(every.low).any()
    with pytest.raises(InputError, match="at least one picture"):
        survival([], 50)


def test_the_log_rank_test_tells_curves_apart():
    assert apart([10] * 8, [-1] * 8, 50) < 0.001 and apart([10, 20, -1] * 3, [10, 20, -1] * 3, 50) == pytest.approx(1, abs=1e-6)
    assert math.isnan(apart([-1], [-1, -1], 50)) and math.isnan(apart([], [1], 50))
