import hashlib
import json
import pickle
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.metrics.pairwise import cosine_similarity, polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from memlib.base.errors import InputError, NotMeasured
from memlib.metrics import METRICS, ROLES, metric, metrics_for, weights
from memlib.metrics.alignment import TextAlignment, open_clip_judge
from memlib.metrics.distribution import InceptionFeatures, _PooledA, fid, fid_inception, frechet_distance, kernel_distance, moments
from memlib.metrics.diversity import SeedDiversity, _mean_over_pairs, descriptor_diversity, lpips_network, seed_diversity
from memlib.metrics.pictures import centred
from memlib.metrics.quality import aesthetic_head, load_realism, realism, realism_reference
from memlib.metrics.similarity import CopyDescriptor, cosine, load_sscd, nearest
from memlib.models.data import SubstrateData
from memlib.models.minisd.data import data_of


@pytest.fixture
def draw():
    return np.random.default_rng(3)


@pytest.fixture
def pictures(draw):
    return draw.integers(0, 256, (4, 3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "cache"))
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def accept(monkeypatch, name, path, **changes):
    """Let the table expect the file at `path`, as if it were the published one."""
    entry = replace(weights.table()[name], sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **changes)
    monkeypatch.setitem(weights.table(), name, entry)
    return entry


def pixels(batch):
    return batch.flatten(1)


def test_similarity_is_the_cosine_of_descriptors(pictures):
    descriptor = CopyDescriptor("pixels", pixels, centred, 0.5, batch_size=5)
    vectors = descriptor(pictures)
    assert vectors.shape == (4, 3, 192) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    raw = pictures.reshape(12, -1) / 127.5 - 1
    raw = raw.reshape(12, 8, 8, 3).transpose(0, 3, 1, 2).reshape(12, -1)
    expected = cosine_similarity(raw).reshape(4, 3, 12)[:, :, 0]
    assert np.allclose(descriptor.similarity(pictures, pictures[:1, :1]), expected, atol=1e-5)
    assert np.allclose(descriptor.similarity(vectors, pictures), 1, atol=1e-6)


def test_nearest_reference_agrees_with_sklearn(draw):
    queries, references = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (draw.normal(size=(9, 5)), draw.normal(size=(30, 5))))
    values, places = nearest(queries, references, block=4)
    distances, expected = NearestNeighbors(n_neighbors=1, metric="cosine").fit(references).kneighbors(queries)
    assert np.array_equal(places, expected[:, 0]) and np.allclose(values, 1 - distances[:, 0])


def test_unusable_pictures_and_descriptors_are_refused(pictures):
    descriptor = CopyDescriptor("pixels", pixels, centred, 0.5)
    for bad in (pictures / 255, pictures[..., 0], pictures[:0]):
        with pytest.raises(InputError, match="uint8"):
            descriptor(bad)
    with pytest.raises(InputError, match="one descriptor"):
        cosine(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(InputError, match="prompts"):
        TextAlignment("x", pixels, None, centred)(pictures, ["one", "two"])


def test_sscd_prepares_pictures_as_its_authors_do(cache, monkeypatch):
    script = torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
    script.save(cache / "sscd_disc_mixup.torchscript.pt")
    accept(monkeypatch, "sscd_disc_mixup", cache / "sscd_disc_mixup.torchscript.pt")
    descriptor = load_sscd()
    colour = np.broadcast_to(np.uint8([200, 30, 90]), (1, 64, 48, 3))
    expected = (np.array([200, 30, 90]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(descriptor(colour)[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert (descriptor.threshold, descriptor.strict_threshold) == (0.5, 0.75)


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["safetensors", "torchscript"])
def test_alignment_equals_open_clips_own(tmp_path, draw, kind):
    import open_clip
    from PIL import Image
    from safetensors.torch import save_file

    (tmp_path / "tiny-memlib.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-memlib.json")
    model, _, transform = open_clip.create_model_and_transforms("tiny-memlib")
    model.eval()
    if kind == "safetensors":
        path = tmp_path / "tiny.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    else:
        path = tmp_path / "tiny.pt"
        torch.jit.trace(model, (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)), check_trace=False).save(path)
    judge = open_clip_judge("tiny", "tiny-memlib", path)

    pictures = draw.integers(0, 256, (2, 3, 40, 48, 3), dtype=np.uint8)
    prompts = ["a <b>bold</b> prompt", "猫 and “quotes”"]
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pictures.reshape(6, 40, 48, 3)]), normalize=True).reshape(2, 3, -1)
        said = model.encode_text(open_clip.tokenize(prompts), normalize=True)
    expected = (seen * said[:, None]).sum(-1).numpy()
    assert np.allclose(judge(pictures, prompts), expected, atol=1e-5)
    assert np.allclose(judge(pictures[:, 0], prompts), expected[:, 0], atol=1e-5)


