"""Pictures and scores kept on disk under a hash of everything that made them.

An entry is written to a temporary file on the same disk, flushed, and renamed into place: a reader
sees a whole entry or none, whoever is killed and when. Every entry carries its own key and a checksum
of its content; one that fails the check counts as absent and is made again. Several processes may use
one store: who asks for what another is making, with the same list of keys, waits for it; of lists that
merely overlap an entry may be made twice, and the second rename replaces equal with equal.

    python -m memlib.base.store verify | stats | merge OTHER | prune --older-than 30
"""

from __future__ import annotations

from pathlib import Path

from memlib.base.store.files import STALE_SECONDS
from memlib.base.store.pictures import Pictures
from memlib.base.store.scores import Scores, read_entry

__all__ = ["STALE_SECONDS", "Store"]


class Store(Pictures, Scores):
    """Pictures under ``pictures/`` (lossless PNG) and scores under ``scores/`` (JSON) of one folder.

    `sampler` stands in for `memlib.sampling.batches.sample_batches`, which is imported at first need. `made`,
    `found` and `repaired` count the entries computed, read, and computed again because they were broken.
    """

    def broken(self) -> list[Path]:
        """Return the entries that fail their check; each is made again when it is next asked for."""
        pictures = [path for path in self.entries("pictures") if self.read_picture(path.stem) is None]
        scores = [path for path in self.entries("scores") if read_entry(path, path.stem) is None]
        return sorted(pictures + scores)
