"""What the fine-tuning editors share: rows of prompt and target, the loss on the target, batches of facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors._shared.rows import AlignedRows, Row, align
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import context_size, continuation
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.weights.edited import wide_dtype


def target_row(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> Row:
    """Prompt and target tokenised as one text, less the last token; its last positions are to predict the target.

    Raises:
        UserError: the target adds no token to its prompt.
    """
    ids, labels = continuation(tokenizer, fact.text, fact.target)
    return Row(ids + labels[:-1], 0, tuple(labels))


def padded(model: PreTrainedModel, rows: Sequence[Row]) -> AlignedRows:
    """The rows of one batch, padded on the right (all begin in column 0) and placed where the model's input goes."""
    return align(rows, input_device(model), context_size(model.config))


def target_loss(at: Tensor, rows: AlignedRows) -> Tensor:
    """The mean over rows of each row's mean −log p of its labels, a scalar in float32 or wider.

    Args:
        at: (N, V) logits where the labels are.
        rows: The rows of those N labels.
    """
    nll = F.cross_entropy(at.to(wide_dtype(at.dtype)), rows.labels.to(at.device), reduction="none")
    row = rows.label_rows.to(at.device)
    none = torch.zeros(len(rows), dtype=nll.dtype, device=nll.device)
    count = none.index_add(0, row, torch.ones_like(nll))  # bincount would wait for a device
    return (none.index_add(0, row, nll) / count).mean()


def chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """The rows, `size` at a time and in order."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
