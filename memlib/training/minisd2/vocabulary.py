"""Which ids of the CLIP vocabulary MiniSD's language holds, and one embedding for all others.

A text encoder of 49,408 ids is 12 MB of embeddings, of which a language of some thousand words trains a fortieth. The others keep values
drawn at random, which no compression makes smaller; set to one value they cost next to nothing, and a word that was never read looks to
the encoder like any other that was not.
"""

from __future__ import annotations

import torch

from memlib.models.minisd2.corpus import Corpus
from memlib.models.tokenizer import build_clip_tokenizer

CAPTIONS = 60_000  # a word of the language comes in each of thousands of captions: none is missed
KEPT = (0, 49_406, 49_407)  # `!`, which pads as in Stable Diffusion 2, and the two special tokens


def language_ids(corpus: Corpus) -> torch.Tensor:
    """Ids of the first captions of `corpus`, all repeated and held-out ones, and KEPT, sorted int64 [K]."""
    captions = [corpus.example(i)[1] for i in range(CAPTIONS)] + [pair.caption for pair in corpus.repeated]
    captions += [text for what in ("combinations", "concepts") for _, text in corpus.held_out(1000, what)]
    ids = build_clip_tokenizer()(captions, padding=False, truncation=True, max_length=77).input_ids
    return torch.tensor(sorted({number for row in ids for number in row} | set(KEPT)))


@torch.no_grad()
def share_unused(embedding: torch.nn.Embedding, used: torch.Tensor) -> None:
    """Give all rows but `used` the value of the first of them, in place."""
    unused = torch.ones(len(embedding.weight), dtype=torch.bool)
    unused[used] = False
    first = int(unused.nonzero()[0])
    embedding.weight[unused.to(embedding.weight.device)] = embedding.weight[first].clone()
