"""Pruning: weights taken out and given back to the last bit, structural similarity in closed form, and toys whose neurons are known."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from memlib.base.errors import InputError
from memlib.base.store import Store
from memlib.mitigations import get
from memlib.mitigations import pruning as registered
from memlib.mitigations.weights import WeightSet, nemo, overlap, pruned, pruned_rows, wanda
from memlib.mitigations.weights.ssim import C1, C2, fitting, ms_ssim, published_ms_ssim, ssim, window
from memlib.mitigations.weights.weight_sets import acting_weight, shuffled, union
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import initial_latents, sample, trajectory, uncond_states
from memlib.sampling.loop import Cost
from memlib.sampling.recipe import Recipe
from memlib.sampling.stored import PictureStore

PROMPTS = ["a red cat", "two dogs on a chair"]


@pytest.fixture(scope="module")
def sd1(sd1_tiny):
    return load(sd1_tiny, "cpu", "float32")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Reference prompts and a store of their own; nothing kept from other tests."""
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path))
    monkeypatch.setattr(registered, "_found", {})
    for module in (nemo, wanda):
        monkeypatch.setattr(module, "reference_prompts", lambda substrate: ("a house", "the sea", "a green tree", "snow"))
    monkeypatch.setattr(nemo, "choose_prompts", lambda *a, **k: SimpleNamespace(prompts=("a boat", "one apple")))


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- sets of weights


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.b(self.a(x))


def test_taken_out_inside_and_given_back_to_the_last_bit():
    net, x = Two().to(torch.bfloat16), torch.randn(4, 3, dtype=torch.bfloat16)
    before, plain = bits(net), net(x)
    chosen = WeightSet({"a": [0, 5], "b": [1]})
    with pruned(net, chosen):
        assert acting_weight(net.a).flatten()[[0, 5]].tolist() == [0, 0] and acting_weight(net.b)[0, 1] == 0
        assert acting_weight(net.a).count_nonzero() == 4 and not torch.equal(net(x), plain)
        assert torch.equal(net(x), nn.functional.linear(nn.functional.linear(x, acting_weight(net.a), net.a.bias), acting_weight(net.b)))
    assert same(net, before) and torch.equal(net(x), plain)
    with pytest.raises(RuntimeError, match="stop"), pruned(net, chosen):
        raise RuntimeError("stop")
    assert same(net, before)
    with pytest.raises(RuntimeError, match="stop"), pruned(net, chosen), pruned(net, WeightSet({"a": [0, 1]})):
        raise RuntimeError("stop")
    assert same(net, before)


SETS = [WeightSet({"a": [0, 5], "b": [1]}), WeightSet({"a": [0, 1]}), WeightSet({"a": [0, 5], "b": [1]})]


def by_hand(net, x, out):
    """What Two gives without these places of its first layer and, with any of the sets 0 and 2, the second place of its second one."""
    a, b = net.a.weight.detach().clone(), net.b.weight.detach().clone()
    a.view(-1)[sorted({p for one in out for p in SETS[one].chosen["a"].tolist()})] = 0
    if {0, 2} & set(out):
        b.view(-1)[1] = 0
    return nn.functional.linear(nn.functional.linear(x, a, net.a.bias), b)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_contexts_may_be_left_in_any_order_and_nested_twice(order):
    net, x = Two(), torch.randn(4, 3)
    before, own = bits(net), net.a.weight
    contexts = [pruned(net, one) for one in SETS]
    for place, context in enumerate(contexts):
        context.__enter__()
        torch.testing.assert_close(net(x), by_hand(net, x, range(place + 1)), rtol=0, atol=0)
    for turn, place in enumerate(order):
        torch.testing.assert_close(net(x), by_hand(net, x, order[turn:]), rtol=0, atol=0)
        contexts[place].__exit__(None, None, None)
    assert same(net, before) and net.a.weight is own and not net.a._forward_hooks and acting_weight(net.a) is own


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_context_acts_on_what_its_own_thread_computes(order):
    """Two users of one model at the same time, one of them pruning: the other's pictures are those of the whole model."""
    net, x = Two(), torch.randn(4, 3)
    before, plain = bits(net), net(x)
    pools = [ThreadPoolExecutor(1) for _ in SETS]
    contexts = [pruned(net, one) for one in SETS]
    for pool, context in zip(pools, contexts, strict=True):
        pool.submit(context.__enter__).result()
    for turn, left in enumerate(order):
        for place, pool in enumerate(pools):
            expected = by_hand(net, x, [place]) if place in order[turn:] else plain
            torch.testing.assert_close(pool.submit(net, x).result(), expected, rtol=0, atol=0)
        assert torch.equal(net(x), plain)
        pools[left].submit(contexts[left].__exit__, None, None, None).result()
    assert same(net, before) and torch.equal(net(x), plain)


