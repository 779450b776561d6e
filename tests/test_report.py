"""`lm-eval-edit report`: one file that is valid, safe and the same each time, with the figures of `compare`."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lm_eval_edit import cli
from lm_eval_edit._files import hash_json, sha256
from lm_eval_edit.compare import UNHARMED, Settings, compare_runs
from lm_eval_edit.comparison_tables import interval, number
from lm_eval_edit.errors import UserError
from lm_eval_edit.plots import figures
from lm_eval_edit.report import Options, render, write_report
from lm_eval_edit.report.budget import MEAN, WORST, Budget, budget, drops, held, words
from lm_eval_edit.report.comparing import compare_sweep
from lm_eval_edit.report.items import SHOWN, WHOLE, text
from lm_eval_edit.report.settings import command, design_yaml
from lm_eval_edit.report.tables import model_tables
from lm_eval_edit.results import load_run
from lm_eval_edit.sweep.design import parse_design
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, FAILED
from lm_eval_edit.sweep.reading import load_sweep
from tests.html_pages import Page
from tests.results_files import sample, samples
from tests.sweep_folders import MISSING, write_cells, write_sweep

STYLE = Path(__file__).parents[1] / "lm_eval_edit/report/templates/style.css"
PICTURE = SimpleNamespace(
    name="scores", title='Scores "of" <eight> tasks', alt="Eight lines fall & rise", svg="<svg xmlns='x'/>"
)
SEEDS = {"editors": ["rome", "memit"], "edit_seeds": [0, 1], "n_edits": [0, 5, 20], "tasks": ["edithurt_suite"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two methods, two seeds, the suite and edit quality; one cell of each state."""
    states = {("memit", 20): COLLAPSED, ("memit", 5): FAILED}
    changes = SEEDS | {"tasks": ["edithurt_suite", "edithurt_editing"], "editors": ["rome", "memit", "ft"]}
    return write_sweep(
        tmp_path_factory.mktemp("report") / "sweep", changes,
        states=states | {("ft", 20): MISSING}, left_out={"ft-demo-seed1": {20: "too few facts"}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page(render(load_sweep(folder), [PICTURE, PICTURE]))


def right(n: int, wrong: int) -> list[dict]:
    """n documents, the first `wrong` of them wrong."""
    return samples([0] * wrong + [1] * (n - wrong))


# ------------------------------------------------------------------------------------------------------------- the page


def test_valid(page):
    assert page.problems == []
    ids = [attributes["id"] for attributes in page.all() if "id" in attributes]
    assert len(ids) == len(set(ids)) > 8
    links = [attributes["href"] for attributes in page.all("a")]
    assert len(links) > 6 and {link[1:] for link in links} <= set(ids)
    for attributes in page.all():
        assert attributes.get("aria-labelledby", ids[0]) in ids
    headings = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings)), "no level is skipped"


def test_needs_nothing_else(page):
    """Nothing that a browser would fetch, and a policy that would stop it."""
    assert not page.all("link", "iframe", "object", "embed", "base", "form", "video", "audio", "source")
    for attributes in page.all():
        for name in ("src", "href", "srcset", "data", "poster", "action", "style"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:image/svg+xml;base64,")) or not value
        assert not [name for name in attributes if name.startswith("on")]
    style = STYLE.read_text()
    assert "url(" not in style and "@import" not in style
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe-eval" not in policy


def test_pictures_have_words(page):
    images = page.all("img")
    assert [image["alt"] for image in images] == [PICTURE.alt] * 2


def test_pictures_of_the_sweep_are_in_it(folder, tmp_path, capsys):
    assert cli.main(["report", str(folder), "-o", str(tmp_path / "report.html")]) == 0
    images = Page((tmp_path / "report.html").read_text()).all("img")
    pictures = figures(load_sweep(folder))
    assert [image["alt"] for image in images] == [picture.alt for picture in pictures] and len(images) > 3
    assert base64.b64decode(images[0]["src"].partition(",")[2]).decode() == pictures[0].svg
    for image in images:
        ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2]))


def test_pictures_of_another_metric_and_of_nothing_yet(tmp_path, capsys):
    acc = {n: {"t": samples([0] * n + [1] * (10 - n), "acc")} for n in (0, 2)}
    assert cli.main(["report", str(write_cells(tmp_path / "acc", acc))]) == 0
    source = (tmp_path / "acc/report.html").read_text()
    assert Page(source).problems == [] and "acc" in Page(source).all("img")[0]["alt"]
    assert cli.main(["report", str(write_cells(tmp_path / "none", {0: acc[0], 2: FAILED}))]) == 0
    assert Page((tmp_path / "none/report.html").read_text()).all("img") == []


