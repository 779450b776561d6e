"""The options of `lm-eval-edit train mend`: named, typed and described in one place, for the command and for Python."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

OUTER = ("prompt", "paraphrase", "any")


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class MendTrainingSettings:
    """How a MEND hypernetwork is trained. Names are EasyEdit's where it has them.

    The defaults suit small models: the demo model's hypernetwork takes about a minute of one processor core. For models
    of billions of parameters the published figures, named below, and their 100,000 passes are the place to begin.
    """

    inner_params: tuple[str, ...] = _setting(
        (), "weights to edit; default: all MLP matrices of the last three blocks, of a mixture its shared expert's"
    )
    rank: int = _setting(128, "rank of the hypernetworks' matrices (published: 1920)")
    lr: float = _setting(1e-4, "Adam's learning rate for the hypernetworks (published: 1e-6)")
    edit_lr: float = _setting(1e-3, "initial step size of the edits (published: 1e-4)")
    lr_lr: float = _setting(1e-3, "Adam's learning rate for the step sizes (published: 1e-4)")
    cedit: float = _setting(2.0, "weight of the edited model's loss on the new answer (published: 0.1)")
    cloc: float = _setting(1.0, "weight of the edited model's drift on unrelated prompts")
    outer: str = _setting("any", "what an edited model must answer: its prompt, a paraphrase, or any of both by chance")
    batch_size: int = _setting(10, "facts in one pass, each edited alone")
    accumulate: int = _setting(1, "passes before each step of the optimiser")
    grad_clip: float = _setting(100.0, "largest norm of the gradient")
    max_steps: int = _setting(500, "steps of the optimiser at most")
    val_interval: int = _setting(50, "steps from one validation, and one checkpoint, to the next")
    val_facts: int = _setting(100, "facts kept out of training for validation")
    patience: int = _setting(200, "stop when the validation loss has not fallen for so many steps")
    seed: int = _setting(0, "seeds the split, the order of the facts and the initial weights")

    def __post_init__(self) -> None:
        if self.outer not in OUTER:
            raise ValueError(f"outer={self.outer!r}: want one of {', '.join(OUTER)}")
        for f in fields(self):
            value = getattr(self, f.name)
            positive = isinstance(f.default, (int, float)) and f.name not in ("cedit", "cloc", "seed")
            if positive and not value > 0:
                raise ValueError(f"{f.name}={value}: want a number above 0")
            if f.name in ("cedit", "cloc", "seed") and value < 0:
                raise ValueError(f"{f.name}={value}: want a number of at least 0")
