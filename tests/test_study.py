"""The study (examples/study): its page is what the stored cells give, its rules do what they say, a kill is nothing."""

from __future__ import annotations

import json
import os
import re
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

from examples.study import hypotheses, page, run, same, sentences, tables
from examples.study.cells import Cells, Change
from examples.study.collect import collect
from examples.study.design import FILE, RESULTS, Work, form
from examples.study.same import apart
from lm_eval_edit import demo
from lm_eval_edit.editors.base import BUILT_IN
from lm_eval_edit.errors import UserError
from lm_eval_edit.sweep.parsing import parse_design
from tests.conftest import ROOT
from tests.support.processes import python

REDUCED = RESULTS / "reduced"


@pytest.fixture(scope="module")
def made():
    return page.made(form("reduced"), REDUCED)[0]


# ---------------------------------------------------------------------------------------------------------- the page


def test_the_page_is_what_the_cells_give(made):
    assert page.differences(page.page_of(form("reduced")).read_text(encoding="utf-8"), made) == []


def test_the_page_says_which_of_the_methods_are_not_in_it(made):
    """The package has more than the study, and two controls and three variants are no methods of it."""
    methods = form("reduced").study["methods"].values()
    absent = set(BUILT_IN) - {method["editor"] for method in methods}
    said = re.search(
        r"\*\*Methods:\*\* (\d+) rows: (\d+) of this package's methods, two controls and three .*?not here: (.*?)\.",
        made,
    )
    assert set(re.findall(r"`(\w+)`", said[3])) == absent and len(absent) >= 4
    assert int(said[1]) == len(methods) == int(said[2]) + 2 + 3
    assert int(said[2]) == len(set(BUILT_IN) - absent - {"random"})
    assert "every method" not in made.lower()


def test_the_page_says_how_few_documents_the_mean_score_is_of(made):
    assert "The mean score is of 16 documents: 10 of `edithurt_gsm8k_mc`, 6 of `edithurt_nq_mc`." in " ".join(
        made.split()
    )


def cells_of_everything(folder: Path) -> Cells:
    """Cells of two methods that were asked every task, as of the full form: the others stand in for the missing."""
    keep = ("unedited", "rome", "random_rome")
    for file in sorted(REDUCED.glob("all-seed*/*.json")):
        if file.stem.partition("-")[0] not in keep:
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        given = {each["task"]: each for each in content["samples"]}
        like = given.get("edithurt_gsm8k_mc")
        wanted = [task for task in (*sentences.TASKS, sentences.FACTCHECK) if like and task not in given]
        content["samples"] += [{**like, "task": task} for task in wanted]
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_text(json.dumps(content), encoding="utf-8")
    content = json.loads((REDUCED / "cells.json").read_text(encoding="utf-8"))
    content["cells"] = {name: known for name, known in content["cells"].items() if (folder / f"{name}.json").is_file()}
    (folder / "cells.json").write_text(json.dumps(content), encoding="utf-8")
    return Cells(folder)


def test_the_page_of_another_form_says_what_is_true_of_it(tmp_path, made):
    """Its documents are counted from the cells, as a group of tasks has none; nothing is left out that was asked."""
    this = form("full")
    alts = {"ability": "a", "tradeoff": "b", "norms": "c"}
    page_of_it = page.text(cells_of_everything(tmp_path / "cells"), this, json.loads(page.CHAT.read_text()), alts)
    assert "results/full" in page_of_it and "edit seeds 0 to 4" in page_of_it and "2000 steps" in page_of_it
    assert "10 of `edithurt_gsm8k_mc`, 6 of `edithurt_nq_mc`" in page_of_it and "`edithurt_boolq`" in page_of_it
    assert "--check --form full" in page_of_it and "100 edits are the most" in page_of_it
    assert "Context templates are sampled" in page_of_it and "documents: ." not in page_of_it
    for untrue in (
        "on a CPU",
        "small study",
        "Left out",
        "negation alone",
        "no second moments",
        "Minutes",
        "fixed texts",
    ):
        assert untrue not in page_of_it, untrue
    for true in ("small study", "Left out", "negation alone", "no second moments", "fixed texts", "edit seeds 0 and 1"):
        assert true in made, true