def test_aesthetic_head_is_the_product_of_its_layers(tmp_path, draw):
    widths, names = (768, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
    state, value = {}, draw.normal(size=768)
    expected = value
    for name, width, out in zip(names, widths, widths[1:]):
        matrix, shift = draw.normal(size=(out, width)) / width**0.5, draw.normal(size=out)
        state |= {f"layers.{name}.weight": torch.tensor(matrix), f"layers.{name}.bias": torch.tensor(shift)}
        expected = matrix @ expected + shift
    torch.save(state, tmp_path / "head.pth")
    with torch.no_grad():
        assert aesthetic_head(tmp_path / "head.pth")(torch.tensor(value).float()).item() == pytest.approx(expected.item(), abs=1e-3)


def test_realism_is_known_by_its_pictures_and_not_by_the_last_digits_of_their_features(draw):
    pictures = draw.integers(0, 255, (5, 4, 4, 3)).astype(np.uint8)
    vectors = draw.normal(size=(5, 8)).astype(np.float32)
    judges = [SimpleNamespace(fingerprint="judge", pictures=lambda _, noise=noise: vectors + np.float32(noise)) for noise in (0, 1e-6)]
    first, second = (load_realism(judge, pictures).fingerprint for judge in judges)
    assert first == second != load_realism(judges[0], pictures[::-1]).fingerprint


def test_realism_agrees_with_sklearns_neighbours(draw):
    real, made = draw.normal(size=(40, 4)), draw.normal(size=(7, 4)) * 2
    radii = NearestNeighbors(n_neighbors=3).fit(real).kneighbors()[0][:, 2]
    kept = radii <= np.median(radii)
    expected = [max(r / np.linalg.norm(m - x) for x, r in zip(real[kept], radii[kept])) for m in made]
    assert np.allclose(realism(made, *realism_reference(real, 3)), expected)
    # At the edge of a ball the score is exactly one.
    assert realism(np.array([[2.0]]), np.array([[0.0]]), np.array([2.0])) == pytest.approx(1)
    with pytest.raises(InputError, match="more than 3"):
        realism_reference(real[:3])


def test_seed_diversity_by_hand(pictures):
    right, up = [1.0, 0.0], [0.0, 1.0]
    assert np.allclose(seed_diversity(np.array([[right, right, up], [up, up, up]])), [2 / 3, 0])
    descriptor = CopyDescriptor("pixels", pixels, centred, 0.5)
    same = np.repeat(pictures[:, :1], 3, axis=1)
    assert np.allclose(descriptor_diversity(descriptor)(same), 0, atol=1e-6)
    with pytest.raises(InputError, match="two seeds"):
        seed_diversity(np.ones((2, 1, 3)))
    with pytest.raises(InputError, match="prompts, seeds"):
        SeedDiversity("x", None)(pictures[0])


def test_lpips_trunk_is_alexnet_and_pairs_are_averaged(tmp_path):
    from torchvision.models import alexnet

    with torch.device("meta"):  # the classifier above the features would take seconds to draw
        features = alexnet(weights=None).features
    features.to_empty(device="cpu")
    for number, parameter in enumerate(features.parameters()):
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "alexnet.pth")
    network = lpips_network(tmp_path / "alexnet.pth")
    batch = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(network.net(batch).relu5, features[:12](batch), atol=1e-6)
        by_hand = np.mean([network(batch[i : i + 1], batch[j : j + 1]).item() for i, j in ((0, 1), (0, 2), (1, 2))])
        assert _mean_over_pairs(network, batch, block=2) == pytest.approx(by_hand, rel=1e-5)
        assert _mean_over_pairs(network, batch[:1].expand(2, -1, -1, -1)) == 0


