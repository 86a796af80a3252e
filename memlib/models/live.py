"""Whether a pipeline's parts are as they were loaded: everything that shapes a picture, looked at anew each time and named where it can be.

A LoRA that is fused, a weight that is written to, an adapter's scale, tiles of the VAE, FreeU: each changes pictures, and none of them
the files that a model came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from memlib.base.hashing import digest
from memlib.models.hooks import MethodStandIn, of_this_thread

PARTS = ("unet", "vae", "text_encoder")
SAMPLED = 32  # Words of each tensor that are looked at one by one whenever a name is asked for, beside the sum of all.
# Plain attributes that leave pictures as they are; torch's own and private ones are left out as well, but for those of adapters.
IDLE = ("gradient_checkpointing", "name_or_path", "warnings_issued")
ADAPTERS = ("_active_adapter", "_disable_adapters")


class LiveState:
    """What the parts of a pipeline held when this was made, for comparison with what they hold now.

    Weights and buffers are compared by their place in memory, by torch's count of writes, and by the sum of all their bits with a few of their
    values (writing to ``.data`` leaves no other trace): a write past torch that only puts other values of a tensor into another order would be seen
    at those few alone. Where one differs, by the hash of its content, so that a change that was taken back is none.
    """

    def __init__(self, pipe: Any):
        tensors = dict(_tensors(pipe))
        with ThreadPoolExecutor() as pool:
            contents = dict(zip(tensors, pool.map(_content, tensors.values()), strict=True))
        self._seen = {name: (_mark(tensor), contents[name]) for name, tensor in tensors.items()}
        self._loaded, self._settings, self._calls = contents, _settings(pipe), _calls(pipe)

    def changes(self, pipe: Any) -> dict[str, Any]:
        """Return what can be named of what has changed: the contents of tensors and plain settings by name; empty where nothing has."""
        found: dict[str, Any] = {}
        tensors = dict(_tensors(pipe))
        for name, tensor in tensors.items():
            mark = _mark(tensor)
            if name not in self._seen or self._seen[name][0] != mark:
                self._seen[name] = mark, _content(tensor)
            if self._seen[name][1] != self._loaded.get(name):
                found[name] = self._seen[name][1]
        found |= {name: "gone" for name in self._loaded if name not in tensors}
        settings = _settings(pipe)
        return found | {name: settings.get(name, "gone") for name in {*settings, *self._settings} if settings.get(name) != self._settings.get(name)}

    def unnamed(self, pipe: Any) -> str:
        """Return the first part that is called otherwise than it was (a hook, another `forward`, class or attention), or an empty text."""
        now = _calls(pipe)
        return next((name for name in [*now, *self._calls] if now.get(name) != self._calls.get(name)), "")


def _parts(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    for part in PARTS:
        module = getattr(pipe, part)
        yield part, getattr(module, "_orig_mod", module)  # the model inside what torch.compile returns


def _modules(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    for part, model in _parts(pipe):
        yield from ((f"{part}.{name}".rstrip("."), module) for name, module in model.named_modules())


def _tensors(pipe: Any) -> Iterator[tuple[str, Tensor]]:
    for part, model in _parts(pipe):
        yield from ((f"{part}.{name}", tensor.detach()) for name, tensor in [*model.named_parameters(), *model.named_buffers()])


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """What tells cheaply that a tensor is the same and was not written to."""
    if tensor.is_meta or tensor.is_sparse:
        return (id(tensor),)
    octets = tensor.contiguous().reshape(-1).view(torch.uint8)
    octets = octets.clone() if octets.storage_offset() % 8 else octets
    rest = len(octets) % 8
    words = octets[: len(octets) - rest].view(torch.int64)  # eight octets at once, as fast as memory gives them; overflow does no harm
    values = int(words.sum()), words[:: len(words) // SAMPLED + 1].tolist(), octets[len(octets) - rest :].tolist()
    writes = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), writes, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, values


def _content(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "not in memory"
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode() + flat.numpy().tobytes()).hexdigest()


def _settings(pipe: Any) -> dict[str, str]:
    """Plain attributes of every module and the configurations of the parts, as texts."""
    found = {}
    for name, module in _modules(pipe):
        for attribute, value in vars(module).items():
            if (attribute in ADAPTERS or not attribute.startswith("_")) and attribute not in IDLE and _plain(value):
                found[f"{name}:{attribute}"] = repr(value)
    for part, model in _parts(pipe):
        config = getattr(model, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        found |= {f"{part}:config.{key}": repr(value) for key, value in config.items() if not key.startswith("_") and key not in IDLE}
    return found


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _only_listens(hook: Any) -> bool:
    """transformers puts a hook on its layers at the first call that asks for hidden states: it takes note of outputs and leaves them as they are."""
    return getattr(hook, "__module__", "").startswith("transformers.") and getattr(hook, "__qualname__", "").endswith("output_capturing_hook")


def _forward(module: nn.Module) -> Any:
    """What a module has in the place of its class's `forward`; what memlib has put there (`TextCache`) changes no value and is looked through."""
    found = vars(module).get("forward")
    return found.own if isinstance(found, MethodStandIn) else found


def _processor(module: nn.Module) -> Any:
    """A module's attention processor, as this thread's calls find it (`memlib.sampling.attention.taps`)."""
    found = getattr(module, "processor", None)
    return getattr(found, "of_this_thread", found)


def _calls(pipe: Any) -> dict[str, tuple[Any, ...]]:
    """How each module is called: its class, its hooks, what stands in for its `forward`, and the class of its attention."""
    return {
        name: (
            type(module), tuple(filter(of_this_thread, module._forward_pre_hooks.values())),
            tuple(hook for hook in module._forward_hooks.values() if of_this_thread(hook) and not _only_listens(hook)),
            _forward(module), type(_processor(module)),
        )
        for name, module in _modules(pipe)
    }  # fmt: skip


def named(loaded: str, changes: dict[str, Any]) -> str:
    """Return the hash of a model as it is now: that of what was loaded, or one over this and all that has changed since."""
    return loaded if not changes else digest({"loaded": loaded, "changed": changes})
