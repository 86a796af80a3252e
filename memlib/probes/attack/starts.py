"""Where the search for an embedding begins: at the picture's own prompt, at another prompt, or anywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding, encode_prompts
from memlib.sampling.calibration import reference_prompts

STARTS = {
    "prompt": "the picture's own prompt",
    "other": "a prompt that is not memorized",
    "random": "a random point",
}


def seeded(*what: Any) -> torch.Generator:
    """Return a CPU generator that follows from `what` alone."""
    return torch.Generator().manual_seed(int(digest(list(what))[:15], 16))


def start_states(substrate: Substrate, embedding: Embedding, start: str, restarts: int) -> Tensor:
    """Return where the `restarts` runs of each of P prompts begin, [P, R, 77, d], float32 on the CPU.

    - "prompt": the prompt's own states, the same for every restart (the runs differ in the noise that they see);
    - "other": the states of prompts that are not memorized, drawn without repetition within a picture;
    - "random": at each position a random direction, with the length that the prompt's own state has there.

    A picture's starts do not depend on the other pictures. Raises InputError for an unknown start, or fewer other prompts than restarts.
    """
    if start not in STARTS:
        raise InputError(f"Unknown start {start!r} of an attack: use one of {', '.join(STARTS)}.")
    own = embedding.states.float()
    if start == "prompt":
        return own[:, None].expand(-1, restarts, -1, -1).clone()
    prompts = embedding.tokens.prompts
    if start == "random":
        directions = torch.stack([
            torch.randn((restarts, *own.shape[1:]), generator=seeded("random start", prompt)) for prompt in prompts
        ])  # fmt: skip
        return directions / directions.norm(dim=-1, keepdim=True) * own.norm(dim=-1)[:, None, :, None]
    known = reference_prompts(substrate)
    found = []
    for prompt in prompts:
        others = [other for other in known if other != prompt]
        if len(others) < restarts:
            raise InputError(f"There are {len(others)} other prompts to start from, and {restarts} were asked for: ask for fewer restarts.")
        order = torch.randperm(len(others), generator=seeded("other start", prompt)).tolist()
        # One at a time: a state's last digits depend on what is encoded with it.
        found.append(torch.cat([encode_prompts(substrate, others[place]).states.float() for place in order[:restarts]]))
    return torch.stack(found)
