import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from memlib.base.errors import InputError
from memlib.judging.claims import claim, load_claims, reported
from memlib.judging.estimates import Estimate
from memlib.judging.judge import registration
from memlib.judging.verdicts import BADGES, MIME, VERDICTS, Verdict, badge, read_verdicts

IDS = [
    "C1a",
    "C1b",
    "C2a",
    "C2b",
    "C2c",
    "C3a",
    "C3b",
    "C4a",
    "C4b",
    "C5a",
    "C5b",
    "C5c",
    "C5d",
    "C5e",
    "C6a",
    "C6b",
    "C7",
    "C8",
    "B1",
    "B2",
    "B3",
    "B4",
    "B5",
    "B6",
    "B7",
    "B8",
    "B9",
    "B10",
    "A1",
    "A2",
    "A3",
    "A4",
    "D1",
    "D2",
    "D3",
    "D4",
    "D5",
]


def test_every_claim_is_there_with_all_it_needs():
    known = load_claims()
    assert list(known) == IDS
    for entry in known.values():
        assert entry.text and entry.place and entry.title and entry.statement.endswith(".")
        assert not entry.reported or len(entry.reported_rows())
    assert list(known) == [claim.id for claim in registration().claims]
    assert {name: c.notebook for name, c in known.items()} == {
        "C1a": "01_prompt_embeddings",
        "C1b": "01_prompt_embeddings",
        "C2a": "02_pad_embeddings",
        "C2b": "02_pad_embeddings",
        "C2c": "02_pad_embeddings",
        "C3a": "03_embedding_structure",
        "C3b": "04_token_lengths",
        "C4a": "05_padding_or_duplication",
        "C4b": "05_padding_or_duplication",
        "C6a": "06_cross_attention",
        "C6b": "06_cross_attention",
        **dict.fromkeys(("C5a", "C5b", "C5c", "C5e"), "08_mitigations"),
        "C7": "07_swapping",
        "C8": "09_published_lists",
        **dict.fromkeys(("B1", "B4", "B9"), "10_traces"),
        "B5": "13_opposite_guidance",
        "B8": "13_opposite_guidance",
        "B2": "11_switch_on",
        "B10": "12_basin",
        "A4": "17_training_time",
        "A1": "15_detectors",
        "A2": "15_detectors",
        **dict.fromkeys(("B3", "B6"), "14_scenarios"),
        **dict.fromkeys(("B7", "C5d", "A3"), "16_all_mitigations"),
        **dict.fromkeys(("D1", "D4"), "18_pruning"),
        **dict.fromkeys(("D2", "D3"), "19_attack"),
        "D5": "20_adversarial_finetuning",
    }


FILE = """
- id: X1
  text: clip
  place: here
  title: t
  statement: s.
  notebook: n
"""


@pytest.mark.parametrize(
    "found, put, words",
    [
        ("  title: t\n", "  titel: t\n", "X1 has tit(le|el)"),
        ("  text: clip\n", "  text: chip\n", "line 3: the claim X1 has text: .*clip"),
        ("  notebook: n\n", "", "line 2: the claim X1 has notebook"),
        ("  notebook: n\n", "  notebook: n\n  reported:\n  - {where: Table 2}\n", "line 9: the claim X1 has reported 0"),
        (FILE, FILE + FILE, "line 9: .*twice"),
        (FILE, "- [broken", "not YAML"),
        (FILE, "a: 1", "must be a list of claims"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, found, put, words):
    path = tmp_path / "claims.yml"
    path.write_text(FILE)
    assert load_claims(path)["X1"].source == "clip, here"
    path.write_text(FILE.replace(found, put))
    with pytest.raises(InputError, match=words):
        load_claims(path)


def test_an_unknown_claim_is_named_with_those_there_are():
    with pytest.raises(InputError, match="known are C1a"):
        claim("C9")


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_a_verdict_shows_itself_and_is_read_back_from_a_notebook(tmp_path):
    measured = Estimate(0.9, 0.88, 0.92, n_prompts=24, n_seeds=10)
    verdict = Verdict("C2a", "t", "clip", "<b>&substrate", "holds", "r.", 24, 10, {"similarity_f": measured})
    data, _ = InteractiveShell.instance().display_formatter.format(verdict)
    parser = Tags()
    parser.feed(data["text/html"])
    assert parser.open == [] and "<b>&substrate" in "".join(parser.words)
    assert "0.900 [0.880, 0.920]" in data["text/html"] and "24 prompts, 10 seeds" in data["text/plain"]
    assert str(replace(verdict, n_prompts=1, n_seeds=1)).endswith("1 prompt, 1 seed each")

    unsampled = replace(verdict, n_seeds=0)
    assert str(unsampled).endswith("24 prompts") and "24 prompts</small>" in unsampled.to_html()

    missing = Verdict("C1a", "t", "clip", "sd14", "not testable here", "SSCD is not measured.")
    assert "0 prompts" not in str(missing) + missing.to_html()
    gap = replace(missing, quantities={"x": replace(measured, value=math.nan)})
    cells = [
        nbformat.v4.new_markdown_cell("text"),
        nbformat.v4.new_code_cell(outputs=[
            nbformat.v4.new_output("stream", text="hello"),
            nbformat.v4.new_output("display_data", data={MIME: json.loads(json.dumps(data[MIME]))}),
            nbformat.v4.new_output("execute_result", data={MIME: json.loads(json.dumps(gap.to_json(), allow_nan=False))}),
        ]),
    ]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "page.ipynb")
    first, second = map(Verdict.from_json, read_verdicts(tmp_path / "page.ipynb"))
    assert first == verdict
    assert second.verdict == "not testable here" and math.isnan(second.quantities["x"].value)
    (tmp_path / "broken.ipynb").write_text("{}")
    with pytest.raises(InputError, match="not a notebook"):
        read_verdicts(tmp_path / "broken.ipynb")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def test_badges_are_readable_on_any_page():
    assert set(BADGES) == set(VERDICTS) and len({sign for sign, _ in BADGES.values()}) == len(BADGES)
    for verdict, (sign, colour) in BADGES.items():
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5  # WCAG AA, white text on the badge
        assert sign in badge(verdict) and verdict in badge(verdict)
    with pytest.raises(InputError, match="holds in part"):
        badge("maybe")
    # Outside the badge no colour is set, so that text follows the page's theme.
    shown = Verdict("C1a", "t", "s", "x", "holds", "r.").to_html()
    assert len(re.findall("color:", shown)) == 1


def test_reported_figures_are_looked_up_not_typed():
    rows = reported("clip", "Table 2", "b", "sscd_to_original")
    assert rows[["value", "sd"]].values.tolist() == [[0.55, 0.14]]
    assert set(rows["source"]) == {"reported"}
    assert set(reported("clip", "Table 3")["method"]) == set("defgh")
    assert reported("basin", method="ren", metric="seconds_per_image")["value"].item() == 2.08
    assert reported("clip", "Table 2", "f").empty
    with pytest.raises(InputError, match="place 'Table 99'"):
        reported("clip", "Table 99")
    mine = reported("clip")
    mine["value"] = 0  # a copy: the next reader still sees the paper's figures
    assert reported("clip", "Table 2", "a", "clip_score")["value"].item() == 0.25
