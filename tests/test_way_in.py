"""The way in for published weights: the command of the README against a hub of one repository, the forms that folders come in, and what `memlib check` says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
import torch
from checkpoints import as_published, shard
from safetensors.torch import load_file

from memlib.base.errors import InputError
from memlib.base.paths import ROOT
from memlib.companion import check_setup, check_substrate
from memlib.companion.commands import main
from memlib.models import catalogue
from memlib.models.substrate import Substrate, load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import initial_latents, trajectory, uncond_states

REPOSITORY, REVISION = catalogue.SUBSTRATES["sd14"].hub[-1]
READ = {
    "model_index.json", "feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def published(sd1_tiny, tmp_path_factory) -> Path:
    return as_published(sd1_tiny, tmp_path_factory.mktemp("published") / "stable-diffusion-v1-4")


@pytest.fixture(scope="module")
def expected(sd1_tiny) -> Substrate:
    return load(str(sd1_tiny), "cpu", "float32")


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    for name in ("MEMLIB_METRICS", "MEMLIB_PROMPTS", "MEMLIB_STORE", "MEMLIB_MODELS"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")


@pytest.fixture
def hub(published) -> Iterator[str]:
    """The address of a hub that has this one repository at its pinned commit, as the client asks for it."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0])
            if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
                names = [{"rfilename": str(file.relative_to(published))} for file in published.rglob("*") if file.is_file()]
                self.answer(json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": names}).encode(), {"Content-Type": "application/json"})
            elif path == f"/api/models/{REPOSITORY}/tree/{REVISION}":
                files = [{"type": "file", "path": str(p.relative_to(published)), "size": p.stat().st_size, "oid": "0" * 40} for p in published.rglob("*.*")]
                self.answer(json.dumps(files).encode(), {"Content-Type": "application/json"})
            elif path.startswith(start := f"/{REPOSITORY}/resolve/{REVISION}/") and (published / path.removeprefix(start)).is_file():
                name = path.removeprefix(start)
                self.answer((published / name).read_bytes(), {"ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"', "X-Repo-Commit": REVISION})
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def lines(capsys) -> dict[str, str]:
    """What the command has said of each fact: its state."""
    printed = capsys.readouterr().out
    return {found[2]: found[1].strip() for found in re.finditer(r"^(ok|WRONG|not yet) +([^:]+):", printed, re.MULTILINE)}


def last_latents(substrate: Substrate) -> torch.Tensor:
    states, noise = encode_prompts(substrate, ["a red fox"]).states, initial_latents([3], substrate.latent_shape)
    *_, last = trajectory(substrate, states, uncond_states(substrate), noise, 2, 7.5, "pndm")
    return last.next_latents


def test_the_command_that_is_written_everywhere_is_one():
    command = catalogue.download_command("sd14").replace("'", '"')
    assert command in (ROOT / "README.md").read_text() and command in (ROOT / "book/running.md").read_text()
    assert catalogue.download_command("sd21").replace("'", '"') in (ROOT / "book/running.md").read_text()
    with pytest.raises(InputError, match="The weights of sd14 are missing") as error:
        load("sd14")
    assert catalogue.download_command("sd14") in str(error.value)


def test_from_the_command_of_the_readme_to_a_checked_model(hub, expected, tmp_path, capsys):
    [command] = re.findall(r"^hf download .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    made = subprocess.run(["bash", "-c", command], env={**environment, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True)
    folder = Path(os.environ["MEMLIB_MODELS"]) / "sd14"
    assert made.returncode == 0, made.stderr
    got = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert got == READ  # no pickled weights, no second variant, no safety checker: nothing that is not read

    assert torch.equal(last_latents(load("sd14", "cpu", "float32")), last_latents(expected))
    main(["check", "sd14", "--device", "cpu", "--dtype", "float32"])
    said = lines(capsys)
    assert said.pop("picture") in ("ok", "WRONG")  # random weights need not give a picture with contrast
    fetched = {name for name in said if name.startswith(("metric", "prompts", "copy metric"))}
    assert len(fetched) == 9 and {name for name, state in said.items() if state == "not yet"} == fetched, said
    assert len(said) == 9 + 3 + 6 and "WRONG" not in said.values(), said


@pytest.mark.parametrize("form", ["all of it", "half alone", "two shards", "half in shards", "half in shards, the older names", "one part in half alone"])
def test_a_folder_in_any_form_is_the_same_model(form, published, tmp_path, expected):
    folder, shards = shutil.copytree(published, tmp_path / "sd14"), {"two shards": "-{}.safetensors", "half in shards": ".fp16-{}.safetensors"}
    shards["half in shards, the older names"] = "-{}.fp16.safetensors"
    parts = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    half = "half" in form
    for part, stem in parts.items():
        plain, other = folder / part / f"{stem}.safetensors", folder / part / f"{stem}.fp16.safetensors"
        if form == "one part in half alone":
            (plain if part == "unet" else other).unlink()
        elif form != "all of it":
            (plain if half else other).unlink()
        if form in shards and part != "vae":
            shard(other if half else plain, stem + shards[form])
    found = load(str(folder), "cpu", "float32")
    for part in parts:
        pairs = zip(getattr(found.pipe, part).state_dict().items(), getattr(expected.pipe, part).state_dict().items(), strict=True)
        exact = not half or (form == "one part in half alone" and part != "unet")
        assert all(one == two and torch.equal(a, b if exact else b.half().float()) for (one, a), (two, b) in pairs), part
    assert found.vae.config.scaling_factor == 0.18215 and "PNDM" in type(found.pipe.scheduler).__name__ and found.pipe.safety_checker is None


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        ("unet/diffusion_pytorch_model-00002-of-00002.safetensors", "unet has 1 of 2 shards"),
        ("tokenizer/merges.txt", "tokenizer/merges.txt is missing"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json is missing"),
        ("vae/*.safetensors", "no safetensors weights for vae, only pickled ones"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_loaded(absent, sentence, published, tmp_path, capsys):
    folder = shutil.copytree(published, tmp_path / "mine")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    shard(folder / "unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-{}.safetensors")
    for path in list(folder.glob(absent)):
        path.unlink()
    assert main(["check", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert re.search(rf"^WRONG +files: .*{re.escape(sentence)}", printed, re.MULTILINE) and "download" in printed
    assert "metric SSCD" in printed and "memlib prompts fetch webster-mv86" in printed and "first step" not in printed


def test_without_weights_the_command_that_fetches_them_is_said(capsys):
    assert main(["check", "sd14"]) == 1
    assert catalogue.download_command("sd14") in capsys.readouterr().out


def test_memory_and_disk_are_told_beforehand(published, monkeypatch, capsys):
    values = sum(weight.numel() for path in check_setup.weight_files(published) for weight in load_file(path).values())
    told = check_setup.memory(published, torch.device("cpu"), torch.float32).detail
    assert told.startswith(f"{values / 1e6:,.1f} million weights in float32")
    monkeypatch.setattr(check_setup, "free_memory", lambda device: 1000)
    monkeypatch.setattr(check_setup.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert main(["check", str(published), "--device", "cpu", "--dtype", "float32"]) == 1
    said = capsys.readouterr().out
    assert re.search("WRONG +memory: .* To do: free some, or use --dtype bfloat16", said) and re.search("WRONG +disk: .*MEMLIB_STORE", said)


def test_what_is_at_hand_is_said_to_be(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(check_setup, "weight_file", lambda name, download: asked.append((name, download)))
    chosen = check_setup.metric("aesthetic")
    assert check_setup.metric_at_hand(chosen).holds and asked == [("openai_clip_vit_l_14", False), ("laion_aesthetic_v2", False)]
    monkeypatch.setattr(check_setup, "at_hand", lambda source: True)
    assert check_setup.prompt_list("memorized", "webster-mv86").holds and check_setup.prompt_list("memorized", "minisd-duplicated").holds
    (tmp_path / "own.csv").write_text("prompt\na cat\n")
    assert check_setup.prompt_list("memorized", str(tmp_path / "own.csv")).holds
    wrong = check_setup.prompt_list("memorized", str(tmp_path / "absent.csv"))
    assert wrong.holds is False and "To do: correct" in str(wrong)


def test_own_models_and_their_differences_are_looked_at_too(capsys):
    found = {fact.name: fact.holds for fact in check_setup.check("minisd-v1-small", "cpu", "float32")}
    assert found["files"] and found["memory"] and found["disk"] and found["prompts memorized"] and not any(name.startswith("metric") for name in found)


def test_a_mitigation_without_effect_is_noticed(expected, monkeypatch):
    looked = check_substrate.Looked(expected)
    assert check_substrate.mitigated(looked).holds
    monkeypatch.setattr(check_substrate, "mitigate", lambda *args, **kwargs: nullcontext())
    assert check_substrate.mitigated(check_substrate.Looked(looked.substrate)).holds is False


def test_a_checkpoint_in_a_single_file_is_refused_with_what_to_do(published, capsys):
    assert main(["check", str(published / "sd-v1-4.ckpt")]) != 0
    assert "a checkpoint in a single file" in "".join(capsys.readouterr())
