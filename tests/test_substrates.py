"""Loading substrates: facts of the tiny checkpoints, and one sentence for every kind of broken folder."""

import json
import shutil

import pytest
import torch
from checkpoints import build_sd1
from safetensors.torch import load_file, save_file

from memlib.base.errors import InputError
from memlib.models.checkpoint import weights_hash
from memlib.models.data import SubstrateData
from memlib.models.minisd.data import data_of
from memlib.models.substrate import SUBSTRATES, load
from memlib.prompts.embedding import encode_prompts


@pytest.fixture
def folder(sd1_tiny, tmp_path):
    return shutil.copytree(sd1_tiny, tmp_path / "copy")


def refused(folder, **options):
    with pytest.raises(InputError) as caught:
        load(folder, **{"device": "cpu", **options})
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "'")) and len(message) < 600
    return message


def test_facts_of_both_kinds(sd1_tiny, sd2_tiny):
    one, two = load(sd1_tiny, device="cpu", dtype="float32"), load(sd2_tiny, device="cpu", dtype="float32")
    assert (one.name, one.data, one.pad_id, one.prediction_type) == ("sd1-tiny", SubstrateData(), 49407, "epsilon")
    assert (two.name, two.data, two.pad_id, two.prediction_type) == ("sd2-tiny", SubstrateData(), 0, "v_prediction")
    for substrate in (one, two):
        assert substrate.latent_shape == (4, 8, 8) and substrate.resolution == 64
        assert substrate.device.type == "cpu" and substrate.dtype == torch.float32
        assert 1 <= substrate.batch_size() <= 64
        assert substrate.pipe.safety_checker is None
        assert not any(weight.requires_grad for weight in substrate.unet.parameters())
    assert one.text_encoder.config.hidden_act == "quick_gelu" and two.text_encoder.config.hidden_act == "gelu"


def test_schedulers_keep_the_checkpoints_schedule(sd1_tiny, sd2_tiny):
    for folder, prediction in ((sd1_tiny, "epsilon"), (sd2_tiny, "v_prediction")):
        substrate = load(folder, device="cpu")
        for kind in ("ddim", "dpm", "euler"):
            scheduler = substrate.scheduler(kind, 7)
            assert scheduler is not substrate.scheduler(kind, 7)
            assert len(scheduler.timesteps) == 7
            assert scheduler.config.prediction_type == prediction
            assert (scheduler.config.beta_start, scheduler.config.beta_schedule) == (0.00085, "scaled_linear")
        ddim = substrate.scheduler("ddim", 50)
        assert not ddim.config.clip_sample and not ddim.config.set_alpha_to_one
        assert ddim.timesteps[:2].tolist() == [981, 961] and ddim.timesteps[-1] == 1


def test_hash_names_the_weights_and_nothing_else(folder, sd1_tiny, sd2_tiny):
    original = weights_hash(sd1_tiny)
    assert load(folder, device="cpu").weights_hash == weights_hash(folder) == original
    assert weights_hash(sd2_tiny) != original
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] += 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    assert weights_hash(folder) != original


def test_hash_covers_the_configuration(folder, sd1_tiny):
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_diffusers_version": "0.1"}))
    assert weights_hash(folder) == weights_hash(sd1_tiny)
    path.write_text(json.dumps({**config, "scaling_factor": 0.5}))
    assert weights_hash(folder) != weights_hash(sd1_tiny)


def test_named_substrates_come_from_the_models_folder(sd1_tiny, tmp_path, monkeypatch):
    shutil.copytree(sd1_tiny, tmp_path / "sd14")
    monkeypatch.setenv("MEMLIB_MODELS", str(tmp_path))
    substrate = load("sd14", device="cpu")
    assert (substrate.name, substrate.data) == ("sd14", SubstrateData())


