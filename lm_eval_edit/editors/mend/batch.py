"""Batches of prompts with answers, the gradient factors of their loss, and models that are edited row by row.

What MEND's editor and its training share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors._shared.forward import by_row, without_parameter_gradients
from lm_eval_edit.editors.mend.network import token_factors
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import continuation, encode
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.weights.edited import wide_dtype

Factors = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Token rows and where they must predict what.

    Attributes:
        input_ids, attention_mask: (B, T).
        label_rows, label_columns, labels: (N,) row, column of the logits, and the token they must predict.
        weights: (N,) of each label in the loss.
    """

    input_ids: Tensor
    attention_mask: Tensor
    label_rows: Tensor
    label_columns: Tensor
    labels: Tensor
    weights: Tensor

    def log_probs(self, model: PreTrainedModel) -> Tensor:
        """(N, V) the model's log-probabilities where a label is to be predicted."""
        device = input_device(model)
        logits = model(input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device)).logits
        at: Tensor = logits[self.label_rows.to(logits.device), self.label_columns.to(logits.device)]
        return at.to(wide_dtype(at.dtype)).log_softmax(dim=-1)

    def loss(self, model: PreTrainedModel) -> Tensor:
        """Weighted sum of the labels' negative log-likelihoods."""
        log_probs = self.log_probs(model)
        nll = F.nll_loss(log_probs, self.labels.to(log_probs.device), reduction="none")
        return nll @ self.weights.to(nll)

    def row_means(self, values: Tensor) -> Tensor:
        """(B,) mean over each row's labels of (N,) values."""
        rows = self.label_rows.to(values.device)
        count = torch.bincount(rows)
        return values.new_zeros(len(count)).index_add(0, rows, values) / count


def exact_batch(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Batch:
    """Each fact's prompt and target; the loss is the sum over facts of the mean over the target's tokens.

    A batch is then edited by the sum of its facts' own edits: those the hypernetwork was trained to make.
    """
    return rows_batch([continuation(tokenizer, fact.text, fact.target) for fact in facts])


def rows_batch(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """(prompt ids, target ids) pairs, padded on the right, where a decoder does not look."""
    width = max(len(prompt) + len(target) for prompt, target in pairs)
    input_ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    rows: list[int] = []
    columns: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    for r, (prompt, target) in enumerate(pairs):
        length = len(prompt) + len(target)
        input_ids[r, :length] = torch.tensor([*prompt, *target])
        mask[r, :length] = 1
        rows += [r] * len(target)
        columns += range(len(prompt) - 1, length - 1)
        labels += target
        weights += [1 / len(target)] * len(target)
    where = torch.tensor(rows), torch.tensor(columns)
    return Batch(input_ids, mask, *where, torch.tensor(labels), torch.tensor(weights))


def easyedit_batch(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Batch:
    """As EasyEdit builds it: padded on the left with positions counted from the padding, and labels that keep both the
    padding of shorter targets and a beginning-of-sequence token; the loss is the mean over all of them. For one fact
    and GPT's tokenizers it is exact.
    """
    pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id or 0
    texts = [encode(tokenizer, fact.text + fact.target) for fact in facts]
    targets = [encode(tokenizer, fact.target) for fact in facts]
    width, count = max(map(len, texts)), max(map(len, targets))
    if count >= width:
        raise UserError(f"the target {facts[0].target!r} has no prompt before it; inner_loss=exact may help")
    input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in texts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in texts])
    labels = torch.tensor([[pad] * (count - len(ids)) + ids for ids in targets])
    rows = torch.arange(len(facts)).repeat_interleave(count)
    columns = torch.arange(width - 1 - count, width - 1).repeat(len(facts))
    return Batch(input_ids, mask, rows, columns, labels.flatten(), torch.full(rows.shape, 1 / len(rows)))


def gradient_factors(model: PreTrainedModel, modules: Sequence[nn.Module], batch: Batch) -> tuple[float, Factors]:
    """The loss, and (u, δ) of each module: its (B, T, in) inputs and the loss's (B, T, out) gradient at its output."""
    scale = 1024.0 if model.dtype == torch.float16 else 1.0  # small gradients would vanish in float16
    rows = len(batch.input_ids)
    with without_parameter_gradients(model), token_factors(modules) as factors, torch.enable_grad():
        loss = batch.loss(model)
        gradients = torch.autograd.grad(loss * scale, [probe for _, probe in factors])
    wide = [gradient.to(wide_dtype(gradient.dtype)) / scale for gradient in gradients]
    each = zip(factors, wide, strict=True)
    return float(loss.detach()), [(by_row(u, rows), by_row(gradient, rows)) for (u, _), gradient in each]


@contextlib.contextmanager
def edited(modules: Sequence[nn.Module], factors: Factors) -> Iterator[None]:
    """Within the block, row b of a batch runs through modules whose weights carry the edit of row b's factors.

    Args:
        factors: For each module (B, T, in) and (B, T, out); the edit adds Σ_t u_t δ_tᵀ to the map from in to out.
    """

    def adding(keys: Tensor, values: Tensor) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = by_row(args[0], len(keys)).to(keys.dtype)  # (B, S, in)
            added = (x @ keys.transpose(1, 2).to(x.device)) @ values.to(x.device)
            return output + added.to(output.dtype).reshape(output.shape)

        return hook

    handles = [m.register_forward_hook(adding(*pair)) for m, pair in zip(modules, factors, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
