"""Runs of the study: killed and gone on with, failed, interrupted, and what of them is collected."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from examples.study import page, run, same
from examples.study.cells import Cells
from examples.study.collect import collect
from examples.study.design import FILE, RESULTS, Work, form
from examples.study.same import apart
from lm_eval_edit import demo
from lm_eval_edit.errors import UserError
from tests.conftest import ROOT
from tests.support.processes import python

REDUCED = RESULTS / "reduced"


def small_study(folder: Path) -> tuple[Path, Path]:
    """A study of the demo model in the real one's form, and the data it needs: (design, data)."""
    data = folder / "data"
    shutil.copytree(demo.DATA, data)
    shutil.copyfile(demo.FACTS["demo"], data / "counterfact.jsonl")
    passages = [json.loads(line)["passage"] for line in (data / "boolq.jsonl").read_text(encoding="utf-8").splitlines()]
    (data / "corpus.txt").write_text("\n".join(f"{a} {b}" * 3 for a, b in pairwise(passages)))
    design = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    tasks = ["edithurt_sst2", "edithurt_sst2_mc", "edithurt_perplexity", "edithurt_efficacy"]
    design["model"], design["model_args"] = "demo", {}
    design["methods"] = {"rome": {"editor": "rome"}, "random_rome": {"editor": "random", "like": "rome"}}
    design["forms"]["reduced"] |= {
        "of_methods": {}, "contexts": None, "documents": {"sst2": 4, "text": 2}, "items": 2,
        "parts": {"all": {"n_edits": [1, 3], "tasks": tasks}},
    }  # fmt: skip
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(design), encoding="utf-8")
    return file, data


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on(tmp_path):
    """Both sweeps are killed in the middle; the same command ends with the cells of a run that was left alone."""
    design, data = small_study(tmp_path)

    def words(name):
        given = ["--data", data, "--design", design, "--out", tmp_path / name, "--results", tmp_path / f"{name}-cells"]
        return [sys.executable, "-m", "examples.study.run", *map(str, given)]

    with subprocess.Popen(words("killed"), cwd=ROOT, start_new_session=True) as running:
        until = time.monotonic() + 300
        while not list((tmp_path / "killed").glob("*/demo/rome-*/n00001/cell.json")):
            assert running.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
    there = list((tmp_path / "killed").rglob("cell.json"))
    assert there and not (tmp_path / "killed-cells").exists()
    made = {file: file.stat().st_mtime_ns for file in there}
    for name in ("killed", "alone"):
        done = subprocess.run(words(name), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert all(file.stat().st_mtime_ns == at for file, at in made.items())
    gaps, strange = apart(Cells(tmp_path / "killed-cells"), Cells(tmp_path / "alone-cells"))
    assert not strange and gaps and set(gaps.values()) == {0.0}
    about = [(tmp_path / f"{name}-cells" / "cells.json").read_bytes() for name in ("killed", "alone")]
    assert about[0] == about[1]


def test_what_the_command_wants_is_told_without_a_traceback(tmp_path):
    done = python("-m", "examples.study.run", "--form", "huge", "--out", tmp_path / "out", path=ROOT)
    assert done.returncode == 1 and "no form huge" in done.stderr and "Traceback" not in done.stderr


def test_what_the_pictures_need_is_asked_for_before_anything_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run.main(["--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 1
    assert "lm-eval-edit[plots]" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert page.main(["--page", str(tmp_path / "page.md")]) == 1
    assert "lm-eval-edit[plots]" in capsys.readouterr().err


def test_the_page_says_what_it_lacks_without_a_traceback(tmp_path, capsys):
    assert page.main(["--form", "huge"]) == 1
    assert "no form huge" in capsys.readouterr().err
    assert page.main(["--results", str(tmp_path / "none"), "--page", str(tmp_path / "page.md")]) == 1
    assert "cells.json" in capsys.readouterr().err
    assert same.main([str(tmp_path / "none")]) == 1
    assert "cells.json" in capsys.readouterr().err


def test_the_page_of_the_study_is_of_its_own_cells(tmp_path, capsys):
    """Cells of another run or form go to a page of their own."""
    assert page.main(["--results", str(REDUCED)]) == 1
    assert "--page" in capsys.readouterr().err
    other = tmp_path / "study.md"
    assert page.main(["--form", "full", "--results", str(REDUCED), "--page", str(other)]) == 1
    assert "form reduced" in capsys.readouterr().err and not other.exists()
    assert page.page_of(form("full")) != page.page_of(form("reduced")) == ROOT / "docs" / "study.md"


# ---------------------------------------------------------------------------------------------------- what is collected


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder of a study in which nothing is prepared or trained; whose sweeps end with `statuses`."""
    made = Work(tmp_path / "work")
    made.folder.mkdir()
    (made.folder / "prepared.json").write_text("{}")
    monkeypatch.setattr(run, "prepare", lambda *given: None)
    monkeypatch.setattr(run, "train", lambda *given: None)
    return made


@pytest.mark.parametrize("statuses", [(-9, 0), (0, 1), (-15, -9)])
def test_a_sweep_that_failed_or_was_killed_is_a_failure(work, tmp_path, monkeypatch, statuses):
    ends = iter([*statuses, 0, 0, 0, 0])
    monkeypatch.setattr(run, "sweep", lambda *given: next(ends))
    monkeypatch.setattr(run, "collect", lambda *given: None)
    assert run.run(form("reduced"), work, None, 1, tmp_path / "cells") == 1


def test_results_that_are_there_outlive_a_run_that_failed(work, tmp_path, monkeypatch, capsys):
    """The stored ones are collected anew only from a run without a failure, others from what there is."""
    stored = tmp_path / "stored"
    monkeypatch.setattr(run, "RESULTS", stored)
    monkeypatch.setattr(run, "sweep", lambda *given: 1)
    monkeypatch.setattr(run, "collect", lambda this, work, results: results.mkdir(parents=True))
    assert run.run(form("reduced"), work, None, 1, stored / "reduced") == 1
    assert not stored.exists() and "--results" in capsys.readouterr().out
    other = tmp_path / "other"
    assert run.run(form("reduced"), work, None, 1, other) == 1
    (other / "cells.json").write_text("{}")  # is_dir: collected, and not a second time, as mkdir would say
    assert run.run(form("reduced"), work, None, 1, other) == 1


def test_what_could_not_be_trained_is_a_failure_that_hides_no_other(work, tmp_path, monkeypatch, capsys):
    def fails(*given):
        raise UserError("MEND could not be trained")

    monkeypatch.setattr(run, "train", fails)
    monkeypatch.setattr(run, "sweep", lambda this, work, part, seed, data: 3 * (seed == 1))
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    assert run.run(form("reduced"), work, None, 2, tmp_path / "reduced") == 1
    said = capsys.readouterr().out
    assert "trained, seed 0: MEND could not be trained" in said and "all, seed 1: exit status 3" in said


def test_an_interruption_ends_what_runs_and_begins_nothing(work, tmp_path, monkeypatch):
    """Otherwise sweeps would go on with nobody to wait for them, and lock the folders against the next start."""
    begun = []

    def sweep(*given):
        begun.append(given)
        return run.called([sys.executable, "-c", "import time; time.sleep(300)"], work.folder / "log")

    def interrupt():
        while not run._running:
            time.sleep(0.01)
        begun.extend(run._running)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run, "sweep", sweep)
    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run(form("reduced"), work, None, 1, tmp_path / "cells")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 100 and len(begun) == 2
    assert begun[1].returncode == -signal.SIGTERM and not run._running


def test_another_design_does_not_write_over_the_study(tmp_path, capsys):
    assert run.main(["--design", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]) == 1
    assert "--results" in capsys.readouterr().err
    assert run.main(["--jobs", "0"]) == 1
    assert "--jobs 0" in capsys.readouterr().err


def test_nothing_is_collected_over_what_is_there_where_there_are_no_cells(work, tmp_path):
    results = tmp_path / "cells"
    results.mkdir()
    (results / "cells.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError, match="no cell"):
            collect(form("reduced"), work, results)
        assert [each.name for each in results.iterdir()] == ["cells.json"]
        results.rename(tmp_path / ".cells.old")  # as a kill between the two renames leaves it
    assert sorted(each.name for each in tmp_path.iterdir()) == [".cells.old", "work"]


def test_a_folder_of_something_else_is_not_emptied(work, tmp_path, capsys):
    """And that is told before the run, not after it."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="letter"):
        collect(form("reduced"), work, other)
    assert run.main(["--results", str(other), "--out", str(tmp_path / "out")]) == 1
    assert "cells.json" in capsys.readouterr().err
    assert (other / "letter.txt").read_text() == "dear" and not (tmp_path / "out").exists()