@pytest.mark.parametrize("choice", [0, 1])
def test_named_substrates_come_from_the_hubs_cache(sd2_tiny, tmp_path, monkeypatch, choice):
    monkeypatch.delenv("MEMLIB_MODELS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, revision = SUBSTRATES["sd21"].hub[choice]
    shutil.copytree(sd2_tiny, tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / revision)
    substrate = load("sd21", device="cpu")
    assert (substrate.name, substrate.revision) == ("sd21", revision)


@pytest.mark.slow
def test_own_models_come_from_the_data_folder(sd1_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    copy = shutil.copytree(sd1_tiny, tmp_path / "minisd" / "models" / "minisd-v1")
    assert load("minisd-v1", device="cpu").data.metrics == load(copy, device="cpu").data.metrics == data_of("minisd-v1").metrics
    message = refused("minisd-v2")
    assert "minisd-v2 are missing" in message and "MEMLIB_DATA" in message and "memlib minisd train" in message


@pytest.mark.parametrize("name", [name for name, source in SUBSTRATES.items() if source.hub])
def test_missing_weights_name_variable_and_command(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_MODELS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    message = refused(name)
    repository, revision = SUBSTRATES[name].hub[-1]
    assert f"{tmp_path}/{name}" in message and "MEMLIB_MODELS" in message
    assert f"hf download {repository} --revision {revision}" in message


def test_half_precision_files_are_found(folder, sd1_tiny):
    for path in folder.glob("*/*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(tensors, path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    half, full = (load(f, device="cpu", dtype="float32") for f in (folder, sd1_tiny))
    assert half.dtype == torch.float32 and half.weights_hash != full.weights_hash
    states = [encode_prompts(substrate, ["a cat"]).states for substrate in (half, full)]
    torch.testing.assert_close(*states, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ["sd15", "runwayml/stable-diffusion-v1-5", "no/such/folder"])
def test_unknown_names_are_listed(name):
    message = refused(name)
    assert name in message and ", ".join(SUBSTRATES) in message


def test_options_are_named(sd1_tiny):
    assert "Unknown device 'tpu!'" in refused(sd1_tiny, device="tpu!")
    assert "Unknown precision 'int8'" in refused(sd1_tiny, dtype="int8")
    if not torch.cuda.is_available():
        assert "sees no GPU" in refused(sd1_tiny, device="cuda")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    assert f"lacks a part: {part}/" in refused(folder)


def test_missing_and_pickled_weights_are_named(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "only pickled ones" in refused(folder)
    weights.with_suffix(".bin").unlink()
    assert "unet has no weights" in refused(folder)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_corrupt_weights_are_named(folder, damage):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes({"cut": content[: len(content) // 2], "garbage": b"x" * 999, "empty": b""}[damage])
    message = refused(folder)
    assert str(weights) in message and "corrupt or incomplete" in message


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("damage", ["missing", "reshaped"])
def test_weights_that_do_not_fit_are_refused(folder, part, damage):
    (weights,) = (folder / part).glob("*.safetensors")
    tensors = load_file(weights)
    name = sorted(name for name in tensors if name.endswith("weight"))[0]
    tensor = tensors.pop(name)
    if damage == "reshaped":
        tensors[name] = torch.cat([tensor, tensor])
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "cannot be loaded" in refused(folder)


def test_other_pipelines_are_refused(folder, tmp_path):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "_class_name": "StableDiffusionXLPipeline"}))
    assert "Stable Diffusion XL" in refused(folder)
    path.write_text(json.dumps({**index, "text_encoder_2": ["transformers", "CLIPTextModel"]}))
    assert "Stable Diffusion XL" in refused(folder)
    path.write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    assert "FluxPipeline" in refused(folder)
    path.write_text("{")
    assert "cannot be read as JSON" in refused(folder)
    path.unlink()
    assert "no model_index.json" in refused(folder)


def test_inpainting_unets_are_refused(folder, tmp_path):
    other = build_sd1(tmp_path / "six", latent_channels=6)
    shutil.rmtree(folder / "unet")
    shutil.copytree(other / "unet", folder / "unet")
    assert "6 input channels for latents of 4" in refused(folder)
