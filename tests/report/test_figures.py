"""The figures of a report: those of `compare`, and budgets counted by hand; what broke; how to make it again."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lm_eval_edit import cli
from lm_eval_edit._support.files import hash_json, sha256
from lm_eval_edit.comparison.compare import UNHARMED, Settings, compare_runs
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.comparison.tables import interval, number
from lm_eval_edit.report import Options, render
from lm_eval_edit.report.budget import MEAN, WORST, Budget, budget, drops, held, words
from lm_eval_edit.report.comparing import compare_sweep
from lm_eval_edit.report.settings import command, design_yaml
from lm_eval_edit.report.tables import model_tables
from lm_eval_edit.sweep.folder import COLLAPSED, DONE
from lm_eval_edit.sweep.parsing import parse_design
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.html_pages import Page
from tests.support.results_files import sample, samples
from tests.support.sweep_folders import write_cells, write_mixed_sweep, write_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_mixed_sweep(tmp_path_factory.mktemp("report") / "sweep")


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page(render(load_sweep(folder), []))


def right(n: int, wrong: int) -> list[dict]:
    """n documents, the first `wrong` of them wrong."""
    return samples([0] * wrong + [1] * (n - wrong))


# ---------------------------------------------------------------------------------------------------------- the figures


def test_summary_has_the_figures_of_compare(folder, page):
    base = load_run(folder / "demo/unedited")
    table = page.tables[0]
    assert table[0][:3] == ["Edits", "suite", "gsm8k"] and len(table[0]) == 10
    seen = 0
    for row in load_sweep(folder).rows:
        title = f"{row.method}, seed {row.edit_seed}"
        start = next(i for i, cells in enumerate(table) if cells == [title])
        for offset, cell in enumerate(row.cells, start=1):
            line = table[start + offset]
            assert line[0] == str(cell.n_edits)
            if cell.status != DONE:
                assert len(line) == 2
                continue
            edited = load_run(cell.results_file)
            comparison = compare_runs(base, edited, Settings(tasks=base.tasks))
            figures = [comparison.groups[0], *(each for each in comparison.rows if each.headline)]
            for given, want in zip(line[1:], figures, strict=True):
                d = want.difference
                assert given.startswith(number(want.edited)) and given.endswith(interval(d.low, d.high))
                assert want.identical or number(d.value, sign=True) in given
                assert want.verdict == UNHARMED or f"{want.verdict}:" in given
                seen += 1
    assert seen == 6 * 9


def test_in_short(folder):
    """The ends of the curves: both seeds of ROME, FT as far as it came, MEMIT not at all."""
    sweep = load_sweep(folder)
    compared = compare_sweep(sweep, Settings())
    (table,) = model_tables(compared)
    rome, memit, ft = table.short
    ends = [row.cells[-1].value("edithurt_suite").value for row in sweep.rows if row.method == "rome"]
    assert (rome.n_edits, rome.seeds, rome.collapsed) == (20, 2, ()) and ends[0] != ends[1]
    assert [row.edited for row in rome.ends] == pytest.approx(ends)
    assert (memit.ends, memit.collapsed) == ((), (20, 20)) and (ft.n_edits, len(ft.ends)) == (5, 2)
    source = " ".join(render(sweep, []).split())
    assert f"→ {number(min(ends))} to {number(max(ends))} after 20 edits (2 of 2 edit seeds)" in source
    assert "<strong>memit</strong>: collapsed at 20 edits (2 of 2 edit seeds)" in source


def test_between_seeds_are_those_of_compare(folder, page, capsys):
    cells = [f"{folder}/demo/rome-demo-seed{seed}/n00020" for seed in (0, 1)]
    tasks = ",".join(load_run(folder / "demo/unedited").tasks)
    assert cli.main(["compare", f"{folder}/demo/unedited", *cells, "--tasks", tasks, "--format", "json"]) == 0
    want = next(row for row in json.loads(capsys.readouterr().out)["seeds"] if row["task"] == "edithurt_suite")
    table = next(table for table in page.tables if "Between seeds" in table[0])
    line = next(row for row in table if row[:2] == ["rome", "20"])
    assert line[2:] == [
        "2", number(want["difference"], sign=True), interval(*want["between"]), interval(*want["within"])
    ]  # fmt: skip
    assert [row[0] for row in table[1:]] == ["rome", "rome", "ft"], "memit was compared at no checkpoint"


def test_edit_quality(folder, page):
    cell = load_sweep(folder).rows[0].cells[-1]
    table = next(table for table in page.tables if table[0][1].startswith("efficacy"))
    assert [row[0] for row in table[1:]] == ["0", "5", "20"]
    column = table[0].index("efficacy em")
    value = cell.value("edithurt_efficacy", "em")
    assert table[-1][column] == f"{number(value.value)} ± {number(value.stderr)}"
    assert float(table[1][column].split()[0]) < 0.2 < value.value


@pytest.mark.parametrize(
    ("drops", "delta", "want", "said"),
    [
        ([(5, 0.0), (10, 0.03), (20, 0.2)], 0.02, Budget(5, beyond=10), "5"),
        ([(5, 0.0), (10, 0.03), (20, 0.2)], 0.05, Budget(10, beyond=20), "10"),
        ([(5, 0.0), (10, 0.03)], 0.05, Budget(10), "≥ 10"),
        ([(5, 0.1), (10, 0.0)], 0.05, Budget(0, beyond=5), "< 5"),  # it recovers, but it was beyond
        ([(5, 0.01), (10, None), (20, 0.0)], 0.05, Budget(5, unknown=10), "≥ 5"),
        ([(5, None)], 0.05, Budget(0, unknown=5), "–"),
        ([(5, -0.3), (10, math.inf)], 0.0, Budget(5, beyond=10), "5"),
        ([(5, 1 - 0.95)], 0.05, Budget(5), "≥ 5"),  # 0.05000000000000004: still 5 of 100
        ([], 0.05, Budget(0), "–"),
    ],
)
def test_budget(drops, delta, want, said):
    assert budget(drops, delta) == want and str(want) == said


def test_budget_of_several_seeds():
    assert words([Budget(10, beyond=20), Budget(5, beyond=10)]) == "5 to 10"
    assert words([Budget(5, beyond=10), Budget(20)]) == "5 to ≥ 20"
    assert words([Budget(5, unknown=10), Budget(5, beyond=10)]) == "5"
    assert words([Budget(0, beyond=5), Budget(0, beyond=5)]) == "< 5"


def test_budget_against_counts_write_cells(tmp_path):
    """Two tasks of 100 documents: drops of (1, 0), (4, 2) and (12, 0) documents, then a collapse."""
    wrong = {0: (0, 0), 5: (1, 0), 10: (4, 2), 20: (12, 0)}
    cells = {n: {"a": right(100, a), "b": right(100, b)} for n, (a, b) in wrong.items()}
    compared = compare_sweep(load_sweep(write_cells(tmp_path / "x", cells | {50: COLLAPSED})), Settings())
    means, worst = (dict(drops(compared, scope, certain=False)) for scope in (MEAN, WORST))
    assert means == pytest.approx({5: 0.005, 10: 0.03, 20: 0.06, 50: math.inf})
    assert worst == pytest.approx({5: 0.01, 10: 0.04, 20: 0.12, 50: math.inf})
    seen = {
        (scope, delta): str(held([compared], scope, delta).seen[0])
        for scope in (MEAN, WORST)
        for delta in (0.01, 0.05, 0.1)
    }
    assert seen == {
        (MEAN, 0.01): "5", (MEAN, 0.05): "10", (MEAN, 0.1): "20",
        (WORST, 0.01): "5", (WORST, 0.05): "10", (WORST, 0.1): "10",
    }  # fmt: skip
    # By Bonett and Price, 1 of 100 turned wrong: (−1 ± 1.96 √((3 − 1/102) / 102)) … its far end is a drop of 0.0431.
    far = (1 + 1.959964 * math.sqrt(3 - 1 / 102)) / 102
    assert dict(drops(compared, WORST, certain=True))[5] == pytest.approx(far, abs=1e-6)
    assert [str(held([compared], WORST, delta).certain[0]) for delta in (0.01, 0.04, 0.05, 0.2)] == [
        "< 5",
        "< 5",
        "5",
        "20",
    ]


def test_budget_ends_where_a_task_is_missing(tmp_path):
    cells = {
        0: {"a": right(50, 0), "b": right(50, 0)},
        5: {"a": right(50, 0), "b": right(50, 0)},
        10: {"a": right(50, 0)},
    }
    sweep = load_sweep(write_cells(tmp_path / "x", cells))
    compared = compare_sweep(sweep, Settings())
    assert compared[-1].mean is None and compared[-1].why == "not evaluated: b"
    assert held([compared], MEAN, 0.5).seen == held([compared], WORST, 0.5).seen == (Budget(5, unknown=10),)
    assert "not evaluated: b" in render(sweep, [])


# ----------------------------------------------------------------------------------------------------------- what broke


def test_what_broke(tmp_path):
    def lines(wrong: set[int], n: int) -> list[dict]:
        answers = {i: f"wrong answer {i} at {n}" if i in wrong else f"right answer {i}" for i in range(12)}
        return [sample(i, {"acc": int(i not in wrong)}, answer=answers[i]) for i in range(12)]

    cells = {0: {"t": lines({0}, 0)}, 5: {"t": lines({0, 3}, 5)}, 10: {"t": lines({1, 2, 3, 4, 5, 6, 7}, 10)}}
    root = write_cells(tmp_path / "x", cells)
    source = render(load_sweep(root), [], Options(items=3))
    assert "<strong>7 of 12 turned wrong</strong>; 1 turned right" in " ".join(source.split())
    assert "3 of 7 are shown" in source
    shown = [i for i in range(12) if f">right answer {i}<" in source]
    assert shown == [1, 2, 3] and all(f">wrong answer {i} at 10<" in source for i in shown)
    assert source.count("wrong since 10 edits") == 2 and source.count("wrong since 5 edits") == 1


def test_a_document_that_recovered_in_between_is_wrong_since_later(tmp_path):
    """Document 0 broke at 5, recovered at 10, broke again at 20; 1 broke at 10; 2 at 20."""
    wrong = {0: set(), 5: {0}, 10: {1}, 20: {0, 1, 2}}
    cells = {
        n: {"t": [sample(i, {"acc": int(i not in each)}, answer=f"answer {i}") for i in range(6)]}
        for n, each in wrong.items()
    }
    source = render(load_sweep(write_cells(tmp_path / "x", cells)), [])
    since = dict(re.findall(r"<h4>Document (\d) <span class=\"note\">([^<]*)</span>", source))
    assert since == {"0": "wrong since 20 edits", "1": "wrong since 10 edits", "2": "wrong since 20 edits"}
    root = write_cells(tmp_path / "at_once", cells, editors=[{"editor": "memit", "edit_batch_size": "all"}])
    source = render(load_sweep(root), [])
    assert "Document 0" in source and "since" not in source.partition('id="broken"')[2].partition("</section>")[0]


def test_seeds_that_agree_have_shown_no_spread(tmp_path):
    root = write_sweep(tmp_path / "x", {"edit_seeds": [0, 1], "n_edits": [5]}, documents=5)
    sweep = load_sweep(root)
    first, second = (row.cells[0].folder for row in sweep.rows)
    for file in second.glob("samples_*"):
        name = file.name.rpartition("_")[0]
        file.write_bytes(next(first.glob(f"{name}_*")).read_bytes())
    results = json.loads(next(first.glob("results_*")).read_text())
    results["config"]["edit"]["edit_seed"] = 1
    next(second.glob("results_*")).write_text(json.dumps(results))
    record = json.loads((second / "cell.json").read_text())
    record["files"] = {name: sha256((second / name).read_bytes()) for name in record["files"]}
    (second / "cell.json").write_text(json.dumps(record))
    source = render(load_sweep(root), [])
    line = next(row for table in Page(source).tables if "Between seeds" in table[0] for row in table[1:])
    assert line[2] == "2" and line[4] == "no spread seen"
    assert "which does not say that there is none" in source


def test_of_grades_the_largest_losses_are_shown(tmp_path):
    def lines(values: list[float]) -> list[dict]:
        return [sample(i, {"rouge": value}, answer=f"text {i} {value}") for i, value in enumerate(values)]

    root = write_cells(tmp_path / "x", {0: {"t": lines([0.9] * 4)}, 5: {"t": lines([0.8, 0.1, 0.95, 0.5])}})
    source = render(load_sweep(root), [], Options(items=2))
    assert "<strong>3 of 4 got worse</strong>; 1 got better" in " ".join(source.split())
    assert source.index("text 1 0.1") < source.index("text 3 0.5") and "text 0 0.8" not in source
    assert "rouge 0.900 → 0.100" in source


def test_the_command_beside_them_writes_them_all(folder, page, tmp_path, monkeypatch, capsys):
    source = render(load_sweep(folder), [])
    line = source[source.index("lm-eval-edit compare demo/") :].split("</code>")[0]
    assert "rome-demo-seed0/n00020" in line and "--tasks edithurt_gsm8k" in line
    monkeypatch.chdir(folder)
    target = tmp_path / "flips.jsonl"
    assert cli.main([*shlex.split(line)[1:-1], str(target)]) == 0
    capsys.readouterr()
    records = [json.loads(each) for each in target.read_text().splitlines()]
    worse = sum(record["change"] == "right to wrong" for record in records)
    assert f"<strong>{worse} of 20 turned wrong</strong>" in source and worse > 5


# --------------------------------------------------------------------------------------------------------- reproduction


def test_design_can_be_run_again(tmp_path):
    root = write_sweep(
        tmp_path / "sweep",
        {"editors": ["rome", {"editor": "random", "like": "rome", "label": "control"},
                     {"editor": "memit", "edit_batch_size": "all"}],
         "edit_seeds": [0, None], "stop_at_perplexity": 100, "model_args": {"dtype": "float32"}, "limit": 8},
    )  # fmt: skip
    sweep = load_sweep(root)
    again = parse_design(yaml.safe_load(design_yaml(sweep)), "the report")
    assert hash_json(json.loads(json.dumps(again.identity()))) == hash_json(sweep.header["design"])


def test_commands_say_what_was_run(tmp_path):
    root = write_sweep(tmp_path / "sweep")
    sweep = load_sweep(root)
    cell = sweep.rows[0].cells[0]
    cell.results["config"] |= {
        "model_args": {"pretrained": "demo", "editor": "rome", "n_edits": 5, "edit_ledger": "gone"}, "batch_size": 8,
        "limit": 4.0,
    }  # fmt: skip
    assert command(sweep, cell) == (
        "lm_eval --model edited_hf --model_args pretrained=demo,editor=rome,n_edits=5 --tasks edithurt_suite "
        "--batch_size 8 --limit 4 --output_path results --log_samples"
    )
    cell.results["config"]["model_args"] = {"pretrained": "a/b", "layers": [3, 4], "data_dir": "with space, and comma"}
    args = shlex.split(command(sweep, cell))[4]
    assert json.loads(args) == cell.results["config"]["model_args"]
    sweep.header["design"]["include_path"] = "my tasks"
    words = shlex.split(command(sweep, cell))
    assert words[words.index("--tasks") + 2 :][:2] == ["--include_path", "my tasks"]
    assert render(sweep, []).count("--include_path &#39;my tasks&#39;") == 5, "four checkpoints and the unedited model"
