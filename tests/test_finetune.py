"""The fine-tuning trainer against a training step written with diffusers alone; resuming, difference files, bad input."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torchvision import transforms

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.base.pictures import read_pictures
from memlib.companion.commands import main
from memlib.models import delta as deltas
from memlib.models.minisd.paths import settings
from memlib.models.substrate import load
from memlib.prompts.sets import load_prompts
from memlib.training.finetune import FinetunePart, Recipe, export, finetune, load_recipes, read_training_set, recipe
from memlib.training.finetune.against import load_against
from memlib.training.finetune.examples import Example, TrainingSet

RECIPE = Recipe("tiny", "", steps=4, batch=3, lr=1e-3, resolution=64, flip=True, caption_dropout=0.4, seed=5, betas=(0.9, 0.99))


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Five pictures of several sizes with captions, as a CSV file."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = [["picture", "caption", "copies"]]
    for i, (height, width) in enumerate([(64, 64), (96, 80), (64, 100), (200, 64), (64, 64)]):
        # Smooth pictures: what resizing does to them hardly depends on the filter's last digit.
        low = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        low.save(folder / f"{i}.png")
        rows.append([f"{i}.png", f"caption number {i}!", 1 + i])
    with open(folder / "set.csv", "w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return folder / "set.csv"


def one_step_with_diffusers(folder, examples, settings, draw):
    """Loss, and the U-Net's weights before and after one step, with nothing of memlib but the random numbers."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    prepare = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    chosen = [examples.examples[i] for i in draw.indices]
    x = torch.stack([prepare(Image.open(e.picture).convert("RGB")) for e in chosen])
    x = torch.stack([row.flip(-1) if mirrored else row for row, mirrored in zip(x, draw.mirrored)])
    captions = ["" if dropped else e.caption for e, dropped in zip(chosen, draw.dropped)]
    with torch.no_grad():
        found = pipe.vae.encode(x).latent_dist
        latents = (found.mean + found.std * draw.posterior) * pipe.vae.config.scaling_factor
        states = pipe.encode_prompt(captions, "cpu", 1, False)[0]
    noisy = schedule.add_noise(latents, draw.noise, draw.times)
    target = draw.noise if schedule.config.prediction_type == "epsilon" else schedule.get_velocity(latents, draw.noise, draw.times)
    unet = pipe.unet.train()
    unet.set_attn_processor(AttnProcessor())
    before = {name: weight.detach().clone() for name, weight in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    loss = torch.nn.functional.mse_loss(unet(noisy, draw.times, states).sample, target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    return loss.item(), before, unet.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_one_step_is_diffusers_training_step(kind, listed, tmp_path, request):
    folder = request.getfixturevalue(f"{kind}_tiny")
    examples = read_training_set(listed)
    part = FinetunePart(load(folder, "cpu", "float32"), examples, RECIPE)
    assert part.kind == {"sd1": "epsilon", "sd2": "v_prediction"}[kind]
    draw = part.draw(0)
    assert (draw.mirrored.any() and not draw.mirrored.all()) or draw.dropped.any()
    expected, before, after = one_step_with_diffusers(folder, examples, RECIPE, draw)
    assert part.loss(0)[0].item() == pytest.approx(expected, rel=1e-5)
    trainer = finetune(examples, RECIPE, tmp_path / "run", base=str(folder), device="cpu", precision="float32", until=1, progress=False)
    ours = trainer.part.module.state_dict()
    # Adam's first step has the size of the rate whatever the gradient's: only its sign matters, and near zero that is rounding.
    difference = torch.cat([(ours[name] - weight).flatten() for name, weight in after.items()]).abs().mean()
    change = torch.cat([(weight - before[name]).flatten() for name, weight in after.items()]).abs().mean()
    assert change > 1e-4 and difference < 5e-3 * change


def test_no_step_repeats_the_noise_and_the_seed_decides(listed, sd1_tiny):
    examples, base = read_training_set(listed), load(sd1_tiny, "cpu", "float32")
    part, other = FinetunePart(base, examples, RECIPE), FinetunePart(base, examples, replace(RECIPE, seed=6))
    first, second, elsewhere = part.draw(0), part.draw(1), other.draw(0)
    assert torch.equal(first.noise, part.draw(0).noise)
    assert not torch.equal(first.noise, second.noise) and not torch.equal(first.noise, elsewhere.noise)
    assert not torch.equal(first.times, second.times)


def test_a_killed_run_goes_on_bit_for_bit(listed, sd1_tiny, tmp_path, monkeypatch):
    examples = read_training_set(listed)
    options = {"base": str(sd1_tiny), "device": "cpu", "precision": "float32", "progress": False, "checkpoint_every": 1e9}
    averaged = replace(RECIPE, ema=0.99)
    whole = finetune(examples, averaged, tmp_path / "whole", **options)
    finetune(examples, averaged, tmp_path / "broken", until=2, **options)
    loss = FinetunePart.loss

    def killed(part, step):
        if step == 3:  # one step after the checkpoint
            raise KeyboardInterrupt
        return loss(part, step)

    monkeypatch.setattr(FinetunePart, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(examples, averaged, tmp_path / "broken", **options)
    monkeypatch.setattr(FinetunePart, "loss", loss)
    resumed = finetune(examples, averaged, tmp_path / "broken", **options)
    for first, second in ((whole.part.module.state_dict(), resumed.part.module.state_dict()), (whole.average, resumed.average)):
        assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match="another base, recipe or training set"):
        finetune(examples, replace(averaged, lr=2e-3), tmp_path / "broken", **options)


def test_an_epoch_holds_each_example_as_often_as_its_copies(listed):
    examples = read_training_set(listed)
    slots = 1 + 2 + 3 + 4 + 5
    for epoch in (0, 1):
        assert sorted(examples.indices(5, epoch * slots, slots)) == sorted(i for i in range(5) for _ in range(i + 1))
    assert examples.indices(5, 0, slots) != examples.indices(5, slots, slots) != examples.indices(6, slots, slots)
    assert examples.indices(5, 10, 10) == examples.indices(5, 10, 5) + examples.indices(5, 15, 5)
    assert examples.exposures(2 * slots) == pytest.approx([2, 4, 6, 8, 10])


@pytest.mark.slow
def test_difference_and_base_give_the_exported_model(tmp_path, monkeypatch):
    """Every weight within a quarter of its row's standard deviation of change (half a quantization step), and half-precision rounding."""
    pictures = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    examples = TrainingSet("two", (Example("0", "a red kite"), Example("1", "a blue pot")), lambda example: pictures[int(example.picture)])
    base = load("minisd-v1", "cpu", "float32")
    options = Recipe("two", "minisd-v1", steps=2, batch=2, lr=3e-4, posterior=False, weight_limit=25.0)
    trainer = finetune(examples, options, tmp_path / "run", device="cpu", precision="float32", progress=False)
    export(trainer, "minisd-v1", tmp_path / "pipeline")
    models = tmp_path / "data" / "minisd" / "models"
    models.mkdir(parents=True)
    (models / "minisd-v1").symlink_to(data_folder() / "minisd" / "models" / "minisd-v1")
    path = models / "minisd-v1-small" / deltas.DELTA_FILE
    written = deltas.save_delta(path, base.unet.state_dict(), trainer.averaged_state(), base.weights_hash)
    assert written.size < 2_000_000 and written.error < 0.16
    exported = load(tmp_path / "pipeline", "cpu", "float32")
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path / "data"))
    kept = load("minisd-v1-small", "cpu", "float32")
    assert kept.data.free and len({kept.weights_hash, base.weights_hash, exported.weights_hash}) == 3
    start, whole = base.unet.state_dict(), exported.unet.state_dict()
    assert any(not torch.equal(start[name], whole[name]) for name in start)
    for name, weight in kept.unet.state_dict().items():
        change, missed = whole[name] - start[name], (weight - whole[name]).abs()
        if weight.ndim == 1:
            assert (missed <= 1e-3 * change.abs() + 1e-7).all(), name
        else:
            allowed = deltas.STEP / 2 * change.flatten(1).std(1, correction=0)
            assert (missed.flatten(1) <= 1.01 * allowed[:, None] + 1e-6).all(), name