def test_pictures_beyond_what_a_file_can_bear_are_named(folder, monkeypatch):
    size = len("data:image/svg+xml;base64,") + 4 * -(-len(PICTURE.svg) // 3)
    monkeypatch.setattr("lm_eval_edit.report.page.LARGEST", 2 * size)
    source = render(load_sweep(folder), [PICTURE] * 3)
    assert len(Page(source).all("img")) == 2 and "1 more would make this file too large: Scores &#34;of&#34;" in source


def test_state_of_the_cells(folder, page):
    source = render(load_sweep(folder), [])
    cells = next(table for table in page.tables if table[0] == ["Cell", "State", "Why"])
    assert [row[1] for row in cells[1:]] == ["failed", "collapsed"] * 2 + ["missing", "left out"]
    assert cells[1][2] == "edithurt_sst2: RuntimeError: out of memory" and cells[-1][2] == "too few facts"
    assert "3 cells are not done" in source and "collapsed: perplexity 5.1e+06" in source


def test_demo_data_are_called_so(tmp_path):
    write_sweep(tmp_path / "sweep")
    file = next((tmp_path / "sweep/demo/unedited").glob("results_*.json"))
    source = render(load_sweep(tmp_path / "sweep"), [])
    assert "not a benchmark result" not in source, "the synthetic folder says no source"
    results = json.loads(file.read_text())
    for config in results["configs"].values():
        config["metadata"] = {"provenance": {"source": "demo", "sha256": "ab" * 32}}
    store(tmp_path / "sweep/demo/unedited", file, results)
    assert "demo data: not a benchmark result (all tasks)" in render(load_sweep(tmp_path / "sweep"), [])
    del results["configs"]["edithurt_sst2"]["metadata"]["provenance"]
    results["configs"]["edithurt_rte"]["metadata"]["provenance"]["source"] = "hub"
    store(tmp_path / "sweep/demo/unedited", file, results)
    source = render(load_sweep(tmp_path / "sweep"), [])
    assert "not a benchmark result (edithurt_gsm8k, edithurt_nq," in source


def store(folder: Path, file: Path, results: dict) -> None:
    """Replace a cell's results, hash and all."""
    file.write_text(json.dumps(results))
    record = json.loads((folder / "cell.json").read_text())
    record["files"][file.name] = sha256(file.read_bytes())
    (folder / "cell.json").write_text(json.dumps(record))


def test_same_folder_same_bytes(folder, tmp_path):
    sizes = [write_report(load_sweep(folder), tmp_path / f"{i}.html", [PICTURE]) for i in range(2)]
    first, second = ((tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second and sizes == [len(first)] * 2 and len(first) < 1_000_000
    assert str(folder.parent).encode() not in first, "no path of this machine"


# --------------------------------------------------------------------------------------------------------- hostile text

HOSTILE = '</span></details><script>alert(1)</script><img src=x onerror="alert(2)"> & \x00\x1b[0m\u202e\ud800'


def test_texts_are_shown_and_never_run(tmp_path):
    asked = HOSTILE.replace("\ud800", "")
    before = [sample(0, {"acc": 1}, prompt=asked), sample(1, {"acc": 1})]
    after = [sample(0, {"acc": 0}, prompt=asked, answer=HOSTILE), sample(1, {"acc": 1})]
    root = write_cells(tmp_path / "x", {0: {"t": before}, 5: {"t": after}}, description=f"<b>{HOSTILE[:60]}")
    write_report(load_sweep(root), tmp_path / "x.html", [SimpleNamespace(**vars(PICTURE) | {"alt": '"><script>'})])
    source = (tmp_path / "x.html").read_bytes().decode()
    page = Page(source)
    assert page.problems == [] and len(page.all("script")) == 1 and len(page.all("img")) == 1 and not page.all("b")
    assert source.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4, "prompt, output, description and design"
    assert r"\x00\x1b[0m\u202e\ud800" in source
    assert not set(source) & {"\x00", "\x1b", "\u202e"}


def test_long_texts_are_folded():
    short, long, longer = text("a" * SHOWN), text("a" * SHOWN + "b"), text("x" * (WHOLE + 1))
    assert short.whole is None and short.short == "a" * SHOWN
    assert long.short == "a" * (SHOWN - 1) + "b" and long.whole == "a" * SHOWN + "b" and not long.cut
    assert longer.cut and len(longer.whole) == WHOLE
    assert text(["a", 1]).short == '["a", 1]' and text(None).short == "null"
    assert text("नमस्ते \u200d👩‍🔬 ok\n\tx").short == "नमस्ते \u200d👩‍🔬 ok\n\tx", "what joins letters is left alone"


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
    cell = load_sweep(root).rows[0].cells[0]
    cell.results["config"] |= {
        "model_args": {"pretrained": "demo", "editor": "rome", "n_edits": 5, "edit_ledger": "gone"}, "batch_size": 8,
        "limit": 4.0,
    }  # fmt: skip
    assert command(cell) == (
        "lm_eval --model edited_hf --model_args pretrained=demo,editor=rome,n_edits=5 --tasks edithurt_suite "
        "--batch_size 8 --limit 4 --output_path results --log_samples"
    )
    cell.results["config"]["model_args"] = {"pretrained": "a/b", "layers": [3, 4], "data_dir": "with space, and comma"}
    args = shlex.split(command(cell))[4]
    assert json.loads(args) == cell.results["config"]["model_args"]


# ---------------------------------------------------------------------------------------------------------- wrong input


def test_command_line(folder, tmp_path, capsys):
    file = tmp_path / "new" / "report.html"
    assert cli.main(["report", str(folder), "-o", str(file), "--no-plots", "--delta", "0.3,0.02"]) == 0
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size:,} bytes\n"
    first = file.read_bytes()
    assert Page(first.decode()).tables[2][0][2:] == ["δ = 0.02", "δ = 0.3"]
    assert cli.main(["report", str(folder), "-o", str(file), "--no-plots", "--delta", "0.3,0.02"]) == 0
    assert file.read_bytes() == first, "a report may be replaced"


def test_nothing_but_a_report_is_replaced(folder, tmp_path, capsys):
    file = tmp_path / "notes.html"
    file.write_text("<p>mine</p>")
    assert cli.main(["report", str(folder), "-o", str(file), "--no-plots"]) == 1
    assert "exists and is no report of lm-eval-edit; nothing was changed" in capsys.readouterr().err
    assert file.read_text() == "<p>mine</p>"
    assert cli.main(["report", str(folder), "-o", str(tmp_path), "--no-plots"]) == 1
    assert "is a folder; give a file" in capsys.readouterr().err


def test_no_sweep(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "--no-plots"]) == 1
    assert "holds no sweep (no sweep.json)" in capsys.readouterr().err


def test_every_mistake_at_once(folder, capsys):
    assert cli.main(["report", str(folder), "--delta", "0.1,x", "--items", "-1", "--alpha", "2", "--seed=-3"]) == 1
    error = capsys.readouterr().err
    assert "4 problems" in error and "--delta 0.1,x: want drops of at least 0" in error
    assert (
        "--items -1: want a whole number" in error and "--alpha 2: want a level" in error and "--seed -3: want" in error
    )


def test_a_place_that_cannot_be_written(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(folder), "-o", str(tmp_path / "file/report.html"), "--no-plots"]) == 1
    assert "cannot be written: File exists; give another place" in capsys.readouterr().err


