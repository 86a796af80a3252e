"""The family: smaller trainings of MiniSD with one thing changed at a time (data/minisd2/family.yml), one command after another, resumable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memlib.base.errors import InputError
from memlib.base.writing import replacing
from memlib.models.devices import bfloat16_pays, device_of
from memlib.models.minisd2.corpus import Corpus
from memlib.models.minisd2.paths import read_yaml, training_settings
from memlib.training.minisd.mitigated_part import MitigatedPart
from memlib.training.minisd.mitigations import get
from memlib.training.minisd.parts import ContrastivePart
from memlib.training.minisd.train import MARKS
from memlib.training.minisd.trainer import Trainer
from memlib.training.minisd2.train import Recipe, export_text, export_unet, runs, schedule, unet_part

KEYS = {"says", "seeds", "corpus", "unet", "padding", "text_steps", "mitigation"}


@dataclass(frozen=True)
class Member:
    """A member of the family: what differs from the base, in words, and the seeds it is trained with."""

    name: str
    says: str
    seeds: tuple[int, ...]
    corpus: dict[str, Any]
    unet: dict[str, Any]
    padding: str
    text_steps: int | None
    mitigation: str | None


def members() -> dict[str, Member]:
    """The members by name, in the file's order. Raises InputError for an entry that changes what there is not."""
    family = read_yaml("family")
    training, found = training_settings(), {}
    for name, given in family["members"].items():
        if unknown := set(given) - KEYS:
            raise InputError(f"The member {name!r} of family.yml has {', '.join(sorted(unknown))}: allowed are {', '.join(sorted(KEYS))}.")
        allowed = {"corpus": {*training["corpus"], "duplicates", "known_titles"}, "unet": set(training["unet"])}
        for block, keys in allowed.items():
            if unknown := set(given.get(block, {})) - keys:
                raise InputError(f"The member {name!r} of family.yml changes {', '.join(sorted(unknown))} of {block}: allowed are {', '.join(sorted(keys))}.")
        if given.get("mitigation"):
            get(given["mitigation"])
        found[name] = Member(
            name, given["says"], tuple(given.get("seeds", family["seeds"])), given.get("corpus", {}), given.get("unet", {}),
            given.get("padding", "v1"), given.get("text_steps"), given.get("mitigation"),
        )  # fmt: skip
    return found


def member_recipe(member: Member, seed: int) -> Recipe:
    """How a member is trained with a seed: the training's blocks, the family's in their place, and the member's in theirs."""
    training, reduced = training_settings(), read_yaml("family")["recipe"]
    corpus = training["corpus"] | reduced["corpus"] | member.corpus | {"seed": seed}
    unet = training["unet"] | reduced["unet"] | member.unet | {"seed": seed}
    text = None
    if member.text_steps is not None:
        text = runs() / "family" / f"text-{member.text_steps}" / "export"
    elif not corpus.get("known_titles", True):
        text = runs() / "text" / "export-unread"
    return Recipe(member.padding, corpus, unet, text, member.mitigation)


def _train_text(steps: int, device: torch.device, half: bool, progress: bool) -> None:
    """A text encoder like the main one, for fewer steps."""
    given = training_settings()
    folder = runs() / "family" / f"text-{steps}"
    if (folder / "export").exists():
        return
    block = given["text"] | {"steps": steps}
    trainer = Trainer(ContrastivePart(Corpus(**given["corpus"], device=device), block, device, half), schedule(block), folder, device)
    trainer.run(progress=progress)
    trainer.part.module.eval()
    export_text(trainer, block, folder / "picture-tower")


def train_member(member: Member, seed: int, device: torch.device, half: bool, progress: bool = True) -> None:
    """Train a member with a seed to its end and write its pipeline to the runs folder; one that is there is left as it is."""
    folder = runs() / "family" / f"{member.name}-s{seed}"
    if (folder / "pipeline" / "model_index.json").exists():
        return
    if member.text_steps is not None:
        _train_text(member.text_steps, device, half, progress)
    made = member_recipe(member, seed)
    trainer = Trainer(unet_part(made, device, half), schedule(made.settings), folder, device)
    trainer.run(progress=progress)
    trainer.part.module.load_state_dict(trainer.averaged_state())
    export_unet(trainer.part.module.eval(), made, f"minisd-{made.padding}", folder / "pipeline")
    if isinstance(part := trainer.part, MitigatedPart):
        with replacing(folder / MARKS) as partial:
            partial.write_text(json.dumps(part.marks()) + "\n")


def train_family(names: Sequence[str] | None, seeds: Sequence[int] | None, device: str, precision: str, progress: bool) -> None:
    """Train members (default: all) with their seeds (default: all of theirs), the first seed of each member first."""
    known = members()
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(f"There is no member {unknown[0]!r} in the family: choose among {', '.join(known)}.")
    place = device_of(device)
    half = bfloat16_pays(place) if precision == "auto" else precision == "bfloat16"
    chosen = [known[name] for name in names or known]
    turns = max(len(member.seeds) for member in chosen)
    for turn in range(turns):
        for member in chosen:
            if turn < len(member.seeds) and (not seeds or member.seeds[turn] in seeds):
                train_member(member, member.seeds[turn], place, half, progress)
