"""docs/scaling.md holds the tables its script writes, and a sweep's estimate is the sum of its parts."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import replace

import pytest

from lm_eval_edit.cost.run import Cost, estimate, known_tasks
from lm_eval_edit.cost.work import Shape
from lm_eval_edit.sweep.checking import check
from lm_eval_edit.sweep.costs import row_operations, sweep_cost
from lm_eval_edit.sweep.estimate import estimate_lines
from lm_eval_edit.sweep.folder import SweepFolder
from lm_eval_edit.sweep.parsing import parse_design, read_design
from tests.conftest import ROOT

SHAPE = Shape(1000, 4, 8, 16, 50, 8, 200)


def test_the_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("scaling_tables", ROOT / "examples" / "scaling_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert script.written(text) == text, "run python examples/scaling_tables.py"
    assert script.written(text.replace("| llama-7b | 6,738,415,616", "| llama-7b | 7")) == text
    assert all(f"`{name}`" in text and name in text.split("PANELS=(")[1].split(")")[0] for name in script.panels())


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
    cost, left_out = sweep_cost(design, lambda model, routed: SHAPE, lambda row: options)
    assert left_out == ["hellaswag"]
    tasks, _ = known_tasks(["edithurt_rte"], 30)
    common = {"tasks": tasks, "batch_size": design.batch_size, "options": options}
    one = estimate(SHAPE, evaluations=1, loads=0, **common)
    rows = [estimate(SHAPE, evaluations=2, editor=e, operations=[1] * 4, **common) for e in ("rome", "kn")]
    wanted = one + rows[0] + rows[1] + one + rows[0] + rows[1]
    assert cost.prompts == wanted.prompts == 30 * 10
    assert cost.flop == pytest.approx(wanted.flop) and cost.parts == pytest.approx(wanted.parts)


def test_a_row_that_edits_routed_experts_beside_a_shared_one_is_counted_so():
    """`Shape.of` is told what the row edits; the unedited model and other rows are of the shared expert."""
    methods = [{"editor": "memit", "label": name} for name in ("shared", "routed")]
    given = {"models": "demo", "editors": methods, "n_edits": 2, "tasks": ["edithurt_rte"], "limit": 3}
    design, wide = parse_design(given, "test"), replace(SHAPE, inner=SHAPE.inner * 3)
    layers: dict = {"layers": (1,)}
    options = {"shared": layers, "routed": layers | {"edit_experts": "routed"}}
    cost, _ = sweep_cost(
        design, lambda model, routed: SHAPE if routed else wide, lambda row: options[row.method.label]
    )  # fmt: skip
    common = {"tasks": {"rte": 3}, "batch_size": design.batch_size, "evaluations": 1}
    edited = {"editor": "memit", "options": layers, "operations": [1, 1]} | common
    wanted = [estimate(wide, loads=0, **common), estimate(wide, **edited), estimate(SHAPE, **edited)]
    assert cost.flop == pytest.approx(sum(each.flop for each in wanted), rel=1e-12)
    assert wanted[1].flop != wanted[2].flop


def test_second_moments_are_collected_once_for_a_model_and_an_editor():
    given = {"models": "demo", "editors": "memit", "n_edits": 4, "edit_seeds": [0, 1], "tasks": ["edithurt_rte"]}
    options = {"layers": (1,)}

    def flop(tokens: int) -> float:
        design = parse_design(given, "test")
        return sweep_cost(design, lambda model, routed: SHAPE, lambda row: options, second_moment_tokens=tokens)[0].flop

    by_hand = 2 * SHAPE.inner**2 * 5000 + SHAPE.blocks(5000, 5000 * 512, 2)
    assert flop(5000) - flop(0) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("model", "model_args", "said"),
    [
        ("openai-community/gpt2-xl", {}, "5.8 GiB of weights (float32)"),
        ("openai-community/gpt2-xl", {"dtype": "bfloat16"}, "2.9 GiB of weights (bfloat16)"),
        ("openai-community/gpt2-xl", {"dtype": "auto"}, "5.8 GiB of weights (float32)"),
        ("huggyllama/llama-7b", {}, "13 GiB of weights (float16)"),
        ("openai-community/gpt2-xl", {"dtype": "bfloat61"}, "dtype=bfloat61 is no torch dtype"),
    ],
)
def test_a_dry_run_counts_with_the_dtype_that_is_loaded(tmp_path, monkeypatch, model, model_args, said):
    monkeypatch.setattr("lm_eval_edit.plan.model_config", lambda source, others: (None, ["no hub"]))
    monkeypatch.setattr("lm_eval_edit.sweep.checking.model_config", lambda source, others: (None, ["no hub"]))
    given = {"models": model, "editors": "kn", "n_edits": [1], "tasks": ["edithurt_rte"], "model_args": model_args}
    folder = SweepFolder(tmp_path / "sweep")
    lines = estimate_lines(check(parse_design(given, "test"), folder, dry_run=True))
    assert said in lines[0]


def test_single_precision_takes_longer():
    design = parse_design({"models": "demo", "editors": "rome", "n_edits": [2]}, "test")

    def cost(weight_bytes: int) -> Cost:
        options = {"weight_bytes_of": lambda model: weight_bytes}
        return sweep_cost(design, lambda model, routed: SHAPE, lambda row: {"layers": (1,)}, **options)[0]

    half, single = cost(2), cost(4)
    assert single.weight_bytes == 2 * half.weight_bytes and single.flop == half.flop
    assert single.parts["loading"] > half.parts["loading"]


def test_the_commands_load_half_precision_and_the_array_asks_for_time_enough():
    """GPT-2 XL's checkpoint is float32, and would be loaded and run so: the table is for bfloat16."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if "lm-eval-edit sweep --preset" in line and "-o " in line]
    assert len(commands) >= 4 and all("--model_args dtype=bfloat16" in line for line in commands)
    (hours,) = re.findall(r"#SBATCH --time=(\d\d):00:00", text)
    panels = [line.split("|") for line in text.splitlines() if line.startswith("| `fig")]
    slowest = max(float(cells[-3]) for cells in panels)  # on the A100
    assert len(panels) == 12 and 2 * slowest < int(hours), "the estimate is good to a factor of 2"


def test_the_scripts_are_valid_shell():
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    scripts = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert not done.stderr, done.stderr
        assert "SRUN_CPUS_PER_TASK" in script, "or srun gives each task one CPU"
