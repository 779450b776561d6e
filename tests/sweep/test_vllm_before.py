"""A sweep served by vLLM: what is known, and refused, before anything is edited."""

from __future__ import annotations

import pytest
import yaml

from lm_eval_edit.cli import main
from lm_eval_edit.sweep import serving
from tests.support.served_sweeps import checked_sweep, design_of

pytestmark = pytest.mark.usefixtures("tasks_at_hand")


def test_the_dry_run_says_which_cells_go_which_way(vllm, served_world, tmp_path, capsys):
    editors = [*design_of(served_world)["editors"], {"editor": "lora", "label": "lora"}]
    (tmp_path / "design.yaml").write_text(yaml.safe_dump(design_of(served_world, editors=editors)))
    flags = ("--engine", "vllm", "--dry_run", "--device", "cpu", "--device_rate", "h100")
    assert main(["sweep", str(tmp_path / "design.yaml"), *flags]) == 0
    said = capsys.readouterr().out
    assert "one engine: unedited, 2 LoRA adapters (max_lora_rank 8; tiny/rome-facts-file_order/n00001, " in said
    assert "checkpoint, an engine of its own for each (the updates of ft are not low rank): tiny/ft-" in said
    assert (
        "adapter or checkpoint, decided once the edits are made (what rank the updates of lora have shows then)" in said
    )
    assert "disk while cells wait: up to " in said and "MiB more if no adapter is exact" in said
    assert "asked of the model that is edited, not of vLLM" in said


def test_the_demo_is_served_from_checkpoints(vllm, tmp_path, capsys):
    flags = ("--n_edits", "1,2", "--engine", "vllm", "--dry_run", "--device", "cpu", "--device_rate", "h100")
    assert main(["sweep", "--pretrained", "demo", "--editors", "rome", *flags]) == 0
    said = capsys.readouterr().out
    assert "(vLLM has no LoRA for GPT2LMHeadModel): demo/rome-demo-seed0/n00001, demo/rome-demo-seed0/n00002" in said
    assert "unedited: an engine of its own" in said


def test_float32_adapters_are_not_for_gpus(vllm, served_world, tmp_path, monkeypatch):
    checked = checked_sweep(served_world, tmp_path / "sweep")
    (model,) = checked.design.models
    assert serving.no_adapters(checked, model) is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "on a GPU is for float16 and bfloat16" in serving.no_adapters(checked, model)


def test_without_vllm_the_error_says_how_to_get_it(served_world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    (tmp_path / "design.yaml").write_text(yaml.safe_dump(design_of(served_world)))
    assert main(["sweep", str(tmp_path / "design.yaml"), "-o", str(tmp_path / "out"), "--engine", "vllm"]) == 1
    said = capsys.readouterr().err
    assert "pip install vllm" in said and "docs/engines.md" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tensor_parallel_size", "2"), ["--tensor_parallel_size: only with --engine vllm"]),
        (("--engine", "vllm", "--address", "auto"), ["--address: only with --engine ray", "--tensor_parallel_size"]),
        (
            ("--engine", "vllm", "--engine_args", "enforce_eagr=True,max_lora_rank=8", "dtype=half",
             "--tensor_parallel_size", "0"),
            ["Did you mean 'enforce_eager'?", "max_lora_rank: the edits decide it", "dtype: the design says it",
             "--tensor_parallel_size 0"],
        ),
        (("--engine", "vllm", "--engine_args", "enforce_eager"), ["want name=value"]),
        (
            ("--engine", "vllm", "--engine_args", "tensor_parallel_size=2", "--tensor_parallel_size", "4"),
            ["give one of them"],
        ),
    ],
)  # fmt: skip
def test_wrong_flags_are_told_at_once(vllm, flags, said, tmp_path, capsys):
    args = ["sweep", "--pretrained", "demo", "--editors", "rome", "--n_edits", "1", "-o", str(tmp_path / "out")]
    assert main([*args, "--device", "cpu", *flags]) == 1
    found = capsys.readouterr().err
    assert all(text in found for text in said), found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"tasks": ["edithurt_efficacy"]}, {}, "all about the rows' own facts"),
        ({"model_args": {"layers": [1], "truncation": True}}, {}, "truncation=True is an option of transformers"),
        ({"model_args": {"layers": [1], "dtype": "float64"}}, {}, "vLLM takes float32, float16, bfloat16"),
        ({"model_args": {"layers": [1], "max_length": 64}}, {"max_model_len": 64}, "give one of them"),
    ],
)
def test_designs_that_cannot_be_served(vllm, served_world, tmp_path, changes, arguments, said):
    checked = checked_sweep(served_world, tmp_path / "sweep", **changes)
    (problem,) = serving.problems(checked, serving.Serving(arguments))
    assert said in problem
