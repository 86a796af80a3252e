import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from memlib.base.errors import InputError
from memlib.judging import claims
from memlib.judging.claims import claim, judge, load_claims, not_testable, reported
from memlib.judging.estimates import Estimate, mean_interval, share_interval
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
COPY = {"copy_threshold": 0.6}


def around(value, half=0.02):
    return Estimate(value, value - half, value + half, n_prompts=24, n_seeds=10)


def structure(difference, cosine, silhouette_v1, silhouette_v2):
    return {
        "cosine_v1_minus_v2": around(difference), "cosine_eot_pad_v1": around(cosine), "cosine_eot_pad_v2": around(cosine - difference),
        "silhouette_v1": around(silhouette_v1), "silhouette_v2": around(silhouette_v2),
    }  # fmt: skip


def long_prompts(*counts):
    """Shares of so many long ones among 24, with their intervals."""
    shares = [share_interval(np.arange(24) < count) for count in counts]
    names = ("share_40_or_more", "share_40_or_more_with_special", "share_30_or_fewer_padding")
    return {name: replace(share, n_seeds=10) for name, share in zip(names, shares)}


def test_every_claim_is_there_with_all_it_needs():
    known = load_claims()
    assert list(known) == IDS
    for entry in known.values():
        assert entry.text and entry.place and entry.title and entry.statement.endswith(".") and entry.quantities
        assert entry.criterion.endswith(".") and entry.refuted_if.words.endswith(".")
        assert (entry.status == "tested") == bool(entry.criteria) == bool(entry.notebook)
        assert not entry.reported or len(entry.reported_rows())
    assert {name: c.notebook for name, c in known.items() if c.notebook} == {
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


@pytest.mark.parametrize(
    "name, quantities, expected",
    [
        ("C1a", {"similarity_b": around(0.9), "similarity_c": around(0.7)}, "holds"),
        ("C1a", {"similarity_b": around(0.9), "similarity_c": around(0.6)}, "holds in part"),
        ("C1a", {"similarity_b": around(0.9), "similarity_c": around(0.3)}, "holds in part"),
        ("C1a", {"similarity_b": around(0.5), "similarity_c": around(0.3)}, "does not hold"),
        # At the threshold counts as a copy.
        ("C1a", {"similarity_b": Estimate(0.7, 0.6, 0.8, 24, 10), "similarity_c": around(0.7)}, "holds"),
        ("C1b", {"alignment_a_minus_original": around(-0.1), "similarity_a": around(0.1)}, "holds"),
        ("C1b", {"alignment_a_minus_original": around(-0.1), "similarity_a": around(0.9)}, "holds in part"),
        ("C1b", {"alignment_a_minus_original": around(-0.01), "similarity_a": around(0.1)}, "does not hold"),
        ("C1b", {"alignment_a_minus_original": around(0.1), "similarity_a": around(0.1)}, "does not hold"),
        ("C2a", {"similarity_f": around(0.99)}, "holds"),
        ("C2a", {"similarity_f": around(0.61)}, "undecided"),
        ("C1a", {"similarity_b": around(0.61), "similarity_c": around(0.3)}, "does not hold"),
        ("C1a", {"similarity_b": around(0.61), "similarity_c": around(0.6)}, "undecided"),
        ("C2a", {"similarity_f": around(0.59)}, "does not hold"),
        ("C2b", {"similarity_d": around(0.9), "similarity_e": around(0.9), "similarity_g": around(0.9)}, "holds"),
        ("C2b", {"similarity_d": around(0.9), "similarity_e": around(0.9), "similarity_g": around(0.1)}, "holds in part"),
        ("C2b", {"similarity_d": around(0.1), "similarity_e": around(0.1), "similarity_g": around(0.1)}, "does not hold"),
        ("C2c", {"similarity_h_minus_f": around(-0.5), "similarity_h_minus_c": around(-0.4), "similarity_h": around(0.2)}, "holds"),
        ("C2c", {"similarity_h_minus_f": around(-0.5), "similarity_h_minus_c": around(-0.01), "similarity_h": around(0.2)}, "holds in part"),
        ("C2c", {"similarity_h_minus_f": around(-0.2), "similarity_h_minus_c": around(-0.2), "similarity_h": around(0.8)}, "holds in part"),
        ("C2c", {"similarity_h_minus_f": around(-0.2), "similarity_h_minus_c": around(0.01), "similarity_h": around(0.2)}, "does not hold"),
        ("C3a", structure(0.5, 0.95, 0.1, 0.7), "holds"),
        ("C3a", structure(0.5, 0.8, 0.1, 0.7), "holds in part"),
        ("C3a", structure(0.5, 0.95, 0.4, 0.3), "holds in part"),
        ("C3a", structure(0.01, 0.95, 0.1, 0.7), "holds in part"),
        ("C3a", structure(-0.01, 0.95, 0.1, 0.7), "does not hold"),
        ("C3b", long_prompts(0, 0, 0), "holds"),
        ("C3b", long_prompts(0, 1, 0), "holds in part"),
        ("C3b", long_prompts(1, 1, 0), "does not hold"),
        ("B5", {"change_of_transition": around(-3.0)}, "holds"),
        ("B5", {"change_of_transition": around(-0.01)}, "undecided"),
        ("B5", {"change_of_transition": around(0.01)}, "does not hold"),
        ("B8", {"evaluations_to_none": Estimate(1, 1, 1, 24, 10), "seconds_to_none": around(1.0)}, "holds"),
        ("B8", {"evaluations_to_none": Estimate(1, 1, 1, 24, 10), "seconds_to_none": around(1.04)}, "holds in part"),
        ("B8", {"evaluations_to_none": Estimate(1, 1, 1, 24, 10), "seconds_to_none": around(1.2)}, "does not hold"),
        ("B8", {"evaluations_to_none": Estimate(1.02, 1.02, 1.02, 24, 10), "seconds_to_none": around(0.9)}, "does not hold"),
    ],
)  # fmt: skip
def test_verdicts_by_hand(name, quantities, expected):
    verdict = judge(claim(name), quantities, COPY, "minisd-v1")
    assert verdict.verdict == expected
    assert verdict.claim == name and verdict.substrate == "minisd-v1" and verdict.reason.endswith(".")
    assert dict(verdict.quantities) == quantities and (verdict.n_prompts, verdict.n_seeds) == (24, 10)


def test_every_verdict_of_the_first_claims_follows_from_the_intervals_alone():
    # Whatever the numbers: a claim never holds with an interval across its bound.
    draw = np.random.default_rng(0)
    for name in ("C1a", "C1b", "C2a", "C2b", "C2c"):
        entry = claim(name)
        for _ in range(300):
            quantities = {q: around(draw.uniform(-1, 1), draw.uniform(0, 0.3)) for q in entry.quantities}
            verdict = judge(entry, quantities, COPY)
            met = [c.met(quantities[c.quantity], c.bound(COPY)) for c in entry.criteria]
            assert (verdict.verdict == "holds") == all(met)


def test_reasons_name_what_was_not_met():
    verdict = judge(claim("C1a"), {"similarity_b": around(0.9), "similarity_c": around(0.3)}, COPY)
    assert "1 of 2 criteria are met" in verdict.reason
    assert "low end of similarity_c >= copy_threshold (0.6)" in verdict.reason
    assert [detail.outcome for detail in verdict.details] == ["met", "missed"]


def test_what_was_not_measured_is_not_judged():
    alone = mean_interval([[0.9, 0.8]])
    for estimate, words in ((None, "not measured"), (around(math.nan), "not measured"), (alone, "more than one prompt")):
        verdict = judge(claim("C2a"), {"similarity_f": estimate}, COPY, "sd14")
        assert verdict.verdict == "not testable here" and words in verdict.reason
    with pytest.raises(InputError, match="without similarity_f"):
        judge(claim("C2a"), {}, COPY)
    with pytest.raises(InputError, match="copy_threshold"):
        judge(claim("C2a"), {"similarity_f": around(0.9)})
    with pytest.raises(InputError, match="no criteria yet"):
        judge(replace(claim("C2a"), criteria=(), status="planned"), {})
    with pytest.raises(InputError, match="known are C1a"):
        claim("C9")


def test_between_is_met_inside_missed_outside_and_open_across():
    criterion = claims.Criterion("x", "between", (-0.1, 0.1), "interval")
    assert criterion.met(around(0.0), (-0.1, 0.1))
    assert not criterion.met(around(0.09), (-0.1, 0.1)) and not criterion.missed(around(0.09), (-0.1, 0.1))
    assert criterion.missed(around(0.2), (-0.1, 0.1))
    with pytest.raises(InputError, match="uses='low'"):
        claims.Criterion("x", "between", (0, 1), "low")


@pytest.mark.parametrize(
    "change, words",
    [
        ("    uses: low\n", "line 13: the claim X1 has criteria 0 uses"),
        ("    relation: '=>'\n", "line 15: the claim X1 has criteria 0 relation: .*>="),
        ("    quantity: other\n", "line 2: .*not among its quantities"),
        ("    threshold: .nan\n", "line 13: .*finite number"),
        ("    threshold: -.inf\n", "line 13: .*finite number"),
        ("    threshold: true\n", "line 13: the claim X1 has criteria 0 threshold"),
        ("    threshold: [0.1, 0.2]\n", "line 13: .*one finite number"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, change, words):
    text = """
- id: X1
  text: clip
  place: here
  title: t
  statement: s.
  quantities: {q: what}
  criterion: c.
  refuted_if: {words: r.}
  notebook: n
  status: tested
  criteria:
  - threshold: 0
    quantity: q
    relation: '>'
    uses: low
"""
    path = tmp_path / "claims.yml"
    path.write_text(text)
    assert load_claims(path)["X1"].criteria[0].threshold == 0
    field = change.strip().split(":")[0]
    harmed = "".join(
        ("" if field == "uses" else change.replace("    ", "  - ", 1) if "-" in line else change)
        if line.removeprefix("  -").strip().startswith(f"{field}:") and line.startswith("  ")
        else line
        for line in text.splitlines(keepends=True)
    )
    path.write_text(harmed)
    with pytest.raises(InputError, match=words):
        load_claims(path)
    path.write_text(text + text)
    with pytest.raises(InputError, match="line 18: .*twice"):
        load_claims(path)
    path.write_text(text.replace("  title: t\n", "  titel: t\n"))
    with pytest.raises(InputError, match="X1 has tit(le|el)"):
        load_claims(path)
    path.write_text("- [broken")
    with pytest.raises(InputError, match="not YAML"):
        load_claims(path)


@pytest.mark.parametrize("bound", [(0.2, 0.1), (math.nan, 1.0), (0.0, math.inf), 0.5])
def test_a_bound_that_no_interval_can_be_held_against_is_refused(bound):
    # A reversed pair or NaN is never met and never missed, so that the verdict would be "undecided" or "holds in part".
    with pytest.raises(InputError, match="the lower first"):
        claims.Criterion("x", "between", bound, "interval")
    with pytest.raises(InputError, match="one finite number"):
        judge(claim("C2a"), {"similarity_f": around(0.9)}, {"copy_threshold": math.nan})


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
    verdict = judge(claim("C2a"), {"similarity_f": around(0.9)}, COPY, "<b>&substrate")
    data, _ = InteractiveShell.instance().display_formatter.format(verdict)
    parser = Tags()
    parser.feed(data["text/html"])
    assert parser.open == [] and "<b>&substrate" in "".join(parser.words)
    assert "0.900 [0.880, 0.920]" in data["text/html"] and "24 prompts, 10 seeds" in data["text/plain"]
    assert str(replace(verdict, n_prompts=1, n_seeds=1)).endswith("1 prompt, 1 seed each")

    unsampled = judge(claim("C3b"), {name: replace(share, n_seeds=0) for name, share in long_prompts(0, 0, 0).items()})
    assert str(unsampled).endswith("24 prompts") and "24 prompts</small>" in unsampled.to_html()

    missing = not_testable(claim("C1a"), "sd14", "SSCD is not measured.")
    gap = replace(missing, quantities={"x": around(math.nan)})
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


def test_a_quantity_that_does_not_exist_says_why():
    c = claim("B3")
    quantities = dict.fromkeys(c.quantities) | {"spread_class": Estimate(0.1, 0.05, 0.2, 6, 2)}
    assert judge(c, quantities, substrate="s").reason == "spread_small was not measured."
    verdict = judge(c, quantities, substrate="s", absent_because={"spread_small": "No picture has a transition."})
    assert verdict.verdict == "not testable here" and verdict.reason == "No picture has a transition."
    assert "0 prompts" not in str(verdict) + verdict.to_html()
