"""Guidance by a reference set and chosen initial noise, against closed forms on a model that is linear in the noise."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import GAINS, SHAPE, Toy, a_batch, norms, per_sample, texts

from memlib.base.errors import InputError
from memlib.metrics import reference as references
from memlib.metrics.reference import Reference
from memlib.metrics.similarity import CopyDescriptor
from memlib.mitigations import amg, get
from memlib.mitigations.sail_search import Owner, Search, drawn, published_gap, sharpness_loss
from memlib.models.data import SubstrateData
from memlib.models.minisd.data import data_of
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import Batch, initial_latents, sample_batches, uncond_states
from memlib.sampling.first_step import FirstStep, first_magnitudes
from memlib.sampling.loop import Cost, _noise_per_output, to_epsilon, trajectory
from memlib.sampling.recipe import Recipe

STRENGTHS, SEEDS = [0.3, 2.0, 0.9], [4, 5, 6]
SMALLER = math.sqrt(math.prod(SHAPE) / 16384)


def latents_under(mitigation, batch, substrate=None, cost=None):
    with mitigation.around(substrate or Toy(), batch, Cost() if cost is None else cost) as changed:
        return changed.latents


def alone(batch, row):
    return Batch(
        [batch.rows[row]], [batch.seeds[row]], batch.embedding.select([row]), batch.uncond, batch.latents[row : row + 1],
        batch.steps, batch.rule, batch.scheduler,
    )  # fmt: skip


# --- the gap


def test_the_gap_and_its_price():
    batch, cost = a_batch(STRENGTHS, SEEDS), Cost()
    gap = FirstStep(Toy(), batch, cost).gap
    expected = per_sample(torch.tensor(STRENGTHS)) * GAINS * batch.latents
    torch.testing.assert_close(gap(batch.latents, range(3)), expected)
    torch.testing.assert_close(gap(batch.latents[1:], [1, 2]), expected[1:])
    assert cost.evaluations == 2 * 3 + 2 * 2
    torch.testing.assert_close(first_magnitudes(Toy(), batch, Cost()), norms(expected))


def test_the_gap_is_one_of_noise_for_models_of_velocity_and_for_euler():
    batch = a_batch(STRENGTHS, SEEDS)
    plain = per_sample(torch.tensor(STRENGTHS)) * GAINS * batch.latents
    abar = float(Toy().scheduler("ddim", 50).alphas_cumprod[981])
    velocity = FirstStep(Toy("v_prediction"), batch, Cost())
    torch.testing.assert_close(velocity.gap(batch.latents, range(3)), abar**0.5 * plain)
    # The published program reads velocity as a clean sample: -v sqrt(abar) / sqrt(1 - abar).
    torch.testing.assert_close(published_gap(velocity)(batch.latents, range(3)), -((abar / (1 - abar)) ** 0.5) * plain)
    # Euler's noise has sigma x or sqrt(sigma^2 + 1) x, and its U-Net sees sigma / sqrt(sigma^2 + 1) or 1 times x.
    euler = a_batch(STRENGTHS, SEEDS, scheduler="euler")
    seen = FirstStep(Toy(), euler, Cost()).gap(euler.latents, range(3)) / plain
    assert seen.std() < 1e-5 and 0.98 < seen.mean() <= 1.0001


# --- Han et al.


@pytest.mark.parametrize("as_published", [False, True])
def test_han_batch_is_its_closed_form(as_published):
    batch, cost = a_batch(STRENGTHS, SEEDS), Cost()
    got = latents_under(get("han-batch", as_published=as_published), batch, cost=cost)
    for row, strength in enumerate(STRENGTHS):
        x, m = batch.latents[row].double(), strength * GAINS[0].double()
        for _ in range(2):
            # D(x + r d) - D(x) = r m d, for D(x) = m x.
            x = x - 0.7 * 50 * (1 if as_published else SMALLER) * m * (m * x / (m * x).norm())
        torch.testing.assert_close(got[row].double(), x, rtol=1e-4, atol=1e-4)
        assert torch.equal(latents_under(get("han-batch", as_published=as_published), alone(batch, row))[0], got[row])
    assert cost.evaluations == 8 * 3


def test_han_batch_has_no_guidance_in_the_first_five_of_fifty_steps():
    batch = a_batch([1.0], [0])
    rule = get("han-batch").guidance(7.5)
    walk = trajectory(Toy(), batch.embedding.states, batch.uncond, batch.latents, 50, rule)
    assert [float(step.guidance) for step in walk] == [0.0] * 5 + [7.5] * 45
    with pytest.raises(InputError, match="a number as guidance"):
        get("han-batch").guidance(rule)


def adam(x, gradient, lr, decay=0.0, stop=lambda x: False, most=10):
    """Adam or AdamW by its published formulas, in double precision; yields what is there before each step."""
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for n in range(1, most + 1):
        yield x
        if stop(x):
            return
        g = gradient(x)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        x = x * (1 - lr * decay) - lr * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)
    yield x


def test_han_sample_is_adamw_on_the_norm_until_each_reached_the_target():
    batch, cost = a_batch(STRENGTHS, SEEDS), Cost()
    target = 2.5
    got = latents_under(get("han-sample", target=target), batch, cost=cost)
    visits = []
    for row, strength in enumerate(STRENGTHS):
        m = strength * GAINS[0].double()
        *_, end = path = list(adam(batch.latents[row].double(), lambda x: m * m * x / (m * x).norm(), 0.01, 0.01, lambda x: (m * x).norm() <= target, 1000))
        torch.testing.assert_close(got[row].double(), end, rtol=1e-3, atol=1e-4)
        assert float((m * got[row]).norm()) <= target
        visits.append(len(path))
        assert torch.equal(latents_under(get("han-sample", target=target), alone(batch, row))[0], got[row])
    assert visits[0] == 1 and torch.equal(got[0], batch.latents[0]) and len(set(visits)) == 3
    # The last look needs no way back.
    assert cost.evaluations == sum(4 * (n - 1) + 2 for n in visits)


def test_han_sample_ends_after_its_iterations_and_does_not_depend_on_how_many_are_done_at_once():
    batch, cost = a_batch(STRENGTHS, SEEDS), Cost()
    got = latents_under(get("han-sample", target=0.0, iterations=3), batch, cost=cost)
    assert cost.evaluations == 3 * 3 * 4
    torch.testing.assert_close(latents_under(get("han-sample", target=0.0, iterations=3), batch, Toy(at_once=1)), got)


# --- SAIL


def test_the_loss_of_sail_is_its_closed_form_with_its_gradient():
    batch = a_batch(STRENGTHS, SEEDS)
    gap = FirstStep(Toy(), batch, Cost()).gap
    m = per_sample(torch.tensor(STRENGTHS)) * GAINS

    def by_hand(x, objective, at=None):
        d = m * (x if at is None else at)
        d = d / per_sample(norms(d))
        return norms(m * (x + d) if objective == "gap" else m * d) + 0.05 * norms(x)

    for objective in ("gap", "difference"):
        x, y = batch.latents.clone().requires_grad_(), batch.latents.clone().requires_grad_()
        got, expected = sharpness_loss(gap, x, range(3), 0.05, objective), by_hand(y, objective)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(*torch.autograd.grad(got.sum(), x), *torch.autograd.grad(expected.sum(), y))
    # With a stale direction the value is that of the first noise.
    stale = batch.latents.flip(0)
    torch.testing.assert_close(sharpness_loss(gap, batch.latents, range(3), 0.05, stale=stale), by_hand(batch.latents, "gap", stale))


def test_the_difference_of_gaps_is_the_sharpness_where_it_is_the_same_everywhere(monkeypatch):
    monkeypatch.setattr("toys.GAINS", torch.ones(1, *SHAPE))
    batch = a_batch(STRENGTHS, SEEDS)
    got = sharpness_loss(FirstStep(Toy(), batch, Cost()).gap, batch.latents, range(3), 0.0, "difference")
    torch.testing.assert_close(got, torch.tensor(STRENGTHS))


def test_sail_leaves_accepted_noise_alone_and_each_sample_to_itself():
    batch, cost = a_batch(STRENGTHS, SEEDS), Cost()
    sail = get("sail", threshold=4.0, steps=40)
    got = latents_under(sail, batch, cost=cost)
    losses = sharpness_loss(FirstStep(Toy(), batch, Cost()).gap, got, range(3), 0.05)
    before = sharpness_loss(FirstStep(Toy(), batch, Cost()).gap, batch.latents, range(3), 0.05)
    assert before[0] <= 4.0 < before[1:].min() and (losses <= 4.0).all()
    assert torch.equal(got[0], batch.latents[0]) and not torch.equal(got[1], batch.latents[1])
    spent = []
    for row in range(3):
        own = Cost()
        torch.testing.assert_close(latents_under(sail, alone(batch, row), cost=own)[0], got[row], rtol=1e-5, atol=1e-6)
        spent.append(own.evaluations)
    assert spent[0] == 4 and sum(spent) == cost.evaluations
    # Stepping back to the noise before: it was not accepted.
    m = STRENGTHS[1] * GAINS[0].double()

    def loss(x):
        return (m * (x + m * x / (m * x).norm())).norm() + 0.05 * x.norm()

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]

    *_, before_last, last = adam(batch.latents[1].double(), gradient, 0.05, stop=lambda x: loss(x) <= 4.0, most=40)
    torch.testing.assert_close(got[1].double(), last, rtol=1e-3, atol=1e-4)
    assert loss(before_last) > 4.0 >= loss(last)


def test_sail_goes_on_with_other_noise_and_ends_with_the_lowest_loss():
    batch, cost = a_batch([2.0], [5]), Cost()
    got = latents_under(get("sail", threshold=-1.0, steps=2, rounds=3), batch, cost=cost)
    assert cost.evaluations == 3 * 2 * 8
    gap = FirstStep(Toy(), batch, Cost()).gap
    starts = [batch.latents[0], drawn(SHAPE, 5, 1, 0), drawn(SHAPE, 5, 2, 0)]
    losses = [float(sharpness_loss(gap, start[None], [0], 0.05)) for start in starts]
    assert float(sharpness_loss(gap, got, [0], 0.05)) < min(losses)
    assert (got[0] - starts[int(np.argmin(losses))]).abs().max() < 0.2


def test_the_threshold_of_sail_rises_after_the_third_failed_round():
    def losses(seed):
        noise = torch.stack([initial_latents([seed], SHAPE)[0], *(drawn(SHAPE, seed, number, 0) for number in (1, 2, 3))])
        return sharpness_loss(FirstStep(Toy(), a_batch([2.0] * 4, [0] * 4), Cost()).gap, noise, range(4), 0.05).tolist()

    # A seed whose fourth noise has the lowest loss, and a threshold that this loss exceeds by less than the rise.
    seed = next(seed for seed in range(100) if losses(seed)[3] < min(losses(seed)[:3]))
    batch = a_batch([2.0], [seed])
    below = losses(seed)[3] - 0.5 * 0.1 * SMALLER
    assert torch.equal(latents_under(get("sail", threshold=below, steps=1, rounds=4), batch)[0], drawn(SHAPE, seed, 3, 0))
    cost = Cost()
    latents_under(get("sail", threshold=below - 0.1 * SMALLER, steps=1, rounds=4), batch, cost=cost)
    assert cost.evaluations == 4 * 8  # not even the fourth is accepted


def search(as_published, threshold, steps=10, rounds=1):
    first = FirstStep(Toy(), a_batch([1.2], [0]), Cost())
    return Search(first, SHAPE, threshold, 0.1, 0.05, steps=steps, candidates=8, rounds=rounds, as_published=as_published)


def test_accepted_noise_is_a_copy_where_the_program_keeps_a_view():
    # By hand: eight candidates, direction fixed at their first noise, all moving until two are accepted or the round ends.
    m = 1.2 * GAINS[0].double()
    starts = drawn((8, *SHAPE), 0, 0).double()

    def loss(x, start):
        return (m * (x + m * start / (m * start).norm())).norm() + 0.05 * x.norm()

    def gradient(start):
        def of(x):
            x = x.detach().requires_grad_()
            at = x + (start - x).detach()  # value of the first noise, gradient of this one
            value = (m * (x + m * at / (m * at).norm())).norm() + 0.05 * x.norm()
            return torch.autograd.grad(value, x)[0]

        return of

    paths = [list(adam(start, gradient(start), 0.05)) for start in starts]
    losses = torch.tensor([[float(loss(x, start)) for x in path] for path, start in zip(paths, starts)])
    threshold = float(losses[:, 0].sort().values[:2].mean())  # one candidate is accepted as drawn, the next one later
    over = losses[:, :10] <= threshold
    when = [int(row.float().argmax()) if row.any() else 99 for row in over]
    order = sorted(range(8), key=lambda place: (when[place], place))
    first, second = order[:2]
    assert when[first] == 0 < when[second] < 10

    [published] = search(True, threshold).run({"prompt": Owner(0, 2, 0)}).values()
    # The first one was moved on until the second was found.
    torch.testing.assert_close(published[0].double(), paths[first][when[second]], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(published[1].double(), paths[second][when[second]], rtol=1e-3, atol=1e-4)
    assert (published[0].double() - starts[first]).abs().max() > 0.01

    start = drawn(SHAPE, 0, 0, 0)
    [copied] = search(False, 1e9).run({"picture": Owner(0, 1, 0)}).values()
    assert torch.equal(copied[0], start)


def test_the_program_repeats_the_noise_of_a_failed_round_and_ours_does_not():
    owner = Owner(0, 1, 3)
    published, ours = search(True, 0.0), search(False, 0.0)
    same = [torch.stack(published._noise(owner, number)) for number in range(4)]
    assert torch.equal(same[0], same[2]) and not torch.equal(same[2], same[3])
    assert not torch.equal(ours._noise(owner, 0)[0], ours._noise(owner, 1)[0])


def test_sail_as_published_gives_a_prompt_and_seed_one_noise_in_any_batch():
    sail = get("sail", as_published=True, threshold=3.0, rounds=1)
    batch = a_batch([1.2, 1.2, 0.7], [0, 1, 5])
    batch = Batch([0, 0, 1], batch.seeds, batch.embedding, batch.uncond, batch.latents, 50, batch.rule, "ddim")
    cost, both = Cost(), Cost()
    got = latents_under(sail, batch, cost=cost)
    assert not torch.equal(got[0], got[1])
    for row in range(3):
        torch.testing.assert_close(latents_under(sail, alone(batch, row), cost=both)[0], got[row])
    assert cost.evaluations < both.evaluations  # pictures 0 and 1 share their candidates


@pytest.mark.parametrize(
    ("name", "params", "sentence"),
    [
        ("sail", {"objective": "jvp"}, "objective 'jvp'"),
        ("sail", {"rounds": 0}, "rounds of sail is 0"),
        ("sail", {"lr": 0}, "lr of sail is 0"),
        ("sail", {"threshold": "low"}, "threshold of sail is 'low'"),
        ("han-sample", {"quantile": 2}, "quantile of han-sample is 2"),
        ("han-sample", {"iterations": -1}, "iterations of han-sample is -1"),
        ("han-batch", {"rho": float("nan")}, "rho of han-batch is nan"),
        ("amg", {"level": 0}, "level of amg is 0: give a number above 0"),
        ("amg", {"reference": 3}, "reference of amg is 3"),
    ],
)
def test_bad_parameters_end_in_one_sentence(name, params, sentence):
    with pytest.raises(InputError, match=sentence):
        get(name, **params)


def test_targets_elsewhere_are_quantiles_of_prompts_that_are_not_memorized(sd1_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path))
    monkeypatch.setattr("memlib.sampling.calibration.PROMPTS", 2)
    data = SubstrateData(sets={"not memorized": "figures"})
    sd1 = replace(load(sd1_tiny, device="cpu", dtype="float32"), data=data)
    from memlib.prompts.sets import choose_prompts
    from memlib.sampling.calibration import SEEDS as REFERENCE_SEEDS

    prompts = choose_prompts("not memorized", data, 2).prompts
    rows = [(row, seed) for row in range(2) for seed in REFERENCE_SEEDS]
    embedding = encode_prompts(sd1, [prompts[row] for row, _ in rows])
    seeds = [seed for _, seed in rows]
    batch = Batch(list(range(len(rows))), seeds, embedding, uncond_states(sd1), initial_latents(seeds, sd1.latent_shape), 2, None, "ddim")
    values = first_magnitudes(sd1, batch, Cost()).numpy()
    assert np.isclose(get("han-sample").target_on(sd1, batch), np.median(values), rtol=1e-4)
    assert get("sail").threshold_on(sd1, batch) > 0.05 * 8  # alpha times the least norm that such noise has
    big = SimpleNamespace(data=SubstrateData(), latent_shape=(4, 64, 64), prediction_type="epsilon")
    assert get("han-sample").target_on(big, batch) == 0.9 and get("sail").threshold_on(big, batch) == 8.2


# --- anti-memorization guidance


def descriptor():
    return CopyDescriptor("flat", lambda x: x.flatten(1), lambda p: torch.from_numpy(p).permute(0, 3, 1, 2) / 127.5 - 1.0, 0.5, fingerprint="flat")


def steered(monkeypatch, batch, vectors, copies=(1, 1), substrate=None, cost=None, **params):
    """The rule of anti-memorization guidance on the toy with this reference set."""
    substrate = substrate or Toy()
    known = Reference(torch.nn.functional.normalize(vectors.flatten(1), dim=1), ("text 0.4", None)[: len(vectors)], copies[: len(vectors)])
    monkeypatch.setattr(amg, "copy_metric", lambda _: descriptor())
    monkeypatch.setattr(amg, "reference_for", lambda *_: known)
    monkeypatch.setattr(amg, "no_reference", lambda *_: "")
    monkeypatch.setattr(amg, "encode_prompts", lambda _, captions: texts([float(caption.split()[1]) for caption in captions]))
    with get("amg", **{"level": 0.4, **params}).around(substrate, batch, Cost() if cost is None else cost) as changed:
        return changed.rule


def first_step(batch, rule, substrate=None, **options):
    walk = trajectory(substrate or Toy(), batch.embedding.states, batch.uncond, batch.latents, batch.steps, rule, **options)
    return next(iter(walk))


def amg_by_hand(x, strength, r, t, abar, copies, level=0.4):
    """Scale and added noise for one sample, from the published formulas and the gradient of a cosine."""
    f = level / 0.4
    u, c, g = 0.1 * x, 0.1 * x + strength * GAINS[0] * x, 7.5
    bound = f * (0.3 + 0.1 * math.exp(-0.005 * t))

    def cosine(e):
        clean = ((x - (1 - abar) ** 0.5 * e) / abar**0.5).flatten()
        return float(clean @ r / clean.norm()), clean

    sim, _ = cosine(u + g * (c - u))
    if sim <= 0:
        return g, torch.zeros_like(x)
    g2 = min(6.5, max(0.0, 6.5 * sim / (0.5 * f)))
    g3 = min(6.5 - g2, (6.5 - g2) * sim / (0.3 * f)) if sim > bound and copies > 20 else 0.0
    shift = g3 * (u - (0.1 * x + 0.4 * GAINS[0] * x))
    sim, clean = cosine(u + (g - g2) * (c - u) + shift)
    if sim > bound:
        gradient = (r - sim * clean / clean.norm()) / clean.norm() / abar**0.5
        size = 100 * SMALLER**2 * (1 - abar) ** 0.5 * math.exp((1000 - t) / 170) * (sim / f - 0.3)
        shift = shift + size * gradient.view(x.shape)
    return g - g2, shift


@pytest.mark.parametrize("copies", [1, 21])
def test_amg_is_its_closed_form_for_each_sample(monkeypatch, copies):
    batch, cost = a_batch([0.02, 0.3, 0.1], SEEDS, steps=50), Cost()
    reference = torch.stack([batch.latents[0] + 0.3 * batch.latents[1], -batch.latents[1]])
    r = torch.nn.functional.normalize(reference.flatten(1), dim=1)
    step = first_step(batch, steered(monkeypatch, batch, reference, (copies, copies), cost=cost))
    abar = float(Toy().scheduler("ddim", 50).alphas_cumprod[981])
    moved, lowered = 0, 0
    for row, strength in enumerate([0.02, 0.3, 0.1]):
        x = batch.latents[row]
        # Which reference is nearest follows from the plain prediction, as the caption does.
        clean = x - (1 - abar) ** 0.5 * (0.1 * x + 7.5 * strength * GAINS[0] * x)
        place = int((r @ clean.flatten()).argmax())
        scale, shift = amg_by_hand(x, strength, r[place], 981.0, abar, copies if place == 0 else 1)
        assert np.isclose(float(step.guidance[row]), scale, rtol=1e-4)
        e = 0.1 * x + scale * strength * GAINS[0] * x + shift
        before = float(Toy().scheduler("ddim", 50).alphas_cumprod[961])
        expected = before**0.5 * (x - (1 - abar) ** 0.5 * e) / abar**0.5 + (1 - before) ** 0.5 * e
        torch.testing.assert_close(step.next_latents[row], expected, rtol=1e-3, atol=1e-3)
        moved, lowered = moved + bool(shift.any()), lowered + (scale < 7.5)
        single = alone(batch, row)
        again = first_step(single, steered(monkeypatch, single, reference, (copies, copies)))
        torch.testing.assert_close(again.next_latents[0], step.next_latents[row])
    assert moved >= 1 and lowered >= 1 and cost.decodes >= 3 + lowered + 1
    assert cost.evaluations == (copies > 20)  # the row of the one caption; the loop's own rows are counted by the loop


def test_a_caption_is_avoided_for_ten_steps_and_no_longer(monkeypatch):
    batch = a_batch([0.3], [4])
    rule = steered(monkeypatch, batch, batch.latents, (21,))
    similarity = iter([0.9] + [0.1] * 14)
    nearest = lambda x, e, t, bound=None: (  # noqa: E731
        (torch.tensor([next(similarity)]), torch.tensor([0]), None) if bound is None
        else (torch.tensor([0.0]), torch.tensor([0]), torch.zeros_like(x))
    )  # fmt: skip
    monkeypatch.setattr(rule, "nearest", nearest)
    cost = rule.cost
    rows = []
    for _step in trajectory(Toy(), batch.embedding.states, batch.uncond, batch.latents, 15, rule):
        rows.append(cost.evaluations)
    assert np.diff([0, *rows]).tolist() == [1] * 10 + [0] * 5


def test_amg_leaves_pictures_alone_that_are_like_no_reference(monkeypatch):
    batch = a_batch([0.02], [4])
    rule = steered(monkeypatch, batch, -batch.latents)
    step, plain = first_step(batch, rule), first_step(batch, batch.rule)
    assert torch.equal(step.next_latents, plain.next_latents) and float(step.guidance) == 7.5


def test_amg_as_published_does_nothing_to_the_first_21_pictures(monkeypatch):
    batch = a_batch([0.02, 0.02], [20, 21])
    reference = batch.latents.sum(0, keepdim=True)
    for as_published, guided in ((True, [False, True]), (False, [True, True])):
        step = first_step(batch, steered(monkeypatch, batch, reference, as_published=as_published))
        assert (step.guidance < 7.5).tolist() == guided


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_added_noise_is_noise_whatever_the_model_predicts(kind, scheduler):
    solver = Toy(kind).scheduler(scheduler, 10)
    output, latents, added = (torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(n)) for n in range(3))
    t = solver.timesteps[2]
    changed = to_epsilon(output + added / _noise_per_output(t, solver), latents, t, solver)
    torch.testing.assert_close(changed - to_epsilon(output, latents, t, solver), added, rtol=1e-3, atol=1e-3)


def test_amg_reads_the_same_clean_picture_from_either_scheduler(monkeypatch):
    found = []
    for scheduler in ("ddim", "euler"):
        batch = a_batch([0.02], [4], scheduler=scheduler)
        rule = steered(monkeypatch, batch, batch.latents.roll(1, -1) + batch.latents)
        step = first_step(batch, rule, scheduler=scheduler)
        found.append(float(step.guidance))
    assert np.isclose(*found, rtol=2e-2) and found[0] < 7.4


def test_without_a_reference_set_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(amg, "copy_metric", lambda _: descriptor())
    assert "training set of toy is not at hand" in get("amg").missing(Toy())
    with pytest.raises(InputError, match="give a folder of pictures or descriptors as reference"):
        latents_under(get("amg"), a_batch([1.0], [0]))
    assert "no folder" in get("amg", reference="nowhere").missing(Toy())
    assert get("none").missing(Toy()) == "" == get("sail").missing(Toy())


def test_a_folder_of_descriptors_or_pictures(tmp_path):
    from PIL import Image

    draw = np.random.default_rng(0)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[:2]:
        np.save(folder / "descriptors.npy", np.arange(8.0).reshape(2, 4))
        (folder / "captions.csv").write_text("caption,copies\nfirst,30\n,\n")
    known = references.reference_for(Toy(), descriptor(), str(folders[0]))
    assert known.captions == ("first", None) and known.copies == (30, 1)
    torch.testing.assert_close(known.vectors.norm(dim=1), torch.ones(2))
    # The store's key follows the content and not the place.
    keys = [get("amg", reference=str(folder)).key for folder in folders[:2]]
    assert keys[0] == keys[1] and str(tmp_path) not in str(keys)
    pictures = draw.integers(0, 256, (2, 2, 2, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folders[2] / f"{number}.png")
    (folders[2] / "captions.csv").write_text("file,caption,copies\n1.png,second,25\n")
    known = references.reference_for(Toy(), descriptor(), str(folders[2]))
    np.testing.assert_allclose(known.vectors.numpy(), descriptor()(pictures), atol=1e-6)
    assert known.captions == (None, "second") and known.copies == (1, 25)
    # As published the references are read in [0, 1].
    raw = references.reference_for(Toy(), descriptor(), str(folders[2]), as_published=True).vectors
    values = pictures.transpose(0, 3, 1, 2).reshape(2, -1) / 255
    np.testing.assert_allclose(raw.numpy(), values / np.linalg.norm(values, axis=1, keepdims=True), atol=1e-6)
    assert get("amg", reference=str(folders[2])).key != keys[0]
    for path in folders[2].iterdir():
        path.unlink()
    with pytest.raises(InputError, match="holds neither pictures"):
        references.reference_for(Toy(), descriptor(), str(folders[2]))


# --- on a model


@pytest.fixture(scope="module")
def sd1(sd1_tiny):
    return load(sd1_tiny, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("name", "params"), [("han-batch", {}), ("han-sample", {"target": 0.0, "iterations": 2}), ("sail", {"threshold": -1.0, "rounds": 1, "steps": 2})]
)
def test_a_picture_does_not_depend_on_its_batch_and_the_model_is_left_as_it_was(sd1, name, params):
    mitigation, embedding = get(name, **params), encode_prompts(sd1, ["a cat on a red chair", "two dogs"])
    made, costs = {}, []
    for size in (4, 1):
        costs.append(Cost())
        for rows, seeds, pictures in sample_batches(
            sd1, embedding, [0, 1], Recipe(2, mitigation.guidance(7.5)), batch_size=size, cost=costs[-1], around=mitigation.around
        ):
            for row, seed, picture in zip(rows, seeds, pictures, strict=True):
                made.setdefault((row, seed), []).append(picture.astype(int))
    assert all(np.abs(first - second).max() <= 2 for first, second in made.values())
    assert costs[0] == costs[1] and costs[0].evaluations > 4 * 2 * 2
    assert not any(weight.requires_grad for weight in sd1.unet.parameters())


def test_gradients_in_half_precision_move_the_noise(sd1_tiny):
    half = load(sd1_tiny, device="cpu", dtype="bfloat16")
    embedding = encode_prompts(half, ["a cat on a red chair"])
    batch = Batch([0], [0], embedding, uncond_states(half), initial_latents([0], half.latent_shape), 2, None, "ddim")
    got = latents_under(get("han-sample", target=0.0, iterations=2), batch, half)
    assert got.dtype == torch.float32 and torch.isfinite(got).all() and 0 < (got - batch.latents).abs().max() < 0.05


@pytest.mark.slow
def test_minisd_knows_its_repeated_pictures():
    minisd = load("minisd-v1", device="cpu", dtype="float32")
    mitigation = get("amg")
    if mitigation.missing(minisd):
        pytest.skip("the copy descriptor is not at hand")
    metric = references.copy_metric(minisd)
    known = references.reference_for(minisd, metric)
    assert len(known.vectors) == 192 and max(known.copies) == 128 and min(known.copies) == 1 and 48 in known.copies
    factor = mitigation.factor(minisd, metric, known)
    assert 0.2 < factor < 2.5
    from memlib.models.minisd.prompt_sets import training_pictures

    similar = torch.from_numpy(metric(training_pictures("dup128-00"))) @ known.vectors.T
    assert known.copies[int(similar.argmax())] == 128 and similar.max() > 0.999
    # A model fine-tuned for a scenario was trained on other pictures, and those are the ones to avoid.
    tuned = references.reference_for(SimpleNamespace(name="minisd-v1-duplicated", data=data_of("minisd-v1-duplicated")), metric)
    own = torch.from_numpy(metric(training_pictures("duplicated-000"))) @ tuned.vectors.T
    assert len(tuned.vectors) == 24 and set(tuned.copies) == {320} and int(own.argmax()) == 0 and own.max() > 0.999
