"""Cross-attention of a U-Net: recorded while it samples, or edited.

    with record(pipe) as recording:
        pipe("a lighthouse", num_inference_steps=50)
    recording.attention.cond        # [steps, layers, samples, 77]

`record` keeps one number per step, layer, sample and text position: the probability averaged over heads and pixels.
Whole maps are kept only where asked for. `edit` changes logits or probabilities on their way. Both take a substrate, a
diffusers pipeline or a U-Net, work under `memlib.sampling.batches` and under a pipeline's own call, nest in any order, and give
the processors back even after an exception. Method: `clip` Section 3.2 and Appendix D; `attn`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.sampling.attention.positions import Attention, aligned_at_eot, entropy, finest_down_layers
from memlib.sampling.attention.taps import Clock, Tap, chosen, cross_attention_layers, tapped

__all__ = ["Attention", "Recording", "aligned_at_eot", "cross_attention_layers", "edit", "entropy", "finest_down_layers", "record"]

LAST = -1


class Recording(Tap):
    """What `record` yields; `attention` and `runs` may be read during the recording and after it.

    A run is one trajectory from noise to picture: sampling in batches makes one run per batch.
    """

    def __init__(self, clock: Clock, layers: Sequence[str], uncond: bool, maps: Sequence[str], map_steps: Sequence[int], heads: bool):
        self.layers = tuple(layers)
        self._clock, self._halves = clock, ("cond", "uncond") if uncond else ("cond",)
        self._map_layers, self._map_steps, self._heads = frozenset(maps), frozenset(map_steps), heads
        self._means: dict[tuple[int, int], dict[tuple[str, str], list[Tensor]]] = {}
        self._times: dict[tuple[int, int], float] = {}
        self._maps: dict[tuple[int, int, str], tuple[int, list[Tensor]]] = {}

    def rows(self) -> list[slice]:
        rows = [self._clock.half(half) for half in self._halves]
        return [part for part in rows if part.stop > part.start]

    def take(self, layer: str, rows: slice, start: int, probabilities: Tensor) -> None:
        clock, probabilities = self._clock, probabilities.detach()
        half = "cond" if rows == clock.half("cond") else "uncond"
        self._times[clock.run, clock.step] = clock.t
        step = self._means.setdefault((clock.run, clock.step), {})
        step.setdefault((half, layer), []).append(probabilities.mean((1, 2)))
        if half == "cond" and layer in self._map_layers:
            for wanted in {clock.step, LAST} & self._map_steps:
                key = (clock.run, wanted, layer)
                if start == rows.start:  # The map of the last step so far takes the place of the one before.
                    self._maps[key] = (clock.step, [])
                self._maps[key][1].append(self._as_map(probabilities).cpu())

    def _as_map(self, probabilities: Tensor) -> Tensor:
        (height, width), pixels = self._clock.size, probabilities.shape[2]
        while height * width > pixels:
            height, width = -(-height // 2), -(-width // 2)
        kept = probabilities if self._heads else probabilities.mean(1)
        return kept.unflatten(-2, (height, width))

    @property
    def runs(self) -> tuple[Attention, ...]:
        """One `Attention` per run, in order; a step that was broken off is left out, and so is a run without any."""
        found = [self._one(run) for run in sorted({run for run, _ in self._means})]
        return tuple(run for run in found if run is not None)

    @property
    def attention(self) -> Attention:
        """All runs joined along the samples. Raises InputError if nothing ran, or if the runs' steps differ."""
        runs = self.runs
        if not runs:
            raise InputError("Nothing was recorded: run the model inside the with block.")
        if len({run.timesteps for run in runs}) > 1:
            raise InputError(f"The {len(runs)} recorded runs do not have the same steps: read them one by one from runs.")
        uncond = None if any(run.uncond is None for run in runs) else np.concatenate([run.uncond for run in runs], 2)
        maps = {key: np.concatenate([run.maps[key] for run in runs]) for key in runs[0].maps}
        return Attention(np.concatenate([run.cond for run in runs], 2), uncond, self.layers, runs[0].timesteps, maps)

    def _one(self, run: int) -> Attention | None:
        last = ("cond", self.layers[-1])
        steps = sorted(step for r, step in self._means if r == run and last in self._means[r, step])
        if not steps:
            return None
        halves = {}
        for half in self._halves:
            if all((half, self.layers[-1]) in self._means[run, step] for step in steps):
                rows = [torch.stack([torch.cat(self._means[run, step][half, layer]) for layer in self.layers]) for step in steps]
                halves[half] = torch.stack(rows).cpu().numpy()
        maps = {(step, layer): torch.cat(parts).numpy() for (r, _, layer), (step, parts) in self._maps.items() if r == run and step in steps}
        times = tuple(self._times[run, step] for step in steps)
        return Attention(halves["cond"], halves.get("uncond"), self.layers, times, maps)


