"""What detectors compute with the U-Net: in batches over prompts and seeds, kept in the store, counted in U-Net rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from memlib.base.errors import NotMeasured
from memlib.base.hashing import digest
from memlib.experiment.group import Group
from memlib.models.protocol import Substrate
from memlib.sampling.attention.positions import eot_masks
from memlib.sampling.attention.record import cross_attention_layers, entropy, finest_down_layers, record
from memlib.sampling.batches import Batch, decode, initial_latents, uncond_states
from memlib.sampling.first_step import NO_SIGNAL, norms
from memlib.sampling.guidance import as_rule
from memlib.sampling.loop import Cost, to_epsilon, trajectory

VERSION = 1  # Part of the store's keys: raise it when the same key would give other scores.

Arrays = dict[str, np.ndarray]
Compute = Callable[[Substrate, Batch, Cost], Mapping[str, np.ndarray]]


def per_sample(
    group: Group,
    measure: Mapping[str, Any],
    compute: Compute,
    *,
    seeds: Sequence[int] | None = None,
    serves: Sequence[Mapping[str, Any]] = (),
    trim: Callable[[Arrays], Arrays] | None = None,
) -> Arrays:
    """Return what `compute` gives for every prompt and seed: arrays [N, S, ...] by name, through the group's store.

    `compute(substrate, batch, cost)` gets B samples and returns arrays [B, ...]; it adds the U-Net rows that it spends to `cost`.
    ``"evaluations"`` is added, U-Net rows per sample, unless compute gives it itself. `measure` names all that the result depends
    on beside model, sampler, prompts and seeds. Each sample has an entry of its own, saved when its batch is done; an entry made
    for one of the measures in `serves` is taken instead where the store has it. `trim` is applied to each entry that is read.
    Finished pictures, uint8 [B, H, W, 3] under ``"picture"``, go to the store's pictures, where `Group.pictures` finds them.
    """
    x = group.experiment
    seeds = list(x.seeds if seeds is None else seeds)
    uncond = uncond_states(x.substrate)
    pairs = [(row, seed) for row in range(len(group)) for seed in seeds]
    states, recipe = [digest(row.float()) for row in group.embedding.states], x.keyed()
    shared = [{"version": VERSION, "cond": states[row], "seed": seed, **recipe} for row, seed in pairs]
    entries: list[Any] = [_served(x.store, key, serves) for key in shared]
    absent = [i for i, entry in enumerate(entries) if entry is None]

    def computed(wanted: list[int]) -> Iterator[tuple[int, Arrays]]:
        made = _computed(group, [pairs[absent[i]] for i in wanted], uncond, compute)
        for i, arrays in zip(wanted, made, strict=True):
            if (picture := arrays.pop("picture", None)) is not None:
                _keep_picture(x.store, shared[absent[i]], picture)
            yield i, arrays

    keys = [{**shared[i], "detection": dict(measure)} for i in absent]
    for i, entry in zip(absent, x.store.scores(keys, computed) if keys else [], strict=True):
        entries[i] = entry
    entries = entries if trim is None else [trim(entry) for entry in entries]
    joined = {name: np.stack([entry[name] for entry in entries]) for name in entries[0]}
    return {name: values.reshape(len(group), len(seeds), *values.shape[1:]) for name, values in joined.items()}


def _served(store: Any, key: Mapping[str, Any], serves: Sequence[Mapping[str, Any]]) -> Any:
    found = (store.peek({**key, "detection": dict(other)}) for other in serves)
    return next((entry for entry in found if entry is not None), None)


def _keep_picture(store: Any, shared: Mapping[str, Any], picture: np.ndarray) -> None:
    recipe = {name: part for name, part in shared.items() if name != "version"}  # what `PictureStore.ensure` makes its keys of
    key = digest(recipe)
    if store.read_picture(key) is None:
        store.write_picture(key, picture, recipe)


def _computed(group: Group, pairs: list[tuple[int, int]], uncond: Tensor, compute: Compute) -> Iterator[Arrays]:
    """Yield the arrays of each (row, seed) in turn, computed in batches."""
    x = group.experiment
    size = x.batch_size or x.substrate.batch_size()
    with tqdm(total=len(pairs), unit="sample", disable=not x.progress) as bar:
        for start in range(0, len(pairs), size):
            rows, seeds = map(list, zip(*pairs[start : start + size], strict=True))
            latents = initial_latents(seeds, x.substrate.latent_shape)
            batch = Batch(rows, seeds, group.embedding.select(rows), uncond, latents, x.steps, as_rule(x.guidance), x.scheduler)
            cost = Cost()
            arrays = dict(compute(x.substrate, batch, cost))
            arrays.setdefault("evaluations", np.full(len(rows), cost.evaluations / len(rows)))
            x.cost.evaluations += cost.evaluations
            x.cost.pictures += cost.pictures
            yield from ({name: values[i] for name, values in arrays.items()} for i in range(len(rows)))
            bar.update(len(rows))


def need_signal(substrate: Substrate, schedule: Any, t: Any) -> None:
    """Raise NotMeasured where latents at time t are noise alone, so that the noise in them is known without the text."""
    if float(schedule.alphas_cumprod[int(t)]) < NO_SIGNAL:
        raise NotMeasured(
            f"The noise schedule of {substrate.name} begins without any signal (zero terminal SNR), where the predicted noise does not depend on the prompt: "
            "use a detector that looks at more steps."
        )


def first_steps(group: Group, steps: int, scheduler: str | None = None) -> int:
    """How many first steps of a group's runs a parameter `steps` means, 0 standing for all; raises NotMeasured for one that begins without signal."""
    x = group.experiment
    schedule = x.substrate.scheduler(scheduler or x.scheduler, x.steps)
    total = len(schedule.timesteps)
    count = min(steps, total) if steps else total
    if count == 1:
        need_signal(x.substrate, schedule, schedule.timesteps[0])
    return count