def test_the_command_says_where_the_page_is_wrong(tmp_path, made, capsys):
    right, wrong = tmp_path / "right.md", tmp_path / "wrong.md"
    right.write_text(made, encoding="utf-8")
    figure = re.search(r"\| none \| (\d\.\d\d) ", made)[1]
    wrong.write_text(
        made.replace(f"| none | {figure} ", f"| none | {figure[:-1]}{9 - int(figure[-1])} "), encoding="utf-8"
    )
    assert page.main(["--check", "--page", str(right)]) == 0
    assert page.main(["--check", "--page", str(wrong)]) == 1
    assert "| none |" in capsys.readouterr().out


def test_a_figure_of_one_document_is_a_figure_of_the_page(tmp_path, made):
    """What a document scored, changed in the stored cells, is seen: by the cell's own sums, or in the page."""
    cells = tmp_path / "cells"
    shutil.copytree(REDUCED, cells)
    for task, metric in (("edithurt_gsm8k_mc", "gold_logprob"), ("edithurt_efficacy", "em")):
        file = next(cells.rglob("rome-00010.json"))
        kept = file.read_bytes()
        content = json.loads(kept)
        samples = next(each for each in content["samples"] if each["task"] == task)
        place = [one["name"] for one in samples["metrics"]].index(metric)
        row = samples["rows"][0]
        change = 1 - 2 * row[6 + place] if metric == "em" else -5.0
        row[6 + place] += change
        samples["metrics"][place]["value"] += change / len(samples["rows"])
        file.write_text(json.dumps(content), encoding="utf-8")
        assert page.made(form("reduced"), cells)[0] != made
        file.write_bytes(kept)
    assert page.made(form("reduced"), cells)[0] == made


#: Every word of the stored cells that is no digest or version and no name of the design.
WORDS = set(
    re.findall(
        r"\S+",
        """
    about ability acc acc_norm aggregation answer answered answered_old bits_per_byte cells chance class_mcc
    cluster cluster_field columns config configs corpus correct data delta_norm direction_known do_sample
    doc_hash doc_id documents done edit edit_quality edited_hf edithurt_efficacy edithurt_generalization
    edithurt_locality effective em ended evaluate f1_new fact_id facts fewshot_as_multiturn fewshot_seed filter
    folder:jsonl form format generate_until generation_kwargs gold_logprob group_subtasks groups gsm8k headline
    higher_is_better identity incorrect invalid known_mean left_out likelier_f1 lm_eval lm_eval_edit
    lm_eval_version loglikelihood loglikelihood_rolling main max_gen_toks mcc mean measures method metrics model
    model_dtype model_name model_revision model_sha model_source moved multiple_choice n n-samples n-shot
    n_edits name negated none nq num_fewshot original output_type part perplexity prob_answered prob_negated
    prob_success processor_seconds prompt_hash reason reduced repeats results retained rows runs sample_len
    samples score score,none score_stderr,none script seed sha256 shortcut shortcut_old shortened source sources
    sst2 status target_hash task text torch torch.float32 transformers transformers_version until valid value
    version versions wall_seconds wanted weight_norm weighted_f1 weighted_perplexity word_perplexity
        """,
    )
)
WORDS |= {"", "lm-eval-edit baseline"}
WORDS |= {f"its aggregation ({kind}) is not one that can be recomputed" for kind in ("count", "share")}
DIGEST_OR_VERSION = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}|\d+(\.\d+)+(\+cpu)?")


