"""What pages show of edits: dots, pictures, and a line where nothing is measured."""

from types import SimpleNamespace

import numpy as np
import pytest

from memlib.results import edits


class Group:
    """Scores by edit, [N, S]; none is measured where there are none."""

    def __init__(self, label, **scores):
        self.label, self.scores = label, {name: np.array(values, dtype=float) for name, values in scores.items()}
        self.experiment = SimpleNamespace(thresholds={"copy_threshold": 0.5})

    def score(self, name, edit="none"):
        return self.scores.get(edit)


KNOWN = Group("memorized", b=[[0.9, 0.7], [0.8, 0.8]], c=[[0.1, 0.1], [0.3, 0.3]])
OTHER = Group("not memorized", b=[[0.4, 0.4], [0.2, 0.2]])


def test_dots_are_one_a_prompt_with_the_threshold_and_none_without_scores(capsys):
    figure = edits.dots([KNOWN, OTHER], ["b", "c"])
    axis = figure.axes[0]
    assert sum(len(points.get_offsets()) for points in axis.collections) == 6
    assert any(np.allclose(line.get_ydata(), 0.5) for line in axis.lines)
    assert [label.get_text()[:3] for label in axis.get_xticklabels()] == ["(b)", "(c)"]
    assert edits.dots([Group("memorized")], ["b"]) is None and capsys.readouterr().out == "similarity to original: not measured\n"


@pytest.mark.parametrize("count", [3, 20])
def test_pictures_are_those_of_the_first_prompts(count, monkeypatch):
    asked = {}
    monkeypatch.setattr(edits, "montage", lambda rows, columns, title: asked.update(rows=rows, columns=columns, title=title))
    texts = [str(i) for i in range(count)]
    group = SimpleNamespace(rows=lambda shown, most: {"shown": shown, "most": most}, prompts=SimpleNamespace(prompts=texts))
    edits.pictures(group, ["none", "b"], "Title")
    assert asked == {"rows": {"shown": ["none", "b"], "most": 8}, "columns": texts[:8], "title": "Title"}
