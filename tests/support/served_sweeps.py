"""A sweep small enough to be served twice: a tiny LLaMA, ROME and FT, three tasks of its own words.

`python -m tests.support.served_sweeps ARGUMENTS` is `lm-eval-edit` without the harness's thousands of tasks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel

from lm_eval_edit._startup import hooks
from lm_eval_edit.sweep import checking, evaluation
from lm_eval_edit.sweep.folder import SweepFolder
from lm_eval_edit.sweep.parsing import parse_design
from tests.support.tiny import FACTS, save_tiny, tiny_llama, tiny_tokenizer, write_facts

_DOCUMENTS = """\
import datasets

PROMPTS = {prompts!r}


def documents(**metadata):
    rows = [{{"question": prompt, "answer": answer}} for prompt in PROMPTS for answer in ("French", "Czech", "Oslo")]
    return {{"test": datasets.Dataset.from_list(rows)}}
"""
_TASK = """\
task: {name}
custom_dataset: !function documents.documents
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
{more}
"""
_SAYS = 'generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]'
ROME = {"mom2_adjustment": False, "v_num_grad_steps": 20, "v_lr": 0.5, "context_template_length_params": []}


def make_world(root: Path, model: PreTrainedModel | None = None, **sizes: Any) -> Path:
    """`model`, `facts.jsonl` and `tasks` with `toy_likely` and `toy_says` in a folder.

    Args:
        model: One of the words of `tiny_tokenizer`; None for a LLaMA.
        sizes: Of that LLaMA.
    """
    sizes = {"max_position_embeddings": 96} | sizes
    save_tiny(root / "model", model or tiny_llama(vocab_size=len(tiny_tokenizer()), **sizes))
    write_facts(root / "facts.jsonl")
    tasks = root / "tasks"
    tasks.mkdir()
    prompts = [*(fact.text for fact in FACTS), "The weather is", "Therefore the city"]
    (tasks / "documents.py").write_text(_DOCUMENTS.format(prompts=prompts))
    kinds = {"toy_likely": ("loglikelihood", "metric_list: [{metric: acc}]"), "toy_says": ("generate_until", _SAYS)}
    for name, (kind, more) in kinds.items():
        (tasks / f"{name}.yaml").write_text(_TASK.format(name=name, kind=kind, more=more))
    return root


def design_of(world: Path, **changes: Any) -> dict[str, Any]:
    """The design as a YAML file has it."""
    return {
        "models": [{"pretrained": str(world / "model"), "label": "tiny"}],
        "editors": [{"editor": "rome", "label": "rome", **ROME}, {"editor": "ft", "label": "ft", "num_steps": 5}],
        "datasets": [str(world / "facts.jsonl")],
        "edit_seeds": ["none"],
        "n_edits": [1, 2],
        "tasks": ["toy_likely", "toy_says", "edithurt_efficacy"],
        "include_path": str(world / "tasks"),
        "model_args": {"layers": [1], "dtype": "float32"},
        "batch_size": 8,
    } | changes


def quick_index(names: Sequence[str], include_path: str | None, metadata: Mapping[str, Any]) -> TaskManager:
    """In the place of `evaluation.task_manager`: our tasks and those of the folder, none of the harness's thousands."""
    hooks.connect()
    with hooks.only_our_tasks():
        return TaskManager(include_path=include_path, metadata=dict(metadata))


def checked_sweep(world: Path, root: Path, **changes: Any) -> checking.Checked:
    """`design_of(world, **changes)` found fit to run into a folder."""
    return checking.check(parse_design(design_of(world, **changes), "the test"), SweepFolder(root))


def answers(root: Path) -> dict[str, dict[str, list[Any]]]:
    """Cell -> task -> what was answered to each request of each document, in order."""
    found: dict[str, dict[str, list[Any]]] = {}
    for file in sorted(root.glob("*/**/samples_*.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        task = file.name.removeprefix("samples_").partition("_20")[0]
        cell = found.setdefault(file.parent.relative_to(root).as_posix(), {})
        cell[task] = [each["resps"] for each in sorted(lines, key=lambda line: line["doc_id"])]
    return found


def likelihoods(of: dict[str, list[Any]], task: str = "toy_likely") -> list[float]:
    """The log-probabilities among the answers of a cell."""
    return [float(response[0][0]) for document in of[task] for response in document]


def cells(root: Path) -> dict[str, dict[str, Any]]:
    """Cell -> its cell.json."""
    return {
        file.parent.relative_to(root).as_posix(): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(root.glob("[!.]*/**/cell.json"))
    }


def assert_same(found: dict, wanted: dict) -> None:
    """Log-probabilities within an engine's noise (this process batches other tasks together), and all texts."""
    assert found.keys() == wanted.keys()
    for task in wanted:
        if task == "toy_says":
            assert found[task] == wanted[task]
        else:
            assert likelihoods(wanted, task), task
            assert likelihoods(found, task) == pytest.approx(likelihoods(wanted, task), abs=1e-3), task


if __name__ == "__main__":
    from lm_eval_edit.cli import main

    evaluation.task_manager = quick_index
    sys.exit(main(sys.argv[1:]))