@contextmanager
def record(
    model: Any,
    *,
    layers: Sequence[str] | None = None,
    uncond: bool = False,
    maps: Sequence[str] = (),
    map_steps: Sequence[int] = (LAST,),
    heads: bool = False,
    guided: bool | None = None,
    steps: int | None = None,
) -> Iterator[Recording]:
    """Record the cross-attention of everything that runs inside; what is computed does not change.

    `layers` are names of `cross_attention_layers` (default all); `uncond` also records the unconditional half. For the
    layers `maps` whole maps are kept at the steps `map_steps` (0, 1, ...; -1 is the last), per head if `heads`.
    `guided` says that a batch is an unconditional and a conditional half; by default it is, except that a pipeline
    called without guidance is noticed. `steps`, U-Net calls per run, need only be given for runs of one step.
    Raises InputError for unknown layers and for processors that are not plain attention.
    """
    known = cross_attention_layers(model)
    names, map_names = chosen(known, layers), chosen(known, maps)
    if not names or not set(map_names) <= set(names):
        raise InputError("Maps can only be kept for layers that are recorded, and at least one must be: add them to layers.")
    clock = Clock(_guidance(model, guided), steps)
    recording = Recording(clock, names, uncond, map_names, map_steps, heads)
    with tapped(model, names, recording, clock):
        yield recording


Change = Callable[[Tensor, str, int], Tensor]


class _Edit(Tap):
    def __init__(self, clock: Clock, change: Change, on: str, half: str):
        self._clock, self._change, self._half, self.edits = clock, change, half, on

    def change(self, values: Tensor, layer: str) -> Tensor:
        rows = self._clock.half(self._half)
        if rows.stop == rows.start:
            return values
        new = self._change(values[rows].clone(), layer, self._clock.step)
        if not isinstance(new, Tensor) or new.shape != values[rows].shape:
            raise InputError(
                f"The edit of {layer} gave {tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__}: "
                f"it must return a tensor of the shape it was given, {tuple(values[rows].shape)}."
            )
        return torch.cat([values[: rows.start], new.to(values), values[rows.stop :]])


@contextmanager
def edit(
    model: Any,
    change: Change,
    *,
    on: str = "probabilities",
    layers: Sequence[str] | None = None,
    half: str = "cond",
    guided: bool | None = None,
    steps: int | None = None,
) -> Iterator[None]:
    """Edit the cross-attention of everything that runs inside, by ``change(values, layer, step)``.

    `values` are float32 [rows, heads, pixels, K], a copy: logits before the softmax (on="logits") or probabilities
    after it; the rows are those of `half`, "cond", "uncond" or "both" (unconditional first). The values returned are
    used as they are: edited probabilities are not normalised again. Edits on one model apply in the order entered.
    `layers`, `guided`, `steps` as in `record`. Source: the masking and rescaling of `attn` are edits of logits.
    """
    if on not in ("logits", "probabilities"):
        raise InputError(f"Cannot edit {on!r}: use logits or probabilities.")
    if half not in ("cond", "uncond", "both"):
        raise InputError(f"Unknown half {half!r}: use cond, uncond or both.")
    names = chosen(cross_attention_layers(model), layers)
    clock = Clock(_guidance(model, guided), steps)
    with tapped(model, names, _Edit(clock, change, on, half), clock):
        yield


def _guidance(model: Any, guided: bool | None) -> Callable[[], bool]:
    # A substrate or a bare U-Net is run guided by memlib; a pipeline knows what its current call does.
    if guided is not None or not hasattr(type(model), "do_classifier_free_guidance"):
        return lambda: guided is not False
    return lambda: model.do_classifier_free_guidance if hasattr(model, "_guidance_scale") else True
