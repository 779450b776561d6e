"""`compare`: figures, verdicts, groups, seeds, flips and every output."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

import lm_eval_edit
from lm_eval_edit import cli
from lm_eval_edit.comparison import combined, statistics
from lm_eval_edit.comparison.compare import IMPROVED, INCONCLUSIVE, REGRESSED, UNHARMED, Settings, compare_runs
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.suite import aggregate
from tests.support.results_files import answers, sample, samples, write_run

SCHEMAS = Path(lm_eval_edit.__file__).parent / "comparison" / "schemas"


def compared(folder, base, edited, settings=None, **layout):
    """Two runs of `task -> samples`."""
    runs = [load_run(write_run(folder / name, tasks, **layout)) for name, tasks in (("a", base), ("b", edited))]
    return compare_runs(*runs, settings)


def one(folder, before, after, settings=None, **layout):
    """The row of a single task with one metric."""
    (row,) = compared(folder, {"t": samples(before)}, {"t": samples(after)}, settings, **layout).rows
    return row


def test_a_regression_is_named(tmp_path):
    row = one(tmp_path, answers(200, 20), answers(200, 60))
    assert (row.verdict, row.test, row.headline) == (REGRESSED, "McNemar", True)
    assert (row.base, row.edited, row.difference.value) == pytest.approx((0.9, 0.7, -0.2))
    assert row.recovery == pytest.approx(0.7 / 0.9)
    assert (row.flips.worse, row.flips.better) == (40, 0), "seeded places of 20 are among those of 60"
    assert row.p == row.p_holm == statistics.mcnemar(40, 0)
    assert row.difference == statistics.proportion_difference(40, 0, 200).within(1 - row.base, -row.base)


def test_an_improvement_and_its_direction(tmp_path):
    assert one(tmp_path / "up", answers(200, 60), answers(200, 20)).verdict == IMPROVED
    row = one(tmp_path / "down", answers(200, 60), answers(200, 20), better={"acc": False})
    assert (row.verdict, row.flips.worse, row.recovery) == (REGRESSED, 40, pytest.approx(0.7 / 0.9))


def test_lower_is_better_has_the_same_interval_mirrored(tmp_path):
    row = one(tmp_path, answers(200, 60), answers(200, 20), better={"acc": False})
    assert row.gain.value == -row.difference.value < 0
    assert (row.gain.low, row.gain.high) == (-row.difference.high, -row.difference.low)
    assert row.gain.high < 0


def test_identical_answers_are_no_regression_however_few(tmp_path):
    row = one(tmp_path, answers(10, 3), answers(10, 3))
    assert (row.verdict, row.identical, row.p) == (UNHARMED, True, 1.0)
    assert row.difference.low < -0.1, "but the interval says how little ten documents show"
    assert row.detectable > 0.5


def test_other_answers_with_the_same_scores_are_judged_by_the_interval(tmp_path):
    def run(folder, n):
        edited = [sample(i, {"acc": 1.0}, answer="another") for i in range(n)]
        (row,) = compared(tmp_path / folder, {"t": samples([1.0] * n)}, {"t": edited}).rows
        return row

    few, many = run("few", 20), run("many", 500)
    assert not few.identical and few.flips.answers == 20
    assert (few.verdict, many.verdict) == (INCONCLUSIVE, UNHARMED)


def test_the_tolerated_drop(tmp_path):
    before, after = answers(2000, 100), answers(2000, 120)
    row = one(tmp_path / "strict", before, after, Settings(delta=0.0))
    assert row.verdict == REGRESSED
    row = one(tmp_path / "lenient", before, after, Settings(delta=0.02))
    assert row.verdict == UNHARMED and row.p_holm < 0.05, "a real drop, shown to be smaller than what is tolerated"


def test_holm_over_tasks(tmp_path):
    weak = samples(answers(100, 7))
    base = {f"t{i}": samples([1.0] * 100) for i in range(8)}
    alone = compared(tmp_path / "alone", {"t0": base["t0"]}, {"t0": weak}).rows[0]
    among = compared(tmp_path / "among", base, base | {"t0": weak}).rows[0]
    assert alone.p == among.p == statistics.mcnemar(7, 0) and among.p_holm == pytest.approx(8 * among.p)
    assert (alone.verdict, among.verdict) == (REGRESSED, INCONCLUSIVE)
    assert among.detectable > alone.detectable


def graded(values, metric: str = "rouge") -> dict:
    return {"t": samples(values, metric)}


def test_few_changes_are_no_more_certain_than_none(tmp_path):
    """Grades, 0/1 values in clusters, a corpus-level metric: never a narrower interval than where nothing changed."""
    before = np.random.default_rng(1).random(60).round(3).tolist()
    (same,) = compared(tmp_path / "same", graded(before), graded(before)).rows
    (one,) = compared(tmp_path / "one", graded(before), graded([before[0] - 0.001, *before[1:]])).rows
    assert one.difference.low < same.difference.low < 0 < same.difference.high and same.verdict == UNHARMED
    docs = [{"passage": f"p{i // 4}", "i": i} for i in range(80)]
    lows = []
    for count in range(4):
        rows = [[sample(i, {"acc": int(i % 8 > 0 or i // 8 >= k)}, doc=docs[i]) for i in range(80)] for k in (0, count)]
        (row,) = compared(tmp_path / f"clusters{count}", {"t": rows[0]}, {"t": rows[1]}).rows
        lows.append(row.difference.low)
        assert row.clusters == 20 and row.difference.low < row.difference.value
    assert lows == sorted(lows, reverse=True)


def test_no_interval_is_wider_than_the_metric_allows(tmp_path):
    (row,) = compared(tmp_path / "share", graded([0.9, 0.8, 1.0, 0.1]), graded([0.0, 0.0, 0.05, 0.1])).rows
    assert row.difference.low == pytest.approx(-0.7), "no more than there is to lose"
    assert (row.difference.least, row.difference.most) == pytest.approx((-0.7, 0.3))
    (row,) = compared(tmp_path / "grade", graded([90, 80, 99, 10]), graded([0.0, 0, 5, 10])).rows
    assert row.difference.low < -100, "what the bounds are is not known"


def test_continuous_and_clustered_metrics(tmp_path):
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 60))
    docs = [{"passage": f"p{i // 3}", "i": i} for i in range(60)]

    def rows(values):
        return [sample(i, {"rouge": value}, doc=docs[i]) for i, value in enumerate(values.tolist())]

    (row,) = compared(tmp_path, {"t": rows(before)}, {"t": rows(after)}).rows
    clusters = np.arange(60) // 3
    assert (row.n, row.clusters, row.cluster_field, row.test) == (60, 20, "passage", "sign flip")
    assert row.p == statistics.sign_flip(after - before, clusters)
    possible = (1 - row.base, -row.base)
    assert row.difference == statistics.mean_difference(after - before, clusters).within(*possible)


def test_clustered_answers_are_not_tested_as_if_independent(tmp_path):
    docs = [{"passage": f"p{i // 10}", "i": i} for i in range(100)]
    base = [sample(i, {"acc": 1.0}, doc=docs[i]) for i in range(100)]
    edited = [sample(i, {"acc": float(i >= 20)}, doc=docs[i]) for i in range(100)]
    (row,) = compared(tmp_path, {"t": base}, {"t": edited}).rows
    assert row.p == 0.5 and statistics.mcnemar(20, 0) < 1e-5, "two passages broke, not twenty documents"
    assert row.verdict == INCONCLUSIVE


def entities(score, n=40):
    rows = [
        sample(4 * i + j, {"score": score(i), "score_stderr": score(i), "valid": 1.0}, doc={"sentence_id": i, "j": j})
        for i in range(n) for j in range(4)
    ]  # fmt: skip
    for row in rows:
        row["score"] = (row["doc"]["sentence_id"], *row["score"])
    return rows


def test_named_entities(tmp_path):
    base, edited = entities(lambda i: (2, 2, 2)), entities(lambda i: (i % 3, 2, 2))
    runs = []
    for name, rows in (("a", base), ("b", edited)):
        figure = aggregate.entity_f1([row["score"] for row in rows])
        aggregations = {"score": "def entity_f1(items):\n", "score_stderr": "def entity_f1_stderr(items):\n"}
        runs.append(load_run(write_run(
            tmp_path / name, {"ner": rows}, aggregations=aggregations, results={"ner": {"score,none": figure}}
        )))  # fmt: skip
    score, valid = compare_runs(*runs).rows
    assert (score.metric, score.clusters, score.test, score.verdict) == ("score", 40, "swap", REGRESSED)
    assert score.edited == pytest.approx(aggregate.entity_f1([row["score"] for row in edited]))
    assert score.difference.method == "bootstrap" and score.difference.high < 0
    assert (score.flips.worse, score.flips.lost_format, score.flips.lost_ability) == (108, 0, 108)
    assert valid.difference.value == 0 and valid.difference.low < 0


def test_valid_separates_lost_format_from_lost_ability(tmp_path):
    base = [sample(i, {"score": 1.0, "valid": 1.0}) for i in range(50)]
    edited = [sample(i, {"score": float(i >= 20), "valid": float(i >= 12)}) for i in range(50)]
    score, valid = compared(tmp_path, {"t": base}, {"t": edited}).rows
    assert dataclasses.astuple(score.flips) == (20, 0, 12, 8, 20)
    assert (valid.flips.worse, valid.flips.lost_format, valid.headline) == (12, None, False)


# -------------------------------------------------------------------------------------------------------- groups, seeds


def suite(folder, wrong, weighted=False, **changes):
    """Two tasks of 100 and 300 documents in a group, with the group's figure as the harness would report it."""
    values = {"t": answers(100, wrong), "u": answers(300, wrong)}
    means = [np.mean(values["t"]), np.mean(values["u"])]
    figure = float(np.average(means, weights=[100, 300] if weighted else None))
    groups = {"g": {"acc,none": figure, "alias": "g"}}
    tasks = {task: samples(each) for task, each in values.items()}
    return load_run(write_run(folder, tasks, groups=groups, group_subtasks={"g": ["h"], "h": ["t", "u"]}, **changes))