def test_a_difference_belongs_to_one_base_and_survives_no_damage(tmp_path):
    state = {"conv.weight": torch.randn(8, 4, 3, 3), "conv.bias": torch.randn(8), "still.weight": torch.randn(2, 3)}
    tuned = {name: value + 0.01 * torch.randn_like(value) for name, value in state.items()} | {"still.weight": state["still.weight"]}
    path = tmp_path / deltas.DELTA_FILE
    deltas.save_delta(path, state, tuned, "a" * 64)
    assert torch.equal(deltas.read_delta(path, "a" * 64)["still.weight"], torch.zeros(2, 3))
    with pytest.raises(InputError, match="belongs to a base"):
        deltas.read_delta(path, "b" * 64)
    unet = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(4, 8, 3)})
    with pytest.raises(InputError, match="does not fit this U-Net"):
        deltas.apply_delta(unet, path, "a" * 64)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is damaged"):
        deltas.read_delta(path, "a" * 64)


def test_the_command_makes_a_substrate_with_its_prompts(listed, sd2_tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("memlib.training.finetune.recipes.recipe", lambda name: replace(RECIPE, name=name))
    out = tmp_path / "tuned"
    call = ["--recipe", "any", "--base", str(sd2_tiny), "--data", str(listed), "--out", str(out), "--device", "cpu", "--quiet"]
    assert main(["finetune", *call, "--steps", "2", "--until", "1"]) == 0 and "Step 1 of 2" in capsys.readouterr().out
    assert main(["finetune", *call, "--steps", "2"]) == 0 and "Step 2 of 2" in capsys.readouterr().out
    tuned, base = load(out, "cpu", "float32"), load(sd2_tiny, "cpu", "float32")
    assert tuned.prediction_type == "v_prediction" and tuned.pad_id == base.pad_id
    assert not torch.equal(tuned.unet.conv_in.weight, base.unet.conv_in.weight)
    assert torch.equal(tuned.vae.encoder.conv_in.weight, base.vae.encoder.conv_in.weight)
    StableDiffusionPipeline.from_pretrained(out)
    prompts = load_prompts(out / "prompts.csv")
    assert prompts.prompts[4] == "caption number 4!" and prompts.table["copies"].astype(int).tolist() == [1, 2, 3, 4, 5]
    assert main(["finetune", *call, "--steps", "3"]) == 1 and "another base, recipe" in capsys.readouterr().err
    assert main(["finetune", "--recipe", "any", "--out", str(out)]) == 1 and "--data is missing" in capsys.readouterr().err


def test_sets_are_read_from_folders_and_json(listed, tmp_path):
    picture = Image.open(listed.parent / "0.png")
    for kind in ("n01440764", "n03028079"):
        (tmp_path / "classes" / kind).mkdir(parents=True)
        for i in range(2):
            picture.save(tmp_path / "classes" / kind / f"{i}.png")
    imagenette = recipe("sd21-imagenette")
    found = read_training_set(tmp_path / "classes", imagenette.template, imagenette.classes)
    assert [e.caption for e in found.examples] == ["An image of tench"] * 2 + ["An image of church"] * 2
    with pytest.raises(InputError, match="class folder 'n03028079' that the recipe does not name"):
        read_training_set(tmp_path / "classes", imagenette.template, {"n01440764": "tench"})
    (tmp_path / "captions.json").write_text(json.dumps({"classes/n01440764/0.png": ["first", "second"]}))
    assert [e.caption for e in read_training_set(tmp_path / "captions.json").examples] == ["first"]
    (tmp_path / "beside").mkdir()
    picture.save(tmp_path / "beside" / "one.png")
    with pytest.raises(InputError, match="one.png has no caption"):
        read_training_set(tmp_path / "beside")
    (tmp_path / "beside" / "one.txt").write_text("a  kite\n")
    assert read_training_set(tmp_path / "beside").examples[0].caption == "a kite"
    assert read_pictures([tmp_path / "classes"], 32).shape == (4, 32, 32, 3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("file,caption\na.png,x\n", "no column 'picture'"),
        ("picture,caption\nabsent.png,x\n", "pictures that .* lists are missing"),
        ("picture,caption,copies\n0.png,x,many\n", "something other than whole numbers"),
        ("picture,caption,copies\n0.png,x,0\n", "give it a caption and at least one copy"),
        ("picture,caption\n0.png,\n", "Line 2 of .* is empty: remove it or fill in a prompt"),
        ("picture,caption\n", "holds no prompts: give at least one"),
    ],
)
def test_bad_lists_end_in_a_sentence(content, sentence, listed):
    path = listed.parent / "bad.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_training_set(path)


