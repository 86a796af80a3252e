"""Filters against hand-made batches and recorded attention, caption changes against their counts, and resume to the bit."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from memlib.base.errors import InputError
from memlib.models.minisd.corpus import Corpus
from memlib.models.minisd.models import autoencoder, text_encoder
from memlib.models.minisd.paths import minisd_folder
from memlib.models.tokenizer import build_clip_tokenizer
from memlib.results.trainings import methods
from memlib.sampling.attention.record import entropy, record
from memlib.training.minisd import parts
from memlib.training.minisd.mitigated_part import STAGES, MitigatedPart
from memlib.training.minisd.mitigations import TRAINING_MITIGATIONS, get
from memlib.training.minisd.mitigations.base import Noised
from memlib.training.minisd.mitigations.captions import with_word
from memlib.training.minisd.mitigations.filters import MagnitudeFilter, SampleFilter, watched_attention
from memlib.training.minisd.parts import UnetPart
from memlib.training.minisd.trainer import Schedule, Trainer

SETTINGS = {"seed": 5, "channels": [16, 16, 16], "attention": [False, True, True], "layers": 1, "heads": 2, "batch": 8, "steps": 20,
            "caption_dropout": 0.25, "weight_limit": 25.0}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_clip_tokenizer()


@pytest.fixture(scope="module")
def given(tmp_path_factory, tokenizer):
    """What every tiny part is made of: half of the samples fresh, random autoencoder and text encoder."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "build_clip_tokenizer", lambda: tokenizer)  # reading the vocabulary takes longer than all else
        yield (Corpus(minisd_folder(), fresh=6000, seed=3), SETTINGS, autoencoder([8, 8, 8], 4), text_encoder(16, 1, 2), 49_407,
               tmp_path_factory.mktemp("cache"), torch.device("cpu"), False)  # fmt: skip


def part_with(given, name=None, **params):
    part = UnetPart(*given) if name is None else MitigatedPart(get(name, **params), *given)
    part.CHUNK = 64
    return part