@pytest.mark.parametrize(("weighted", "weights"), [(False, [0.5, 0.5]), (True, [0.25, 0.75])])
def test_group_means_with_the_harnesss_weights(tmp_path, weighted, weights):
    found = compare_runs(suite(tmp_path / "a", 10, weighted), suite(tmp_path / "b", 40, weighted))
    (group,) = found.groups
    assert (group.task, list(group.members.values()), group.verdict) == ("g", weights, REGRESSED)
    mean, p = combined.weighted_mean([row.difference for row in found.rows], weights)
    assert (group.difference, group.p) == (mean, p)
    assert group.base - group.edited == pytest.approx(0.3 * weights[0] + 0.1 * weights[1])


def test_tasks_about_the_same_facts_are_not_taken_as_independent(tmp_path):
    """Twenty facts, one document each in one task and two in the other, all of a fact's lost together."""
    lost = np.array(answers(20, 6))
    facts = [f"f{i}" for i in range(20)]

    def run(folder, values):
        tasks = {}
        for task, each in (("t", 1), ("u", 2)):
            named = [(name, value) for name, value in zip(facts, values, strict=True) for _ in range(each)]
            tasks[task] = [
                sample(i, {"acc": float(value)}, doc={"fact_id": name, "n": i}) for i, (name, value) in enumerate(named)
            ]
            facts.reverse(), values.reverse()  # another order in the other task
        return load_run(write_run(folder, tasks))

    found = compare_runs(run(tmp_path / "a", [1.0] * 20), run(tmp_path / "b", lost.tolist()))
    (group,) = found.groups
    independent, _ = combined.weighted_mean([row.difference for row in found.rows], [0.5, 0.5])
    own = [row.difference.stderr for row in found.rows]
    assert group.difference.value == independent.value and group.difference.df == 19
    assert independent.stderr < 0.8 * np.mean(own) < group.difference.stderr <= 1.02 * np.mean(own)


