"""Run by `torchrun` in two processes: what fingerprint a mixture has on each after some of its experts were edited.

torchrun --nproc_per_node 2 -m tests.support.parallel_experts WORLD
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lm_eval_edit import EditedHFLM
from lm_eval_edit.plan import make_plan


def main(world: Path) -> None:
    lm, seen = EditedHFLM(str(world / "model"), device="cpu"), {}
    for editor in ("tests.support.editors:Experts", "tests.support.editors:ExpertSlices"):
        options = {"editor": editor, "n_edits": 4, "edit_seed": None, "edit_dataset": str(world / "facts.jsonl")}
        lm.begin(make_plan(lm.model, options, {}))
        for n in (1, 4, 2, 0):
            lm.apply(n)
            seen.setdefault(editor, []).append(lm.weights_fingerprint)
    (world / f"{lm.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
