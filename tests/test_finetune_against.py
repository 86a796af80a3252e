"""Fine-tuning against memorization from the command line on tiny checkpoints: both recipes, resume after a kill, the folder, bad input."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.companion.commands import main
from memlib.experiment.run import Experiment
from memlib.mitigations import get
from memlib.models.minisd.paths import settings
from memlib.models.substrate import load
from memlib.training.finetune import against, load_recipes
from memlib.training.finetune.against import Against, load_against
from memlib.training.finetune.surrogates import SurrogatePart, choose_surrogates
from memlib.training.minisd.remedies import OTHER_SETTINGS, ordinary_set, remedy_recipe, remedy_settings

PROMPTS = ("a red cat", "the sea at night")
TINY = ["--steps", "4", "--rounds", "2", "--batch", "2", "--warmup", "0", "--mitigation", "pad-mask", "--surrogate-seeds", "1", "--device", "cpu",
        "--precision", "float32", "--quiet"]  # fmt: skip
SEARCH = ["--search-steps", "1", "--search-samples", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ordinary pictures with captions, and memorized prompts with training pictures, as CSV files in one folder."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(3)
    kinds = (("ordinary", ("picture", "caption"), ("one", "two", "three")), ("memorized", ("training_picture", "prompt"), PROMPTS))
    for name, column, texts in kinds:
        rows = []
        for number, text in enumerate(texts):
            path = folder / f"{name}-{number}.png"
            Image.fromarray(rng.integers(0, 256, (64, 80, 3), np.uint8)).save(path)
            rows.append((path, text))
        with open(folder / f"{name}.csv", "w", newline="") as handle:
            csv.writer(handle).writerows([column, *rows])
    return folder


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path / "store"))


def command(files, base, out, recipe="adversarial", *more):
    search = SEARCH if recipe == "adversarial" else []
    return main(["finetune", "--recipe", recipe, "--base", str(base), "--data", str(files / "ordinary.csv"), "--memorized", str(files / "memorized.csv"),
                 "--out", str(out), *TINY, *search, *more])  # fmt: skip


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def alike(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_killed_run_ends_alike_and_becomes_a_substrate(files, sd1_tiny, tmp_path, capsys, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command(files, sd1_tiny, whole, "adversarial", "--keep-rounds") == 0
    assert "Step 4 of 4 (2 rounds of 2)" in capsys.readouterr().out

    loss = SurrogatePart.loss

    def killed(part, step):
        if step == 3:
            raise KeyboardInterrupt
        return loss(part, step)

    with monkeypatch.context() as patch:
        patch.setattr(SurrogatePart, "loss", killed)
        assert command(files, sd1_tiny, broken) == 130 and "goes on from there" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "store")  # surrogates stand in the folder of the run
    with monkeypatch.context() as patch:
        patch.setattr(against, "choose_surrogates", lambda *_: pytest.fail("surrogates were sampled again"))
        assert command(files, sd1_tiny, broken, "adversarial", "--until", "3") == 0 and "Step 3 of 4" in capsys.readouterr().out
        assert command(files, sd1_tiny, broken) == 0
    assert alike(weights(whole), weights(broken)) and not (broken / "rounds").exists()

    rounds = [weights(whole / "rounds" / name) for name in ("0002", "0004")]
    assert alike(rounds[1], weights(whole)) and not alike(*rounds) and not alike(weights(sd1_tiny), rounds[0])
    assert {path.name for path in (whole / "run").glob("triggers-*")} == {"triggers-00.safetensors", "triggers-01.safetensors"}

    # As notebook 20 takes it: the prompts that were trained on, under a model of its own.
    run = Experiment(str(whole), n_seeds=1, steps=2)
    group = run.group(str(whole / "prompts.csv"), 10, "memorized")
    assert group.prompts.prompts == PROMPTS and [len(pictures) for pictures in group.training] == [1, 1]
    before = Experiment(str(sd1_tiny), n_seeds=1, steps=2).group(group.prompts, None, "memorized")
    assert not np.array_equal(group.pictures(), before.pictures())
    assert load(whole / "rounds" / "0002", "cpu", "float32").pad_id == run.substrate.pad_id

    # Another memorized prompt is another run.
    with open(files / "memorized.csv", newline="") as handle:
        first = list(csv.reader(handle))[:2]
    with open(tmp_path / "one.csv", "w", newline="") as handle:
        csv.writer(handle).writerows(first)
    assert command(files, sd1_tiny, whole, "adversarial", "--memorized", str(tmp_path / "one.csv")) == 1
    assert "another base, recipe" in capsys.readouterr().err
    assert command(files, sd1_tiny, whole, "adversarial", "--search-steps", "2") == 1


@pytest.mark.slow
def test_the_baseline_is_trained_on_the_same_surrogates_without_a_search(files, sd2_tiny, tmp_path):
    plain, searched = tmp_path / "plain", tmp_path / "searched"
    assert command(files, sd2_tiny, plain, "surrogates") == 0
    assert command(files, sd2_tiny, searched, "adversarial", "--recompute") == 0
    first, second = (np.load(folder / "run" / "surrogates.npz") for folder in (plain, searched))
    assert first["rows"].tolist() == second["rows"].tolist() and all(np.array_equal(first[name], second[name]) for name in first.files)
    run = Experiment(str(sd2_tiny), n_seeds=1)
    group = run.group(str(files / "memorized.csv"))
    assert np.array_equal(first["row_0"][0], group.pictures(get("pad-mask"))[0, 0])
    assert not list((plain / "run").glob("triggers-*")) and not (plain / "rounds").exists()
    assert not alike(weights(plain), weights(searched)) and not alike(weights(plain), weights(sd2_tiny))
    assert load(plain, "cpu", "float32").prediction_type == "v_prediction"


def test_a_training_picture_of_another_size_is_no_surrogate(files, sd1_tiny):
    """Training pictures of Stable Diffusion are read at 512 pixels whatever the model's resolution."""
    group = Experiment(str(sd1_tiny), n_seeds=1).group(str(files / "memorized.csv"))
    small = [training[:, ::8, ::8] for training in group.training]
    group._pictures[get("pad-mask")] = np.stack([small[0], 255 - small[1]])
    group.training = [np.repeat(np.repeat(one, 8, 1), 8, 2) for one in small]
    rows, surrogates = choose_surrogates(group, ["pad-mask"], 4)
    assert rows == [1] and np.array_equal(surrogates[0], 255 - small[1])