class Additive(torch.nn.Module):
    """Predicts a learned number everywhere, plus the mean of a sample's text states."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, noisy, times, states):
        text = states.mean((1, 2)).view(-1, 1, 1, 1)
        return SimpleNamespace(sample=torch.zeros_like(noisy) + self.number + text)


def batch_of(text_means, dropped=()):
    count = len(text_means)
    states = torch.tensor(text_means).view(-1, 1, 1).expand(count, 77, 4)
    noisy = torch.zeros(count, 4, 2, 2)
    mask = torch.tensor([i in dropped for i in range(count)])
    return Noised(noisy, noisy, torch.zeros(count, dtype=torch.long), states, mask, torch.ones(count))


def test_magnitude_is_the_norm_of_what_the_text_adds():
    unet, batch = Additive(), batch_of([0.5, -1.0, 0.25, 2.0], dropped=(3,))
    predicted, scores = get("magnitude-filter").forward(unet, batch, torch.zeros(77, 4))
    # 16 numbers, each off by the mean of the states: a norm of four times that.
    torch.testing.assert_close(scores, torch.tensor([2.0, 4.0, 1.0, 0.0]))
    assert predicted.requires_grad and not scores.requires_grad


def test_a_filter_leaves_out_what_lies_beyond_its_quantile():
    seen_once = torch.arange(100.0)
    scores = torch.tensor([0.0, 50.0, 94.0, 95.0, 200.0])
    above, below = get("entropy-filter", window=100), get("concentration-filter", window=100)
    assert above.flagged(scores, seen_once).tolist() == [False, False, False, True, True]  # the 95th percentile of 0..99 is 94.05
    assert below.flagged(scores, seen_once).tolist() == [True, False, False, False, False]
    assert not above.flagged(scores, seen_once[1:]).any()  # one score short of a threshold
    assert above.with_params(quantile=0.5).flagged(scores, seen_once).tolist() == [False, True, True, True, True]
    for broken in ({"quantile": 1.0}, {"quantile": 0.0}, {"window": 0}):
        with pytest.raises(InputError, match="0 < quantile < 1"):
            get("entropy-filter", **broken)


def test_entropy_is_that_of_recorded_attention_and_the_prediction_stays(given):
    part = part_with(given, "entropy-filter")
    batch = part.noised(0, [text for _, text, _ in part.examples(0)])
    with torch.no_grad():
        plain = part.module(batch.noisy, batch.times, batch.states).sample
        predicted, scores = part.mitigation.forward(part.module, batch, part.empty)
        with record(part.module, guided=False, steps=1) as recording:
            part.module(batch.noisy, 7, batch.states)
            expected = []
            for i in range(len(batch.times)):  # recording takes one time a pass
                part.module(batch.noisy[i : i + 1], batch.times[i], batch.states[i : i + 1])
        for i, run in enumerate(recording.runs[1:]):
            expected.append(0.0 if batch.dropped[i] else entropy(run)[0, 0])
    assert torch.equal(predicted, plain)
    assert batch.dropped.any() and np.ptp(scores[~batch.dropped].numpy()) > 0
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)
    with pytest.raises(RuntimeError, match="stop"), watched_attention(part.module):
        raise RuntimeError("stop")
    assert not any("get_attention_scores" in module.__dict__ for module in part.module.modules())


def test_attention_is_watched_in_any_order_of_leaving_and_by_one_thread_alone(given):
    part = part_with(given, "entropy-filter")
    layers = part.module.attn_processors
    batch = part.noised(0, [text for _, text, _ in part.examples(0)])

    def step():
        with torch.no_grad():
            part.module(batch.noisy, batch.times, batch.states)

    first, second = watched_attention(part.module), watched_attention(part.module)
    outer, inner = first.__enter__(), second.__enter__()
    step()
    assert len(outer) == len(inner) > 0
    with ThreadPoolExecutor(1) as other:
        other.submit(step).result()
    assert len(outer) == len(inner) == sum("attn2" in name for name in layers)
    first.__exit__(None, None, None)
    step()
    assert len(inner) == 2 * len(outer)
    second.__exit__(None, None, None)
    assert not any("get_attention_scores" in module.__dict__ for module in part.module.modules())


class Given(MagnitudeFilter):
    """A filter whose scores are given by hand."""

    def __init__(self, scores, **params):
        super().__init__(**params)
        object.__setattr__(self, "scores", scores)

    def forward(self, unet, batch, empty):
        return unet(batch.noisy, batch.times, batch.states).sample, self.scores


def test_exactly_the_flagged_samples_do_not_train(given):
    part = part_with(given, "magnitude-filter", window=4)
    examples = part.examples(0)
    batch = part.noised(0, [text for _, text, _ in examples])
    caption = (~batch.dropped).nonzero().flatten().tolist()
    assert batch.dropped.any() and len(caption) >= 4
    out = caption[1:3]
    # One dropped caption has the highest score of all, and stays.
    scores = torch.ones(8).index_fill(0, torch.tensor([*out, int(batch.dropped.nonzero()[0])]), 9.0)
    part.mitigation, part._reference = Given(scores, window=4), torch.full((4,), 2.0)
    loss, numbers = part.loss(0)
    loss.backward()
    found = [p.grad.clone() for p in part.module.parameters() if p.grad is not None]

    kept = [i for i in range(8) if i not in out]
    part.module.zero_grad()
    predicted = part.module(batch.noisy[kept], batch.times[kept], batch.states[kept]).sample
    error = (predicted - batch.noise[kept]).pow(2).mean((1, 2, 3))
    expected = (batch.weight[kept] * error).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for mine, right in zip(found, [p.grad for p in part.module.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-5)
    assert numbers["marked"] == pytest.approx(2 / len(caption))
    once = [i for i in caption if examples[i][2] < 0]
    assert part._reference.tolist() == [2.0, 2.0, 2.0, 2.0, *scores[once].tolist()][-4:]
    total = [sum(row[name] for row in part.marks()) for name in ("seen", "marked")]
    assert total == [len(caption), 2]
    by_kind = Counter((row["group"], row["copies"]) for row in part.marks() for _ in range(row["seen"]))
    assert by_kind["fresh", 1] == len(once)


@pytest.mark.slow
def test_without_an_effect_the_loss_is_the_plain_one(given):
    plain, _ = part_with(given).loss(3)
    for name, params in (("random-caption", {"probability": 0.0}), ("entropy-filter", {}), ("magnitude-filter", {})):
        loss, _ = part_with(given, name, **params).loss(3)
        torch.testing.assert_close(loss, plain)
    changed, numbers = part_with(given, "random-caption", probability=1.0).loss(3)
    assert numbers["marked"] == 1 and float(changed) != float(plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magnitude-filter", "entropy-filter", "random-words"])
def test_a_resumed_training_is_the_same_to_the_bit(name, given, tmp_path):
    params = {"probability": 0.5} if name == "random-words" else {"window": 8, "quantile": 0.6}
    schedule = Schedule(steps=7, lr=1e-3, warmup=2, ema=0.9)
    whole = Trainer(part_with(given, name, **params), schedule, tmp_path / "whole", torch.device("cpu"))
    whole.run(progress=False)
    for until in (4, None):
        resumed = Trainer(part_with(given, name, **params), schedule, tmp_path / "parts", torch.device("cpu"))
        resumed.run(until, progress=False)
    for key, value in whole.averaged_state().items():
        torch.testing.assert_close(resumed.averaged_state()[key], value, rtol=0, atol=0)
    assert resumed.part.marks() == whole.part.marks()
    assert torch.equal(resumed.part._reference, whole.part._reference)
    assert sum(row["marked"] for row in whole.part.marks()) > 0
    rows = whole.part.marks()
    assert rows[0]["first_step"] == 0 and rows[-1]["last_step"] == SETTINGS["steps"] - 1 and len({r["first_step"] for r in rows}) == STAGES
    assert sum(row["seen"] for row in rows if row["first_step"] >= 8) == 0  # seven steps were made


@pytest.fixture(scope="module")
def corpus():
    return Corpus(minisd_folder(), fresh=500, seed=3)


@pytest.fixture(scope="module")
def captions(corpus, tokenizer):
    def drawn(name, example, draws, **params):
        rule, rng = get(name, **params), np.random.default_rng(0)
        return [rule.caption(example, corpus, tokenizer, rng) for _ in range(draws)]

    return drawn


@pytest.mark.parametrize("name", ["random-caption", "random-words", "repeated-words"])
def test_one_caption_in_ten_is_changed(name, corpus, captions):
    pair = corpus.pairs[0]
    drawn = captions(name, (pair.scene, pair.caption, 0), 1000)
    share = np.mean([text != pair.caption for text in drawn])
    assert abs(share - 0.1) < 3.3 * np.sqrt(0.1 * 0.9 / 1000)
    assert captions(name, (pair.scene, pair.caption, 0), 20, probability=0.0) == [pair.caption] * 20
    with pytest.raises(InputError, match="from 0 to 1"):
        get(name, probability=1.5)


def test_what_the_changed_captions_consist_of(corpus, captions):
    example = (corpus.pairs[0].scene, "one two three", 0)
    for text in captions("repeated-words", example, 50, probability=1.0):
        words = text.split(" ")
        assert len(words) == 5 and set(words) == {"one", "two", "three"}
    added = captions("random-words", example, 50, probability=1.0)
    for text in added:
        words = text.split(" ")
        assert [w for w in words if w in ("one", "two", "three")] == ["one", "two", "three"] and len(words) >= 5
    assert {text.split(" ").index("one") == 0 for text in added} == {True, False}  # at the front too
    replaced = captions("random-caption", example, 50, probability=1.0)
    assert not any(word in text for text in replaced for word in ("one two", "two three")) and len(set(replaced)) == 50
    rng = np.random.default_rng(1)
    places = Counter(with_word("a b", "x", rng) for _ in range(900))
    assert set(places) == {"x a b", "a x b", "a b x"} and min(places.values()) > 230


def test_a_repeated_picture_has_twenty_captions_and_others_keep_theirs(corpus, captions):
    pair = corpus.pairs[5]
    drawn = Counter(captions("several-captions", (pair.scene, pair.caption, 5), 2000))
    assert 15 <= len(drawn) <= 20 and abs(drawn[pair.caption] / 2000 - 1 / 20) < 0.02
    name = corpus.ingredients.concepts[pair.scene.main.concept].name
    assert all(name in text for text in drawn if text != pair.caption)
    template, number = corpus.templates[0], len(corpus.pairs)
    assert set(captions("several-captions", (template.scene, template.caption, number), 30)) == {template.caption}
    assert set(captions("several-captions", (pair.scene, "fresh", -1), 30)) == {"fresh"}


def test_words_stand_beside_each_registered_mitigation():
    words = methods()
    assert list(words) == list(TRAINING_MITIGATIONS) and len(words) == 7
    assert all(set(of) == {"label", "acts", "summary", "source", "cost"} and all(of.values()) for of in words.values())
    assert {name for name, of in words.items() if of["acts"] == "filter"} == {n for n, m in TRAINING_MITIGATIONS.items() if isinstance(m, SampleFilter)}
