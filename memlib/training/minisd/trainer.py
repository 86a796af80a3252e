"""One training loop for every part of MiniSD: progress, checkpoints, exact resume, a log beside the weights.

A part says how to build its modules, what one step's loss is, and what to export. Everything random in step `k` comes
from a generator seeded with (seed, k), so a run that was killed and resumed makes the same weights as one that was not.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.writing import replacing, write_text


class Part(Protocol):
    """What the loop needs: `module` (all that is trained), `loss(step) -> (scalar, {name: float})`.

    A part that remembers more than its weights from step to step has `state()`, a dict of tensors that checkpoints hold, and `restore(state)`.
    """

    @property
    def module(self) -> Any: ...

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]: ...


@dataclass(frozen=True)
class Schedule:
    """AdamW under a one-cycle rate: linear warm-up, then cosine to zero at `steps`; with `decay=False`, constant after the warm-up.

    With `cooldown`, a share of the steps, the rate is constant and falls in a straight line to zero over the last of them: `steps` can be
    changed at any time before that.
    """

    steps: int
    lr: float
    warmup: int = 100
    ema: float | None = None
    weight_decay: float = 0.01
    decay: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    cooldown: float | None = None

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if not self.decay:
            return self.lr
        if self.cooldown is not None:
            return self.lr * min(1.0, max(0.0, (self.steps - step) / max(1.0, self.cooldown * self.steps)))
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, done)))))


def generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step, on the CPU: the same numbers on every device."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "uncommitted"


def _save(path: Path, state: dict) -> None:
    with replacing(path) as partial:
        torch.save(state, partial)


class Trainer:
    """Runs `part` for `schedule.steps` steps in `folder`; a second call continues where the last checkpoint stands.

    The learning rate follows `schedule` whatever the interruptions. Raises InputError if the loss stops being finite.
    """

    def __init__(self, part: Part, schedule: Schedule, folder: Path, device: torch.device, checkpoint_every: float = 120.0):
        self.part, self.schedule, self.folder, self.device = part, schedule, folder, device
        self.checkpoint_every = checkpoint_every
        folder.mkdir(parents=True, exist_ok=True)
        part.module.to(device)
        self.parameters = [p for p in part.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True)
        self.average = {k: v.detach().clone() for k, v in part.module.state_dict().items()} if schedule.ema else None
        self.step, self.seconds = 0, 0.0
        self.resume()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.part.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        if hasattr(self.part, "restore"):
            self.part.restore(state["part"])

    def save(self) -> None:
        state = {"module": self.part.module.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average,
                 "step": self.step, "seconds": self.seconds, "part": self.part.state() if hasattr(self.part, "state") else {}}  # fmt: skip
        _save(self.checkpoint, state)

    def _trim_log(self) -> None:
        # A step logged after the last checkpoint is run again: its line is dropped.
        log = self.folder / "log.jsonl"
        if log.exists():
            lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] < self.step]
            write_text(log, "".join(f"{line}\n" for line in lines))

    def _update_average(self) -> None:
        # A short memory at first, so that the average does not remember the initial weights.
        assert self.average is not None
        decay = min(self.schedule.ema or 0.0, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.part.module.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)

    def run(self, until: int | None = None, progress: bool = True) -> None:
        """Train up to step `until` (default, and for 0: the schedule's end); what stops it leaves the last checkpoint."""
        end = min(until or self.schedule.steps, self.schedule.steps)
        started = last_saved = time.monotonic()
        already = self.seconds
        bar = tqdm(total=self.schedule.steps, initial=self.step, desc=self.folder.name, unit="step", disable=not progress,
                   mininterval=5.0, smoothing=0.05)  # fmt: skip
        running: dict[str, float] = {}
        self._trim_log()
        try:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8", buffering=1) as log:
                while self.step < end:
                    for group in self.optimizer.param_groups:
                        group["lr"] = self.schedule.rate(self.step)
                    loss, numbers = self.part.loss(self.step)
                    if not torch.isfinite(loss):
                        raise InputError(f"The loss of {self.folder.name} is not finite at step {self.step}: lower its learning rate.")
                    self.optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    nn.utils.clip_grad_norm_(self.parameters, 1.0)
                    self.optimizer.step()
                    if self.average is not None:
                        self._update_average()
                    for k, v in {"loss": float(loss.detach()), **numbers}.items():
                        running[k] = v if k not in running else 0.95 * running[k] + 0.05 * v
                    if self.step % 20 == 0:
                        self.seconds = already + time.monotonic() - started
                        log.write(json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **{k: round(v, 5) for k, v in running.items()}}) + "\n")
                        bar.set_postfix({k: f"{v:.4f}" for k, v in running.items()}, refresh=False)
                    self.step += 1
                    bar.update()
                    if time.monotonic() - last_saved > self.checkpoint_every:
                        self.seconds = already + time.monotonic() - started
                        self.save()
                        last_saved = time.monotonic()
        finally:
            self.seconds = already + time.monotonic() - started
            bar.close()
        self.save()

    def averaged_state(self) -> dict[str, torch.Tensor]:
        """The weights to export: the moving average where there is one."""
        return self.average if self.average is not None else self.part.module.state_dict()

    def record(self) -> dict:
        """What is kept beside the weights: steps, minutes, hardware, versions, commit and the thinned loss curve."""
        log = self.folder / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        curve = lines[:: max(1, len(lines) // 200)]
        return {"steps": self.step, "of": self.schedule.steps, "minutes": round(self.seconds / 60, 1), "hardware": hardware(self.device),
                "torch": torch.__version__, "commit": commit(), "curve": curve}  # fmt: skip
