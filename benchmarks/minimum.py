"""The least arithmetic that a method's definition asks for on given facts, and the rate at which this machine does it.

Counted are matrix products, two operations for each weight and position: positions that hold a token (no padding), each
block for as long as it can differ from the pass before, the language-model head where it is read, backward passes
through activations alone. What all facts' context templates have in common counts once, as does everything that does
not depend on the step. Element-wise work, softmax, Python and memory are left out, so nothing can reach this time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from lm_eval_edit.cost.work import Shape
from lm_eval_edit.editors._shared.finetune import target_row
from lm_eval_edit.editors._shared.rows import Row, essence_row, fact_rows
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.kn import Kn
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import encode

Clock = Callable[[], float]


def matrix_rate(clock: Clock, seconds: float = 0.1) -> float:
    """Operations a second of float32 matrix products of a size that suits this machine: the best of some."""
    best = 0.0
    for rows in (256, 512):
        left, right = torch.randn(rows, 1024), torch.randn(1024, 1024)
        started, best_of_size = time.perf_counter(), float("inf")
        while time.perf_counter() - started < seconds:
            begun = clock()
            for _ in range(4):
                left @ right
            best_of_size = min(best_of_size, (clock() - begun) / 4)
        best = max(best, 2 * rows * 1024**2 / best_of_size)
    return best


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Tokens of rows, each beginning that several have counted once."""
    return len({tuple(row[: end + 1]) for row in rows for end in range(len(row))})


def _target(shape: Shape, facts: Sequence[list[Row]], start: int, passes: Sequence[int]) -> float:
    """The optimisation of one vector for each fact.

    Args:
        facts: The rows of each, that of the drift last.
        start: The first block that a shift changes.
        passes: Forward passes of each fact; one less backward.
    """
    rows = [row for fact in facts for row in fact]
    left = _shared([row.ids[: row.subject_last] for row in rows])
    total = shape.blocks(left, left)
    for own, count in zip(facts, passes, strict=True):
        # The drift's row is read at its subject: nothing right of it.
        ends = [row.subject_last + 1 if not row.labels else len(row.ids) for row in own]
        tokens = sum(end - row.subject_last for end, row in zip(ends, own, strict=True))
        seen = sum(sum(range(row.subject_last + 1, end + 1)) for end, row in zip(ends, own, strict=True))
        read = sum(max(1, len(row.labels)) for row in own)
        step = shape.blocks(tokens, seen, shape.layers - start) + read * shape.head
        total += shape.blocks(tokens, seen, start) + step * (2 * count - 1)
    return total


def rome(shape: Shape, context: EditContext, facts: Sequence[Fact], layer: int, passes: Sequence[int]) -> float:
    """Operations of ROME (or R-ROME) on facts, each for itself."""
    rows = [_rows(context, fact, context.context_templates) for fact in facts]
    return _target(shape, rows, layer + 1, passes)


def memit(
    shape: Shape, context: EditContext, facts: Sequence[Fact], layers: Sequence[int], passes: Sequence[int]
) -> float:
    """Operations of MEMIT on a batch: the targets, after each layer's update the blocks above it again, the solves."""
    templates = [template for kind in context.context_templates for template in kind]
    rows = [_rows(context, fact, templates) for fact in facts]
    total = _target(shape, rows, layers[-1] + 1, passes)
    subjects = [row.ids[: row.subject_last + 1] for own in rows for row in own[:-1]]
    tokens = _shared(subjects)
    for layer in layers:
        total += shape.blocks(tokens, tokens * 8, layers[-1] - layer + 1)
    f, n = shape.inner, len(facts)
    single_for_double = 2
    return total + single_for_double * len(layers) * (f**3 / 3 + 2 * f**2 * n + 2 * f * n**2)


def kn(shape: Shape, context: EditContext, facts: Sequence[Fact], editor: Kn) -> float:
    """Operations of KN's attributions: for each answer token the text once, then its last token above each layer."""
    total = 0.0
    for fact in facts:
        points = editor._points(context, fact.text, fact.prediction or fact.target_true, fact.separator)
        for ids, _ in points:
            total += shape.blocks(len(ids), len(ids) ** 2 / 2) + shape.head
            for layer in range(shape.layers):
                rows = editor.options.steps
                total += 2 * (shape.blocks(rows, rows * len(ids), shape.layers - layer - 1) + rows * shape.head)
        answer = len(encode(context.tokenizer, fact.target_new))  # read greedily, token by token
        length = len(points[0][0])
        total += shape.blocks(length + answer, length**2 / 2) + answer * shape.head
    return total


def ft(
    shape: Shape, context: EditContext, facts: Sequence[Fact], layer: int, passes: Sequence[int], at_end: bool
) -> float:
    """Operations of FT on facts one by one.

    Args:
        at_end: Whether all labels stand at the prompt's end (FT-L).
    """
    total = 0.0
    for fact, count in zip(facts, passes, strict=True):
        row = target_row(context.tokenizer, fact)
        tokens = len(encode(context.tokenizer, fact.text)) if at_end else len(row.ids)
        read = 1 if at_end else len(row.labels)
        above = shape.layers - layer
        step = shape.blocks(tokens, tokens**2 / 2, above) + read * shape.head
        back = shape.blocks(tokens, tokens**2 / 2, above - 1) + read * shape.head
        own = 2 * shape.hidden * shape.inner * tokens  # the matrix's gradient
        total += shape.blocks(tokens, tokens**2 / 2, layer) + count * (step + back + own)
    return total


def _rows(context: EditContext, fact: Fact, templates: Sequence[str]) -> list[Row]:
    return [*fact_rows(context.tokenizer, fact, templates), essence_row(context.tokenizer, fact)]
