"""The metric that stands for a task: nothing takes its place in silence."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest

from lm_eval_edit import cli
from lm_eval_edit.comparison.compare import compare_runs
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.plots import figures
from lm_eval_edit.plots.picture import drawing
from lm_eval_edit.report.page import render
from lm_eval_edit.sweep.folder import write_summary
from lm_eval_edit.sweep.reading import load_sweep, summary_rows
from tests.conftest import SHARED
from tests.support import sweep_folders
from tests.support.results_files import answers, sample, samples, write_run

OWN = "def agg(items):\n    return 100*sum(items)/len(items)\n"
CASE = SHARED / "cases/operator/mytask"


@pytest.fixture(autouse=True)
def no_step_summary(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def check(tmp_path, capsys):
    """Hold two runs of `task -> samples` against each other: exit status, stdout, stderr."""

    def run(base, current, *options, base_layout=None, **layout):
        first = write_run(tmp_path / "base", base, **(layout if base_layout is None else base_layout))
        write_run(tmp_path / "current", current, **layout)
        where = ["--baseline", str(first.parent), "--current", str(tmp_path / "current")]
        status = cli.main(["check", *where, *map(str, options)])
        return status, *capsys.readouterr()

    return run


def quality(values, **more) -> dict:
    return {"t": [sample(i, {"quality": value, "answered": 1.0} | more) for i, value in enumerate(values)]}


def config(tmp_path, text: str) -> list[str]:
    (tmp_path / "gate.yaml").write_text(text)
    return ["--config", str(tmp_path / "gate.yaml")]


def test_a_headline_with_an_aggregation_of_its_own_is_unusable(check, tmp_path):
    layout = {"aggregations": {"quality": OWN}}
    told = (quality([1.0] * 60), quality([0.0] * 60), "--max-drop", 0.05)
    status, out, err = check(*told, **layout)
    assert status == 2 and "Unusable input" in out
    assert "t: its headline metric quality cannot be compared: its aggregation (agg)" in err
    assert "(reported: 1.0 → 0.0)" in err and "there are answered" in err
    options = config(tmp_path, "tasks: {t: {metric: answered}}\nmax_drop: 0.1\n")
    assert check(*told[:2], *options, **layout)[0] == 0, "unless the gate's file names another"
    status, _, err = check(*told[:2], *config(tmp_path, "tasks: {t: {metric: quality}}\n"), **layout)
    assert status == 2 and "quality cannot be compared: its aggregation" in err


def test_so_it_is_from_a_frozen_baseline_of_any_version(check, tmp_path):
    base, current = quality([1.0] * 60), quality([0.0] * 60)
    layout = {"aggregations": {"quality": OWN}}
    check(base, current, **layout)
    frozen = tmp_path / "frozen.json"
    assert cli.main(["check", "--baseline", str(tmp_path / "base"), "--freeze", str(frozen)]) == 0
    told = ["check", "--baseline", str(frozen), "--current", str(tmp_path / "current"), "--max-drop", "0.1"]
    assert cli.main(told) == 2
    content = json.loads(frozen.read_text())
    for each in content["samples"]:  # as earlier versions wrote it, which left the metric out without a word
        for key in ("headline", "left_out", "measures"):
            del each[key]
        for metric in each["metrics"]:
            del metric["chance"], metric["direction_known"]
    frozen.write_text(json.dumps(content))
    assert cli.main(told) == 2


@pytest.mark.parametrize(
    ("base", "current", "message"),
    [
        ([float("nan")] * 60, [float("nan")] * 60, "quality"),
        ([1.0] * 60, [float("nan")] * 60, "quality of edited is not finite on 60 documents"),
        ([None] * 60, [None] * 60, "t: its headline metric quality cannot be compared: 60 documents have no value"),
        ([1.0] * 60, [None] * 60, "only one of the runs has metric quality (60 documents have no value)"),
        (["high"] * 60, ["low"] * 60, "quality cannot be compared: its values are not numbers"),
    ],
)
def test_values_that_are_none(check, base, current, message):
    status, _, err = check(quality(base), quality(current), "--max-drop", 0.5)
    assert status == 2 and message in err


@pytest.mark.parametrize("base", [1.0, float("nan")])
def test_a_gate_that_names_another_metric_than_one_that_is_not_finite(check, tmp_path, base):
    options = config(tmp_path, "tasks: {t: {metric: answered}}\nmax_drop: 0.1\n")
    status, out, err = check(quality([base] * 60), quality([float("nan")] * 60), *options)
    assert (status, err) == (0, "") and "answered" in out
    status, _, err = check(quality([base] * 60), quality([float("nan")] * 60, answered=0.0), *options)
    assert (status, err) == (1, "")


def test_another_metric_that_is_not_finite_does_not_keep_the_headline_from_being_judged(check):
    nan = quality([1.0] * 60, answered=float("nan"))
    status, out, err = check(nan, nan, "--max-drop", 0.1)
    assert (status, err) == (0, "") and "| quality |" in out


def test_a_metric_that_one_run_alone_has_does_not_keep_the_headline_from_being_judged(check, tmp_path, capsys):
    """An unedited `hf` has no figure of what edits left unchanged; `edited_hf` has."""
    plain = {"t": [sample(i, {"quality": 1.0}) for i in range(60)]}
    for runs, side in ((quality([1.0] * 60), plain), "base"), ((plain, quality([1.0] * 60)), "edited"):
        status, out, err = check(*runs, "--max-drop", 0.1)
        assert (status, err) == (0, "") and "| quality |" in out and "| answered |" not in out
        assert cli.main(["compare", str(tmp_path / "base"), str(tmp_path / "current")]) == 0
        assert f"answered: only the {side} run has it" in " ".join(capsys.readouterr().err.split())


def test_a_metric_whose_values_are_not_logged(check):
    """The results report it, the samples do not hold it: nothing says how sure its figure is."""
    rows = [row | {"metrics": ["answered"]} for row in quality([1.0] * 60)["t"]]
    listed = {"configs": {"t": {"metric_list": [{"metric": "quality"}, {"metric": "answered"}]}}}
    status, _, err = check({"t": rows}, {"t": rows}, results={"t": {"quality,none": 1.0}}, **listed)
    assert status == 2 and "its headline metric quality cannot be compared: its values are not in the samples" in err
    status, _, err = check({"t": rows}, {"t": rows}, **listed)
    assert status == 2 and "its headline metric quality cannot be compared: it is not in the results" in err


def test_a_metric_that_has_another_name_in_one_run(check):
    renamed = [sample(i, {"grade": 1.0, "answered": 1.0}) for i in range(60)]
    status, _, err = check(quality([1.0] * 60), {"t": renamed}, "--max-drop", 0.5)
    assert status == 2 and "only one of the runs has metric grade (absent), quality (absent)" in err


def test_left_out_of_one_run_under_another_name(check):
    """Both metrics are left out, so that what is left agrees: the headline metrics do not."""
    renamed = [sample(i, {"grade": 1.0, "answered": 1.0}) for i in range(60)]
    layout = {"aggregations": {"quality": OWN, "grade": OWN}}
    status, _, err = check(quality([1.0] * 60), {"t": renamed}, "--max-drop", 0.5, **layout)
    assert status == 2 and "the headline metric is quality of base and grade of edited" in err


def test_a_metric_of_another_filter_takes_no_place(check):
    def rows(value):
        strict = [sample(i, {"em": None, "other": 1.0}, filter="strict") for i in range(60)]
        return {"t": strict + [sample(i, {"em": value, "other": 1.0}, filter="flexible") for i in range(60)]}

    status, _, err = check(rows(1.0), rows(1.0), "--max-drop", 0.5)
    assert status == 2 and "its headline metric em cannot be compared: 60 documents have no value" in err


def test_a_filter_whose_samples_are_gone(check):
    rows = {"t": [sample(i, {"em": 1.0}, filter="flexible") for i in range(60)]}
    listed = {"configs": {"t": {"filter_list": [{"name": "strict"}, {"name": "flexible"}]}}}
    status, _, err = check(rows, rows, **listed)
    assert status == 2 and "it has no sample of filter strict" in err


def test_a_run_that_scored_nothing(check):
    rows = {"t": [sample(i, {"bypass": 999}) for i in range(60)]}
    status, _, err = check(rows, rows)
    assert status == 2 and "bypass: the run was told to score nothing (--predict_only)" in err


@pytest.mark.parametrize("unknown", [{}, {"t": {"acc": None}}])
def test_a_direction_that_is_not_said(check, tmp_path, unknown):
    told = {"t": samples(answers(400, 40))}, {"t": samples(answers(400, 0))}
    layout = {"higher_is_better": {"t": None} | unknown}
    status, _, err = check(*told, **layout)
    assert status == 2 and "do not say whether a higher acc is better" in err
    up, down = (config(tmp_path, f"tasks: {{t: {{higher_is_better: {word}}}}}\n") for word in ("true", "false"))
    assert check(*told, *config(tmp_path, "tasks: {t: {higher_is_better: true}}\n"), **layout)[0] == 0
    assert check(*told, *config(tmp_path, "tasks: {t: {higher_is_better: false}}\n"), **layout)[0] == 1
    assert up == down
    status, _, err = check(*told, *down)
    assert status == 2 and "the task itself says that a higher acc is better" in err
    status, _, err = check(*told, *config(tmp_path, "tasks: {t: {higher_is_better: maybe}}\n"))
    assert status == 2 and "want true or false" in err


def test_directions_that_differ(check):
    rows = {"t": samples(answers(400, 40))}
    status, _, err = check(rows, rows, base_layout={"better": {"acc": False}})
    assert status == 2 and "acc is better when higher in one run and when lower in the other" in err


@pytest.mark.parametrize("values", [[-1.0] * 60, [100.0, 40.0] * 30, [1.5] * 60, [-0.2, 0.3] * 30])
def test_another_scale_needs_a_limit_of_its_own(check, tmp_path, values):
    told = quality(values), quality(values)
    status, _, err = check(*told)
    assert status == 2 and "quality (" in err and "is not on the scale from 0 to 1" in err
    assert check(*told, *config(tmp_path, "tasks: {t: {max_drop: 5}}\n"))[0] == 0
    status, _, err = check(*told, "--min-recovery", 0.9)
    if sum(values) < 0:  # twice a negative figure would count as two hundred per cent of it
        assert status == 2 and "no amount of which a share could be left" in err
    else:
        assert status == 0


def test_a_perplexity_needs_a_limit_of_its_own(check, tmp_path):
    def rows(mean):
        return {"t": [sample(i, {"ppl": -mean - i % 3 / 10}) for i in range(60)]}

    layout = {"aggregations": {"ppl": "perplexity"}, "better": {"ppl": False}}
    layout["results"] = {"t": {"ppl,none": None}}
    status, _, err = check(rows(2.0), rows(2.1), **layout)
    assert status == 2 and "ppl (8.166, now 9.025) is not on the scale from 0 to 1" in err
    assert check(rows(2.0), rows(2.1), *config(tmp_path, "tasks: {t: {max_drop: 2}}\n"), **layout)[0] == 0
    assert check(rows(2.0), rows(2.1), "--min-recovery", 0.8, **layout)[0] == 0, "a share holds on any scale"
    assert check(rows(2.0), rows(2.1), "--min-recovery", 0.95, **layout)[0] == 1


# -------------------------------------------------------------------------------------------------------- at floor


def test_a_gate_passes_a_task_at_floor_and_says_so(check, tmp_path):
    base = {"t": samples(answers(400, 40)), "low": samples([0.0] * 400)}
    status, out, _ = check(base, {"t": base["t"], "low": samples([0.0] * 399 + [1.0])}, "--junit", tmp_path / "j.xml")
    assert status == 0 and "| – at floor: cannot show damage |" in out
    assert "low: acc 0.0000 → 0.0025" in out and "it counts for nothing" in out
    assert "at floor" in (tmp_path / "j.xml").read_text()


def test_a_gate_of_nothing_but_floors_is_unusable(check):
    status, out, err = check({"low": samples([0.0] * 400)}, {"low": samples([0.0] * 399 + [1.0])})
    assert status == 2 and "every task is at floor" in err and "**Unusable input.**" in out


def test_a_task_at_chance_that_may_have_fallen_is_no_pass(check):
    layout = {"configs": {"t": {"metadata": {"chance": 0.5}}}}
    base = {"t": samples(answers(100, 48)), "u": samples(answers(400, 40))}
    status, out, _ = check(base, base | {"t": samples(answers(100, 52))}, **layout)
    assert status == 2 and "at floor" in out


# ------------------------------------------------------------------------------------------------- texts from outside

ESCAPES = "\x1b[31mred\x1b[0m"


def test_no_escape_sequence_reaches_terminal_or_reports(check, tmp_path):
    base = {ESCAPES: samples(answers(100, 10)), "[red]|x": samples(answers(100, 10))}
    files = {kind: tmp_path / f"report.{kind}" for kind in ("junit", "summary", "json")}
    options = [word for kind, file in files.items() for word in (f"--{kind}", file)]
    layout = {"model_name": f"half \ud83d {ESCAPES}"}
    status, out, err = check(base, base | {"[red]|x": samples(answers(100, 60))}, *options, **layout)
    assert status == 1 and "\x1b" not in out + err and "\\x1b[31mred" in out and "half \\ud83d" in out
    suite = ElementTree.fromstring(files["junit"].read_bytes())
    assert suite[0].get("name") == "\\x1b[31mred\\x1b[0m"
    assert "\x1b" not in files["summary"].read_text() and json.loads(files["json"].read_text())["status"] == 1


@pytest.mark.parametrize("kind", ["table", "markdown", "json", "csv"])
def test_no_escape_sequence_in_any_format(tmp_path, capsys, kind):
    for name, wrong in (("a", 10), ("b", 30)):
        rows = {f"=cmd|{ESCAPES}\x9b": samples(answers(100, wrong)), "[bold]b[b]": samples(answers(100, wrong))}
        write_run(tmp_path / name, rows, model_name=f"+half \ud83d {ESCAPES}")
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--format", kind]) == 0
    out = "".join(capsys.readouterr())
    assert not set(out) & {"\x1b", "\x9b", "\ud83d"} and "[bold]b[b]" in out
    if kind == "json":
        assert f"=cmd|{ESCAPES}\x9b" in {row["task"] for row in json.loads(out)["comparisons"][0]["rows"]}
    if kind == "csv":
        cells = [cell for line in out.splitlines()[1:] for cell in line.split(",")]
        assert not [cell for cell in cells if cell[:1] in ("=", "@") or (cell[:1] == "+" and "half" in cell)]
        assert any(cell.startswith("'=cmd") for cell in cells)


def test_a_number_is_no_formula():
    from lm_eval_edit._support.spreadsheet import cell, csv_text

    assert [cell(value) for value in (-0.5, "-0.5", "-x", "+1e3", "@a", "\tb", "\rb", None, True)] == [
        -0.5, "-0.5", "'-x", "+1e3", "'@a", "'\\tb", "'\\rb", None, True,
    ]  # fmt: skip
    assert csv_text(["a", "b"], [{"a": "=1+1"}]) == "a,b\n'=1+1,\n"


# ------------------------------------------------------------------------------------------------------------- sweeps


def test_the_report_says_what_it_cannot_compare(tmp_path, monkeypatch):
    def results(samples, edit):
        found = plain(samples, edit)
        found["configs"]["t"]["metric_list"][0]["aggregation"] = OWN
        return found

    plain = sweep_folders._results
    monkeypatch.setattr(sweep_folders, "_results", results)
    root = sweep_folders.write_cells(tmp_path / "x", {0: quality([1.0] * 30), 5: quality([0.0] * 30)})
    page = render(load_sweep(root), [])
    assert "t: its headline metric quality cannot be compared" in page and "no other takes its place" in page
    assert "(reported: 1.0 → 0.0)" in page and "answered" not in page.split('id="budget"')[0].split('id="summary"')[1]


def test_pictures_and_pages_of_hostile_names(tmp_path):
    name = "$x_^{<b>$"  # one with control characters can have no file of samples
    rows = {n: {name: samples(answers(50, 5 + n)), "b": samples(answers(50, 5))} for n in (0, 5)}
    sweep = load_sweep(sweep_folders.write_cells(tmp_path / "x", rows))
    with drawing():
        pictures = figures(sweep)
        for picture in pictures:
            ElementTree.fromstring(picture.content("svg"))
            assert not set(picture.title + picture.alt) & {"\x1b", "\x9b"}
    page = render(sweep, pictures)
    assert pictures and not set(page) & {"\x1b", "\x9b"} and "<b>$" not in page and "&lt;b&gt;$" in page
    write_summary(sweep.root, summary_rows(sweep))
    assert "\x1b" not in (sweep.root / "summary.csv").read_text()


@pytest.mark.skipif(not CASE.is_dir(), reason="the shared case is not on this machine")
def test_the_case_of_an_operator(tmp_path, monkeypatch, capsys):
    import subprocess
    import sys

    shutil.copytree(CASE, tmp_path / "mytask")
    monkeypatch.chdir(tmp_path / "mytask")
    for name, args in (("base", "editor=none"), ("edited", "editor=random,like=rome,n_edits=20")):
        command = ["-m", "lm_eval", "--model", "edited_hf", "--model_args", args, "--tasks", "my_task"]
        command += ["--include_path", ".", "--log_samples", "--output_path", name]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
    assert cli.main(["check", "--baseline", "base", "--current", "edited", "--max-drop", "0.05"]) == 2
    err = capsys.readouterr().err
    assert "my_task: its headline metric quality cannot be compared" in err and "(reported: 100.001 → 0.001)" in err
    found = compare_runs(load_run("base"), load_run("edited"))
    assert not any(row.headline for row in found.rows) and "my_task" in found.without_headline