def strings(content):
    """Every string of a JSON document, the keys too."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from content
        for value in content.values():
            yield from strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from strings(value)


def foreign(content):
    """The strings that are no digest or version, no known word and no name of the design."""
    this = form("reduced")
    names = WORDS | {*this.study["methods"], *this.parts, this.study["model"]}
    names |= {task for part in this.parts.values() for task in part["tasks"]}
    labels = "|".join(this.study["methods"])
    cell = re.compile(rf"({'|'.join(this.parts)})-seed\d/(unedited|({labels})-(before|\d{{5}}))")
    return {
        word
        for word in set(strings(content)) - names
        if not DIGEST_OR_VERSION.fullmatch(word) and not cell.fullmatch(word)
    }


def test_the_stored_cells_hold_no_text_of_anybodys_data():
    files = sorted(REDUCED.rglob("*.json"))
    assert sum(file.stat().st_size for file in files) < 5_000_000
    for file in files:
        assert foreign(json.loads(file.read_text(encoding="utf-8"))) == set(), file


def test_a_text_is_found_wherever_it_lies_in_a_stored_cell():
    content = json.loads((REDUCED / "all-seed0" / "rome-00010.json").read_text(encoding="utf-8"))
    until = content["results"]["configs"]["edithurt_sst2"]["generation_kwargs"]["until"]
    for place in (content["samples"][0]["rows"][0], until):
        place.append("Paris")
        assert foreign(content) == {"Paris"}
        place.pop()
    content["results"]["config"]["a fact"] = 1
    assert foreign(content) == {"a fact"}


def test_every_sweep_found_the_same_unedited_model():
    """To the bit: nothing of a run depends on the process, or on what was edited before."""
    cells = Cells(REDUCED)
    unedited = [cell for name, cell in cells.all.items() if name.endswith("/unedited") and cell.run]
    for cell in unedited[1:]:
        for key, samples in cell.run.samples.items():
            for metric, found in samples.metrics.items():
                assert (found.counts == unedited[0].run.samples[key].metrics[metric].counts).all()
    assert len(unedited) >= 2


# --------------------------------------------------------------------------------------------------------- the design


@pytest.mark.parametrize("name", ["reduced", "full"])
def test_the_sweeps_of_both_forms_are_designs(name, tmp_path):
    this = form(name)
    labels = set()
    for part, seed in this.sweeps:
        design = parse_design(this.sweep_design(part, seed, Work(tmp_path), "data"), "study.yaml")
        labels |= {method.label for method in design.editors}
    assert labels == set(this.study["methods"])
    editors = {method["editor"] for method in this.study["methods"].values()}
    assert {"rome", "r_rome", "memit", "memit_seq", "alphaedit", "emmet", "ultraedit", "ft", "lora", "kn"} <= editors
    assert {"mend", "rect", "prune", "random"} <= editors and len(this.seeds) >= 2


# ----------------------------------------------------------------------------------------------------------- the rules


class Told:
    """Cells whose changes are given: (method, kind) -> [(low, high) of each seed], after ten edits."""

    seeds = (0, 1)

    def __init__(self, changes, efficacy=None, against=None, moved=None, early=None, same=None):
        self.given, self.other, self.norms, self.early = changes, against or {}, moved or {}, early or {}
        self.em, self.same = efficacy or {}, same or {}
        self.methods = list(dict.fromkeys(method for method, _ in changes))

    def checkpoints(self, method):
        return [1, 10]

    def changes(self, method, n, kind, than=None):
        found = self.other if than else self.early if n == 1 else self.given
        ends = found.get((method, kind))
        return Change(0.5, tuple((low + high) / 2 for low, high in ends), tuple(ends)) if ends else None

    def mean(self, method, n, task, metric):
        return self.em.get(method, 1.0)

    def equals(self, n):
        return self.same

    def moved(self, method, n):
        return self.norms.get(method)


DOWN, UP, NARROW, WIDE = [(-0.3, -0.1)] * 2, [(0.1, 0.3)] * 2, [(-0.01, 0.01)] * 2, [(-0.2, 0.2)] * 2
MIXED = [(-0.3, -0.1), (-0.3, 0.1)]


@pytest.mark.parametrize(
    ("changes", "efficacy", "verdict"),
    [
        ({("ft", "score"): NARROW}, {}, hypotheses.HOLDS),
        ({("ft", "score"): NARROW, ("rome", "score"): WIDE}, {}, hypotheses.OPEN),
        ({("ft", "score"): WIDE, ("ft", "bits_per_byte"): DOWN}, {}, hypotheses.FAILS),
        ({("ft", "score"): MIXED}, {}, hypotheses.OPEN),
        ({("ft", "score"): NARROW, ("ft", "bits_per_byte"): MIXED}, {}, hypotheses.OPEN),
        ({("ft", "score"): [(-0.02, -0.01), (-0.01, 0.01)]}, {}, hypotheses.OPEN),
        ({("ft", "score"): NARROW, ("kn", "score"): DOWN}, {"kn": 0.0}, hypotheses.HOLDS),
    ],
)
def test_a_handful(changes, efficacy, verdict):
    assert hypotheses.handful(Told(changes, efficacy)).verdict == verdict


def test_a_handful_tells_the_sizes_and_counts_equal_cells_once():
    changes = {("memit", "score"): DOWN, ("prune_memit", "score"): DOWN, ("ft", "bits_per_byte"): [(-0.03, -0.01)] * 2}
    why = hypotheses.handful(Told(changes, same={"prune_memit": "memit"})).why
    assert why.startswith("2 methods wrote") and "`prune_memit`" not in why
    assert "`memit` (mean score −0.20)" in why and "`ft` (bits per byte −0.020)" in why


@pytest.mark.parametrize(
    ("rome", "memit", "verdict"),
    [
        (UP, UP, hypotheses.FAILS),
        (DOWN, NARROW, hypotheses.HOLDS),
        (UP, DOWN, hypotheses.OPEN),
        (WIDE, WIDE, hypotheses.OPEN),
    ],
)
def test_the_control(rome, memit, verdict):
    against = {("random_rome", "score"): rome, ("random_memit", "score"): memit}
    assert hypotheses.random_hurts(Told({}, against=against)).verdict == verdict


@pytest.mark.parametrize(
    ("rome", "r_rome", "against", "verdict"),
    [
        (DOWN, NARROW, UP, hypotheses.HOLDS),
        (DOWN, DOWN, WIDE, hypotheses.FAILS),
        (DOWN, DOWN, UP, hypotheses.IN_PART),
        (WIDE, NARROW, UP, hypotheses.OPEN),
    ],
)
def test_rome_breaks(rome, r_rome, against, verdict):
    cells = Told({("rome", "score"): rome, ("r_rome", "score"): r_rome}, against={("r_rome", "score"): against})
    assert hypotheses.rome_breaks(cells).verdict == verdict


@pytest.mark.parametrize(
    ("change", "efficacy", "verdict"),
    [(NARROW, 0.95, hypotheses.HOLDS), (NARROW, 0.5, hypotheses.OPEN), (DOWN, 1.0, hypotheses.FAILS)],
)
def test_remembering(change, efficacy, verdict):
    assert hypotheses.remembering(Told({("memit_seq", "score"): change}, {"memit_seq": efficacy})).verdict == verdict


TEXT_AND_ANSWERS = ("gold_logprob", "bits_per_byte")


def losses(order, **same):
    """Methods of growing norms, and what they lost."""
    methods = [f"m{i}" for i in range(len(order))]
    given = {(m, kind): [(-i - 1, -i)] * 2 for m, i in zip(methods, order, strict=True) for kind in TEXT_AND_ANSWERS}
    return Told(given, moved={m: 0.1 * (i + 1) for i, m in enumerate(methods)}, same=same)


@pytest.mark.parametrize(
    ("order", "verdict"),
    [
        (range(12), hypotheses.HOLDS),
        (range(12)[::-1], hypotheses.FAILS),
        ([0, 9, 1, 7, 3, 5, 10, 2, 8, 4, 6, 11], hypotheses.OPEN),
    ],
)
def test_norms_and_damage(order, verdict):
    cells = losses(order)
    assert hypotheses.norm_predicts(cells, cells.methods).verdict == verdict


def test_norms_and_damage_are_told_of_what_is_an_observation_of_its_own():
    cells = losses(range(12), m3="m2", m4="m2")
    found = hypotheses.norm_predicts(cells, cells.methods[1:])
    assert "over 9 methods" in found.why and not {"`m0`", "`m3`", "`m4`"} & set(re.findall("`m[0-9]+`", found.why))
    this = form("reduced")
    labels = list(this.study["methods"])
    assert this.controls(labels) == ["random_rome", "random_memit"]
    assert set(labels) - set(this.bases(labels)) == {
        "random_rome", "random_memit", "locft", "prune_memit", "rect_memit", "blue", "nas",
    }  # fmt: skip
    assert this.variants(labels) == ["locft", "blue", "nas"]


def test_cells_that_are_equal_to_the_bit_are_known():
    """PRUNE's threshold is not reached by ten edits, and memit_seq has no keys to remember at the first."""
    cells = Cells(REDUCED)
    assert cells.equals(1) == {"memit_seq": "memit", "prune_memit": "memit"}
    assert cells.equals(10) == {"prune_memit": "memit"}
    assert hypotheses.distinct(cells, ["rome", "prune_memit", "memit", "nas"], 10) == ["rome", "prune_memit", "nas"]