def test_a_mean_of_tasks_where_no_group_has_one(tmp_path):
    base = {"t": samples(answers(100, 5)), "u": samples(answers(50, 5), "em")}
    (overall,) = compared(tmp_path, base, base).groups
    assert (overall.task, overall.metric, overall.n) == ("mean of tasks", "headline", 150)
    assert overall.base == pytest.approx(0.925)


def edited_run(folder, wrong, seed, n_edits=20):
    edit = {"editor": "rome", "n_edits": n_edits, "edit_batch_size": 1, "edit_seed": seed, "options": {"v_lr": 0.5}}
    return load_run(write_run(folder, {"t": samples(answers(200, wrong, seed))}, config={"edit": edit}))


def test_several_seeds(tmp_path):
    from lm_eval_edit.comparison.group_means import seed_rows

    base = load_run(write_run(tmp_path / "base", {"t": samples([1.0] * 200)}))
    runs = [edited_run(tmp_path / f"{seed}", wrong, seed) for seed, wrong in enumerate((20, 40, 30))]
    other = edited_run(tmp_path / "other", 100, 0, n_edits=50)
    comparisons = [compare_runs(base, run) for run in (*runs, runs[0], other)]
    (row,) = seed_rows(comparisons, 0.05)
    assert (row.method, row.runs, row.difference) == ("rome n=20", 3, pytest.approx(-0.15))
    expected = combined.between_runs([-0.1, -0.2, -0.15])
    assert row.between == pytest.approx((expected.low, expected.high))
    assert row.within[0] < -0.15 < row.within[1] and row.within[1] - row.within[0] < row.between[1] - row.between[0]


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def runs(tmp_path):
    suite(tmp_path / "base", 10)
    suite(tmp_path / "edited", 40, config={"edit": {"editor": "rome", "n_edits": 20, "edit_seed": 0}})
    suite(tmp_path / "noise", 11)
    return tmp_path


