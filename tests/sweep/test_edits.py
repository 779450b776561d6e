"""What a sweep says about edits: missing second moments at once, the same facts before and after, no error from one."""

from __future__ import annotations

import json

import pytest
from lm_eval.utils import make_table

from lm_eval_edit import ConfigurationError, load_facts
from lm_eval_edit.sweep import checking, folder
from lm_eval_edit.sweep.parsing import parse_design
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.small_sweeps import sweep


def test_one_fact_has_no_standard_error_anywhere(tmp_path):
    sweep(tmp_path, tasks=["edithurt_efficacy"], n_edits=[1], limit=None)
    read = load_sweep(tmp_path)
    values = [cell.value("edithurt_efficacy", "em") for _, cell in read.cells()]
    assert len(values) == 2 and all(value.stderr is None for value in values)
    assert "NaN" in make_table(read.rows[0].before.results)


def test_before_its_edits_a_row_is_asked_about_the_facts_it_edits(tmp_path):
    """KN passes over facts without a known answer; the unedited model alone would not."""
    facts = [fact.record() for fact in load_facts("demo")[:12]]
    for fact in facts[::2]:
        del fact["target_true"]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    kn = {"editor": "kn", "steps": 1}
    given = {"editors": [kn], "datasets": str(tmp_path / "facts.json"), "model_args": {}, "stop_at_perplexity": None}
    sweep(tmp_path / "out", tasks=["edithurt_efficacy"], n_edits=[3], limit=None, **given)
    (row,) = load_sweep(tmp_path / "out").rows
    asked = []
    for cell in (row.before, row.cells[0]):
        (file,) = cell.folder.glob("samples_edithurt_efficacy_*.jsonl")
        asked.append([json.loads(line)["doc"]["fact_id"] for line in file.read_text().splitlines()])
    assert asked[0] == asked[1] and {int(name[-1]) % 2 for name in asked[0]} == {1}


def test_second_moments_that_are_not_there_are_told_before_a_model_loads(tmp_path):
    design = {"models": "demo", "editors": ["rome", "memit"], "n_edits": 1, "tasks": "edithurt_rte"}
    design["model_args"] = {"edit_layers": "1-2"}
    with pytest.raises(ConfigurationError, match=r"memit-demo-seed0: memit .* needs the second moments of layer 2"):
        checking.check(parse_design(design, "the test"), folder.SweepFolder(tmp_path))
    design["model_args"]["edit_corpus"] = __file__
    checking.check(parse_design(design, "the test"), folder.SweepFolder(tmp_path))
