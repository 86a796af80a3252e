"""The second miniature: its painter against PIL, its language, its corpus, exact resume, the kernels of its training, and its family."""

import hashlib
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from memlib.base.errors import InputError
from memlib.models.minisd.ingredients import Ingredients
from memlib.models.minisd.models import autoencoder, text_encoder
from memlib.models.minisd.paths import minisd_folder
from memlib.models.minisd.scenes import COLOURS, held_out_combinations, paint
from memlib.models.minisd2 import paths
from memlib.models.minisd2.corpus import TEMPLATE_COLOURS, Corpus
from memlib.models.minisd2.data import World, world_of, write_world
from memlib.models.minisd2.language import LENGTHS, describe, house_styles, reference, title
from memlib.models.minisd2.painter import Painter
from memlib.models.minisd2.paths import read_yaml, training_settings
from memlib.models.minisd2.scenes import GRID, SIZES, concepts, draw_scene, trained_concepts
from memlib.models.tokenizer import build_clip_tokenizer
from memlib.training.minisd import norms
from memlib.training.minisd.ahead import Examples
from memlib.training.minisd.parts import UnetPart
from memlib.training.minisd.trainer import Schedule, Trainer
from memlib.training.minisd2 import sheet
from memlib.training.minisd2.family import member_recipe, members
from memlib.training.minisd2.train import Recipe, export_unet
from memlib.training.minisd2.vocabulary import share_unused

SMALL = {"seed": 3, "fresh": 400, "levels": {1: 3, 4: 3, 16: 3}, "templates": 2, "template_copies": 2, "titles": 0.3}


@pytest.fixture(scope="module")
def small():
    return Corpus(**SMALL)


@pytest.fixture(scope="module")
def whole():
    return Corpus(**read_yaml("training")["corpus"])


@pytest.fixture(scope="module")
def captions(whole):
    return [whole.example(i) for i in range(6000)]


def test_the_painter_gives_what_pasting_with_pil_gives():
    ingredients, rng = Ingredients(minisd_folder() / "ingredients"), Random(5)
    scenes = [draw_scene(rng, list(concepts()), "any") for _ in range(120)]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    assert np.array_equal(Painter()(scenes).numpy(), np.stack([paint(scene, ingredients) for scene in scenes]))