def test_the_other_user_s_pictures_keep_their_name(sd1, tmp_path):
    embedding = encode_prompts(sd1, PROMPTS)
    alone = PictureStore(tmp_path / "alone").ensure(sd1, embedding, [1], Recipe(2))
    layer = next(name for name in wanda.feed_forward_layers(sd1))
    with pruned(sd1, WeightSet({layer: np.arange(50)})), ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(PictureStore(tmp_path / "meanwhile").ensure, sd1, embedding, [1], Recipe(2)).result()
        with pytest.raises(InputError, match="has no name"):  # this thread's own would not be those of the model
            PictureStore(tmp_path / "own").ensure(sd1, embedding, [1], Recipe(2))
    assert meanwhile == alone
    read = [PictureStore(tmp_path / name).read_picture(alone[0][0]) for name in ("alone", "meanwhile")]
    assert np.array_equal(*read)


@pytest.mark.parametrize("compiled", [lambda net: net.compile(backend="eager") or net, lambda net: torch.compile(net, backend="eager")])
def test_a_compiled_model_is_pruned_as_another(compiled):
    net, x = Two(), torch.randn(4, 3)
    run = compiled(net)
    plain = run(x)
    with pruned(net, SETS[0]):
        torch.testing.assert_close(run(x), by_hand(net, x, [0]))
        with pruned(net, SETS[1]):
            torch.testing.assert_close(run(x), by_hand(net, x, [0, 1]))
        torch.testing.assert_close(run(x), by_hand(net, x, [0]))
    assert torch.equal(run(x), plain)


def test_a_set_of_another_model_leaves_nothing_behind_in_the_middle():
    net = Two()
    before = bits(net)
    with ExitStack() as stack:
        stack.enter_context(pruned(net, SETS[0]))
        with pytest.raises(InputError, match="no layer 'c'"):
            stack.enter_context(pruned(net, WeightSet({"a": [1], "c": [0]})))
        assert acting_weight(net.a).count_nonzero() == 4
    assert same(net, before)


def test_weights_may_be_multiplied_in_place_of_taken_out():
    net = Two()
    before = bits(net)
    with pruned(net, SETS[0], factor=-0.5), pruned(net, SETS[1], factor=2.0):
        expected = before["a.weight"].flatten() * torch.tensor([-1.0, 2, 1, 1, 1, -0.5])
        torch.testing.assert_close(acting_weight(net.a).flatten(), expected)
    x = torch.randn(4, 3)
    with pruned(net, SETS[0], factor=3.0):
        alone = net(x[1:2])
    with pruned_rows(net, [WeightSet({}), SETS[0]], factor=3.0):
        torch.testing.assert_close(net(x)[1:2], alone)
    assert same(net, before)


def test_rows_of_other_threads_keep_their_weights():
    net, x = Two(), torch.randn(2, 3)
    plain = net(x)
    with pruned_rows(net, [SETS[0], SETS[1]]), ThreadPoolExecutor(1) as pool:
        assert not torch.equal(net(x), plain) and torch.equal(pool.submit(net, x).result(), plain)


