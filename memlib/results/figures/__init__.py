"""Every figure's look: pictures in rows, curves, distributions, effects, the basin, detection, and trade-offs."""

from memlib.results.figures.attack import hidden_or_removed, survival_curves
from memlib.results.figures.basin import funnels
from memlib.results.figures.beside import beside
from memlib.results.figures.curves import bands, by_position, dose_response, ecdf, marked_traces
from memlib.results.figures.detection import accuracy_by_cost, roc_curves, score_groups
from memlib.results.figures.distributions import distributions, heat_maps, planes, separation
from memlib.results.figures.effects import forest, grouped_bars
from memlib.results.figures.pictures import attention_maps, contact_sheet, montage
from memlib.results.figures.scenarios import step_dots
from memlib.results.figures.style import COLOURS, DPI, log_y, style
from memlib.results.figures.trade_off import dominance, trade_off

__all__ = [
    "COLOURS", "DPI", "accuracy_by_cost", "attention_maps", "bands", "beside", "by_position", "contact_sheet", "distributions", "dominance",
    "dose_response", "ecdf", "forest", "funnels", "grouped_bars", "heat_maps", "hidden_or_removed", "log_y", "marked_traces", "montage", "planes",
    "roc_curves", "score_groups", "separation", "step_dots", "style", "survival_curves", "trade_off",
]  # fmt: skip
