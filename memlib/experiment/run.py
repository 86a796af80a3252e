"""What a notebook's run shares: the substrate with its metrics, the store, and how pictures are sampled.

`Experiment` loads the substrate once; `group` and `control` take prompt sets under it (`memlib.experiment.group.Group`), which edit, sample and score.
"""

from __future__ import annotations

import time
from pathlib import Path

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole
from memlib.experiment import picture_policy as care
from memlib.experiment.group import Group
from memlib.experiment.provenance import Provenance, provenance
from memlib.experiment.settings import Settings
from memlib.metrics import metrics_for
from memlib.models.protocol import Substrate
from memlib.models.substrate import load
from memlib.prompts.sets import PromptSet, choose_prompts, rows_of
from memlib.sampling.stored import PictureStore


class Experiment(Settings):
    """A substrate with its metrics, the store, and how pictures are sampled (`clip` Section 3: 50 steps, guidance 7.5).

    `n_seeds` seeds 0..n-1 are used for every prompt. `loaded` is the substrate where it was loaded before;
    `pictures` says how pages show pictures (`memlib.experiment.picture_policy`). Raises InputError for an unknown substrate, zero steps or seeds.
    """

    def __init__(
        self,
        substrate: str,
        *,
        n_seeds: int = 4,
        steps: int = 50,
        guidance: float = 7.5,
        scheduler: str = "ddim",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | None = None,
        store: str | Path | None = None,
        progress: bool = False,
        loaded: Substrate | None = None,
        pictures: str = "auto",
    ):
        self.started = time.monotonic()
        if not is_whole(n_seeds, 1):
            raise InputError(f"n_seeds is {n_seeds!r}: use a whole number of at least 1.")
        model = load(substrate, device, dtype) if loaded is None else loaded
        care.choose(pictures, model.data.free)
        model.scheduler(scheduler, steps)  # refuses impossible steps before anything is sampled
        metrics = metrics_for(model, reference=None if model.data.held_out is None else model.data.held_out(None))
        super().__init__(model, PictureStore(store), metrics, tuple(range(n_seeds)), steps, guidance, scheduler, batch_size, progress)

    def group(self, prompts: str | PromptSet, count: int | None = None, label: str | None = None) -> Group:
        """The prompt set `prompts`: "memorized" or "not memorized" for the substrate's own, a name, or a file.

        At most `count` prompts, drawn with a fixed seed where there are more.
        """
        found = choose_prompts(prompts, self.substrate.data, count)
        return Group(self, found, label or (prompts if isinstance(prompts, str) else prompts.name))

    def control(self, prompts: str | PromptSet = "auto", count: int | None = None, label: str = "same kind, seen once") -> Group | None:
        """Prompts of the memorized ones' kind that are not memorized, for telling memorization from wording; None where there are none.

        "auto" takes what the substrate's data knows to have been seen once; "none" is none; else as in `group`.
        """
        if isinstance(prompts, str) and prompts in ("auto", "none"):
            if prompts == "none" or self.substrate.data.seen_once is None:
                return None
            prompts = rows_of(self.substrate.data.seen_once)
        return self.group(prompts, count, label)

    def pair(self, memorized: str | PromptSet, not_memorized: str | PromptSet, count: int | None = None) -> tuple[Group, Group]:
        """The two groups that nearly every page compares, so labelled: memorized prompts and others, at most `count` of each."""
        return self.group(memorized, count, "memorized"), self.group(not_memorized, count, "not memorized")

    def provenance(self) -> Provenance:
        """Where the figures of this run come from; the last line of every notebook."""
        s = self.substrate
        facts = {
            "substrate": f"{s.name} ({s.revision or 'weights ' + s.weights_hash[:12]})",
            "seeds": f"{self.seeds[0]} to {self.seeds[-1]}",
            "sampler": f"{self.scheduler}, {self.steps} steps, guidance {self.guidance:g}, {str(s.dtype).removeprefix('torch.')}",
            "pictures": f"{self.store.made} sampled or scored here, {self.store.found} from the store",
        }
        return provenance(facts, self.started, s.device)
