"""One step of training on the demo world's text, whatever the model: rows, loss, optimiser.

Loss: the negative log-likelihood of task answers and fact objects, plus a small weight on a sample of the other tokens.
The rest of the text is mostly drawn at random, and a model of this size would spend its capacity on that.

A model this small recalls a fact by the shortest way: the last word of the prompt looks at the name itself, before any
MLP has seen it, and an edit of an MLP weight changes nothing. In large models attributes are looked up by early MLPs at
the last token of the subject (ROME, section 2). Most fact rows are therefore trained with the subject hidden from all
later tokens in the first layer, which leaves that way alone; see `hide_subjects`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lm_eval_edit.demo import corpus
from lm_eval_edit.demo.corpus import Row

TASK_MICRO_BATCHES = 2
HIDDEN_LAYERS, HIDDEN_SHARE = 1, 0.9
BACKGROUND_SHARE, BACKGROUND_WEIGHT = 0.15, 0.1
EASY_UNTIL = 0.4
"""Share of the run after which no dialogue row is easy any more."""


def parameter_draws(model: PreTrainedModel, residual: Callable[[str], bool], seed: int) -> None:
    """Draw every matrix anew, from a generator of the package's own: the library uses the global one.

    Args:
        model: Its vectors stay as they are.
        residual: Whether a parameter of this name leads back to the residual stream; those start smaller.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                std = width**-0.5 * (0.5 if parameter is model.get_input_embeddings().weight else 1.0)
                std /= math.sqrt(2 * layers) if residual(name) else 1.0
                parameter.normal_(0.0, std, generator=generator)


class EncodedRow(NamedTuple):
    """Token ids of a row; the loss weight of each token; for each token the number of the subject it is in, or 0."""

    ids: list[int]
    weights: list[float]
    subjects: list[int]


def encode_rows(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[EncodedRow]:
    """Tokenise rows segment by segment."""
    segments = [segment.text for row in rows for segment in row]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch(segments, add_special_tokens=False))
    result = []
    for row in rows:
        result.append(EncodedRow([], [], []))
        for number, segment in enumerate(row, start=1):
            piece = next(encoded).ids
            result[-1].ids.extend(piece)
            result[-1].weights.extend([segment.weight] * len(piece))
            result[-1].subjects.extend([number if segment.subject else 0] * len(piece))
    return result


def _attentions(model: PreTrainedModel) -> list[nn.Module]:
    """The attention of each block, first to last: the innermost parts that take a mask."""
    taking = [m for m in model.modules() if "attention_mask" in inspect.signature(m.forward).parameters]
    return [m for m in taking if not any(inner is not m and inner in taking for inner in m.modules())]


@contextmanager
def hide_subjects(model: PreTrainedModel, subjects: torch.Tensor, hidden_rows: torch.Tensor) -> Iterator[None]:
    """Within the context no token after a subject attends to it in the first `HIDDEN_LAYERS` layers.

    Args:
        model: The model.
        subjects: (rows, length), the number of the subject each token is in, 0 for none.
        hidden_rows: (rows,) bool, the rows this is done to; the others attend as always.
    """
    causal = torch.ones(subjects.shape[1], subjects.shape[1], dtype=torch.bool).tril()
    same = subjects[:, None, :] == subjects[:, :, None]  # (rows, query, key)
    seen = (subjects[:, None, :] == 0) | same | ~hidden_rows[:, None, None]
    mask = (seen & causal)[:, None]  # (rows, 1, query, key)

    def hook(_module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    attentions = _attentions(model)[:HIDDEN_LAYERS]
    handles = [attention.register_forward_pre_hook(hook, with_kwargs=True) for attention in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loss_of(model: PreTrainedModel, rows: list[EncodedRow], generator: torch.Generator) -> torch.Tensor:
    """Weighted sum of the negative log-likelihood over rows; the head runs only where there is a loss.

    Rows are padded on the right without an attention mask: attention is causal, and no loss stands on padding.
    """
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    subjects = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        end = len(row.ids)
        ids[i, :end] = torch.tensor(row.ids)
        weights[i, :end] = torch.tensor(row.weights)
        subjects[i, :end] = torch.tensor(row.subjects)
        real[i, :end] = True
    background = (torch.rand(ids.shape, generator=generator) < BACKGROUND_SHARE) & real & (weights == 0)
    weights = torch.where(background, BACKGROUND_WEIGHT, weights)[:, 1:]  # (rows, length - 1), of the next token
    hidden_rows = torch.rand(len(rows), generator=generator) < HIDDEN_SHARE
    with hide_subjects(model, subjects, hidden_rows) if subjects.any() else nullcontext():
        hidden = model.base_model(ids, use_cache=False).last_hidden_state[:, :-1]  # (rows, length - 1, width)
    chosen = weights > 0
    logits = model.lm_head(hidden[chosen])  # (chosen, vocabulary)
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][chosen], reduction="none")
    return (losses * weights[chosen]).sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to 2 % of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100))))


def new_optimizer(model: PreTrainedModel, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices alone; position embeddings, biases and norms are left out."""
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "wpe" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "wpe" in n]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def step_batches(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    step: int,
    steps: int,
    counts: Mapping[str, int] = corpus.ROWS_PER_STEP,
    known: Sequence[Mapping[str, Any]] = (),
) -> list[list[EncodedRow]]:
    """The rows of one step in batches: the facts, then the tasks in batches of like length, to pad little.

    Args:
        tokenizer: The model's.
        seed, step, steps: Which step of a run of how many.
        counts, known: As in `corpus.step_rows`.
    """
    easy = max(0.0, 0.7 * (1 - step / (EASY_UNTIL * steps)))
    rows = encode_rows(tokenizer, corpus.step_rows(seed, step, easy, counts, known))
    count = counts["facts"]
    tasks = sorted(rows[count:], key=lambda row: len(row.ids))
    size = max(1, math.ceil(len(tasks) / TASK_MICRO_BATCHES))
    return [rows[:count], *(tasks[first : first + size] for first in range(0, len(tasks), size))]


def make_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: list[list[EncodedRow]],
    generator: torch.Generator,
    rate: float,
) -> float:
    """One step of the optimiser; returns the loss, a mean over the weights of the rows' tokens."""
    total, found = sum(sum(row.weights[1:]) for batch in batches for row in batch), 0.0
    for batch in batches:
        loss = loss_of(model, batch, generator) / total
        loss.backward()
        found += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return found