def test_bad_settings_end_in_a_sentence(listed, sd1_tiny, sd2_tiny, tmp_path):
    examples, base = read_training_set(listed), load(sd1_tiny, "cpu", "float32")
    with pytest.raises(InputError, match="A resolution of 100 pixels does not fit"):
        FinetunePart(base, examples, replace(RECIPE, resolution=100))
    with pytest.raises(InputError, match="weights the loss by 1/SNR"):
        FinetunePart(load(sd2_tiny, "cpu", "float32"), examples, replace(RECIPE, weight_limit=5.0))
    for wrong, sentence in (
        ({"batch": 0}, "batch of the recipe .* is 0"),
        ({"lr": "5e-6"}, "lr of the recipe .* is '5e-6': give a number above 0"),
        ({"caption_dropout": 2}, "caption_dropout"), ({"template": "An image"}, "no place for the class"),
        ({"crop": "left"}, "crop 'left'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            replace(RECIPE, **wrong)
    with pytest.raises(InputError, match="Unknown recipe 'sd3'"):
        recipe("sd3")
    with pytest.raises(InputError, match="There is no training set"):
        read_training_set(tmp_path / "nothing")


def test_recipes_have_the_published_exposures():
    counts = {"sd21-laion10k": 10_000, "sd21-laion100k": 100_000, "sd21-imagenette": 9_469}
    for name, found in load_recipes().items():
        if name in load_against():
            continue
        slots = counts.get(name, 200 * 200 + 120_000)
        copies = 1 if name in counts else 200
        assert found.exposures == pytest.approx(copies * found.steps * found.batch / slots, abs=0.5)


def test_minisd_scenarios_have_the_planned_exposures():
    from memlib.training.minisd.finetune import scenario_recipe

    planned = {"small": 320, "large": 32, "class": 136.5, "duplicated": 320}
    blocks = settings()["finetune"]["scenarios"]
    assert set(blocks) == set(planned)
    for name, block in blocks.items():
        found, copies = scenario_recipe(name), block.get("copies", 1)
        slots = block["pictures"] * copies + block.get("singles", 0)
        assert copies * found.steps * found.batch / slots == pytest.approx(planned[name], abs=0.5)
        assert found.base == "minisd-v1" and found.caption_dropout == 0
