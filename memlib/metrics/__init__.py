"""What is measured on pictures, and which measure belongs to which kind of substrate.

`METRICS` is the registry; `metrics_for(substrate)` gives the ones to use, by role. A metric whose weights
are not at hand comes as `Unmeasured`: it says why, raises NotMeasured when used, and is never replaced by
another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memlib.base.errors import InputError, NotMeasured
from memlib.base.paths import data_folder
from memlib.metrics.alignment import load_minisd_evaluator, load_open_clip
from memlib.metrics.diversity import descriptor_diversity, load_lpips
from memlib.metrics.quality import load_aesthetic, load_realism
from memlib.metrics.similarity import load_minisd_descriptor, load_sscd
from memlib.models.minisd2.paths import minisd2_folder
from memlib.models.protocol import Substrate

Made = Mapping[str, Any]
ROLES = ("copy", "alignment", "alignment_check", "quality", "diversity", "distribution")


@dataclass(frozen=True)
class Metric:
    """A registered metric: what it measures and how to make it.

    A substrate's data names those that it is judged by. `make` takes the metrics made
    so far for the same substrate, the device, and real pictures to compare with (or None). `weights` names the
    files of ``data/metrics.yml`` that it is made from.
    """

    name: str
    role: str
    label: str
    scale: str
    source: str
    make: Callable[[Made, Any, Any], Any]
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unmeasured:
    """Stands where a metric cannot be computed, with the sentence that says why."""

    name: str
    role: str
    reason: str
    available: bool = field(default=False, init=False)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise NotMeasured(f"{self.name} is not measured: {self.reason}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotMeasured(f"{self.name} is not measured: {self.reason}")


class MetricSet(Mapping):
    """The metrics of one substrate by role, as a mapping and as attributes (``metrics.copy``)."""

    def __init__(self, metrics: Mapping[str, Any]):
        self._metrics = dict(metrics)

    def __getitem__(self, role: str) -> Any:
        if role not in self._metrics:
            raise InputError(f"Unknown metric role {role!r}: choose one of {', '.join(self._metrics)}.")
        return self._metrics[role]

    def __getattr__(self, role: str) -> Any:
        if role.startswith("_") or role not in self._metrics:
            raise AttributeError(f"There is no metric with the role {role!r}.")
        return self._metrics[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)


def metrics_for(substrate: Substrate, *, reference: Any = None) -> MetricSet:
    """Return the metrics for `substrate` by role: copy, alignment, quality, diversity and more.

    `reference` holds real pictures (uint8 [R, H, W, 3]) for measures that compare with real ones. A metric that cannot be had is `Unmeasured`;
    nothing is raised for it.
    """
    made: dict[str, Any] = {}
    for chosen in map(metric, substrate.data.metrics):
        try:
            made[chosen.role] = chosen.make(made, substrate.device, reference)
        except NotMeasured as error:
            made[chosen.role] = Unmeasured(chosen.label, chosen.role, str(error))
    return MetricSet(made)


def metric(name: str) -> Metric:
    """Return the registered metric `name`; raises InputError with the known names otherwise."""
    if name not in METRICS:
        raise InputError(f"Unknown metric {name!r}: choose one of {', '.join(METRICS)}.")
    return METRICS[name]


def judges_folder() -> Path:
    """Return the folder with MiniSD's judging networks, ``minisd/judges`` in the data folder."""
    return data_folder() / "minisd" / "judges"


def _needed(made: Made, role: str) -> Any:
    if not made[role].available:
        raise NotMeasured(made[role].reason)
    return made[role]


def _realism(made: Made, device: Any, reference: Any) -> Any:
    if reference is None:
        raise NotMeasured("realism compares with real pictures and none were given: pass reference=pictures.")
    return load_realism(_needed(made, "alignment"), reference)


def _inception(made: Made, device: Any, reference: Any) -> Any:
    from memlib.metrics.distribution import load_inception  # torchvision's networks take a second to import

    return load_inception(device)


_SIMILARITY, _COSINE = "cosine, −1 to 1; larger is more alike", "cosine, −1 to 1; larger is better"
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("minisd-copy", "copy", "copy similarity", _SIMILARITY, "Pizzi et al. 2022",
               lambda made, device, reference: load_minisd_descriptor(judges_folder() / "descriptor", device)),
        Metric("minisd-clip", "alignment", "text alignment", _COSINE, "Radford et al. 2021",
               lambda made, device, reference: load_minisd_evaluator(judges_folder() / "evaluator", device)),
        Metric("minisd2-copy", "copy", "copy similarity", _SIMILARITY, "Pizzi et al. 2022",
               lambda made, device, reference: load_minisd_descriptor(minisd2_folder() / "judges" / "descriptor", device)),
        Metric("minisd2-clip", "alignment", "text alignment", _COSINE, "Radford et al. 2021",
               lambda made, device, reference: load_minisd_evaluator(minisd2_folder() / "judges" / "evaluator", device)),
        Metric("realism", "quality", "realism", "0 and up, 1 is the edge of the real pictures; larger is better",
               "Kynkäänniemi et al. 2019", _realism),
        Metric("descriptor-diversity", "diversity", "diversity across seeds", "0 to 2; larger is more diverse", "clip, Section 4.2",
               lambda made, device, reference: descriptor_diversity(_needed(made, "copy"))),
        Metric("sscd", "copy", "SSCD", _SIMILARITY, "Pizzi et al. 2022", lambda made, device, reference: load_sscd(device),
               ("sscd_disc_mixup",)),
        Metric("clip-l14", "alignment", "CLIP ViT-L/14 alignment", _COSINE, "Radford et al. 2021",
               lambda made, device, reference: load_open_clip("openai_clip_vit_l_14", device), ("openai_clip_vit_l_14",)),
        Metric("clip-b32", "alignment_check", "OpenCLIP ViT-B/32 alignment", _COSINE, "Cherti et al. 2023",
               lambda made, device, reference: load_open_clip("laion_clip_vit_b_32", device), ("laion_clip_vit_b_32",)),
        Metric("aesthetic", "quality", "aesthetic score", "about 1 to 10; larger is better", "Schuhmann 2022",
               lambda made, device, reference: load_aesthetic(_needed(made, "alignment")), ("openai_clip_vit_l_14", "laion_aesthetic_v2")),
        Metric("lpips", "diversity", "LPIPS across seeds", "0 to about 1; larger is more diverse", "Zhang et al. 2018",
               lambda made, device, reference: load_lpips(device), ("alexnet_imagenet",)),
        Metric("inception", "distribution", "FID and KID", "0 and up; smaller is nearer", "Heusel et al. 2017", _inception,
               ("inception_fid",)),
    )
}  # fmt: skip