@pytest.mark.parametrize(
    ("early", "late", "verdict"),
    [
        (
            {("rome", "bits_per_byte"): DOWN},
            {("rome", "bits_per_byte"): DOWN, ("rome", "score"): DOWN},
            hypotheses.HOLDS,
        ),
        ({("rome", "score"): DOWN}, {("rome", "score"): DOWN, ("rome", "bits_per_byte"): DOWN}, hypotheses.FAILS),
        ({}, {("rome", "score"): DOWN, ("rome", "bits_per_byte"): DOWN}, hypotheses.OPEN),
        ({("rome", "bits_per_byte"): DOWN}, {("rome", "bits_per_byte"): DOWN}, hypotheses.OPEN),
    ],
)
def test_perplexity_warns(early, late, verdict):
    assert hypotheses.perplexity_warns(Told(late, early=early)).verdict == verdict


def test_chat():
    def facts(inside):
        return {"facts": {str(i): {"text": {"text": {"em": 1}, "chat": {"em": int(i < inside)}}} for i in range(12)}}

    assert hypotheses.not_in_chat(facts(2)).verdict == hypotheses.HOLDS
    assert hypotheses.not_in_chat(facts(6)).verdict == hypotheses.IN_PART
    assert hypotheses.not_in_chat(facts(10)).verdict == hypotheses.OPEN


