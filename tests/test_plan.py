"""A plan says what a run then makes: notebooks are followed with placeholders, and counted against the same notebooks carried out."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from memlib.base.errors import InputError
from memlib.base.store import Store
from memlib.companion.book.layout import ROOT, Layout
from memlib.companion.plan import Demand, Plan, Rates
from memlib.companion.plan.demand import duration
from memlib.companion.plan.watch import Watch
from memlib.experiment import parameters

RATES = Rates(0.01, 0.1, 500_000.0, 8, "a GPU")


def write_notebook(path: Path, *cells: str, parameters: str = 'substrate = "minisd-v1"\nn_prompts = 2\nn_seeds = 2\nsteps = 3') -> Path:
    made = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *(new_code_cell(textwrap.dedent(cell)) for cell in cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}), path)
    return path


def test_a_plan_adds_up_and_travels_as_json():
    plan = Plan("sd14", [Demand("01_a", 100, 20, 0, ["k"] * 80, 0, 0, 8000.0), Demand("02_b", 50, 0, 30, ["l"] * 50, 4, 1, 5000.0, ["its cell 3"])], RATES)
    assert (plan.evaluations, plan.to_make) == (13000.0, 130)
    assert plan.hours == pytest.approx((13000 * 0.01 + 130 * 0.1) / 3600)
    assert Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan
    text = plan.as_text()
    assert "65.0 MB of new pictures" in text and "02_b: at least so much, since its cell 3" in text and "2 minutes of sampling" in text
    assert "not measured" in Plan("sd14", plan.demands).as_text()


def test_durations_are_readable():
    assert [duration(h) for h in (0.001, 0.5, 3.25, 100, None)] == ["4 seconds", "30 minutes", "3.2 hours", "4.2 days", "unknown time"]


def test_progress_and_time_left_are_read_from_the_store(tmp_path):
    store = Store(tmp_path)
    keys = [f"{i:064x}" for i in range(4)]
    clock = iter([0.0, 60.0, 90.0])
    plan = Plan("sd14", [Demand("01_a", 4, 0, 0, keys, evaluations=400.0)], RATES)
    watch = Watch(plan, store.root, now=lambda: next(clock))
    assert watch.line() == "0 of 4 new pictures; about 4 seconds left"  # from the plan's rates
    for key in keys[:1]:
        store.path("pictures", key).parent.mkdir(parents=True, exist_ok=True)
        store.path("pictures", key).write_bytes(b"")
    assert watch.line() == "1 of 4 new pictures, in 01_a; about 3 minutes left"  # a quarter in one minute
    for key in keys:
        store.path("pictures", key).parent.mkdir(parents=True, exist_ok=True)
        store.path("pictures", key).write_bytes(b"")
    assert watch.line().startswith("4 of 4 new pictures; about 0 seconds")


def test_a_watch_speaks_while_a_run_is_under_way_and_then_stops(tmp_path):
    import time

    said = []
    with Watch(Plan("s", [Demand("01_a", 1, 0, 0, ["0" * 64], evaluations=2.0)]), Store(tmp_path).root, every=0.02, say=said.append):
        while not said:
            time.sleep(0.01)
    count = len(said)
    time.sleep(0.1)
    assert len(said) == count and said[0] == "0 of 1 new pictures; about unknown time left"


# profiles


def test_the_paper_profile_fits_the_notebooks():
    layout = Layout(substrate="sd14")
    given = parameters.given_parameters(layout, {"n_seeds": 3}, "paper")
    by_stem = {path.stem: own for path, own in given.items()}
    assert by_stem["01_prompt_embeddings"] == {"substrate": "sd14", "n_prompts": 458, "n_seeds": 3, "steps": 50, "guidance": 7.5, "scheduler": "ddim"}
    assert by_stem["15_detectors"]["n_prompts"] == 500 and "n_prompts" not in by_stem["04_token_lengths"]
    assert parameters.given_parameters(layout, {}, None)[ROOT / "notebooks" / "01_prompt_embeddings.ipynb"] == {"substrate": "sd14"}


def test_every_notebook_has_its_scale_in_the_paper_profile():
    """What a notebook counts, beyond prompts and seeds and what it shows, has a value of its own in the profile."""
    layout = Layout(substrate="sd14")
    given = parameters.given_parameters(layout, {}, "paper")
    own = yaml.safe_load((ROOT / "data" / "profiles" / "paper.yml").read_text())["notebooks"]
    for path in layout.notebooks():
        names = parameters.declared(path)
        counted = {name for name in names if re.match(r"n_|attack_s|check_s|restarts", name)} - {"n_prompts", "n_seeds", "n_shown"}
        left = {name for name in counted - set(own.get(path.stem, {})) if name not in LEFT_AS_THEY_ARE}
        assert "substrate" not in names or left == set(), (path.stem, left)
        numbers = {name for name in counted & set(given[path]) if names[name]["default"] != "None"}
        smaller = {name for name in numbers if given[path][name] < int(names[name]["default"])}
        assert smaller == set(), path.stem


def test_profiles_with_unknown_names_are_refused(tmp_path):
    one = write_notebook(tmp_path / "01_a.ipynb")
    for text, sentence in (
        ("all: {n_promptz: 3}", "No notebook has a parameter 'n_promptz'"),
        ("notebooks: {02_b: {n_seeds: 3}}", "names a notebook '02_b'"),
        ("notebooks: {01_a: {n_seedz: 3}}", "'n_seedz'"),
        ("- 1", "not understood"),
        ("all: [", "not understood"),
    ):
        (tmp_path / "p.yml").write_text(text)
        with pytest.raises(InputError, match=sentence):
            parameters.profile(str(tmp_path / "p.yml"), [one])
    with pytest.raises(InputError, match="Unknown profile 'papers': use paper"):
        parameters.profile("papers", [one])
    (tmp_path / "p.yml").write_text("all: {n_seeds: 3}\nnotebooks: {01_a: {n_prompts: 5}}")
    assert parameters.profile(str(tmp_path / "p.yml"), [one]) == {one: {"n_seeds": 3, "n_prompts": 5}}


# following notebooks

# Numbers of shown or timed pictures and of cuts, which the papers' scale does not change.
LEFT_AS_THEY_ARE = ("n_cuts", "n_timed")

CELLS = (
    """
    import numpy as np
    from IPython.display import display
    from myst_nb import glue
    from memlib.results import figures as plots
    from memlib.experiment.run import Experiment
    from memlib.sampling.rules import StaticTransition
    from memlib.sampling.batches import sample
    from memlib.experiment.tables import summary
    from memlib.probes.transitions import trace
    """,
    "run = Experiment(substrate, n_seeds=n_seeds, steps=steps, device='cpu', dtype='float32', batch_size=2)",
    "known, part = run.group(prompts, n_prompts, 'known'), run.group(prompts, 1, 'part')",
    "table = summary([known], ['none', 'h', 'f'])\nknown.pictures('f')",
    "plots.montage(known.rows(['none', 'h']), known.prompts.prompts)",
    "recorded = trace(known, 0)",
    "late = known.sample(known.embedding, guidance=StaticTransition(7.5, step=1))",
    "sample(run.substrate, part.embedding, [0], Recipe(steps), batch_size=1, cost=run.cost)",
    "glue('x', 1, display=False)\ndisplay(table)\nassert late.shape[:2] == (len(known), n_seeds) and recorded.turn.shape[-1] == steps",
)


@pytest.fixture
def case(tmp_path, sd1_tiny, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "metrics"))
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path / "store"))
    (tmp_path / "prompts.csv").write_text("prompt\na cat\ntwo dogs & a bird\n<b>three</b> fish\n")
    given = {"substrate": str(sd1_tiny), "prompts": str(tmp_path / "prompts.csv"), "n_prompts": 3}
    text = 'substrate = "minisd-v1"\nprompts = ""\nn_prompts = 2\nn_seeds = 2\nsteps = 3'
    return write_notebook(tmp_path / "01_a.ipynb", *CELLS, parameters=text), given, tmp_path / "store"


def carried_out(path, given):
    """Carry the notebook's cells out for real; the experiment, whose cost and store say what was made."""
    names: dict = {}
    for cell in nbformat.read(path, 4).cells:
        if "glue" not in cell.source or "import" in cell.source:
            exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update(given)
    return names["run"]