def command(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out, captured.err


def test_table(runs, capsys):
    out, _ = command(capsys, "compare", runs / "base", runs / "edited", "--noise", runs / "noise")
    assert "some/model → rome n=20 seed=0" in out and "regressed" in out and "noise" in out and "−0.300" in out


def test_no_difference_is_printed_with_what_could_have_been_seen(runs, capsys):
    out, _ = command(capsys, "compare", runs / "base", runs / "base", "--format", "markdown")
    assert out.count("no regression (identical answers; detectable: 0.") == 3
    assert out.startswith("### some/model → some/model\n\n| task | metric | n | base |")


def test_csv(runs, capsys):
    out, _ = command(capsys, "compare", runs / "base", runs / "edited", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["task"] for row in rows] == ["t", "u", "g"]
    assert float(rows[0]["difference"]) == pytest.approx(-0.3) and rows[0]["worse"] == "30"


@pytest.mark.parametrize("options", [[], ["--noise"]])
def test_json_is_what_its_schema_says(runs, capsys, options):
    validator = pytest.importorskip("jsonschema")
    arguments = [runs / "base", runs / "edited", "--format", "json", *options, *([runs / "noise"] if options else [])]
    content = json.loads(command(capsys, "compare", *arguments)[0])
    schema = json.loads((SCHEMAS / "compare.schema.json").read_text())
    validator.Draft202012Validator.check_schema(schema)
    validator.validate(content, schema)
    assert content["comparisons"][0]["rows"][0]["verdict"] == "regressed"
    assert content["comparisons"][0]["edited"]["editor"] == "rome"
    del content["alpha"]
    with pytest.raises(validator.ValidationError):
        validator.validate(content, schema)


def test_flips(runs, capsys):
    _, err = command(capsys, "compare", runs / "base", runs / "edited", "--flips", runs / "flips.jsonl")
    assert f"60 documents that changed are in {runs / 'flips.jsonl'}" in err
    lines = [json.loads(line) for line in (runs / "flips.jsonl").read_text().splitlines()]
    assert len(lines) == 60 and {line["change"] for line in lines} == {"right to wrong"}
    first = lines[0]
    assert (first["task"], first["metric"], first["target"]) == ("t", "acc", "yes")
    assert first["prompt"] == f"Q{first['doc_id']}"
    assert first["base"] == {"output": "1.0", "value": 1.0} and first["edited"] == {"output": "0.0", "value": 0.0}


def test_flips_of_choices_name_the_choice(tmp_path, capsys):
    def run(name, likelihoods, acc):
        arguments = {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {word}"} for i, word in enumerate(("Rome", "Oslo"))}
        responses = [[f"{value}", "False"] for value in likelihoods]
        rows = [sample(0, {"acc": acc}, prompt="Q", arguments=arguments, filtered_resps=responses)]
        write_run(tmp_path / name, {"t": rows})

    run("a", (-1, -2), 1.0)
    run("b", (-3, -2), 0.0)
    command(capsys, "compare", tmp_path / "a", tmp_path / "b", "--flips", tmp_path / "f.jsonl")
    (line,) = (json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines())
    assert (line["base"]["output"], line["edited"]["output"]) == (" Rome", " Oslo")


def test_flips_with_half_a_pair_of_surrogates(tmp_path, capsys):
    """What a sweep writes for a text that is not quite Unicode is read, and written again as an escape."""
    for name, acc in ("a", 1.0), ("b", 0.0):
        file = write_run(tmp_path / name, {"t": [sample(0, {"acc": acc}, answer="\ud800")]})
        samples_file = next(file.parent.glob("samples_*"))
        line = json.dumps(json.loads(samples_file.read_text()), ensure_ascii=False)
        samples_file.write_bytes(line.encode("utf-8", "surrogatepass") + b"\n")
    command(capsys, "compare", tmp_path / "a", tmp_path / "b", "--flips", tmp_path / "f.jsonl")
    assert json.loads((tmp_path / "f.jsonl").read_text())["edited"]["output"] == "\ud800"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "accuracy"], "no metric accuracy in the results; there are acc"),
        (["--tasks", "v"], "no task v in "),
        (["--alpha", "1.5"], "alpha=1.5: want a level between 0 and 1, such as 0.05"),
        (["--delta", "-1"], "-1.0: want a tolerated drop of at least 0, such as 0.02"),
        (["--noise", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_mistakes(runs, capsys, options, message):
    assert cli.main(["compare", str(runs / "base"), str(runs / "edited"), *options]) == 1
    assert message in capsys.readouterr().err


def test_flips_are_of_one_run(runs, capsys):
    edited = str(runs / "edited")
    assert cli.main(["compare", str(runs / "base"), edited, edited, "--flips", "x"]) == 1
    assert "--flips takes one EDITED, 2 are given" in capsys.readouterr().err


def test_no_metric_at_all(tmp_path):
    rows = [sample(0, {"bleu": ("a", "b")})]
    with pytest.raises(UserError, match="the runs have no metric that can be compared"):
        compared(tmp_path, {"t": rows}, {"t": rows}, aggregations={"bleu": "bleu"})