def test_a_rule_without_its_methods_has_no_verdict():
    chat = {"facts": {"0": {"text": {"text": {"em": 1}, "chat": {"em": 1}}}}}
    cells = Told({("rome", "score"): DOWN, ("r_rome", "score"): DOWN}, against={("r_rome", "score"): WIDE})
    cells.checkpoints = lambda method: [1, 10] if method in ("rome", "r_rome") else []
    found = {each.claim: each.verdict for each in hypotheses.all_verdicts(cells, chat, form("reduced"))}
    assert found["A norm-matched random change hurts as much"] == hypotheses.UNMEASURED
    assert found["ROME breaks and R-ROME does not"] == hypotheses.FAILS


def test_a_cell_that_is_missing_is_named(tmp_path):
    """And its row is no row of the tables: a mean over the seeds that are there would flatter."""
    cells = tmp_path / "cells"
    shutil.copytree(REDUCED, cells)
    for file in cells.glob("all-seed1/memit-*.json"):
        file.unlink()
    found = Cells(cells)
    assert found.at("memit", 10) == [] and found.at("rome", 10)
    assert any(
        line.startswith("after 10 edits, seed 1, ") and "`memit`" in line
        for line in tables.left_out(found, form("reduced"))
    )
    assert "| `memit` |" not in tables.main_table(found)


# ------------------------------------------------------------------------------------------------------ kill and resume


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


# ---------------------------------------------------------------------------------------------- how far two runs differ


def test_two_runs_are_held_against_each_other_from_both_sides(tmp_path):
    """A task that only the other has, and a figure that only one of them could not compute, are differences."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    keep = {"all-seed0/unedited", "all-seed0/rome-00010"}
    for folder in (ours, theirs):
        (folder / "all-seed0").mkdir(parents=True)
        content = json.loads((REDUCED / "cells.json").read_text(encoding="utf-8"))
        content["cells"] = {name: known for name, known in content["cells"].items() if name in keep}
        (folder / "cells.json").write_text(json.dumps(content), encoding="utf-8")
        for name in keep:
            shutil.copyfile(REDUCED / f"{name}.json", folder / f"{name}.json")
    assert apart(Cells(ours), Cells(theirs))[1] == []

    file = ours / "all-seed0" / "rome-00010.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    lost = content["samples"].pop(0)["task"]
    file.write_text(json.dumps(content), encoding="utf-8")
    for one, other in ((ours, theirs), (theirs, ours)):
        assert apart(Cells(one), Cells(other))[1] == [f"all-seed0/rome-00010: {lost}"]

    shutil.copyfile(REDUCED / "all-seed0/rome-00010.json", file)
    content = json.loads(file.read_text(encoding="utf-8"))
    samples = next(each for each in content["samples"] if each["task"] == "edithurt_gsm8k_mc")
    place = [metric["name"] for metric in samples["metrics"]].index("gold_logprob")
    samples["rows"][0][6 + place] = float("nan")
    samples["metrics"][place]["value"] = float("nan")
    file.write_text(json.dumps(content), encoding="utf-8")
    for one, other in ((ours, theirs), (theirs, ours)):
        assert apart(Cells(one), Cells(other))[1] == ["all-seed0/rome-00010: edithurt_gsm8k_mc gold_logprob"]