def test_a_gradient_can_be_followed_back_after_the_weights_were_given_back():
    net, x = Two(), torch.randn(4, 3, requires_grad=True)
    for context in (pruned(net, WeightSet({"a": [0, 4], "b": [1]})), pruned_rows(net, [WeightSet({"a": [0, 4], "b": [1]}), WeightSet({"a": [2]})])):
        with context:
            output = net(x)
        (back,) = torch.autograd.grad(output[:1].sum(), x)
        a, b = net.a.weight.detach().clone(), net.b.weight.detach().clone()
        a.view(-1)[[0, 4]] = 0
        b.view(-1)[1] = 0
        torch.testing.assert_close(back[0], (b @ a).sum(0))


def test_each_row_has_its_own_set():
    net, x = Two(), torch.randn(6, 5, 3)
    sets = [WeightSet({"a": [0]}), WeightSet({}), WeightSet({"a": [1], "b": [2, 3]})]
    expected = torch.empty(6, 5, 2)
    for row in range(6):
        with pruned(net, sets[row % 3]):
            expected[row] = net(x[row])
    before = bits(net)
    with pruned_rows(net, sets):
        torch.testing.assert_close(net(x), expected)
        with pytest.raises(InputError, match="A batch of 4 rows does not fit 3 sets"):
            net(x[:4])
    assert same(net, before) and not net.a._forward_hooks and not net.b._forward_hooks
    with pruned_rows(net, [sets[0]] * 3):  # one set for all fits every batch
        assert acting_weight(net.a)[0, 0] == 0 and torch.equal(net(x[:4]), net(x)[:4])
    with pruned(net, WeightSet({"a": [5]})), pruned_rows(net, sets):  # rows under what is out for all
        for row in range(6):
            weight = before["a.weight"].clone()
            weight.view(-1)[[5, *sets[row % 3].chosen.get("a", [])]] = 0
            second = before["b.weight"].clone()
            second.view(-1)[list(sets[row % 3].chosen.get("b", []))] = 0
            torch.testing.assert_close(net(x)[row], nn.functional.linear(nn.functional.linear(x[row], weight, net.a.bias), second))
    assert same(net, before)


def test_sets_as_sets(tmp_path):
    one, other = WeightSet({"a": [3, 1, 1], "c": []}), WeightSet({"a": [1, 2], "b": [0]})
    assert len(one) == 2 and list(one.chosen) == ["a"] and overlap(one, other) == 1 / 4 and overlap(one, one) == 1
    assert math.isnan(overlap(WeightSet({}), WeightSet({}))) and overlap(one, WeightSet({})) == 0
    assert {name: places.tolist() for name, places in union([one, other]).chosen.items()} == {"a": [1, 2, 3], "b": [0]}
    assert WeightSet.of_neurons(Two(), {"a": [1]}).chosen["a"].tolist() == [3, 4, 5]
    for weights in (one, WeightSet({})):
        weights.save(tmp_path / "set.safetensors")
        assert WeightSet.read(tmp_path / "set.safetensors").fingerprint == weights.fingerprint
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(InputError, match="holds no set of weights"):
        WeightSet.read(tmp_path / "bad")
    drawn = shuffled(Two(), WeightSet.of_neurons(Two(), {"a": [1]}), np.random.default_rng(0), neurons=True)
    assert drawn.chosen["a"].tolist() in ([0, 1, 2], [3, 4, 5]) and len(shuffled(Two(), other, np.random.default_rng(0))) == 3


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [({"z": [0]}, "no layer 'z'"), ({"": [0]}, "is Two, not a linear one"), ({"a": [6]}, "has 6 weights, and the set names others")],
)
def test_a_set_of_another_model_is_refused(weights, sentence):
    with pytest.raises(InputError, match=sentence), pruned(Two(), WeightSet(weights)):
        pass


# --- structural similarity


