"""Structure of embeddings: hand-made states in few dimensions, whose cosines, ranks and clusters have closed forms."""

import math

import numpy as np
import pytest
import torch

from memlib.base.errors import InputError
from memlib.prompts.embedding import CONTEXT_LENGTH, Embedding, Tokens
from memlib.prompts.structure import (
    SPANS,
    cosines_behind_eot,
    effective_rank,
    eot_cosines,
    project,
    silhouettes,
    span_cosines,
    span_ranks,
)

UP, RIGHT, BACK = torch.eye(3)


def tokens_of(*lengths):
    ids = torch.zeros(len(lengths), CONTEXT_LENGTH, dtype=torch.long)
    return Tokens(ids, ("x",) * len(lengths), torch.tensor(lengths), torch.zeros(len(lengths), dtype=torch.bool), 0)


def states_of(tokens, **spans):
    """An embedding whose states are one vector per span."""
    states = torch.zeros(len(tokens), CONTEXT_LENGTH, 3)
    for span, vector in spans.items():
        states[getattr(tokens, span)] = vector
    return Embedding(states, tokens)


def at(degrees):
    return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0.0])


def test_cosines_are_those_of_the_angles_whatever_the_lengths():
    tokens = tokens_of(3, 10)
    embedding = states_of(tokens, sot=at(180), pr=5 * at(60), eot=2 * at(0), pad=0.1 * at(30))
    cosines = eot_cosines(embedding)
    for span, degrees in (("sot", 180), ("pr", 60), ("eot", 0), ("pad", 30)):
        expected = torch.full((int(getattr(tokens, span).sum()),), math.cos(math.radians(degrees)))
        torch.testing.assert_close(cosines[getattr(tokens, span)], expected)
    torch.testing.assert_close(span_cosines(embedding)[:, 2, 3], torch.full((2,), math.cos(math.pi / 6)))


def test_places_behind_eot_count_from_each_prompts_own():
    tokens = tokens_of(1, 70, 75)
    states = torch.zeros(3, CONTEXT_LENGTH, 3)
    for row, length in enumerate((1, 70, 75)):
        for position in range(CONTEXT_LENGTH):
            states[row, position] = at(10 * (position - length - 1))  # the angle tells the distance from <eot>
    found = cosines_behind_eot(Embedding(states, tokens), [-2, -1, 0, 1, 5])
    cosine = [math.cos(math.radians(10 * offset)) for offset in (-2, -1, 0, 1, 5)]
    nan = math.nan
    # Two places before the <eot> of a one-token prompt stands <sot>, which is left out.
    expected = [[nan, *cosine[1:]], cosine, [*cosine[:3], nan, nan]]
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


def test_span_cosines_by_hand():
    embedding = states_of(tokens_of(2, 0, 75), sot=at(0), pr=at(90), eot=at(60), pad=at(60))
    table = span_cosines(embedding)
    assert table.shape == (3, 4, 4)
    torch.testing.assert_close(table, table.transpose(1, 2), equal_nan=True)
    found = {(a, b): table[0, i, j].item() for i, a in enumerate(SPANS) for j, b in enumerate(SPANS)}
    assert found["sot", "pr"] == pytest.approx(0, abs=1e-6) and found["sot", "pad"] == pytest.approx(0.5)
    assert found["eot", "pad"] == pytest.approx(1) and found["pad", "pad"] == pytest.approx(1)
    assert found["pr", "eot"] == pytest.approx(math.cos(math.radians(30)))
    assert math.isnan(found["eot", "eot"])  # one state has no other to be compared with
    assert torch.isnan(table[1, 1]).all() and torch.isnan(table[2, 3]).all()  # an empty prompt; no padding left
    # Within a span of different states the pairs' mean counts, without each state's cosine with itself.
    states = embedding.states.clone()
    states[0, 1] = at(30)
    assert span_cosines(Embedding(states, embedding.tokens))[0, 1, 1].item() == pytest.approx(0.5)
    assert math.isnan(span_cosines(embedding)[:, 2, 3][2]) and not math.isnan(span_cosines(embedding)[:, 2, 3][1])