@torch.no_grad()
def noise_pair(substrate: Substrate, batch: Batch, latents: Tensor, t: Any, schedule: Any, cost: Cost) -> tuple[Tensor, Tensor]:
    """Return the predicted noise (unconditional, conditional) [B, C, h, w], float32, of `latents` at time t; two rows a sample.

    `latents` are in the scaling of DDIM, and `schedule` is a DDIM scheduler.
    """
    count = len(latents)
    text = torch.cat([batch.uncond.expand(count, -1, -1), batch.embedding.states]).to(substrate.device, substrate.dtype)
    latents = latents.to(substrate.device, torch.float32)
    doubled = torch.cat([latents, latents]).to(substrate.dtype)
    output = substrate.unet(doubled, t, encoder_hidden_states=text, return_dict=False)[0].float()
    cost.evaluations += 2 * count
    uncond, cond = output.chunk(2)
    return to_epsilon(uncond, latents, t, schedule), to_epsilon(cond, latents, t, schedule)


def magnitudes(group: Group, steps: int) -> Arrays:
    """Return arrays [N, S, steps] over the first `steps` steps of an ordinary guided run of every prompt and seed.

    ``magnitude`` is the L2 norm of the difference between conditional and unconditional noise, per sample; ``cond`` and ``uncond``
    are the norms of the two; ``evaluations`` the U-Net rows spent up to and including each step. A longer run in the
    store serves as well.
    """
    total = group.experiment.calls
    longer = [_run(total, True), _run(total, False)]
    names = ("magnitude", "cond", "uncond", "evaluations")
    return per_sample(
        group, _run(steps, False), partial(_record, steps=steps, attention=False), serves=longer,
        trim=lambda part: {name: part[name][..., :steps] for name in names},
    )  # fmt: skip


def whole_run(group: Group) -> Arrays:
    """Return what `magnitudes` gives for all T steps, and what cross-attention shows on the same run.

    ``entropy`` [N, S, T] is that of attention over the 77 positions (mean over pixels, heads and layers first, nats) and
    ``entropy_end`` its part from ``<eot>`` and padding, not renormalised; ``entropy_layers`` [N, S, L, T] is the entropy in each layer.
    ``masked`` [N, S, T] is the magnitude under the mask of bright ending (see `memlib.probes.detectors.bright_ending`). One run serves all; its
    pictures are kept as well.
    """
    total = group.experiment.calls
    return per_sample(group, _run(total, True), partial(_record, steps=total, attention=True))


def _run(steps: int, attention: bool) -> dict[str, Any]:
    return {"measure": "run", "first steps": steps, "attention": attention}


def _record(substrate: Substrate, batch: Batch, cost: Cost, *, steps: int, attention: bool) -> Arrays:
    finest = finest_down_layers(cross_attention_layers(substrate)) if attention else []
    seen = record(substrate, maps=finest, steps=steps) if attention else nullcontext()
    lengths: dict[str, list[Tensor]] = {"magnitude": [], "cond": [], "uncond": []}
    spent, differences = [], []
    with seen as recording:
        walk = trajectory(substrate, batch.embedding.states, batch.uncond, batch.latents, batch.steps, batch.rule, batch.scheduler, cost=cost)
        for step in islice(walk, steps):
            difference = step.epsilon_cond - step.epsilon_uncond
            for name, values in (("magnitude", difference), ("cond", step.epsilon_cond), ("uncond", step.epsilon_uncond)):
                lengths[name].append(norms(values).cpu())
            spent.append(cost.evaluations / len(batch.rows))
            if attention:
                differences.append(difference.cpu())
    arrays = {name: torch.stack(values, 1).numpy() for name, values in lengths.items()}
    arrays["evaluations"] = np.tile(spent, (len(batch.rows), 1))
    if recording is None:
        return arrays
    arrays["picture"] = decode(substrate, step.next_latents)
    cost.pictures += len(batch.rows)
    seen_attention, tokens = recording.attention, batch.embedding.tokens
    arrays["entropy"] = entropy(seen_attention).T
    arrays["entropy_end"] = entropy(seen_attention, tokens.eot | tokens.pad).T
    by_layer = [entropy(seen_attention.cond[:, [i]]).T for i in range(len(seen_attention.layers))]
    arrays["entropy_layers"] = np.stack(by_layer, 1).astype(np.float32)
    maps = torch.from_numpy(np.mean(list(seen_attention.maps.values()), axis=0))
    masks = eot_masks(maps, tokens.lengths + 1, differences[0].shape[-2:])
    arrays["masked"] = torch.stack([masked_magnitude(d, masks) for d in differences], 1).numpy()
    return arrays


def masked_magnitude(difference: Tensor, masks: Tensor) -> Tensor:
    """Return ``||difference * mask|| / mean(mask)`` [B] for differences [B, C, h, w] and masks [B, h, w], each image by its own mean."""
    return norms(difference * masks[:, None]) / masks.flatten(1).mean(1)
