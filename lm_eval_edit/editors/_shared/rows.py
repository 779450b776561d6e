"""Tokenised prompts, aligned so that every row's last subject token lies in the same column.

Editing methods read and write a model at one place: the last token of the subject. With all rows aligned there, what
lies left of it never changes during an edit (its keys and values are computed once), and what lies right is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import SLOT, Fact, Template
from lm_eval_edit.facts.tokens import continuation, encode, last_token


@dataclass(frozen=True)
class Row:
    """One prompt.

    Args:
        ids: Its tokens, the beginning-of-sequence token included if the tokenizer adds one.
        subject_last: Position of the subject's last token.
        labels: The target tokens that the last len(labels) positions must predict; empty for a row without target.
    """

    ids: list[int]
    subject_last: int
    labels: tuple[int, ...] = ()


def prompt_row(
    tokenizer: PreTrainedTokenizerBase, template: str, subject: str, target: str = "", context: str = SLOT
) -> Row:
    """Tokenise `context(template(subject))` and the target that continues it, less the target's last token.

    The whole text is tokenised at once; the subject's last token is the last that holds any of its characters. The
    published implementations take the number of tokens of everything up to the subject's end, less one: the same token
    wherever that text's tokens are the whole text's.

    Args:
        template: The prompt with `{}` at the subject's place (`facts.Template`; of a plain text its first `{}`).
        target: What the row's last positions are to predict, its separator included; empty for a row without target.
        context: A context template, `{}` at the prompt's place.
    """
    left, right = Template.of(context).sides
    before, after = Template.of(template).sides
    text, start = left + before + subject + after + right, len(left + before)
    ids, labels = continuation(tokenizer, text, target) if target else (encode(tokenizer, text), [])
    subject_last = last_token(tokenizer, text, start, start + len(subject))
    if subject_last is None or subject_last >= len(ids):
        together = f"{text!r} followed by {target!r}" if target else repr(text)
        raise UserError(f"the subject {subject!r} has no token of its own in {together}")
    return Row(ids + labels[:-1], subject_last, tuple(labels))


def fact_rows(tokenizer: PreTrainedTokenizerBase, fact: Fact, contexts: Sequence[str]) -> list[Row]:
    """The rewriting rows of one fact: one for each context template, each with the target to be predicted."""
    return [prompt_row(tokenizer, fact.behind(context), fact.subject, fact.target) for context in contexts]


def essence_row(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> Row:
    """The row "{subject} is a", whose next-word distribution the KL term holds still (ROME, eq. 4)."""
    return prompt_row(tokenizer, fact.essence, fact.subject)


@dataclass(frozen=True)
class AlignedRows:
    """Rows padded left and right so that all subjects end in column `column`.

    Attributes:
        input_ids, attention_mask, position_ids: (R, T). Only padding on the left is masked: what lies right of a row is
            out of its sight anyhow, and sees at least itself.
        column: The column of every row's last subject token.
        label_rows, label_columns, labels: (N,) where the logits must predict which token, all rows together.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    column: int
    label_rows: Tensor
    label_columns: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def selected(self, index: Tensor) -> AlignedRows:
        """The rows `index` (n,), in that order, where they stand: no column is dropped."""
        index = index.to(self.input_ids.device)
        place = self.label_rows.new_full((len(self),), -1)
        place[index] = torch.arange(len(index), device=place.device)
        label_rows = place[self.label_rows]
        kept = label_rows >= 0
        return replace(
            self,
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            position_ids=self.position_ids[index],
            label_rows=label_rows[kept],
            label_columns=self.label_columns[kept],
            labels=self.labels[kept],
        )

    def up_to(self, column: int) -> AlignedRows:
        """The same rows without the columns right of `column`, where there must be no label."""
        width = column + 1
        cut = {name: getattr(self, name)[:, :width] for name in ("input_ids", "attention_mask", "position_ids")}
        return replace(self, **cut)


def align(rows: Sequence[Row], device: torch.device, max_length: int | None = None) -> AlignedRows:
    """Pad rows to a common column of the last subject token.

    Raises:
        UserError: a row is longer than the model's context.
    """
    longest = max(len(row.ids) for row in rows)
    if max_length is not None and longest > max_length:
        raise UserError(f"an edit prompt has {longest} tokens; this model's context holds {max_length}")
    column = max(row.subject_last for row in rows)
    width = column + max(len(row.ids) - row.subject_last for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    label_rows: list[int] = []
    label_columns: list[int] = []
    labels: list[int] = []
    for r, row in enumerate(rows):
        start = column - row.subject_last
        end = start + len(row.ids)
        input_ids[r, start:end] = torch.tensor(row.ids)
        mask[r, start:] = 1
        positions[r, start:end] = torch.arange(len(row.ids))
        positions[r, end:] = len(row.ids) - 1
        count = len(row.labels)
        label_rows += [r] * count
        label_columns += range(end - count, end)
        labels += row.labels
    return AlignedRows(
        input_ids.to(device),
        mask.to(device),
        positions.to(device),
        column,
        *(torch.tensor(values, dtype=torch.long).to(device) for values in (label_rows, label_columns, labels)),
    )
