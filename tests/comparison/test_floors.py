"""What the unedited model cannot do shows no damage, and a share of next to nothing says nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pytest

import lm_eval_edit
from lm_eval_edit import cli
from lm_eval_edit.comparison.compare import INCONCLUSIVE, REGRESSED, UNHARMED, Settings, compare_runs
from lm_eval_edit.comparison.floors import AT_FLOOR, floor, floors
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.comparison.tables import verdict
from lm_eval_edit.harness.our_tasks import _Loader, tasks_dir
from lm_eval_edit.tasklib import measures
from tests.support.results_files import sample, samples, write_run

SCHEMAS = Path(lm_eval_edit.__file__).parent / "comparison" / "schemas"
CHOICES = {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {i}"} for i in range(4)}


def right(n: int, k: int) -> list[float]:
    """n zeros and ones, the first k of them ones."""
    return [1.0] * k + [0.0] * (n - k)


def metadata(task: str, **said) -> dict:
    return {"configs": {task: {"metadata": {"version": 1.0, **said}}}}


def compared(folder, base, edited, settings=None, **layout):
    runs = [load_run(write_run(folder / name, tasks, **layout)) for name, tasks in (("a", base), ("b", edited))]
    return compare_runs(*runs, settings)


def base_of(folder, values, **layout):
    run = load_run(write_run(folder, {"t": samples(values)}, **layout))
    return run.samples["t", "none"]


# -------------------------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize(
    ("n", "k", "chance", "low"),
    [
        (100, 0, 0, True),
        (100, 2, 0, True),  # two that turn wrong have p = 0.5
        (100, 5, 0, True),
        (100, 6, 0, False),  # 2 · 0.5^6 < 0.05
        (5, 5, 0, False),  # too few documents, but not too little ability
        (100, 50, 0.5, True),
        (100, 58, 0.5, True),  # Clopper and Pearson's lower bound is 0.493
        (100, 59, 0.5, False),
        (400, 10, 0.5, True),  # the form is lost
        (100, 33, 0.25, False),
        (100, 32, 0.25, True),
    ],
)
def test_at_floor_by_what_guessing_scores(tmp_path, n, k, chance, low):
    found = base_of(tmp_path, right(n, k), **metadata("t", chance=chance))
    assert (floor(found, "acc") is not None) is low


def test_chance_of_stock_tasks_is_one_of_their_choices(tmp_path):
    layout = {"configs": {"t": {"output_type": "multiple_choice"}}}
    rows = [sample(i, {"acc": value}, arguments=CHOICES) for i, value in enumerate(right(100, 30))]
    four = load_run(write_run(tmp_path / "four", {"t": rows}, **layout))
    assert four.samples["t", "none"].metrics["acc"].chance == 0.25
    assert floors(four)["t"] == "0.3, not shown to be above chance (0.25)"
    mixed = [row | {"arguments": dict(list(CHOICES.items())[: 2 + 2 * (i % 2)])} for i, row in enumerate(rows)]
    run = load_run(write_run(tmp_path / "mixed", {"t": mixed}, **layout))
    assert run.samples["t", "none"].metrics["acc"].chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    # The same figures of a task that generates are above chance, which is 0.
    assert floors(load_run(write_run(tmp_path / "free", {"t": rows}))) == {}


def test_requests_that_are_no_choices_are_not_counted(tmp_path):
    """acc_mutual_info asks each choice twice; a grade of a multiple-choice task is not what one guesses."""
    rows = [
        sample(i, {"acc": value, "acc_mutual_info": value, "graded": 0.3}, arguments=CHOICES)
        for i, value in enumerate(right(100, 60))
    ]
    run = load_run(write_run(tmp_path, {"t": rows}, configs={"t": {"output_type": "multiple_choice"}}))
    found = run.samples["t", "none"].metrics
    assert (found["acc"].chance, found["graded"].chance) == (0.5, 0)


def test_no_floor_where_lower_is_better_or_bounds_are_unknown(tmp_path):
    assert floor(base_of(tmp_path / "down", right(100, 0), better={"acc": False}), "acc") is None
    assert floor(base_of(tmp_path / "wide", [0.0] * 50 + [-3.0] * 50), "acc") is None


def test_edit_quality_has_no_floor(tmp_path):
    """That the unedited model does not know the new facts is how it should be."""
    assert floor(base_of(tmp_path, right(100, 0), **metadata("t", measures="edit_quality")), "acc") is None


def test_our_tasks_say_what_guessing_scores_and_what_they_measure():
    import yaml

    def whole(path):
        config = yaml.load(path.read_text(), _Loader)
        return (whole(path.parent / config["include"]) if "include" in config else {}) | config

    configs = [whole(path) for path in tasks_dir().rglob("*.yaml")]
    found = {config["task"]: config for config in configs if "include" in config}
    chances = {task: measures.stated_chance(task, config) for task, config in found.items()}
    by_likelihood = {task for task in found if task.endswith("_mc")}
    assert {task: chances[task] for task in by_likelihood} == {
        "edithurt_rte_mc": 0.5, "edithurt_boolq_mc": 0.5, "edithurt_sst2_mc": 0.5, "edithurt_mutual_mc": 0.25,
        "edithurt_nq_mc": 0, "edithurt_gsm8k_mc": 0, "edithurt_samsum_mc": 0,
    }  # fmt: skip
    suite = {task for task in found if found[task]["metadata"].get("measures") is None} - by_likelihood
    glue = {task for task in suite if task.startswith("edithurt_glue_")}
    assert len(glue) == 8 and {chances[task] for task in glue} == {0.5, 0.25}
    assert {task for task in glue if chances[task] == 0.25} == {"edithurt_glue_mmlu", "edithurt_glue_dialogue"}
    suite -= glue
    assert len(suite) == 8 and {task: chances[task] for task in suite if chances[task]} == {
        "edithurt_rte": 0.5, "edithurt_boolq": 0.5, "edithurt_sst2": 0.5, "edithurt_mutual": 0.25,
    }  # fmt: skip
    assert all("provenance" in config["metadata"] and "version" in config["metadata"] for config in found.values())
    # Results of the tasks of release 0.1, written before their YAML said so, are read the same way.
    for task in suite | {f"edithurt_{name}" for name in ("efficacy", "generalization", "locality", "counterfact")}:
        assert measures.measures(task, found[task]) == measures.measures(task, {})
        assert (measures.stated_chance(task, {}) or 0) == (chances[task] or 0)


@pytest.mark.parametrize("chance", [1, 50, -0.1])
def test_a_chance_that_is_no_share_is_an_error(tmp_path, chance):
    with pytest.raises(lm_eval_edit.errors.UserError, match=r"t: metadata\.chance is"):
        base_of(tmp_path, right(10, 5), **metadata("t", chance=chance))


# ------------------------------------------------------------------------------------------------------------- compare


def test_what_cannot_be_lost_is_in_no_interval(tmp_path):
    (row,) = compared(tmp_path, {"t": samples(right(40, 2))}, {"t": samples(right(40, 0))}).rows
    assert (row.base, row.difference.low) == pytest.approx((0.05, -0.05))
    assert math.isinf(row.detectable), "a drop of more than the base would be needed"
    (row,) = compared(tmp_path / "no change", {"t": samples(right(100, 99))}, {"t": samples(right(100, 99))}).rows
    assert row.difference.high == pytest.approx(0.01), "nor can more be gained than is left"


def test_at_floor_is_said_and_is_no_all_clear(tmp_path):
    tasks = ({"t": samples(right(400, 4))}, {"t": samples([0.0] * 396 + [1.0] * 4)})
    (row,) = compared(tmp_path, *tasks).rows
    assert row.floor == "0.01, only 4 of 400 documents score"
    assert row.verdict == INCONCLUSIVE, "its drop is within 0.02, as there is no more to lose"
    assert verdict(row) == f"{AT_FLOOR} (0.01, only 4 of 400 documents score)"
    same = compared(tmp_path / "same", tasks[0], tasks[0]).rows[0]
    assert same.verdict == UNHARMED and AT_FLOOR in verdict(same)


def test_a_guess_that_is_lost_is_still_damage(tmp_path):
    """At chance in the right form, then no form at all: that is seen, and said together with the floor."""
    (row,) = compared(
        tmp_path, {"t": samples(right(400, 210))}, {"t": samples(right(400, 0))}, **metadata("t", chance=0.5)
    ).rows
    assert row.floor and row.verdict == REGRESSED and verdict(row).startswith("regressed; at floor")


def test_means_flag_tasks_at_floor_and_have_one_without_them(tmp_path):
    base = {"can": samples(right(200, 180)), "cannot": samples(right(200, 0)), "also": samples(right(200, 160))}
    edited = base | {"can": samples(right(200, 120))}
    *_, mean, able = compared(tmp_path, base, edited).groups
    assert (mean.task, mean.at_floor) == ("mean of tasks", ("cannot",)) and "1 of 3 tasks at floor" in verdict(mean)
    assert (able.task, list(able.members)) == ("mean of tasks not at floor", ["can", "also"])
    assert able.difference.value == pytest.approx(-0.15) and mean.difference.value == pytest.approx(-0.1)


@pytest.mark.parametrize(("n", "k"), [(100, 2), (400, 8), (1000, 40)])
def test_no_recovery_of_next_to_nothing(tmp_path, n, k, capsys):
    for name, values in (("a", right(n, k)), ("b", right(n, n // 3))):
        write_run(tmp_path / name, {"t": samples(values)})
    (row,) = compare_runs(load_run(tmp_path / "a"), load_run(tmp_path / "b")).rows
    assert row.recovery is None and row.recovery_undefined
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr()
    assert "not defined" in out.out and "%" not in out.out.replace("95% interval", "")
    assert "at floor" in out.out or "too near 0" in out.err


def test_a_lost_form_in_the_unedited_model_suggests_the_chat_template(tmp_path, capsys):
    rows = [sample(i, {"score": 0.0, "valid": float(i == 0)}) for i in range(40)]
    for name in ("a", "b"):
        write_run(tmp_path / name, {"t": rows})
    cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "t (valid 0.025); if it is a chat model, run lm_eval with --apply_chat_template" in capsys.readouterr().err
    for name in ("a", "b"):
        write_run(tmp_path / name, {"t": rows}, chat_template_sha="1234")
    cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    err = capsys.readouterr().err
    assert "seldom answers in the asked form: t (valid 0.025)" in err and "--apply_chat_template" not in err


# ------------------------------------------------------------------------------------------------- ability and quality


def test_ability_and_edit_quality_are_never_averaged(tmp_path, capsys):
    """Efficacy 0 -> 1 must not make an improvement of a model whose ability fell."""
    said = {"configs": {"my_edits": {"metadata": {"measures": "edit_quality"}}}}
    base = {"a": samples(right(200, 180)), "b": samples(right(200, 180)), "my_edits": samples(right(200, 0))}
    edited = {"a": samples(right(200, 120)), "b": samples(right(200, 130)), "my_edits": samples(right(200, 200))}
    group = {"groups": {"mine": {"acc,none": 0.6}}, "group_subtasks": {"mine": list(base)}}
    found = compared(tmp_path, base, edited, **said, **group)
    (mean,) = found.groups
    assert (mean.task, mean.verdict, list(mean.members)) == ("mean of tasks", REGRESSED, ["a", "b"])
    cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "mine: no mean, it mixes edit quality with ability" in capsys.readouterr().err


def test_results_from_before_tasks_said_what_they_measure(tmp_path):
    base = {name: samples(right(200, 150)) for name in ("a", "edithurt_efficacy", "edithurt_locality", "b")}
    groups = {row.task: list(row.members) for row in compared(tmp_path, base, base).groups}
    assert groups == {"mean of tasks": ["a", "b"], "mean of edit quality": ["edithurt_efficacy", "edithurt_locality"]}


def test_it_is_what_the_task_says_not_its_name(tmp_path):
    base = {name: samples(right(200, 150)) for name in ("a", "edithurt_locality")}
    (mean,) = compared(tmp_path, base, base, **metadata("edithurt_locality", measures="ability")).groups
    assert list(mean.members) == ["a", "edithurt_locality"]


# --------------------------------------------------------------------------------------------------------------- flips


def entities(counts, valid=None) -> list[dict]:
    return [
        sample(i, {"score": [i, *each], "valid": 1.0 if valid is None else float(valid[i])}, answer=f"{i} {each}")
        for i, each in enumerate(counts)
    ]


def test_a_model_that_stops_naming_wins_nothing(tmp_path):
    """False positives that stop with everything else are no document won."""
    before = [(1, 1, 1)] * 20 + [(0, 3, 1)] * 20 + [(0, 2, 0)] * 20
    after = [(0, 0, gold) for _, _, gold in before]
    layout = {"aggregations": {"score": "entity_f1"}}
    found = compared(tmp_path, {"ner": entities(before)}, {"ner": entities(after)}, **layout)
    row = found.rows[0]
    assert row.edited == 0 and (row.flips.worse, row.flips.better) == (20, 0)
    mended = [(1, 1, 1)] * 40 + [(0, 1, 0)] * 20  # a better model still wins
    row = compared(tmp_path / "better", {"ner": entities(before)}, {"ner": entities(mended)}, **layout).rows[0]
    assert (row.flips.worse, row.flips.better) == (0, 40)


def test_an_output_without_form_wins_nothing_but_the_test_counts_it(tmp_path):
    before = [sample(i, {"acc": 0.0, "valid": 1.0}) for i in range(20)]
    after = [sample(i, {"acc": 1.0, "valid": float(i < 5)}) for i in range(20)]
    row = compared(tmp_path, {"t": before}, {"t": after}).rows[0]
    assert row.flips.better == 5 and row.difference.value == 1.0 and row.p < 0.001


def test_flips_by_any_metric(tmp_path, capsys):
    before = [sample(i, {"score": 1.0, "strict": 1.0}) for i in range(10)]
    after = [sample(i, {"score": 1.0, "strict": float(i > 2)}) for i in range(10)]
    for name, rows in (("a", before), ("b", after)):
        write_run(tmp_path / name, {"t": rows})
    told = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--flips", str(tmp_path / "f.jsonl")]
    assert cli.main(told) == 0 and (tmp_path / "f.jsonl").read_text() == ""
    assert cli.main([*told, "--metric", "strict"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert [(line["doc_id"], line["metric"]) for line in lines] == [(0, "strict"), (1, "strict"), (2, "strict")]
    capsys.readouterr()
    assert cli.main([*told, "--metric", "strikt"]) == 1 and "Did you mean" in capsys.readouterr().err
    assert cli.main([*told[:3], "--metric", "strict"]) == 1 and "--flips" in capsys.readouterr().err
    # --metrics narrows what is shown, not which documents are written.
    assert cli.main([*told[:3], "--metrics", "score", *told[3:], "--metric", "strict"]) == 0
    assert len((tmp_path / "f.jsonl").read_text().splitlines()) == 3


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_the_json_keeps_to_its_schema_and_so_do_files_of_before(tmp_path, capsys):
    base = {"t": samples(right(50, 0)), "u": samples(right(50, 40))}
    for name in ("a", "b"):
        write_run(tmp_path / name, base)
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    schema = json.loads((SCHEMAS / "compare.schema.json").read_text())
    jsonschema.validate(found, schema)
    (low,) = [row for row in found["comparisons"][0]["rows"] if row["task"] == "t"]
    assert low["floor"] and low["measures"] == "ability" and found["revision"] == 2
    del found["revision"]
    for each in found["comparisons"]:
        del each["without_headline"]
        for row in (*each["rows"], *each["groups"]):
            for key in ("measures", "floor", "at_floor", "recovery_undefined"):
                del row[key]
    jsonschema.validate(found, schema)


def test_floors_hold_at_the_level_asked_for(tmp_path):
    tasks = {"t": samples(right(100, 59))}
    rows = [
        compared(tmp_path / f"{alpha}", tasks, tasks, Settings(alpha=alpha), **metadata("t", chance=0.5)).rows[0]
        for alpha in (0.05, 0.01)
    ]
    assert [row.floor is None for row in rows] == [True, False]
