"""A checkpoint in a single file, as hubs and trainers pass it on, made into the diffusers folder that memlib reads."""

from __future__ import annotations

from pathlib import Path

from memlib.base.errors import InputError
from memlib.base.writing import replacing_folder
from memlib.models.catalogue import SINGLE_FILES
from memlib.models.checkpoint import check_folder

SAFE = ".safetensors"


def convert(file: Path, folder: Path, config: str | None = None) -> Path:
    """Write the Stable Diffusion 1.x or 2.x checkpoint `file` as a diffusers folder, and return that.

    `config` is a diffusers folder of the same kind, or the name of one on the hub, whose configurations and tokenizer are taken; by default diffusers
    tells the kind from the weights and fetches these small files from the hub. Only safetensors files are read: others can hold programs.
    Raises InputError for a file that is no such checkpoint and a folder that is taken. Source: diffusers, `from_single_file`.
    """
    file, folder = file.expanduser(), folder.expanduser()
    if not file.is_file():
        raise InputError(f"There is no checkpoint at {file}: check the path.")
    if file.suffix != SAFE:
        what = "a pickled checkpoint, which can hold programs" if file.suffix in SINGLE_FILES else "no checkpoint that is known"
        raise InputError(f"{file.name} is {what}: give a {SAFE} file.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new folder.")
    from diffusers import StableDiffusionPipeline  # takes seconds to import, and a wrong path is told first

    options = {} if config is None else {"config": str(Path(config).expanduser()) if Path(config).expanduser().is_dir() else config}
    try:
        pipe = StableDiffusionPipeline.from_single_file(str(file), local_files_only=False, safety_checker=None, feature_extractor=None, **options)
    except Exception as error:  # whatever a foreign file does to diffusers
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file.name} cannot be converted ({reason}): it must be a whole Stable Diffusion 1.x or 2.x checkpoint, and without access to the hub "
            "--config must name a diffusers folder of the same kind."
        ) from error
    with replacing_folder(folder) as partial:
        pipe.save_pretrained(partial, safe_serialization=True)
        check_folder(partial)
    return folder
