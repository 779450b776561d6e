"""`lm-eval-edit report`: one file that is valid, safe and the same each time, and what it says to wrong input."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_eval_edit import cli
from lm_eval_edit._support.files import sha256
from lm_eval_edit.comparison.compare import Settings
from lm_eval_edit.errors import UserError
from lm_eval_edit.plots import figures
from lm_eval_edit.report import render, write_report
from lm_eval_edit.report.budget import MEAN, WORST, drops
from lm_eval_edit.report.comparing import compare_sweep
from lm_eval_edit.report.items import SHOWN, WHOLE, text
from lm_eval_edit.sweep.folder import FAILED
from lm_eval_edit.sweep.reading import load_sweep
from tests.conftest import ROOT
from tests.support.html_pages import Page
from tests.support.results_files import sample, samples
from tests.support.sweep_folders import write_cells, write_mixed_sweep, write_sweep

STYLE = ROOT / "lm_eval_edit/report/templates/style.css"
PICTURE = SimpleNamespace(
    name="scores", title='Scores "of" <eight> tasks', alt="Eight lines fall & rise", svg="<svg xmlns='x'/>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_mixed_sweep(tmp_path_factory.mktemp("report") / "sweep")


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


def test_what_pictures_leave_out_is_said_beside_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval_edit.plots.choice.MOST_TASKS", 3)
    assert cli.main(["report", str(folder), "-o", str(tmp_path / "report.html")]) == 0
    assert "8 tasks: the first 3 have a line, the mean is over all" in (tmp_path / "report.html").read_text()


def test_stock_tasks_beside_tasks_about_the_edits_are_drawn(tmp_path):
    cells = {n: {"hellaswag": samples([1, 1, 0, 1], "acc"), "arc": samples([1, 0, 1, 1], "acc")} for n in (0, 5)}
    cells[5]["edithurt_efficacy"] = samples([1, 1], "score")
    assert cli.main(["report", str(write_cells(tmp_path / "x", cells))]) == 0
    images = Page((tmp_path / "x/report.html").read_text()).all("img")
    assert any("hellaswag" in image["alt"] and "acc" in image["alt"] for image in images)


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
    summary = page.tables[0]
    assert ["20", "left out: too few facts"] in summary and "1 left out" in source


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


def test_a_source_stands_once_with_the_numbers_of_its_documents(tmp_path):
    write_sweep(tmp_path / "sweep")
    for cell, n in (("unedited", 20), ("rome-demo-seed0/n00005", 7), ("rome-demo-seed0/n00010", 7)):
        file = next((tmp_path / "sweep/demo" / cell).glob("results_*.json"))
        results = json.loads(file.read_text())
        results["configs"]["edithurt_rte"]["metadata"] = {"provenance": {"source": "demo", "sha256": "ab" * 32}}
        results["n-samples"]["edithurt_rte"]["effective"] = n
        store(file.parent, file, results)
    (table,) = [t for t in Page(render(load_sweep(tmp_path / "sweep"), [])).tables if t[0][0] == "Task"]
    assert table[1:] == [["edithurt_rte", "demo", "7, 20", "ab" * 8]]


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
    hidden = "a\u200bb\u00adc\ufeffd\u2060e\u200ef\U000e0041"
    assert text(hidden).short == r"a\u200bb\xadc\ufeffd\u2060e\u200ef\U000e0041"
    assert text("नमस्ते \u200d👩‍🔬 ok\n\tx").short == "नमस्ते \u200d👩‍🔬 ok\n\tx", "what joins letters is left alone"


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


def test_a_sweep_without_any_cell(tmp_path):
    root = write_cells(tmp_path / "x", {0: FAILED, 5: FAILED})
    with pytest.raises(UserError, match="has no evaluated cell yet; run the sweep first"):
        render(load_sweep(root), [])


def test_a_sweep_of_edit_quality_alone(tmp_path):
    """Nothing to compare with: no summary, no budget, and no link to them."""
    root = write_mixed_sweep(tmp_path / "x")
    shutil.rmtree(root / "demo/unedited")
    page = Page(render(load_sweep(root), []))
    ids = {attributes.get("id") for attributes in page.all()}
    assert "quality" in ids and not ids & {"summary", "budget", "broken"} and page.problems == []
    told = "the unedited model of demo is not there yet: nothing can be compared; run the sweep again"
    assert told in render(load_sweep(root), [])
    assert {link["href"][1:] for link in page.all("a")} <= ids


def test_a_damaged_or_failed_unedited_model_is_told(tmp_path):
    root = write_cells(tmp_path / "x", {0: {"t": right(10, 0), "u": right(10, 0)}, 5: {"t": right(10, 1)}})
    cell = root / "demo/unedited"
    record = json.loads((cell / "cell.json").read_text())
    (cell / "cell.json").write_text(json.dumps(record | {"status": FAILED, "reason": "u: out of memory"}))
    source = render(load_sweep(root), [])
    told = "the unedited model of demo is failed (u: out of memory): what it was not evaluated on cannot be compared"
    assert told in source and 'id="summary"' in source
    (cell / "cell.json").write_text(json.dumps(record | {"status": FAILED, "reason": "killed", "files": {}}))
    assert "the unedited model of demo is failed (killed): nothing can be compared" in render(load_sweep(root), [])
    (cell / "cell.json").write_text(json.dumps(record))
    next(cell.glob("samples_t_*")).write_text("cut")
    source = render(load_sweep(root), [])
    assert "the unedited model of demo is damaged (samples_t_" in source and "nothing can be compared; run" in source
    header = json.loads((root / "sweep.json").read_text())
    (root / "sweep.json").write_text(json.dumps(header | {"about_model": False}))
    assert "nothing can be compared" not in render(load_sweep(root), []), "no unedited model was asked for"


def test_what_cannot_be_paired_is_one_task_and_names_no_folder(tmp_path):
    """One document that is not finite, other documents, a samples file that is gone: the other tasks are compared."""
    good, broken = right(10, 1), right(10, 1)
    broken[3]["acc"] = math.nan
    other = [sample(i, {"acc": 1}, prompt="another prompt") for i in range(10)]
    cells = {
        0: {"a": right(10, 0), "b": right(10, 0), "c": right(10, 0)}, 5: {"a": good, "b": broken, "c": good},
        10: {"a": good, "b": good, "c": other}, 20: {"a": broken, "b": broken, "c": other},
    }  # fmt: skip
    root = write_cells(tmp_path / "x", cells)
    first, second, third = compare_sweep(load_sweep(root), Settings())
    assert list(first.headlines) == ["a", "c"] and first.broken == ("b",) and first.mean is None
    assert first.why == "b: acc of edited is not finite on 1 documents (first: doc_id 3)"
    assert list(second.headlines) == ["a", "b"] and second.broken == ()
    assert "c: the prompts of 10 of 10 documents differ" in second.why
    assert third.comparison is None and third.broken == ("a", "b")
    assert dict(drops([first, second, third], WORST, certain=False)) == {5: math.inf, 10: None, 20: math.inf}
    assert dict(drops([first, second, third], MEAN, certain=False)) == dict.fromkeys((5, 10, 20))
    cell = root / "demo/rome-demo-seed0/n00010"
    file = next(cell.glob("samples_b_*"))
    record = json.loads((cell / "cell.json").read_text())
    del record["files"][file.name]
    (cell / "cell.json").write_text(json.dumps(record))
    file.unlink()
    source = render(load_sweep(root), [])
    assert "the samples of b are missing" in source and str(tmp_path) not in source
    assert "not finite on 1 documents" in source and Page(source).problems == []


def test_long_texts_beyond_what_a_page_can_bear_keep_their_ends(tmp_path, monkeypatch):
    def lines(wrong: int) -> list[dict]:
        return [sample(i, {"acc": int(i >= wrong)}, prompt="<" * 2_000 + f" {i}?") for i in range(6)]

    root = write_cells(tmp_path / "x", {0: {"t": lines(0)}, 5: {"t": lines(4)}})
    whole = render(load_sweep(root), [])
    assert whole.count("All 2,003 characters") == 4 and "no room" not in whole
    size = len("&lt;") * 2_000 + 3
    monkeypatch.setattr("lm_eval_edit.report.items.LARGEST", 2 * size)
    source = render(load_sweep(root), [])
    assert source.count("All 2,003 characters") == 2 and len(whole) - len(source) > 1.9 * size
    assert "There was no room for all of every long text" in source and source.count(" 3?</span>") == 1
    assert Page(source).problems == []


def test_names_that_are_anothers_stay_whole(tmp_path):
    cells = {n: {name: right(4, 1) for name in ("edithurt_rte", "rte", "edithurt_nq")} for n in (0, 5)}
    table = Page(render(load_sweep(write_cells(tmp_path / "x", cells)), [])).tables[0]
    assert table[0][2:] == ["edithurt_rte", "rte", "nq"]


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
