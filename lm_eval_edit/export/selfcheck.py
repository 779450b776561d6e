"""Does what was written answer like the edited model? Engines are known to ignore adapters without a word.

The weights that were read back are compared number by number (`checkpoint`, `adapter`), and the logits after the edited
prompts show that they are used: they must agree with those of what the export stands for, within rounding, and be
clearly nearer to them than to the unedited model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.chat import ChatFrame, placed
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import encode
from lm_eval_edit.models.devices import input_device

#: Most prompts compared; from a longer schedule so many are taken at even distances, the first and last included.
MAX_PROMPTS = 256

#: Largest difference allowed, as a share of the largest logit (of 1 at least). An adapter adds B A x beside W x, where
#: the edited model has summed the weights: the same number, rounded differently in every layer above.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.15}


class ExportError(UserError):
    """An export that does not do what the edited model does; it is not kept."""


@dataclass(frozen=True)
class Verdict:
    """A check that was passed.

    Attributes:
        prompts: How many edited prompts were compared.
        difference: Largest |logit| difference between what was reloaded and what was exported.
        tolerance: Largest one allowed; None where there is no bound, see `compare`.
        effect: Largest |logit| difference between the unedited model and what was exported.
    """

    prompts: int
    difference: float
    tolerance: float | None
    effect: float

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def allowed(tolerance: float | None) -> str:
    """A verdict's tolerance in words."""
    if tolerance is None:
        return "no bound: in half precision an adapter's rounding is another; its factors were compared instead"
    return f"allowed {tolerance:.3g}"


def prompts_of(facts: Sequence[Fact], frame: ChatFrame | None = None) -> list[str]:
    """The prompts to compare on, where they were edited.

    Args:
        frame: The chat template's that they were edited in; None for prompts as they stand.
    """
    if len(facts) > MAX_PROMPTS:
        facts = [facts[round(i * (len(facts) - 1) / (MAX_PROMPTS - 1))] for i in range(MAX_PROMPTS)]
    return [fact.text for fact in placed(facts, frame)]


@torch.no_grad()
def last_logits(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int = 16
) -> Tensor:
    """(prompts, vocabulary) the logits after each prompt, in float32 or wider, on the CPU."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel), "an adapter is read for a model of transformers"
    device = input_device(base)
    out = []
    for start in range(0, len(prompts), batch_size):
        rows = [encode(tokenizer, prompt) for prompt in prompts[start : start + batch_size]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        ends = torch.tensor([len(row) - 1 for row in rows], device=logits.device)
        last = logits[torch.arange(len(rows), device=logits.device), ends]
        out.append(last.to(torch.promote_types(last.dtype, torch.float32)).cpu())
    return torch.cat(out)


def compare(
    found: Tensor, wanted: Tensor, unedited: Tensor, dtype: torch.dtype, *, summed_apart: bool = False
) -> Verdict:
    """Compare logits.

    Args:
        found: (n, V) of what was reloaded.
        wanted: (n, V) of what the export stands for.
        unedited: (n, V) of the unedited model.
        dtype: The model's.
        summed_apart: `found` is of an adapter whose factors have been compared, which adds B A x to W x where the
            edited model has rounded W + B A. In half precision the two can then be as far apart as the edits move the
            logits, so all that is asked is that it is not the unedited model.

    Raises:
        ExportError: `found` is not `wanted` within the tolerance, or is the unedited model's, or could be either's.
    """
    if found.shape != wanted.shape:
        raise ExportError(f"it has logits of shape {tuple(found.shape)}, the edited model {tuple(wanted.shape)}")
    bounded = not summed_apart or dtype in (torch.float32, torch.float64)
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]) * max(1.0, _largest(wanted)) if bounded else None
    verdict = Verdict(
        prompts=len(wanted),
        difference=_largest(found - wanted),
        tolerance=tolerance,
        effect=_largest(wanted - unedited),
    )
    figures = (
        f"on {verdict.prompts} edited prompts the largest difference of a logit is {verdict.difference:.3g} to the "
        f"edited model ({allowed(verdict.tolerance)}) and {_largest(found - unedited):.3g} to the unedited one, which "
        f"are {verdict.effect:.3g} apart"
    )
    ignored = ExportError(
        f"it answers like the unedited model, as if what was written were ignored or empty: {figures}"
    )
    if tolerance is None:
        if not _largest(found - unedited) > 0:
            raise ignored
        return verdict
    if not verdict.effect > 0:
        raise ExportError(
            f"the edits do not reach the answers to their own prompts, so nothing can be checked: {figures}"
        )
    if not (found - unedited).norm() > 0.5 * (wanted - unedited).norm():
        raise ignored
    if not verdict.difference <= tolerance:
        raise ExportError(f"it does not answer like the edited model: {figures}")
    if not (found - wanted).norm() < 0.5 * (found - unedited).norm():
        raise ExportError(f"rounding hides the edits, so nothing can be checked: {figures}")
    return verdict


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())
