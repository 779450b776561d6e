"""The study (examples/study): its page is what the stored cells give, and these hold nobody's text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from examples.study import page, sentences
from examples.study.cells import Cells
from examples.study.design import RESULTS, Work, form
from examples.study.same import apart
from lm_eval_edit.editors.base import BUILT_IN
from lm_eval_edit.sweep.parsing import parse_design

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
