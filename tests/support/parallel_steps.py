"""Run by `torchrun` in two processes: schedules taken step by step, with what every process saw written to OUT/<rank>.

torchrun --nproc_per_node 2 -m tests.support.parallel_steps WORLD OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lm_eval.api.instance import Instance

from lm_eval_edit import EditedHFLM, EditError, UserError
from lm_eval_edit.editors import EditResult
from lm_eval_edit.editors.rome import Rome
from lm_eval_edit.edits.states import in_state
from lm_eval_edit.harness.requests import Origin, make
from lm_eval_edit.plan import make_plan
from tests.support.tiny import FACTS

STEPS = (1, 0, 2, 2, 1, 3)


def schedule(world: Path, editor: str, **more):
    """Options of a schedule in the folder that test_parallel.py makes."""
    options = json.loads((world / "editors.json").read_text())
    return {
        "editor": editor, "n_edits": 4, "edit_seed": None, "edit_dataset": str(world / "facts.jsonl"),
        "edit_config": options[editor], "edit_second_moments": str(world / "moments.safetensors"),
    } | more  # fmt: skip


class BreaksAtThird(Rome):
    """An editor whose third fact fails, as a bug (TypeError) or by its values."""

    error = None

    def compute(self, context, facts, history=()):
        result = super().compute(context, facts, history)
        if facts[0].id != "2":
            return result
        if self.error is not None:
            raise self.error("third")
        return EditResult({name: type(d)(d.left * float("nan"), d.right) for name, d in result.deltas.items()})


class BugAtThird(BreaksAtThird):
    error = TypeError


def answers_in_states(lm: EditedHFLM) -> list[float]:
    """log p of one answer in the present state of the weights, then after 0 to 3 operations."""
    asked = (FACTS[0].text, FACTS[0].target)
    asked = [asked, *(in_state(asked, n) for n in range(4))]
    requests = [
        make(Instance, "loglikelihood", {}, arguments, index, Origin("t", index, 1))
        for index, arguments in enumerate(asked)
    ]
    return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def main(world: Path, out: Path) -> None:
    seen: dict = {}
    lm = EditedHFLM(str(world / "model"), device="cpu")
    seen["world"] = [lm.rank, lm.world_size]
    for editor in json.loads((world / "editors.json").read_text()):
        lm.begin(make_plan(lm.model, schedule(world, editor), {}))
        for n in STEPS:
            lm.apply(n)
            seen.setdefault(editor, []).append(lm.weights_fingerprint)
        seen[f"{editor} answers"] = answers_in_states(lm)
        seen[f"{editor} afterwards"] = lm.weights_fingerprint
        seen[f"{editor} record"] = lm.edit_record()
    for broken in ("BreaksAtThird", "BugAtThird"):
        name = f"tests.support.parallel_steps:{broken}"
        options = schedule(world, "rome") | {"editor": name, "edit_ledger": str(out / broken)}
        lm.begin(make_plan(lm.model, options, {}))
        try:
            lm.apply()
        except (EditError, RuntimeError, TypeError) as error:
            seen[broken] = [type(error).__name__, str(error), lm.weights_fingerprint]
        lm.apply(2)  # nobody is left behind
        seen[broken].append(lm.weights_fingerprint)
    ledger = {"edit_ledger": str(out / "ledger")}
    for n in (2, 4):  # the second time the first two are replayed from the folder
        lm.begin(make_plan(lm.model, schedule(world, "rome", n_edits=n, **ledger), {}))
        lm.apply()
        seen.setdefault("ledger", []).append(lm.weights_fingerprint)
    lm.restore()
    if lm.rank == 1:  # process 0 alone would not notice
        lm.model.transformer.wpe.weight.data[0, 0] += 1e-3
    lm.begin(make_plan(lm.model, schedule(world, "rome"), {}))
    try:
        lm.apply(1)
    except UserError as error:
        seen["other weights"] = [type(error).__name__, str(error)]
    (out / f"{lm.rank}.json").write_text(json.dumps(seen, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
