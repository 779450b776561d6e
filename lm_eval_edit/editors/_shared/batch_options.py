"""Hyper-parameters that MEMIT and its kin share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_edit.editors.base import experts_option, option
from lm_eval_edit.editors.mixtures import check_experts
from lm_eval_edit.editors.templates import check_length_params

ANCHOR_FACTS = 50


@dataclass(frozen=True)
class BatchOptions:
    """Hyper-parameters that MEMIT and its kin share, under EasyEdit's names."""

    layers: tuple[int, ...] = option("the edited layers, lowest first", default=())
    v_num_grad_steps: int = option(
        "forward passes of the target optimisation: one more than Adam steps", default=20, sign="positive"
    )
    v_lr: float = option("Adam's learning rate", default=0.5, sign="positive")
    v_weight_decay: float = option("weight of ‖δ‖ / ‖z_init‖² in the loss", default=0.5, sign="not negative")
    clamp_norm_factor: float = option("δ is kept within this many norms of z_init", default=0.75, sign="positive")
    kl_factor: float = option(
        'weight of the drift of "{subject} is a" in the loss', default=0.0625, sign="not negative"
    )
    v_batch_size: int = option(
        "facts whose targets are optimised at once: bounds memory, changes nothing else", default=16, tuned=False
    )
    fact_token: str = option("where the fact is read and written; only subject_last", default="subject_last")
    mom2_adjustment: bool = option("use the second moments; only true", default=True)
    context_template_length_params: tuple[tuple[int, int], ...] = option(
        "(tokens, samples) of the context templates sampled from the model", default=((10, 5),)
    )
    context_templates: tuple[tuple[str, ...], ...] = option("templates to use instead of sampling any", default=())
    stop_after_correct: int | None = option(
        "stop a fact's target this many steps after all contexts answer it (ENCORE: 2)",
        default=None, later=True, least=0,
    )  # fmt: skip
    own_targets: bool = option(
        "edit the first and the last layer only, each towards a target of its own (BLUE)", default=False, later=True
    )
    norm_anchor: Any = option(
        "rescale every target's MLP output to this norm (NAS): a number, auto for the mean over the run's own first "
        "facts, or a file of facts to take the mean over",
        default=None, later=True,
    )  # fmt: skip
    edit_experts: str = experts_option()
    norm_anchor_facts: int = option(
        "facts the norm's mean is taken over, on the unedited model", default=ANCHOR_FACTS, later=True, tuned=False
    )

    def __post_init__(self) -> None:
        check_experts(self.edit_experts)
        if self.fact_token != "subject_last":
            raise ValueError(f"fact_token={self.fact_token!r}: only 'subject_last' is supported")
        if not self.mom2_adjustment:
            raise ValueError("mom2_adjustment=False: this method is built on the second moments; leave it true")
        check_length_params(self.context_template_length_params)
        if self.v_batch_size < 1:
            raise ValueError(f"v_batch_size={self.v_batch_size}: want at least 1")
        if any(after <= before for before, after in zip(self.layers, self.layers[1:], strict=False)):
            raise ValueError(f"layers={list(self.layers)}: want each layer once, lowest first")
        if self.own_targets and len(self.layers) == 1:
            raise ValueError(
                f"own_targets=True: the first and the last layer get targets of their own, and one layer is edited "
                f"({self.layers[0]}); give edit_layers=FIRST-LAST, or leave own_targets out"
            )
        object.__setattr__(self, "norm_anchor", _anchor(self.norm_anchor))
        if self.norm_anchor_facts < 1:
            raise ValueError(f"norm_anchor_facts={self.norm_anchor_facts}: want at least 1")
        if self.norm_anchor_facts != ANCHOR_FACTS and not isinstance(self.norm_anchor, str):
            raise ValueError(
                f"norm_anchor_facts={self.norm_anchor_facts}: goes with norm_anchor=auto or norm_anchor=FILE; "
                f"norm_anchor is {self.norm_anchor}"
            )


def _anchor(given: Any) -> float | str | None:
    """`norm_anchor` as a number, or as text: `auto`, or a path.

    Raises:
        ValueError: it is neither.
    """
    if given is None or (isinstance(given, str) and given.strip().lower() == "none"):
        return None
    if isinstance(given, str) and given.strip().lower() == "auto":
        return "auto"
    try:
        number = float(given) if not isinstance(given, bool) else 0.0
    except (TypeError, ValueError):
        number = 0.0
    if 0 < number < float("inf"):
        return number
    if isinstance(given, Path) or (isinstance(given, str) and Path(given).expanduser().is_file()):
        return str(given)
    raise ValueError(f"norm_anchor={given}: want a positive number, auto, or a file of facts that is there")