def test_bad_input_ends_in_a_sentence(files, sd1_tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(against, "load", lambda *_: pytest.fail("the model was loaded to be trained"))
    out = tmp_path / "out"
    common = ["--base", str(sd1_tiny), "--data", str(files / "ordinary.csv"), "--out", str(out), "--device", "cpu"]
    known = ["--memorized", str(files / "memorized.csv")]
    (tmp_path / "bare.txt").write_text("a red cat\nthe sea\n")
    (tmp_path / "half.csv").write_text(f"prompt,training_picture\na red cat,{files / 'memorized-0.png'}\nthe sea,\n")
    (tmp_path / "gone.csv").write_text(f"prompt,training_picture\na red cat,{tmp_path / 'gone.png'}\n")
    for arguments, sentence in (
        (["--recipe", "adversarial"], "--memorized is missing"),
        (["--recipe", "sd14-duplicates", *known], "--memorized belongs to the recipes adversarial and surrogates"),
        (["--recipe", "sd14-duplicates", "--keep-rounds"], "--keep-rounds belongs to the recipes adversarial and surrogates"),
        (["--recipe", "surrogates", *known, "--search-steps", "3"], "--search-steps belongs to the recipe adversarial"),
        (["--recipe", "adversarial", *known, "--rounds", "3"], "1000 steps do not make 3 rounds of equal length"),
        (["--recipe", "adversarial", *known, "--rounds", "0"], "option --rounds is 0: give a whole number from 1 on"),
        (["--recipe", "adversarial", *known, "--surrogate-seeds", "0"], "option --surrogate-seeds is 0: give a whole number from 1 on"),
        (["--recipe", "adversarial", *known, "--mitigation", "hope"], "hope"),
        (["--recipe", "adversarial", *known, "--search-samples", "0"], "option --search-samples is 0: give a whole number from 1 on"),
        (["--recipe", "adversarial", *known, "--count", "0"], "option --count is 0: give a whole number from 1 on"),
        (["--recipe", "adversarial", "--memorized", str(tmp_path / "bare.txt")], "2 of the 2 memorized prompts .* have no training picture"),
        (["--recipe", "adversarial", "--memorized", str(tmp_path / "half.csv")], "1 of the 2 memorized prompts .* have no training picture"),
        (["--recipe", "adversarial", "--memorized", str(tmp_path / "gone.csv")], "There is no picture at .*gone.png"),
        (["--recipe", "adversarial", "--memorized", "webster"], "Unknown prompt set 'webster'"),
    ):
        assert main(["finetune", *arguments, *common]) == 1, arguments
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1
        with pytest.raises(InputError, match=sentence):
            raise InputError(said)
    assert not out.exists()


def test_a_resolution_that_is_not_the_models_own_is_refused(files, sd1_tiny, tmp_path, capsys):
    assert command(files, sd1_tiny, tmp_path / "out", "surrogates", "--resolution", "128") == 1
    assert "Surrogates of sd1-tiny have 64 pixels, and the recipe asks for 128" in capsys.readouterr().err


def test_the_recipes_differ_in_the_search_alone():
    recipes, own = load_recipes(), load_against()
    assert set(own) == {"adversarial", "surrogates"} and own["surrogates"].budget is None and own["adversarial"].budget.steps > 0
    without = [{k: v for k, v in recipes[name].settings.items() if k != "name"} for name in own]
    assert without[0] == without[1] and own["adversarial"].steps(recipes["adversarial"]) * own["adversarial"].rounds == recipes["adversarial"].steps
    assert Against(**{**own["adversarial"].settings, "search": None}) == own["surrogates"]
    with pytest.raises(InputError, match="name at least one"):
        Against(1, ())


@pytest.mark.slow
def test_minisds_runs_are_known_by_the_same_digest_as_before(tmp_path, monkeypatch):
    """A run that was begun before the settings were shared with other checkpoints goes on."""
    seen, base = [], load("minisd-v1", "cpu", "float32")

    class Stopped(Exception):
        pass

    def marked(folder, made_from):
        seen.append((folder, made_from))
        raise Stopped

    monkeypatch.setenv("MEMLIB_RUNS", str(tmp_path))
    monkeypatch.setattr(against, "same_run", marked)
    from memlib.training.minisd.remedies import finetune_remedy

    block, ordinary = settings()["remedies"], ordinary_set()
    for name in ("adversarial", "surrogates"):
        recipe = remedy_recipe(name)
        with pytest.raises(Stopped):
            finetune_remedy(name, device="cpu", progress=False)
        expected = digest([base.weights_hash, ordinary.fingerprint, recipe.settings, {k: block[k] for k in OTHER_SETTINGS}])
        assert seen[-1] == (tmp_path / recipe.name, expected)
        own = remedy_settings(name)
        assert own.steps(recipe) == block["steps"] and list(own.mitigations) == block["surrogates"]["mitigations"]
    assert own.budget is None
    budget = remedy_settings("adversarial").budget
    assert (budget.steps, budget.every, budget.samples, budget.lr) == (20, 20, 4, 0.1)
