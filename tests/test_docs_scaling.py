"""docs/scaling.md holds the tables its script writes, and a sweep's estimate is the sum of its parts."""

from __future__ import annotations

import importlib.util

import pytest

from lm_eval_edit.cost import estimate, known_tasks
from lm_eval_edit.cost_sweeps import row_operations, sweep_cost
from lm_eval_edit.cost_work import Shape
from lm_eval_edit.sweep.parsing import parse_design, preset_names, read_design
from tests.conftest import ROOT

SHAPE = Shape(1000, 4, 8, 16, 50, 8, 200)


def test_the_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("scaling_tables", ROOT / "examples" / "scaling_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert script.written(text) == text, "run python examples/scaling_tables.py"
    assert script.written(text.replace("| llama-7b | 6,738,415,616", "| llama-7b | 7")) == text
    assert all(f"`{name}`" in text and name in text.split("PANELS=(")[1].split(")")[0] for name in preset_names())


@pytest.mark.parametrize(
    ("preset", "operations"),
    [
        ("fig3_rome_gpt2xl", [[1] * 20]),
        ("fig4_memit_gpt2xl", [[1, 10, 100, 1000, 2000, 3000]]),
        ("fig6_memit_gpt2xl", [[10] * 50, [30] * 50, [50] * 50]),
    ],
)
def test_operations_of_the_presets(preset, operations):
    assert [row_operations(row) for row in read_design(preset, {}).rows()] == operations


def test_a_last_batch_may_be_smaller():
    (row,) = parse_design({"models": "demo", "editors": "memit", "n_edits": 25, "edit_batch_size": 10}, "test").rows()
    assert row_operations(row) == [10, 10, 5]


def test_a_sweep_is_its_rows_and_one_unedited_evaluation_of_each_model():
    given = {"models": ["demo", {"pretrained": "x"}], "editors": ["rome", "kn"], "n_edits": [2, 4], "limit": 30,
             "tasks": ["edithurt_rte", "hellaswag"]}  # fmt: skip
    design = parse_design(given, "test")
    options = {"layers": (1,)}
    cost, left_out = sweep_cost(design, lambda model: SHAPE, lambda row: options)
    assert left_out == ["hellaswag"]
    tasks, _ = known_tasks(["edithurt_rte"], 30)
    common = {"tasks": tasks, "batch_size": design.batch_size, "options": options}
    one = estimate(SHAPE, evaluations=1, loads=0, **common)
    rows = [estimate(SHAPE, evaluations=2, editor=e, operations=[1] * 4, **common) for e in ("rome", "kn")]
    wanted = one + rows[0] + rows[1] + one + rows[0] + rows[1]
    assert cost.prompts == wanted.prompts == 30 * 10
    assert cost.flop == pytest.approx(wanted.flop) and cost.parts == pytest.approx(wanted.parts)


def test_second_moments_are_collected_once_for_a_model_and_an_editor():
    given = {"models": "demo", "editors": "memit", "n_edits": 4, "edit_seeds": [0, 1], "tasks": ["edithurt_rte"]}
    options = {"layers": (1,)}

    def flop(tokens: int) -> float:
        design = parse_design(given, "test")
        return sweep_cost(design, lambda model: SHAPE, lambda row: options, second_moment_tokens=tokens)[0].flop

    by_hand = 2 * SHAPE.inner**2 * 5000 + SHAPE.blocks(5000, 5000 * 512, 2)
    assert flop(5000) - flop(0) == pytest.approx(by_hand)