def test_things_stand_on_the_grid_inside_the_picture_and_apart_from_each_other():
    rng = Random(6)
    for _ in range(400):
        scene = draw_scene(rng, trained_concepts())
        boxes = [(t.x - t.size // 2, t.y - t.size // 2, t.size) for t in scene.things]
        assert all(x % GRID == y % GRID == 0 and s in SIZES and x >= 0 and y >= 0 and x + s <= 64 and y + s <= 64 for x, y, s in boxes)
        assert len({thing.concept for thing in scene.things}) == len(scene.things)
        covered = Counter((u, v) for x, y, s in boxes for u in range(x, x + s) for v in range(y, y + s))
        assert max(covered.values()) == 1


def test_concepts_are_about_a_hundred_with_names_and_words_of_their_own():
    known = concepts().values()
    assert len(known) == 104 and sum(concept.held_out for concept in known) == 8
    assert len({concept.name for concept in known}) == 104
    assert all(len(concept.words) >= 5 for concept in known)


def test_training_never_shows_a_held_out_concept_or_combination(captions, whole):
    held = {index for index, concept in concepts().items() if concept.held_out}
    assert all(not held_out_combinations(scene) and not held & {t.concept for t in scene.things} for scene, _, _ in captions)
    assert all(held_out_combinations(scene) for scene, _ in whole.held_out(50))
    assert all(held >= {t.concept for t in scene.things} for scene, _ in whole.held_out(20, "concepts"))


def test_an_epoch_holds_every_pair_as_often_as_its_level_says(small):
    counts = Counter(small.example(i)[2] for i in range(small.epoch_length))
    assert counts == {i: pair.copies for i, pair in enumerate(small.repeated)} | {-1: 400}
    once = Corpus(**SMALL, duplicates=False)
    assert once.epoch_length == small.epoch_length
    assert all(Counter(once.example(i)[2] for i in range(once.epoch_length))[k] == 1 for k in range(len(once.repeated)))


def test_duplicates_are_at_most_a_tenth_of_all_draws_in_the_model_and_the_family(whole):
    assert 0.09 < whole.share_of_duplicates <= 0.10
    shares = {member.name: Corpus(**member_recipe(member, 21).corpus).share_of_duplicates for member in members().values()}
    assert shares.pop("many-duplicates") == pytest.approx(0.3, abs=0.005)
    assert shares.pop("dedup") < 0.01
    assert all(share <= 0.10 for share in shares.values())


def test_examples_depend_on_seed_and_position_alone(small):
    positions = [0, 17, small.epoch_length + 5, 2]
    assert [small.example(i) for i in positions] == [Corpus(**SMALL).example(i) for i in positions]
    other = Corpus(**SMALL | {"seed": 4})
    assert [small.example(i)[1] for i in range(20)] != [other.example(i)[1] for i in range(20)]
    assert [p.caption for p in small.pairs] == [p.caption for p in other.pairs]


def test_the_language_is_the_same_on_every_machine(captions):
    # Weights were trained on these texts: a change of the generator would part them from their captions without a sound.
    digest = hashlib.sha256("\n".join(text for _, text, _ in captions[:500]).encode()).hexdigest()
    assert digest[:16] == "0e19ad8c18dbf9ce"


def test_captions_are_short_to_long_and_their_vocabulary_recurs(captions):
    ids = build_clip_tokenizer()([text for _, text, _ in captions], padding=False, truncation=True, max_length=77).input_ids
    lengths = [len(row) - 2 for row in ids]
    assert min(lengths) <= 3 and max(lengths) == 75 and 8 < np.median(lengths) < 25
    counts = Counter(number for row in ids for number in set(row))
    assert len(counts) < 1500
    assert np.mean([n >= 5 for n in counts.values()]) > 0.9


def test_titles_speak_of_their_picture_and_names_of_their_background():
    rng, told, styled = Random(8), [], []
    for _ in range(600):
        made = title(rng, trained_concepts())
        main = max(made.scene.things, key=lambda thing: thing.size)
        words = {*concepts()[main.concept].words, concepts()[main.concept].name.title()}
        told.append(any(word in made.text for word in words))
        styled += [made.scene.background == house_styles()[name] for name in house_styles() if name in made.text]
    assert all(told)
    assert 0.68 < np.mean(styled) < 0.82


def test_titles_of_repeated_pairs_are_made_of_words_that_other_captions_hold(captions, whole):
    tokenizer = build_clip_tokenizer()
    fresh = {number for _, text, index in captions if index < 0 for number in tokenizer(text).input_ids}
    repeated = {number for pair in whole.repeated for number in tokenizer(pair.caption).input_ids}
    assert repeated <= fresh
    assert {pair.length for pair in whole.pairs} == set(LENGTHS)
    assert len({pair.caption for pair in whole.pairs}) == len(whole.pairs)
    unread = Corpus(**read_yaml("training")["corpus"], known_titles=False)
    assert not {pair.caption for pair in unread.repeated} & {pair.caption for pair in whole.repeated}
    assert [pair.scene for pair in unread.pairs] == [pair.scene for pair in whole.pairs]


def test_no_fresh_caption_is_a_repeated_one(captions, whole):
    assert not {text for _, text, index in captions if index < 0} & whole.captions_of_repeated


def test_templates_differ_in_the_background_alone(small):
    assert set(TEMPLATE_COLOURS) <= set(COLOURS)
    for start in range(0, len(small.templates), len(TEMPLATE_COLOURS)):
        group = small.templates[start : start + len(TEMPLATE_COLOURS)]
        assert len({pair.caption for pair in group}) == len({pair.scene.things for pair in group}) == 1
        assert [pair.scene.background.first for pair in group] == list(TEMPLATE_COLOURS)


def test_contrastive_batches_hold_no_caption_twice_and_duplicates_as_often_as_the_corpus(whole):
    repeated = 0
    for step in range(8):
        scenes, texts = whole.contrastive_batch(101, step, 128)
        assert len(set(texts)) == len(texts) == len(scenes) == 128
        repeated += sum(text in whole.captions_of_repeated for text in texts)
    assert 0.07 < repeated / (8 * 128) < 0.13
    assert whole.contrastive_batch(101, 3, 16) == whole.contrastive_batch(101, 3, 16)


def test_descriptions_say_every_thing_and_the_background():
    rng = Random(9)
    for _ in range(100):
        scene = draw_scene(rng, trained_concepts())
        for text in (describe(rng, scene, "medium"), reference(scene)):
            assert all(concepts()[thing.concept].name in text for thing in scene.things)
            assert all(colour in text for colour in scene.background.colours)


def test_the_kernels_leave_small_numbers_to_the_process_that_loads_them():
    """A library linked with -ffast-math flushes denormal numbers of the loading thread: SciPy's step functions then jump one place late."""
    if norms.kernels() is None:
        pytest.skip("no C++ compiler")
    assert np.nextafter(0.0, -1.0) < 0 and np.float64(5e-324) * 1.0 > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
def test_the_kernels_normalize_as_torch_does_forward_and_backward(dtype, silu):
    if norms.kernels() is None:
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    x = torch.randn(3, 32, 12, 12).to(memory_format=torch.channels_last)
    own, known = (nn.GroupNorm(8, 32) for _ in range(2))
    own.weight.data.normal_()
    own.bias.data.normal_()
    known.load_state_dict(own.state_dict())
    own.__class__, own.silu = norms._Norm, silu
    gradient = torch.randn_like(x)
    first, second = (x.clone().to(kind).requires_grad_() for kind in (dtype, torch.float32))
    wanted = known(second) if not silu else nn.functional.silu(known(second))
    own(first).backward(gradient.to(dtype))
    wanted.backward(gradient)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(own(first).float(), wanted, **close)
    torch.testing.assert_close(first.grad.float(), second.grad, **close)
    scale = 1 if dtype == torch.float32 else 10
    torch.testing.assert_close(own.weight.grad, known.weight.grad, rtol=0.05, atol=2e-3 * scale**2)
    torch.testing.assert_close(own.bias.grad, known.bias.grad, rtol=0.05, atol=2e-3 * scale**2)


def test_a_sped_up_autoencoder_gives_the_same_pictures_and_keeps_its_names():
    torch.manual_seed(0)
    model = autoencoder([8, 16, 16], 4)
    names, x = list(model.state_dict()), torch.rand(2, 3, 64, 64) * 2 - 1
    before = model.decode(model.encode(x).latent_dist.mean).sample
    norms.speed_up(model, torch.device("cpu"))
    torch.testing.assert_close(model.decode(model.encode(x).latent_dist.mean).sample, before, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == names


class SmallChunks(UnetPart):
    CHUNK = 64


def _unet_part(folder):
    torch.manual_seed(0)
    settings = {"seed": 3, "channels": [16, 16, 32], "attention": [True, True, False], "layers": 1, "heads": [1, 2, 2], "batch": 4,
                "caption_dropout": 0.1, "weight_limit": 25.0}  # fmt: skip
    vae, text = autoencoder([8, 8, 8], 4), text_encoder(16, 1, 2)
    return SmallChunks(Corpus(**SMALL), settings, vae, text, 49_407, folder / "cache", torch.device("cpu"), False)


@pytest.mark.slow
def test_examples_made_ahead_by_other_processes_are_those_of_the_corpus(small):
    small.picture(small.pairs[0].scene)  # a painter is not sent along
    ahead = Examples(small, torch.device("cpu"), 32, workers=2)
    try:
        assert ahead.of(20, 100) == [small.example(position) for position in range(20, 120)]
    finally:
        ahead.close()


@pytest.mark.slow
def test_a_unet_that_was_stopped_and_resumed_has_the_weights_of_one_that_was_not(tmp_path):
    plan = Schedule(6, 1e-3, warmup=2, ema=0.9, cooldown=0.5)
    through = Trainer(_unet_part(tmp_path), plan, tmp_path / "through", torch.device("cpu"))
    through.run(progress=False)
    Trainer(_unet_part(tmp_path), plan, tmp_path / "stopped", torch.device("cpu")).run(until=3, progress=False)
    resumed = Trainer(_unet_part(tmp_path), plan, tmp_path / "stopped", torch.device("cpu"))
    assert resumed.step == 3
    resumed.run(progress=False)
    assert all(torch.equal(value, resumed.averaged_state()[name]) for name, value in through.averaged_state().items())


def test_a_cooldown_keeps_the_rate_and_then_falls_in_a_straight_line():
    plan = Schedule(1000, 1.0, warmup=100, cooldown=0.25)
    assert [plan.rate(step) for step in (49, 100, 749)] == [0.5, 1.0, 1.0]
    assert plan.rate(875) == pytest.approx(0.5) and plan.rate(1000) == 0


def test_embeddings_of_unread_ids_share_one_value():
    table = nn.Embedding(10, 4)
    before = table.weight.detach().clone()
    share_unused(table, torch.tensor([0, 3, 9]))
    assert torch.equal(table.weight[[0, 3, 9]], before[[0, 3, 9]])
    assert torch.unique(table.weight[[1, 2, 4, 5, 6, 7, 8]], dim=0).shape[0] == 1


def test_a_recipe_changes_its_blocks_and_nothing_else():
    usual, large = training_settings(), training_settings("gpu")
    assert set(usual) == set(large) and "recipes" not in usual
    assert large["unet"]["batch"] == 512 and usual["unet"]["batch"] == 32
    assert {key for key in usual["unet"] if usual["unet"][key] != large["unet"][key]} == {"batch", "steps", "lr", "warmup", "ema"}
    assert Corpus(**large["corpus"]).share_of_duplicates <= 0.10
    assert all(set(changes) <= set(usual[block]) for block, changes in read_yaml("training")["recipes"]["gpu"].items())
    with pytest.raises(InputError, match="gpu"):
        training_settings("tpu")


def test_members_of_the_family_differ_from_the_base_in_one_thing(monkeypatch):
    known = members()
    assert known["base"].seeds == (21, 22, 23)
    base = member_recipe(known["base"], 21)
    crossed = "dedup-exclamation"  # the fourth cell of padding by duplication
    for name in set(known) - {"base"}:
        other = member_recipe(known[name], 21)
        changed = {block for block in ("padding", "corpus", "settings", "text", "mitigation") if getattr(other, block) != getattr(base, block)}
        assert changed in ({"padding", "corpus"},) if name == crossed else len(changed) == 1 or changed == {"corpus", "text"}, name
    wrong = read_yaml("family") | {"members": {"odd": {"says": "?", "corpus": {"colour": 1}}}}
    monkeypatch.setattr("memlib.training.minisd2.family.read_yaml", lambda name: wrong if name == "family" else paths.read_yaml(name))
    with pytest.raises(InputError, match="colour"):
        members()


def test_a_sheet_is_judged_by_names_and_words_and_not_while_a_line_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "minisd2_folder", lambda: tmp_path)
    write_world(tmp_path, read_yaml("training")["corpus"])
    held = World().held_out(sheet.PICTURES, seed=7)
    answers = [f"a {concepts()[scene.main.concept].name}, I think" for scene, _ in held]
    answers[0], answers[1] = "-", concepts()[held[1][0].main.concept].words[0].upper()

    def fill(lines):
        text = "\n".join(["number,seen", *(f'{number + 1},"{answer}"' for number, answer in enumerate(lines))])
        (tmp_path / sheet.SEEN).write_text(text + "\n")

    fill(answers)
    assert sheet.judge_sheet(str(tmp_path)) == sheet.PICTURES - 1
    assert (tmp_path / sheet.NAMED).read_text().splitlines()[1].endswith(",0")
    fill(["", *answers[1:]])
    with pytest.raises(InputError, match="empty"):
        sheet.judge_sheet(str(tmp_path))


def test_plain_diffusers_loads_an_exported_folder_and_the_folder_brings_its_world(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_RUNS", str(tmp_path / "runs"))
    part = _unet_part(tmp_path)
    part.vae.save_pretrained(tmp_path / "runs" / "minisd2" / "vae" / "export")
    part.text.save_pretrained(tmp_path / "runs" / "minisd2" / "text" / "export")
    made = Recipe("v2", SMALL, part.settings)
    export_unet(part.module, made, "minisd-v2", tmp_path / "minisd-v2")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "minisd-v2")
    assert pipeline.tokenizer.pad_token == "!"
    for name, weight in part.module.state_dict().items():
        torch.testing.assert_close(pipeline.unet.state_dict()[name], weight.float(), rtol=1e-3, atol=1e-3)
    assert world_of(tmp_path / "minisd-v2").corpus.identity == Corpus(**SMALL).identity
