"""A checkpoint in a single file becomes the folder that it was written from, through diffusers' own reading of it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from single_file import write_single_file

from memlib.base.errors import InputError
from memlib.companion.commands import main
from memlib.models.convert import convert
from memlib.models.substrate import load


def test_a_single_file_becomes_the_model_that_it_holds(sd1_tiny, tmp_path, capsys):
    file = write_single_file(sd1_tiny, tmp_path / "tiny.safetensors")
    assert main(["convert", str(file), str(tmp_path / "tiny"), "--config", str(sd1_tiny)]) == 0
    assert f"memlib report {tmp_path / 'tiny'}" in capsys.readouterr().out
    made, known = (load(folder, "cpu", "float32") for folder in (tmp_path / "tiny", sd1_tiny))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(model, part).state_dict() for model in (made, known))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs), part
    assert made.pad_id == known.pad_id and made.scheduler().config.beta_start == known.scheduler().config.beta_start


def test_what_is_no_such_file_is_one_sentence(sd1_tiny, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for name, folder, sentence in (
        ("absent.safetensors", "new", "There is no checkpoint at"),
        ("model.ckpt", "new", "a pickled checkpoint, which can hold programs: give a .safetensors file"),
        ("notes.txt", "new", "notes.txt is no checkpoint that is known"),
        ("other.safetensors", "full", "is there already: name a new folder"),
        ("other.safetensors", "new", "other.safetensors cannot be converted .*--config must name a diffusers folder of the same kind"),
    ):
        with pytest.raises(InputError, match=sentence):
            convert(tmp_path / name, tmp_path / folder, str(sd1_tiny))
        assert not (tmp_path / "new").exists()