def test_a_plan_is_what_the_run_then_makes(case):
    from memlib.companion.plan.notebooks import Planner

    path, given, root = case
    with Planner(root) as planner:
        demand = planner.demand(path, given)
        again = planner.demand(path, given)
    assert demand.gaps == [] and not list(root.glob("pictures/*/*")) and not list(root.glob("scores/*/*"))
    # Three prompts, two seeds: f and late guidance in full, the first seed of the rows shown; beside them six traces and one picture for its time.
    assert (demand.pictures, demand.stored, len(demand.to_make), demand.values) == (18, 0, 18, 6)
    assert (again.pictures, again.to_make, again.values, again.evaluations) == (0, [], 0, 6) and again.shared >= 18
    run = carried_out(path, given)
    assert {entry.stem for entry in root.glob("pictures/*/*.png")} == set(demand.to_make)
    assert run.cost.evaluations == demand.evaluations
    with Planner(root) as planner:
        after = planner.demand(path, given)
    assert (after.pictures, after.stored, after.to_make, after.evaluations) == (18, 18, [], 6)


def test_thresholds_and_weights_of_a_plan_are_never_kept(case, monkeypatch):
    """They are looked for in a store of their own making; what the counting network gives must not be in it, nor in memory."""
    from memlib.companion.plan.notebooks import Planner
    from memlib.mitigations import pruning
    from memlib.sampling import calibration

    monkeypatch.setattr(calibration, "reference_prompts", lambda substrate: ("a cat", "a lamp"))
    path, given, root = case
    unet = "substrate.unet(b.latents.to(substrate.device), 1, encoder_hidden_states=b.embedding.states, return_dict=False)[0]"
    cells = (
        f"from memlib.sampling.calibration import reference_values\nvalues = reference_values(run.substrate, 'norm', lambda substrate, b, c: {unet}.abs().mean((1, 2, 3)))",
        "from memlib.mitigations import get\nwanda = get('wanda', base='empty', steps=3)\nknown.pictures(wanda)",
    )
    declared = nbformat.read(path, 4).cells[0].source
    notebook, remembered = write_notebook(path, *CELLS[:3], *cells, parameters=declared), dict(pruning._found)
    with Planner(root) as planner:
        demand = planner.demand(notebook, given | {"steps": 3})
    assert demand.gaps == [] and len(demand.to_make) == 6
    assert not list(root.glob("pictures/*/*")) and not list(root.glob("scores/*/*")) and pruning._found == remembered
    run = carried_out(notebook, given | {"steps": 3})
    values = calibration.reference_values(run.substrate, "norm", lambda *_: 1 / 0)
    assert values.shape == (2, 4) and (values > 0).all()
    with Planner(root) as planner, pytest.raises(RuntimeError, match="writes nothing"):
        Store(root).write_picture("0" * 64, np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("name", ["wen-3", "prss"])
def test_searches_count_with_their_whole_budget(case, name):
    """A target that any network reaches at once is planned as if it were never reached: what a real run of that spends."""
    from memlib.companion.plan.notebooks import Planner
    from memlib.mitigations import get

    path, given, root = case
    declared = nbformat.read(path, 4).cells[0].source
    options = {"wen-3": "target=1e9", "prss": "target=1e9, search_target=1e9"}[name]
    notebook = write_notebook(path, *CELLS[:3], f"from memlib.mitigations import get\nknown.pictures(get('{name}', {options}))", parameters=declared)
    with Planner(root) as planner:
        demand = planner.demand(notebook, given)
    assert demand.gaps == [] and len(demand.to_make) == 6
    run = carried_out(write_notebook(path, *CELLS[:2], parameters=declared), given)
    run.group(given["prompts"]).pictures(get(name).full_run())
    assert run.cost.evaluations == demand.evaluations > 6 * 2 * 3


def test_nothing_of_the_planning_stays_behind(case):
    import IPython.display
    import myst_nb

    import memlib.experiment.run
    from memlib.companion.plan.notebooks import Planner
    from memlib.results import figures as plots

    before = (memlib.experiment.run.Store, memlib.experiment.run.load, plots.montage, myst_nb.glue, IPython.display.display)
    path, given, root = case
    with Planner(root) as planner:
        planner.demand(path, given)
        (substrate,) = planner.substrates.values()
        assert "forward" in vars(substrate.unet)
    assert before == (memlib.experiment.run.Store, memlib.experiment.run.load, plots.montage, myst_nb.glue, IPython.display.display)
    assert "forward" not in vars(substrate.unet) and "decode" not in vars(substrate.vae)


def test_cells_that_cannot_be_followed_are_gaps_and_refusals_are_passed_on(case):
    from memlib.companion.plan.notebooks import Planner

    path, given, root = case
    broken = write_notebook(path.with_name("02_b.ipynb"), *CELLS[:3], "known.pictures()\nraise KeyError('x')", "known.pictures('h')", "undefined")
    with Planner(root) as planner:
        demand = planner.demand(broken, given | {"steps": 3})
        assert len(demand.to_make) == 12 and len(demand.gaps) == 2 and "cell 5" in demand.gaps[0]
        with pytest.raises(InputError, match="Unknown substrate"):
            planner.demand(broken, given | {"substrate": "sd99"})
        with pytest.raises(InputError, match="n_seeds is 0"):
            planner.demand(broken, given | {"n_seeds": 0})


def test_calibration_measures_a_real_batch(sd1_tiny, monkeypatch):
    from memlib.companion.plan import calibrate
    from memlib.models.substrate import load

    rates = calibrate(load(str(sd1_tiny), "cpu", "float32"), 2, steps=1)
    assert rates.row_seconds > 0 and rates.batch_size == 2 and 1000 < rates.picture_bytes < 64 * 64 * 3 * 1.1
    assert rates.hours(3600 / rates.row_seconds, 0) == pytest.approx(1.0)


# the book's command


def test_the_command_plans_where_it_pays(monkeypatch):
    from memlib.companion.book.__main__ import parser, run

    calls = []
    monkeypatch.setattr("memlib.companion.book.execute.execute", lambda layout, given, **options: calls.append(options))
    monkeypatch.delenv("MEMLIB_PICTURES", raising=False)
    for arguments, planned in (
        ([], False), (["--substrate", "minisd-v2"], False), (["--plan"], True), (["--profile", "paper"], True),
        (["--substrate", "sd14"], True), (["--substrate", "sd14", "--no-plan"], False),
    ):  # fmt: skip
        run(parser().parse_args(["execute", *arguments]))
        assert calls[-1]["plan"] is planned, arguments
    assert calls[3]["profile"] == "paper" and calls[0]["profile"] is None


def test_the_plan_of_a_run_is_made_by_a_process_of_its_own(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from memlib.companion.book import execute as running

    layout, commands = Layout(root=tmp_path, substrate="sd14"), []

    def carry_out(command, check):
        commands.append(command)
        target = Path(command[command.index("--json") + 1])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(Plan("sd14", [Demand("01_a", 2, 0, 0, ["0" * 64, "1" * 64], evaluations=4.0)], RATES).as_json()))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(running.subprocess, "run", carry_out)
    watch = running._planned(layout, {"n_seeds": 3, "batch_size": None}, "paper", [tmp_path / "01_a.ipynb"], print)
    assert watch.plan.to_make == 2
    (command,) = commands
    given = [command[i + 1] for i, part in enumerate(command) if part == "-p"]
    assert dict(map(parameters.parse_assignment, given)) == {"n_seeds": 3, "batch_size": None}
    assert command[command.index("--only") + 1] == "01_a" and command[command.index("--profile") + 1] == "paper"
    monkeypatch.setattr(running.subprocess, "run", lambda command, check: SimpleNamespace(returncode=1))
    with pytest.raises(InputError, match="--no-plan"):
        running._planned(layout, {}, None, [tmp_path / "01_a.ipynb"], print)
