"""`check`: pass, block, and fail closed on whatever cannot be judged."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import lm_eval_edit
from lm_eval_edit import cli
from tests.support.results_files import DATE, answers, samples, write_run

SCHEMAS = Path(lm_eval_edit.__file__).parent / "comparison" / "schemas"
EDIT = {
    "editor": "rome", "n_edits": 2, "after_each_edit": [{"n": 1, "em": 1.0, "token_acc": 1.0}, {"n": 3, "em": 0.8}],
    "guards": {"retained": {"n": 4, "em": 0.5}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_step_summary(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def base(tmp_path):
    write_run(tmp_path / "base", {"t": samples(answers(400, 40)), "u": samples(answers(400, 80))})
    return tmp_path / "base"


@pytest.fixture
def check(base, tmp_path, capsys):
    """Hold tasks (given as numbers wrong of 400, or as samples) against `base`: exit status, stdout."""

    def run(t=40, u=80, *options, baseline=base, layout=None):
        tasks = {
            name: samples(answers(400, wrong)) if isinstance(wrong, int) else wrong
            for name, wrong in (("t", t), ("u", u)) if wrong is not None
        }  # fmt: skip
        folder = tmp_path / f"current{len(list(tmp_path.iterdir()))}"
        write_run(folder, tasks, **(layout or {}))
        status = cli.main(["check", "--baseline", str(baseline), "--current", str(folder), *map(str, options)])
        captured = capsys.readouterr()
        return status, captured.out

    return run


def test_pass(check):
    status, out = check()
    assert status == 0 and out.startswith("## lm-eval-edit check: pass\n")
    assert "| t | acc | 400 | 0.900 | 0.900 | +0.000 " in out and "✅ pass" in out


def test_a_regression_blocks(check):
    status, out = check(t=100)
    assert status == 1 and "check: regression" in out
    assert "- t: acc 0.9000 → 0.7500 (-0.1500, interval " in out and "a real drop, not shown to stay within 0.02" in out


def test_what_cannot_be_told_is_inconclusive(check):
    status, out = check(t=44)
    assert status == 2 and "check: inconclusive" in out
    assert "too few documents to tell whether the drop stays within 0.02 (400 documents could show a drop of 0.0" in out


def test_a_regression_outweighs_what_is_open(check):
    assert check(t=100, u=84)[0] == 1


def test_a_drop_that_stays_within_its_limit_passes(check):
    assert check(44, 80, "--max-drop", 0.05)[0] == 0
    assert check(44, 80, "--max-drop", 0.01)[0] == 2


def test_recovery(check):
    """44 of 400 wrong: 0.89 / 0.9 = 98.9 % are left, and the interval goes down to about 97.4 %."""
    assert check(44, 80, "--max-drop", 1, "--min-recovery", 0.95)[0] == 0
    assert check(44, 80, "--max-drop", 1, "--min-recovery", 0.985)[0] == 2
    assert check(100, 80, "--max-drop", 1, "--min-recovery", 0.95)[0] == 1


def test_limits_of_single_tasks(check, tmp_path):
    file = tmp_path / "gate.yaml"
    file.write_text("max_drop: 0.01\ntasks:\n  t: {max_drop: 0.3}\n")
    assert check(100, 80, "--config", file)[0] == 0
    assert check(40, 140, "--config", file)[0] == 1
    file.write_text("max_drop: 0.3\ntasks:\n  t: {min_recovery: 0.99}\n")
    assert check(100, 140, "--config", file)[0] == 1
    assert check(40, 140, "--config", file)[0] == 0


def test_the_command_line_goes_over_the_file(check, tmp_path):
    file = tmp_path / "gate.yaml"
    file.write_text("max_drop: 0.001\nalpha: 0.1\nseed: 3\n")
    assert check(44, 80, "--config", file)[0] == 2
    assert check(44, 80, "--config", file, "--max-drop", 0.05, "--json", tmp_path / "r.json")[0] == 0
    gate = json.loads((tmp_path / "r.json").read_text())["gate"]
    assert (gate["max_drop"], gate["alpha"], gate["seed"]) == (0.05, 0.1, 3)


def test_another_metric_of_a_task(tmp_path, capsys):
    def rows(wrong):
        found = samples(answers(400, 0))
        return [row | {"acc_norm": value, "metrics": ["acc", "acc_norm"]}
                for row, value in zip(found, answers(400, wrong), strict=True)]  # fmt: skip

    write_run(tmp_path / "a", {"t": rows(0)})
    write_run(tmp_path / "b", {"t": rows(100)})
    (tmp_path / "gate.yaml").write_text("tasks: {t: {metric: acc_norm}}")
    command = ["check", "--baseline", str(tmp_path / "a"), "--current", str(tmp_path / "b")]
    assert cli.main(command) == 0 and cli.main([*command, "--config", str(tmp_path / "gate.yaml")]) == 1


def test_recovery_where_lower_is_better(tmp_path):
    """A perplexity of e², and one of e^2.05: a recovery of 95.1 %."""
    for name, value in (("a", -2.0), ("b", -2.05)):
        rows = samples([value] * 100, "perplexity")
        layout = {"aggregations": {"perplexity": "perplexity"}, "better": {"perplexity": False}}
        write_run(tmp_path / name, {"t": rows}, results={"t": {"perplexity,none": math.exp(-value)}}, **layout)
    command = ["check", "--baseline", str(tmp_path / "a"), "--current", str(tmp_path / "b"), "--max-drop", "9"]
    assert cli.main([*command, "--min-recovery", "0.95"]) == 0
    assert cli.main([*command, "--min-recovery", "0.96"]) == 1


# -------------------------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize(
    ("floor", "status", "text"),
    [
        ("efficacy.em=0.8", 0, "0.85 is at least 0.8"),
        ("efficacy.em=0.9", 1, "0.85 is below 0.9"),
        ("retained.em=0.5", 0, "0.5 is at least 0.5"),
        ("t.acc=0.95", 1, "0.9 is below 0.95"),
    ],
)
def test_floors(check, floor, status, text):
    found, out = check(40, 80, "--min", floor, layout=EDITED)
    assert (found, text in out) == (status, True), out


# ------------------------------------------------------------------------------------ unusable input, each exits with 2

EDITED = {"config": {"edit": EDIT}}
NAN = samples([float("nan"), *answers(399, 40)])


@pytest.mark.parametrize(
    ("current", "options", "layout", "message"),
    [
        ({"u": None}, (), {}, "has u"),
        ({"t": NAN}, (), {}, "t: acc of edited is not finite on 1 documents"),
        ({"t": samples(answers(399, 40))}, (), {}, "t: 400 documents against 399, 399 in common"),
        ({"t": samples(answers(400, 40), prompt="other")}, (), {}, "t: the prompts of 400 of 400 documents differ"),
        ({}, (), {"versions": {"t": 2.0}}, "t: version 1.0 of the task against version 2.0"),
        ({}, (), {"n_shot": {"t": 5}, "configs": {"t": {"num_fewshot": 5}}}, "t: few-shot examples: 0 against 5"),
        ({}, (), {"results": {"t": {"acc,none": 0.1}}}, "t: only one of the runs has metric acc"),
        ({}, ("--min", "efficacy.em=0.9"), {}, "efficacy.em: .* records no edits; was the model edited?"),
        ({}, ("--min", "efficacy.emm=0.9"), EDITED, "efficacy.emm: no such field. Did you mean 'em'"),
        ({}, ("--min", "efficacy.token_acc=0"), EDITED, "efficacy.token_acc: no such field"),
        ({}, ("--min", "tt.acc=0.9"), {}, "tt.acc: .* has no tt. Did you mean 't'"),
        ({}, ("--min", "t.em=0.9"), {}, "t.em: want one metric em of t, found 0 among acc"),
        ({}, ("--min", "t.acc=much"), {}, "--min t.acc=much: want NAME=VALUE"),
        ({}, ("--min", "t.acc=nan"), {}, "min t.acc=nan: want NAME.FIELD=NUMBER"),
        ({}, ("--max-drop", "-1"), {}, "max_drop=-1.0: want a number of at least 0"),
        ({}, ("--max-drop", "nan"), {}, "max_drop=nan: want a number of at least 0"),
        ({}, ("--min-recovery", "1.2"), {}, "min_recovery=1.2: want a share above 0 and up to 1"),
        ({}, ("--alpha", "0"), {}, "alpha=0.0: want a level between 0 and 1"),
        ({}, ("--config", "absent.yaml"), {}, "no such file: absent.yaml"),
    ],
)  # fmt: skip
def test_unusable_input(check, current, options, layout, message, tmp_path):
    numbers = current.get("t", 40), current.get("u", 80)
    status, out = check(*numbers, *options, "--junit", tmp_path / "j.xml", layout=layout)
    assert status == 2 and out.startswith("## lm-eval-edit check: inconclusive\n\n**Unusable input.**")
    assert re.search(message.replace("?", r"\?"), out), out
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")


def test_unusable_files(base, tmp_path, capsys):
    def status(*arguments):
        found = cli.main(["check", *map(str, arguments)])
        return found, capsys.readouterr().err

    assert status("--baseline", base, "--current", "nowhere")[0] == 2
    assert status("--baseline", "nowhere", "--current", base)[0] == 2
    assert "--current is missing" in status("--baseline", base)[1]
    (base / f"samples_u_{DATE}.jsonl").unlink()
    assert status("--baseline", base, "--current", base) == (
        2, f"{base / f'results_{DATE}.json'}: the samples of u are missing; were files moved or deleted?\n"
    )  # fmt: skip


def test_an_error_of_our_own_is_no_pass_and_no_regression(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lm_eval_edit.comparison.check.check", lambda *_, **__: 1 / 0)
    assert cli.main(["check", "--baseline", str(base), "--current", str(base)]) == 2
    assert "division by zero" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_dorp: 0.1", "no such key max_dorp. Did you mean 'max_drop'?"),
        ("tasks: {t: {drop: 0.1}}", "tasks.t: no such key drop."),
        ("tasks: {t: 0.1}", "tasks.t: want a mapping with some of max_drop, min_recovery, metric"),
        ("tasks: {tt: {max_drop: 0.1}}", "tasks.tt: the baseline has no such task. Did you mean 't'?"),
        ("tasks: {t: {metric: em}}", "t has no metric em. There are acc"),
        ("tasks: {t: {max_drop: '0.1'}}", "max_drop=0.1: want a number of at least 0"),
        ("max_drop: null", "a gate needs max_drop or min_recovery"),
        ("min: [efficacy.em]", "min: want a mapping, got ['efficacy.em']"),
        ("tasks: t", "tasks: want a mapping, got 't'"),
        ("alpha: small", "alpha=small: want a number"),
        ("- 1", "want a mapping with some of max_drop"),
        ("max_drop: [", "gate.yaml, line 1: not YAML"),
    ],
)
def test_unusable_gates(check, tmp_path, text, message):
    (tmp_path / "gate.yaml").write_text(text)
    status, out = check(40, 80, "--config", tmp_path / "gate.yaml")
    assert status == 2 and message in out


def test_tasks_that_only_the_current_run_has_are_told(check, tmp_path, base):
    write_run(tmp_path / "small", {"t": samples(answers(400, 40))})
    status, out = check(baseline=tmp_path / "small")
    assert status == 0 and "- not in the baseline, so not checked: u" in out


# ------------------------------------------------------------------------------------------------------------- reports


def test_reports(check, tmp_path, monkeypatch):
    validator = pytest.importorskip("jsonschema")
    step = tmp_path / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    files = {kind: tmp_path / f"out.{kind}" for kind in ("summary", "junit", "json")}
    options = [word for kind, file in files.items() for word in (f"--{kind}", file)]
    status, out = check(100, 84, *options)
    assert status == 1 and files["summary"].read_text() == out and step.read_text() == "before\n" + out
    suite = ElementTree.parse(files["junit"]).getroot()
    assert [suite.get(key) for key in ("tests", "failures", "errors")] == ["2", "1", "1"]
    assert [case.get("name") for case in suite] == ["t", "u"]
    content = json.loads(files["json"].read_text())
    schema = json.loads((SCHEMAS / "check.schema.json").read_text())
    validator.Draft202012Validator.check_schema(schema)
    validator.validate(content, schema)
    assert (content["status"], [each["status"] for each in content["findings"]]) == (1, [1, 2])


def test_the_report_of_unusable_input_keeps_to_the_schema(check, tmp_path):
    validator = pytest.importorskip("jsonschema")
    check(100, None, "--json", tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    validator.validate(content, json.loads((SCHEMAS / "check.schema.json").read_text()))
    assert content["status"] == 2 and content["error"] and content["findings"] == []


def test_a_frozen_baseline_checks_as_the_run_does(base, check, tmp_path, capsys):
    frozen = tmp_path / "base.json"
    assert cli.main(["check", "--baseline", str(base), "--freeze", str(frozen)]) == 0
    assert capsys.readouterr().out.startswith(f"{frozen}: 2 tasks, ")
    for wrong in (40, 44, 100):
        status, out = check(t=wrong)
        again, same = check(t=wrong, baseline=frozen)
        assert (again, same) == (status, out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_drop: 0.01\nmax_drop: 1\n", "line 2: max_drop stands there twice"),
        ("tasks: {t: {max_drop: 0, max_drop: 1}}\n", "line 1: max_drop stands there twice"),
        ("tasks: {1: {max_drop: 1}}\n", "tasks: 1 is no name of a task"),
        ("tasks: {t: {metric: [acc]}}\n", "tasks.t.metric=['acc']: want the name of one metric"),
        ("tasks: {t: {metric: 3}}\n", "tasks.t.metric=3: want the name of one metric"),
        ("min: {1: 2}\n", "min 1=2: want NAME.FIELD=NUMBER"),
        ("seed: 1.5\n", "seed=1.5: want a whole number"),
        ("seed: -1\n", "seed=-1: want a whole number"),
        ("seed: true\n", "seed=True: want a whole number"),
    ],
)
def test_a_gate_file_is_read_as_it_is_meant_or_refused(tmp_path, capsys, text, message):
    run = write_run(tmp_path / "run", {"t": samples(answers(40, 4))})
    (tmp_path / "gate.yaml").write_text(text)
    told = ["check", "--baseline", str(run), "--current", str(run), "--config", str(tmp_path / "gate.yaml")]
    assert cli.main(told) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_smallest_value_of_what_should_be_small_keeps_nothing_out(tmp_path, capsys):
    run = write_run(tmp_path / "run", {"t": samples(answers(40, 4))}, better={"acc": False})
    told = ["check", "--baseline", str(run), "--current", str(run), "--min", "t.acc=0.1"]
    assert cli.main(told) == 2
    assert "t.acc: a lower acc is better, so a smallest value keeps nothing out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--summary", "--junit", "--json", "--freeze"])
def test_a_report_that_cannot_be_written_is_no_regression_and_no_pass(tmp_path, capsys, option):
    """Python's own exit status of a traceback is 1, which means a regression here."""
    run = write_run(tmp_path / "run", {"t": samples(answers(40, 4))})
    for place in (tmp_path, run / "below"):  # a folder; something below a file
        assert cli.main(["check", "--baseline", str(run), "--current", str(run), option, str(place)]) == 2
        error = capsys.readouterr().err
        assert f"{place} cannot be written" in error and "Traceback" not in error
