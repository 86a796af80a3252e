"""Keys of the store stay byte-identical: what was made stays found, whatever happens to the code that names it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from memlib.base.hashing import digest
from memlib.mitigations import get
from memlib.sampling.recipe import Recipe
from memlib.sampling.stored import PictureStore

STATES = torch.arange(2 * 77 * 3, dtype=torch.float32).reshape(2, 77, 3) / 100
UNCOND = torch.zeros(1, 77, 3)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def key(folder, row=0, seed=0, steps=50, guidance=7.5, scheduler="ddim", uncond=UNCOND, dtype=torch.float32, mitigation=None):
    made = {"ddim": DDIMScheduler(**SCHEDULE), "dpm": DPMSolverMultistepScheduler(**SCHEDULE)}
    substrate = SimpleNamespace(weights_hash="ab" * 32, dtype=dtype, scheduler=lambda kind, steps: made[kind])
    embedding = SimpleNamespace(states=STATES[[row]])
    asked = PictureStore(folder).asked(substrate, embedding, [seed], Recipe(steps, guidance, scheduler), uncond=uncond, mitigation=mitigation)
    return asked.keys[0][0]


PICTURES = {
    "plain": {}, "another prompt": {"row": 1}, "another seed": {"seed": 3}, "fewer steps": {"steps": 10}, "no guidance": {"guidance": 0},
    "a rule": {"guidance": get("static-transition").guidance(7.5)}, "another scheduler": {"scheduler": "dpm"},
    "another unconditional text": {"uncond": UNCOND + 1}, "half precision": {"dtype": torch.float16}, "a mitigation": {"mitigation": get("wen-1")},
}  # fmt: skip
PINNED = {
    "plain": "17149557849cfe0aea7a537454e4920f8aa4b14e8a6f29ef7cd833c9361efd46",
    "another prompt": "196f269cef6064935640ab654b0f775283bc1dd5f652ae524680aefcf0f3e3de",
    "another seed": "d9c7a42f20f8463a09a358f59512202632a19ff35ba2310b33d91004d7d3424b",
    "fewer steps": "cb96d8b31887a18cca02a9d9bc31ba4918a05e3b4f03da0a498c3046a694cd38",
    "no guidance": "075f2c6ab1b92d25f229cc050073595cd16693d61582c8f0d25774aaac498a12",
    "a rule": "a6b9d11455c07db90d687b9ae2cea8327067b5fc70a023880a7df09fca7fa149",
    "another scheduler": "27d17fc093312552ef0ffdde12f270cd9cc73469a1a4f456cb6cf2943a850138",
    "another unconditional text": "0dfe170605afef15d87dbd3fc02d04aa8666c49d126b61904b7448e18005b223",
    "half precision": "8fffa99c0abbc6e6688414c19d8ffb3e637c9f7977c8dbe25d0413a24f22e389",
    "a mitigation": "eabdd1ba71e3b787a8dbbceb5ef1249a2beac047005fc68c9cabd20c5ebfd258",
}


@pytest.mark.parametrize("what", PICTURES)
def test_keys_of_pictures_stay(tmp_path, what):
    assert key(tmp_path, **PICTURES[what]) == PINNED[what]


def test_keys_of_scores_stay():
    made = {"score": "alignment", "of": [["ab", [1, 2.5, None]]], "array": np.arange(6, dtype=np.float32).reshape(2, 3), "tensor": torch.ones(2, 2)}
    assert digest(made) == "b931e5a2865098303a8360201ab72fe4a1db7bc41a70bab5a232cee6e799873b"