def test_frechet_distance_closed_forms(draw):
    first, second = draw.random(6) + 0.1, draw.random(6) + 0.1
    diagonal = ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    shift = draw.normal(size=6)
    assert frechet_distance(np.zeros(6), np.diag(first), shift, np.diag(second)) == pytest.approx((shift**2).sum() + diagonal)
    left, right = draw.normal(size=(50, 6)), draw.normal(size=(60, 6)) @ draw.normal(size=(6, 6)) + 1
    (m1, c1), (m2, c2) = moments(left), moments(right)
    textbook = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert fid(left, right) == pytest.approx(textbook, rel=1e-6)
    assert fid(left, left) == pytest.approx(0, abs=1e-8)
    # Fewer pictures than features: the covariances are singular and the distance still finite.
    assert np.isfinite(fid(draw.normal(size=(4, 6)), draw.normal(size=(5, 6))))


def test_kernel_distance_agrees_with_sklearns_kernel_and_is_unbiased(draw):
    left, right = draw.normal(size=(12, 5)), draw.normal(size=(12, 5)) + 0.3

    def kernel(a, b):
        return polynomial_kernel(a, b, degree=3, gamma=1 / 5, coef0=1)

    off = ~np.eye(12, dtype=bool)
    expected = kernel(left, left)[off].mean() + kernel(right, right)[off].mean() - 2 * kernel(left, right).mean()
    value, spread = kernel_distance(left, right, np.random.default_rng(0), subsets=3)
    assert value == pytest.approx(expected) and spread == pytest.approx(0, abs=1e-9)
    same = [kernel_distance(draw.normal(size=(30, 5)), draw.normal(size=(30, 5)), draw, subsets=1)[0] for _ in range(300)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 300**0.5 and min(same) < 0


def test_fid_inception_has_the_published_shape_and_pools_without_padding():
    from torchvision.models.inception import Inception3

    plain = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    ours = fid_inception()
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in plain.state_dict().items()}
    # A constant input stays constant up to the border only if the padding is not counted.
    block = _PooledA(4, pool_features=2)
    block.branch_pool = torch.nn.Identity()
    assert torch.equal(block._forward(torch.ones(1, 4, 5, 5))[-1], torch.ones(1, 4, 5, 5))
    features = InceptionFeatures(ours)(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    assert features.shape == (1, 2048)


@pytest.fixture
def publisher(tmp_path):
    """A web server for the files of a folder."""
    folder = tmp_path / "published"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_weights_are_fetched_once_and_checked(cache, publisher, monkeypatch):
    published = publisher.folder / "published.pth"
    torch.save({"x": torch.ones(2)}, published)
    entry = accept(monkeypatch, "laion_aesthetic_v2", published, url=f"{publisher.url}/published.pth")
    with pytest.raises(NotMeasured, match="allow the download"):
        weights.weight_file(entry.name)
    monkeypatch.setenv("MEMLIB_OFFLINE", "0")
    path = weights.weight_file(entry.name)
    assert path == cache / entry.file and torch.equal(weights.read_state(path)["x"], torch.ones(2))
    published.unlink()
    assert weights.weight_file(entry.name) == path
    path.write_bytes(b"something else")
    with pytest.raises(NotMeasured, match="not the published file"):
        weights.weight_file(entry.name)
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    with pytest.raises(NotMeasured, match="not the published file"):
        weights.weight_file(entry.name)
    with pytest.raises(InputError, match="choose one of"):
        weights.weight_file("sscd_disc_small")


def test_a_wrong_or_unreachable_download_leaves_nothing_behind(cache, publisher, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "")
    (publisher.folder / "other").write_bytes(b"not it")
    entry = replace(weights.table()["inception_fid"], url=f"{publisher.url}/other")
    monkeypatch.setitem(weights.table(), "inception_fid", entry)
    with pytest.raises(NotMeasured, match="not the published file"):
        weights.weight_file("inception_fid")
    monkeypatch.setitem(weights.table(), "inception_fid", replace(entry, url=f"{publisher.url}/absent"))
    with pytest.raises(NotMeasured, match="could not be fetched"):
        weights.weight_file("inception_fid")
    assert list(cache.iterdir()) == []


class Harmful:
    def __reduce__(self):
        return print, ("code ran while loading weights",)


def test_a_checkpoint_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"x": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(pickle.UnpicklingError):
        weights.read_state(tmp_path / "harmful.pth")
    assert "code ran" not in capsys.readouterr().out


def test_every_row_of_the_table_says_what_it_must():
    for entry in weights.table().values():
        assert entry.url.startswith("https://") and entry.licence and entry.source.startswith("https://")
        assert len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef")
        if entry.sha256_from == "publisher":
            assert entry.sha256 in entry.url
    # PyTorch puts the first digits of a file's hash into its name.
    assert weights.table()["alexnet_imagenet"].sha256[:8] in weights.table()["alexnet_imagenet"].url


def test_metrics_without_weights_are_not_measured(cache):
    metrics = metrics_for(SimpleNamespace(data=SubstrateData(), device="cpu"))
    assert set(metrics) == set(ROLES)
    for role in metrics:
        assert not metrics[role].available
    with pytest.raises(NotMeasured, match="SSCD is not measured.*allow the download"):
        metrics.copy(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(NotMeasured, match="aesthetic score is not measured"):
        metrics.quality.score
    with pytest.raises(InputError, match="role 'speed'"):
        metrics["speed"]
    with pytest.raises(InputError, match="Unknown metric 'xl': choose one of minisd-copy"):
        metrics_for(SimpleNamespace(data=SubstrateData(metrics=("xl",)), device="cpu"))
    with pytest.raises(InputError, match="choose one of minisd-copy"):
        metric("ssim")
    assert {m.role for m in METRICS.values()} == set(ROLES)


def test_minisd_metrics_come_from_its_judges(tmp_path, monkeypatch, draw, cache):
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    nothing = metrics_for(SimpleNamespace(data=data_of("minisd-v1"), device="cpu"))
    assert not any(nothing[role].available for role in nothing)

    class Judge(torch.nn.Module):
        def forward(self, batch):
            return batch.flatten(1)

        encode_image = forward

        def encode_text(self, texts):
            return torch.ones(len(texts), 192)

    monkeypatch.setattr("memlib.metrics.similarity.load_descriptor", lambda folder: Judge())
    monkeypatch.setattr("memlib.metrics.alignment.load_evaluator", lambda folder: Judge())
    for name in ("descriptor", "evaluator"):
        folder = tmp_path / "minisd" / "judges" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"threshold": 0.6}))

    pictures = draw.integers(0, 256, (5, 2, 8, 8, 3), dtype=np.uint8)
    metrics = metrics_for(SimpleNamespace(data=data_of("minisd-v1"), device="cpu"), reference=pictures[:, 0])
    assert metrics.copy.threshold == 0.6 and metrics.copy.fingerprint
    assert metrics.alignment(pictures, ["a"] * 5).shape == (5, 2)
    assert metrics.quality(pictures).shape == (5, 2)
    assert (metrics.quality(pictures[:, 0]) >= 1).sum() >= 3  # real pictures are inside their own balls
    assert metrics.diversity(pictures).shape == (5,)
    assert "reference=pictures" in metrics_for(SimpleNamespace(data=data_of("minisd-v1"), device="cpu")).quality.reason