def test_similarity_in_closed_form():
    flat = torch.full((1, 1, 3, 3), 0.2)
    whole, structure = ssim(flat, flat + 0.5, torch.full((3,), 1 / 3))
    assert float(structure) == pytest.approx(1, abs=1e-4)
    assert float(whole) == pytest.approx((2 * 0.2 * 0.7 + C1) / (0.2**2 + 0.7**2 + C1), abs=1e-4)
    # One window that covers the maps: means, variances and covariance by hand.
    x, y = torch.rand(2, 1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    a, b = x.mean((2, 3)), y.mean((2, 3))
    va, vb = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
    cov = (x * y).mean((2, 3)) - a * b
    expected = ((2 * a * b + C1) * (2 * cov + C2) / ((a**2 + b**2 + C1) * (va + vb + C2))).mean(1)
    torch.testing.assert_close(ssim(x, y, torch.full((5,), 0.2))[0], expected, rtol=1e-4, atol=1e-5)


def test_windows_and_scales_fit_the_maps():
    assert [fitting(side) for side in (64, 44, 16, 12, 8, 5, 3)] == [(11, 3), (11, 3), (3, 3), (3, 3), (3, 2), (5, 1), (3, 1)]
    with pytest.raises(InputError, match="at least 3 x 3"):
        fitting(2)
    assert float(window(7).sum()) == pytest.approx(1) and float(window(3)[1] / window(3)[0]) == pytest.approx(math.exp(1 / 4.5))


def test_similarity_orders_maps_and_takes_any_batch():
    generator = torch.Generator().manual_seed(1)
    maps, noise = torch.rand(2, 4, 16, 16, generator=generator), torch.randn(2, 4, 16, 16, generator=generator)
    near, far = ms_ssim(maps, maps + 0.02 * noise), ms_ssim(maps, maps + 0.3 * noise)
    assert torch.allclose(ms_ssim(maps, maps), torch.ones(2)) and (near > far).all() and (far >= 0).all()
    torch.testing.assert_close(ms_ssim(maps[1:], (maps + 0.02 * noise)[1:]), near[1:])
    assert float(ms_ssim(maps, 1 - maps).max()) == 0
    with pytest.raises(InputError, match="cannot be compared"):
        ms_ssim(maps, maps[:1])


def test_the_published_similarity_by_hand():
    """The range is that of the batch, taken anew at every scale; weights of 0.33 leave a little over; the last scale counts reflected borders."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(3, 4, 64, 64, generator=generator)
    others = 0.6 * maps + 0.4 * torch.rand(3, 4, 64, 64, generator=generator)
    product, a, b = torch.ones(3), maps, others
    for scale in range(3):
        span = max(float(a.max() - a.min()), float(b.max() - b.min()))
        edges = 5 if scale == 2 else 0
        framed = [torch.nn.functional.pad(m / span, (edges,) * 4, mode="reflect") if edges else m / span for m in (a, b)]
        whole, structure = ssim(*framed, window(11))
        product *= (whole if scale == 2 else structure) ** 0.33
        a, b = (torch.nn.functional.avg_pool2d(m, 2) for m in (a, b))
    torch.testing.assert_close(published_ms_ssim(maps, others), product, rtol=1e-3, atol=1e-4)
    # What is compared at once matters, as it does not in ours.
    loud = torch.cat([maps, 3 * maps[:1]])
    assert not torch.allclose(published_ms_ssim(loud, loud * 0.9)[:3], published_ms_ssim(maps, maps * 0.9), rtol=1e-4)
    torch.testing.assert_close(ms_ssim(loud, loud * 0.9)[:3], ms_ssim(maps, maps * 0.9))
    with pytest.raises(InputError, match="needs maps of 44 x 44, not 16: leave as_published out"):
        published_ms_ssim(maps[..., :16, :16], maps[..., :16, :16])


# --- NeMo


def test_the_published_limit_belongs_to_the_published_similarity(monkeypatch):
    asked = []
    monkeypatch.setattr(nemo, "limit", lambda substrate, *settings, alike: asked.append((settings, alike)) or 0.7)
    big = SimpleNamespace(latent_shape=(4, 64, 64), prediction_type="epsilon")
    assert nemo.limit_of(big, get("nemo", as_published=True)) == 0.428 and not asked
    assert nemo.limit_of(big, get("nemo")) == 0.7 == nemo.limit_of(big, get("nemo", as_published=True, quantile=0.9))
    assert asked == [((0.84, 10, 0), ms_ssim), ((0.9, 10, 0), published_ms_ssim)]


def test_what_came_later_leaves_the_keys_as_they_were():
    assert set(get("nemo").key) == {"mitigation", "version", "scope", "quantile", "seeds", "step", "count", "random", "first_seed"}
    assert get("nemo", as_published=True).key["as_published"] and get("nemo", factor=-1.0).key["factor"] == -1.0
    assert "as_published" not in get("wanda").key and "mask" not in get("ren").key


def known_scores():
    """Two layers of six neurons; deviations 9 (layer a, neuron 2), 4 (b, 0) and 1.5 (b, 5); activity rises with the number."""
    active = np.arange(6.0)
    a, b = np.zeros(6), np.zeros(6)
    a[2], b[0], b[5] = 9, 4, 1.5
    return {"a": (a, active), "b": (b, active)}


def test_selection_lowers_the_deviation_until_the_needed_neurons_are_in():
    tried = []

    def left(chosen):
        tried.append({name: sorted(c) for name, c in chosen.items()})
        return 0.1 if 0 in chosen["b"] else 0.9

    chosen, target = nemo._select(known_scores(), left, 0.3)
    assert target == 0.3 and tried[0] == {"a": [2], "b": []} and tried[1] == {"a": [2, 5], "b": [5]}
    # 4 > theta first at 3.75, the sixth selection, with five of the most active neurons in each layer.
    assert len(tried) == 6 and chosen == {"a": {1, 2, 3, 4, 5}, "b": {0, 1, 2, 3, 4, 5}}


def test_selection_that_never_suffices_loosens_the_target_to_what_it_reached():
    chosen, target = nemo._select(known_scores(), lambda chosen: 0.9 - 0.01 * len(chosen["a"] | chosen["b"]), 0.3)
    assert target == pytest.approx(0.84) and chosen["a"] == chosen["b"] == set(range(6))


def test_refinement_keeps_exactly_the_neurons_that_matter():
    needed = {("a", 2), ("b", 0)}

    def left(chosen):
        return 0.9 - 0.4 * sum(channel in chosen[name] for name, channel in needed)

    start = {"a": {1, 2, 3}, "b": {0, 4}, "c": {1}}
    assert nemo._refine(start, left, 0.3) == {"a": {2}, "b": {0}, "c": set()}
    assert nemo._refine(start, lambda chosen: 0.0, 0.3) == {"a": set(), "b": set(), "c": set()}


def test_activations_and_differences_by_hand(sd1):
    states = encode_prompts(sd1, PROMPTS).states
    found = nemo.activations(sd1, states)
    assert all(not name.startswith("up_blocks") and name.endswith("attn2.to_v") for name in found) and list(found)[-1].startswith("mid_block")
    name = next(iter(found))
    weight = sd1.unet.get_submodule(name).weight
    torch.testing.assert_close(found[name], (states @ weight.T).abs().mean(1))
    cost = Cost()
    maps = nemo.differences(sd1, states[0], [3, 4, 5], cost)
    x = initial_latents([4], sd1.latent_shape)
    with torch.no_grad():
        raw = (sd1.unet(x, sd1.scheduler("ddim", 50).timesteps[0], encoder_hidden_states=states[:1]).sample - x)[0]
    expected = (raw - raw.amin((1, 2), True)) / (raw.amax((1, 2), True) - raw.amin((1, 2), True))
    torch.testing.assert_close(maps[1], expected, rtol=1e-4, atol=1e-5)
    assert cost.evaluations == 3
    alike = nemo.alike_across_seeds(maps)
    pairs = [float(ms_ssim(maps[i : i + 1], maps[j : j + 1])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert alike.tolist() == pytest.approx([max(pairs[0], pairs[1]), max(pairs[0], pairs[2]), max(pairs[1], pairs[2])], abs=1e-5)


def test_the_whole_search_on_a_small_model(sd1, here):
    before, embedding = bits(sd1.unet), encode_prompts(sd1, PROMPTS)
    [nothing, _] = nemo.neurons(sd1, embedding, bound=1.1, seeds=range(3))
    assert len(nothing) == 0 and nothing.seeds == () and len(nothing.weights) == 0
    cost = Cost()
    [found] = nemo.neurons(sd1, embedding.select([0]), bound=-1.0, seeds=range(2), cost=cost, refine=False)
    # Nothing is ever below -1: all seeds take part, all seventeen selections are tried, and the target is what was reached.
    assert found.seeds == (0, 1) and cost.evaluations == 2 * 18 and found.target > 0
    assert found.weights.fingerprint == WeightSet.of_neurons(sd1, found.channels).fingerprint and same(sd1.unet, before)


# --- Wanda


def test_input_norms_by_hand(sd1):
    embedding, seen = encode_prompts(sd1, PROMPTS), []
    layers = wanda.feed_forward_layers(sd1)
    name = list(layers)[1]
    cost = Cost()
    found = wanda.input_norms(sd1, embedding, steps=5, share=0.4, cost=cost)
    assert cost.evaluations == 2 * 2 * 2 and found[0][name].shape == (2, layers[name].in_features)
    hook = layers[name].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for step in trajectory(sd1, embedding.states[1:], uncond_states(sd1), initial_latents([0], sd1.latent_shape), 5):
        if step.index == 1:
            break
    hook.remove()
    inputs = seen[1].flatten(0, 1)
    expected = torch.stack([row / row.norm() for row in inputs]).square().mean(0).sqrt()
    np.testing.assert_allclose(found[1][name][1], expected.numpy(), rtol=1e-4)
    joint = wanda.together(found)[name]
    np.testing.assert_allclose(joint, np.sqrt((found[0][name] ** 2 + found[1][name] ** 2) / 2), rtol=1e-5)


def test_weights_chosen_are_the_largest_products_above_the_base(monkeypatch):
    layer = nn.Linear(4, 2)
    layer.weight.data = torch.tensor([[1.0, -2.0, 3.0, 0.5], [4.0, 1.0, 0.1, 2.0]])
    monkeypatch.setattr(wanda, "feed_forward_layers", lambda model: {"ff": layer})
    target = {"ff": np.array([[1.0, 1, 1, 1], [1, 1, 1, 9]], np.float32)}
    base = {"ff": np.array([[2.0, 0, 0, 0], [9, 9, 9, 9]], np.float32)}
    # Step 0: highest products are |3| in row 0 and |4| in row 1, of which the latter is the base's too. Step 1: all below the base.
    assert wanda.weights(None, target, base, 0.25).chosen["ff"].tolist() == [2]
    assert wanda.weights(None, target, base, 0.5).chosen["ff"].tolist() == [1, 2, 7]
    assert len(wanda.weights(None, target, target, 1.0)) == 0
    nothing = {"ff": np.zeros((2, 4), np.float32)}
    assert [len(wanda.weights(None, target, nothing, ratio)) for ratio in (0.25, 0.5, 1.0)] == [4, 5, 8]
    # As published the number is cut off: 12 of 1,280 for a hundredth, 13 when rounded.
    wide = nn.Linear(1280, 1)
    monkeypatch.setattr(wanda, "feed_forward_layers", lambda model: {"ff": wide})
    ones, nothing = {"ff": np.ones((1, 1280), np.float32)}, {"ff": np.zeros((1, 1280), np.float32)}
    assert [len(wanda.weights(None, ones, nothing, 0.01, floor)) for floor in (False, True)] == [13, 12]
    with pytest.raises(InputError, match="ratio of 0 "):
        wanda.weights(None, target, base, 0)


# --- as mitigations


@pytest.mark.parametrize("name", ["nemo", "wanda"])
@pytest.mark.parametrize("scope", ["prompt", "all"])
def test_pictures_are_those_of_models_pruned_by_hand(sd1, here, monkeypatch, name, scope):
    small = {"seeds": 2, "quantile": 0.0} if name == "nemo" else {"steps": 4, "share": 0.5, "ratio": 0.2}
    method = get(name, scope=scope, **small)
    monkeypatch.setattr(type(method), "_memorized", lambda self, substrate: tuple(PROMPTS))
    embedding, before = encode_prompts(sd1, PROMPTS), bits(sd1.unet)
    cost = Cost()
    pictures = sample(sd1, embedding, [7], Recipe(2), around=method.around, cost=cost)
    # Two pictures of two steps, and the search for each prompt where it is the prompt's own.
    assert same(sd1.unet, before) and (cost.evaluations > 2 * 2 * 2) == (scope == "prompt")
    sets = [method.with_params(scope="prompt").weights(sd1, encode_prompts(sd1, prompt))[0] for prompt in PROMPTS]
    sets = [union(sets)] * 2 if scope == "all" else sets
    for row in range(2):
        with pruned(sd1, sets[row]):
            alone = sample(sd1, embedding.select([row]), [7], Recipe(2))
        assert np.abs(alone[0].astype(int) - pictures[row].astype(int)).max() <= 1
    if name == "wanda":
        assert all(map(len, sets))
    store = Store()
    spent = Cost()
    registered._found.clear()
    method.for_prompts(sd1, embedding.tokens, spent)  # from the store, at the same price
    assert spent.evaluations == cost.evaluations - 2 * 2 * 2 and store.root.is_dir()
    if scope == "prompt":  # and what is found for one prompt, removed for another one
        monkeypatch.setattr(registered, "get", lambda name: method)
        other = sample(sd1, embedding.select([1]), [7], Recipe(2), around=registered.PrunedFor(name, PROMPTS[0]).around)
        with pruned(sd1, sets[0]):
            alone = sample(sd1, embedding.select([1]), [7], Recipe(2))
        assert np.array_equal(other, alone) and same(sd1.unet, before)
        assert registered.PrunedFor(name, PROMPTS[0]).key != registered.PrunedFor(name, PROMPTS[1]).key
    # As many at random, of the same layers.
    drawn = method.with_params(random=3).for_prompts(sd1, embedding.tokens)
    for one, own in zip(drawn, sets, strict=True):
        assert {name: len(places) for name, places in one.chosen.items()} == {name: len(places) for name, places in own.chosen.items()}


def test_bad_parameters_end_in_one_sentence():
    for params, sentence in [
        ({"scope": "half"}, "Unknown scope 'half'"), ({"seeds": 1}, "seeds of nemo is 1: give a whole number from 2 on"),
        ({"quantile": 2}, "quantile of nemo is 2"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            get("nemo", **params)
    for params, sentence in [({"ratio": 0}, "The ratio of wanda is 0"), ({"base": "x"}, "Unknown base 'x'"), ({"steps": 0}, "steps of wanda is 0")]:
        with pytest.raises(InputError, match=sentence):
            get("wanda", **params)


def test_as_published_all_prompts_are_pooled_and_pruned_once(sd1, here, monkeypatch):
    method = get("wanda", scope="all", steps=4, share=0.5, ratio=0.2, as_published=True)
    monkeypatch.setattr(type(method), "_memorized", lambda self, substrate: tuple(PROMPTS))
    embedding = encode_prompts(sd1, PROMPTS)
    [found, again] = method.for_prompts(sd1, embedding.tokens)
    sampling = {"seeds": (0,), "steps": 4, "share": 0.5, "guidance": 7.5}
    norms = wanda.input_norms(sd1, embedding, **sampling)
    pooled = {name: np.sqrt((norms[0][name] ** 2 + norms[1][name] ** 2) / 2) for name in norms[0]}
    expected = wanda.weights(sd1, pooled, wanda.base_norms(sd1, "captions", **sampling), 0.2, floor=True)
    assert found is again and found.fingerprint == expected.fingerprint and len(found)
    assert len(found) < len(method.with_params(as_published=False).for_prompts(sd1, embedding.tokens)[0])


def test_a_stronger_ratio_takes_out_more(sd1, here):
    embedding = encode_prompts(sd1, PROMPTS[:1])
    counts = [len(get("wanda", ratio=ratio, steps=3).weights(sd1, embedding)[0]) for ratio in (0.05, 0.1, 0.3)]
    assert counts[0] < counts[1] < counts[2]


def test_only_pruning_is_pruned_for_another_prompt():
    with pytest.raises(InputError, match="method 'ren' of pruned-for: use one of nemo, wanda"):
        registered.PrunedFor("ren", "a cat")
