"""What was found out about a run: per notebook, and together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from memlib.base.store.care import size
from memlib.companion.plan.rates import Rates


@dataclass
class Demand:
    """What one notebook asks for. Every picture counts once in a plan, for the first notebook that asks for it.

    `pictures` are those asked for here and by no notebook before, `stored` of them are in the store and `to_make` are the keys of the
    others; `shared` were counted before. `values` are scores and traces that take U-Net evaluations, `values_stored` those in the store.
    `evaluations` are the U-Net rows still to be spent, pictures, values and timings together. `gaps` says where the notebook could not be
    followed to its end: then all of this is at least so much.
    """

    notebook: str
    pictures: int = 0
    stored: int = 0
    shared: int = 0
    to_make: list[str] = field(default_factory=list)
    values: int = 0
    values_stored: int = 0
    evaluations: float = 0.0
    gaps: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """The demands of all notebooks of a run on `substrate`, and what the machine does in an hour where that was measured."""

    substrate: str
    demands: list[Demand]
    rates: Rates | None = None

    @property
    def evaluations(self) -> float:
        return sum(demand.evaluations for demand in self.demands)

    @property
    def to_make(self) -> int:
        return sum(len(demand.to_make) for demand in self.demands)

    @property
    def hours(self) -> float | None:
        """Hours of sampling and decoding; None where no rates were measured."""
        return None if self.rates is None else self.rates.hours(self.evaluations, self.to_make)

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        demands = [Demand(**{f.name: row[f.name] for f in fields(Demand)}) for row in content["demands"]]
        return cls(content["substrate"], demands, None if content["rates"] is None else Rates(**content["rates"]))

    def as_text(self) -> str:
        """A line per notebook, the sum, and what it costs."""
        lines = [f"{'notebook':26} {'pictures':>9} {'in the store':>13} {'to make':>9} {'U-Net rows':>13} {'hours':>7}"]
        lines += [self._line(demand.notebook, demand, bool(demand.gaps)) for demand in self.demands]
        lines.append(self._line("together", self, any(demand.gaps for demand in self.demands)))
        for demand in self.demands:
            lines += [f"{demand.notebook}: at least so much, since {gap}" for gap in demand.gaps[:3]]
        if self.rates is None:
            lines.append("Time and disk were not measured.")
        else:
            lines.append(
                f"{self.rates.describe()} That makes {duration(self.hours)} of sampling (metrics and figures not counted) "
                f"and {size(self.to_make * self.rates.picture_bytes)} of new pictures."
            )
        return "\n".join(lines)

    def _line(self, title: str, part: Demand | Plan, open_end: bool) -> str:
        whole = isinstance(part, Plan)
        pictures = sum(demand.pictures for demand in self.demands) if whole else part.pictures
        stored = sum(demand.stored for demand in self.demands) if whole else part.stored
        make = self.to_make if whole else len(part.to_make)
        hours = "" if self.rates is None else f"{self.rates.hours(part.evaluations, make):.2f}"
        mark = ">" if open_end else " "
        return f"{title[:26]:26} {pictures:9,} {stored:13,} {make:9,} {mark}{part.evaluations:12,.0f} {hours:>7}"


def duration(hours: float | None) -> str:
    """Hours as people say them."""
    if hours is None:
        return "unknown time"
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} seconds"
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