@pytest.mark.parametrize(
    ("states", "rank"),
    [
        (torch.ones(9, 4), 1.0),
        (torch.eye(5) * 3, 5.0),
        (torch.diag(torch.tensor([2.0, 1.0])), 3 / 2 ** (2 / 3)),  # exp of the entropy of 2/3 and 1/3
        (torch.stack([UP, UP, RIGHT]), (1 + math.sqrt(2)) * 2 ** (-0.5 * math.sqrt(2) / (1 + math.sqrt(2)))),
    ],
)
def test_effective_rank_in_closed_form(states, rank):
    assert effective_rank(states) == pytest.approx(rank, rel=1e-5)
    turned = states @ torch.linalg.qr(torch.randn(states.shape[1], states.shape[1], generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(7 * turned) == pytest.approx(rank, rel=1e-5)  # neither scale nor rotation matters


def test_ranks_of_spans_and_of_nothing():
    embedding = states_of(tokens_of(0, 4, 75), sot=UP, pr=RIGHT, eot=UP, pad=BACK)
    np.testing.assert_allclose(span_ranks(embedding), [1, 1, math.nan], rtol=1e-5)
    np.testing.assert_allclose(span_ranks(embedding, "pr"), [math.nan, 1, 1], rtol=1e-5)
    assert math.isnan(effective_rank(torch.zeros(3, 3)))
    with pytest.raises(InputError, match="positions, width"):
        effective_rank(torch.zeros(2, 3, 3))


def test_silhouettes_of_two_clusters_of_one_and_of_prompts_apart():
    tokens = tokens_of(3, 5, 9)
    np.testing.assert_allclose(silhouettes(states_of(tokens, eot=UP, pad=RIGHT)), 1, atol=1e-6)
    np.testing.assert_allclose(silhouettes(states_of(tokens, eot=UP, pad=UP)), 0, atol=1e-6)
    # Two prompts, each with a direction of its own for <eot> and padding alike: <eot> is at distance 1 from the other <eot>
    # and 1/2 from padding on average, (1/2 - 1) / 1 = -1/2; of P padding states in each prompt, P are at distance 1 among
    # the 2P - 1 others, against 1/2: (1/2 - a) / a with a = P / (2P - 1).
    twins = tokens_of(3, 3)
    states = torch.zeros(2, CONTEXT_LENGTH, 3)
    states[0], states[1] = UP, RIGHT
    a = 72 / 143
    np.testing.assert_allclose(silhouettes(Embedding(states, twins)), (-0.5 + (0.5 - a) / a) / 2, atol=1e-6)


def test_silhouettes_need_two_prompts_with_padding():
    with pytest.raises(InputError, match="two prompts"):
        silhouettes(states_of(tokens_of(3, 75), eot=UP, pad=RIGHT))
    found = silhouettes(states_of(tokens_of(3, 75, 3), eot=UP, pad=RIGHT))
    np.testing.assert_allclose(found, [1, math.nan, 1], atol=1e-6)
    with pytest.raises(InputError, match="Unknown span 'padding'"):
        silhouettes(states_of(tokens_of(3, 3), eot=UP, pad=RIGHT), "eot", "padding")


def test_silhouettes_are_scikit_learns_and_a_prompts_spans_weigh_alike():
    from sklearn.metrics import silhouette_samples

    embedding = random_embedding((2, 6, 70))
    tokens = embedding.tokens
    either = tokens.eot | tokens.pad
    samples = torch.zeros(either.shape, dtype=torch.double)
    samples[either] = torch.tensor(silhouette_samples(embedding.states[either].numpy(), tokens.pad[either].numpy(), metric="cosine")).double()
    expected = [(samples[row][tokens.eot[row]].mean() + samples[row][tokens.pad[row]].mean()) / 2 for row in range(3)]
    np.testing.assert_allclose(silhouettes(embedding), expected, atol=1e-6)


def random_embedding(lengths=(2, 6, 75), width=6, rank=None):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(len(lengths), CONTEXT_LENGTH, rank or width, generator=generator)
    if rank:
        states = states @ torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:rank]
    return Embedding(states, tokens_of(*lengths))


def test_principal_components_are_those_of_a_singular_value_decomposition():
    embedding = random_embedding()
    projection = project(embedding, "pca", pads=None)
    table = projection.table
    assert len(table) == 3 * CONTEXT_LENGTH
    states = embedding.states[table["prompt"].tolist(), table["position"].tolist()].double().numpy()
    centred = states - states.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(table[["x", "y"]]), np.abs(u[:, :2] * s[:2]), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(projection.explained, (s**2 / (s**2).sum())[:2], rtol=1e-9)


def test_states_of_a_plane_keep_their_distances():
    projection = project(random_embedding(rank=2), "pca", pads=3)
    states = random_embedding(rank=2).states[projection.table["prompt"].tolist(), projection.table["position"].tolist()]
    xy = torch.tensor(projection.table[["x", "y"]].to_numpy())
    torch.testing.assert_close(torch.cdist(xy, xy), torch.cdist(states.double(), states.double()), rtol=1e-5, atol=1e-5)
    assert sum(projection.explained) == pytest.approx(1)


def test_shown_states_are_labelled_and_padding_is_evenly_spaced():
    table = project(random_embedding((2, 73, 75)), "pca", pads=4).table
    counts = table.groupby(["prompt", "span"]).size().to_dict()
    expected = {(0, "pr"): 2, (0, "pad"): 4, (1, "pr"): 73, (1, "pad"): 2, (2, "pr"): 75}
    assert counts == expected | {(row, span): 1 for row in range(3) for span in ("sot", "eot")}
    pads = table[(table["prompt"] == 0) & (table["span"] == "pad")]["position"].tolist()
    assert pads[0] == 4 and pads[-1] == 76 and len(set(np.diff(pads))) <= 2


def test_tsne_is_fixed_by_its_seed_and_keeps_clusters():
    tokens = tokens_of(8, 8, 8)
    noise = torch.randn(3, CONTEXT_LENGTH, 3, generator=torch.Generator().manual_seed(2))
    embedding = Embedding(states_of(tokens, sot=UP, pr=RIGHT, eot=BACK, pad=BACK).states * 10 + 0.1 * noise, tokens)
    first, again = (project(embedding, "tsne", pads=8).table for _ in range(2))
    assert first.equals(again)
    xy, group = first[["x", "y"]].to_numpy(), first["span"].replace("eot", "pad").to_numpy()
    distances = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + np.diag([np.inf] * len(xy))
    assert (group[distances.argmin(1)] == group)[group != "sot"].all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"method": "umap"}, "Unknown projection 'umap'"), ({"pads": 0}, "0 padding states"), ({}, "at least 4 states")],
)
def test_bad_projections_are_refused(arguments, words):
    embedding = states_of(tokens_of(0), sot=UP, eot=UP, pad=UP)
    with pytest.raises(InputError, match=words):
        project(embedding, **({"pads": 1} | arguments))