def test_a_sweep_that_has_no_unedited_cell_yet(tmp_path):
    root = write_cells(tmp_path / "x", {5: {"t": right(10, 1)}})
    with pytest.raises(UserError, match="no cell of an unedited model yet; run the sweep first"):
        render(load_sweep(root), [])


def test_a_sweep_without_samples_says_what_to_do(tmp_path):
    root = write_cells(tmp_path / "x", {0: {"t": right(10, 0)}, 5: {"t": right(10, 1)}})
    cell = root / "demo/unedited"
    record = json.loads((cell / "cell.json").read_text())
    for file in cell.glob("samples_*"):
        del record["files"][file.name]
        file.unlink()
    (cell / "cell.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="run the sweep with log_samples: true"):
        render(load_sweep(root), [])


def test_a_sweep_that_has_only_begun(tmp_path):
    source = render(load_sweep(write_cells(tmp_path / "x", {0: {"t": right(10, 0)}, 5: FAILED})), [])
    assert Page(source).problems == [] and "failed: told why" in source and "No cell could be compared." in source


def test_svg_stays_as_it_is(page):
    source = page.all("img")[0]["src"]
    assert ElementTree.fromstring(base64.b64decode(source.partition(",")[2])).tag == "{x}svg"


def test_colours_can_be_told_apart():
    """Every text on every ground it stands on has the contrast that WCAG 2 asks for (AA: 4.5), in light and dark."""
    style = STYLE.read_text()
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", style)]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for scheme in schemes:
        for ink in ("text", "faint", "link", "bad", "good", "open"):
            for ground in ("page", "panel", "mean"):
                low, high = sorted(luminance(scheme[name]) for name in (ink, ground))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
