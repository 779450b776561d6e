"""What a model answers to a fact's prompt, teacher-forced: the cheap check that an edit took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import check_fits, context_size, continuation
from lm_eval_edit.models.devices import input_device


@dataclass(frozen=True)
class Answer:
    """One prompt's answer against a wanted target of m tokens.

    Attributes:
        predicted: The likeliest token at each target position, the target's earlier tokens given.
        target: The target's tokens.
        log_prob: Σ log p of the target's tokens.
    """

    predicted: tuple[int, ...]
    target: tuple[int, ...]
    log_prob: float

    @property
    def token_acc(self) -> float:
        """Share of the target's tokens that are the likeliest (EasyEdit's teacher-forced token accuracy)."""
        return sum(p == t for p, t in zip(self.predicted, self.target, strict=True)) / len(self.target)

    @property
    def exact(self) -> bool:
        """Whether every target token is the likeliest: greedy generation then begins with the target."""
        return self.predicted == self.target


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    batch_size: int = 32,
) -> list[Answer]:
    """Answers to prompts against targets, each target continuing its prompt (its separator included).

    A target's tokens are those it has behind its prompt (`tokens.continuation`).

    Raises:
        UserError: a prompt with its target is longer than the model's context.
    """
    size = context_size(model.config)
    device = input_device(model)
    out: list[Answer] = []
    for start in range(0, len(prompts), batch_size):
        rows = [
            continuation(tokenizer, prompt, target)
            for prompt, target in zip(
                prompts[start : start + batch_size], targets[start : start + batch_size], strict=True
            )
        ]
        for (prompt, target), text in zip(rows, prompts[start : start + batch_size], strict=True):
            check_fits([*prompt, *target[:-1]], size, text)
        # The target's last token is predicted and never read: a prompt may fill the context to its end, and two targets
        # of one token behind the same prompt are one row.
        texts = [(*prompt, *target[:-1]) for prompt, target in rows]
        read = {ids: index for index, ids in enumerate(dict.fromkeys(texts))}
        width = max(map(len, read))
        inputs = torch.zeros(len(read), width, dtype=torch.long)
        mask = torch.zeros_like(inputs)
        for ids, r in read.items():
            inputs[r, : len(ids)] = torch.tensor(ids)
            mask[r, : len(ids)] = 1
        logits = model(input_ids=inputs.to(device), attention_mask=mask.to(device)).logits  # (B, T, V)
        sizes = [len(target) for _, target in rows]
        row = torch.tensor([read[ids] for ids in texts]).repeat_interleave(torch.tensor(sizes))
        column = torch.cat([torch.arange(len(prompt) - 1, len(prompt) - 1 + len(target)) for prompt, target in rows])
        asked = logits[row.to(logits.device), column.to(logits.device)].cpu()  # (N, V): the rest need not leave a GPU
        for at, (_, target) in zip(asked.split(sizes), rows, strict=True):
            log_probs = at.double().log_softmax(dim=-1)
            chosen = log_probs.gather(1, torch.tensor(target)[:, None]).sum()
            out.append(Answer(tuple(at.argmax(dim=-1).tolist()), tuple(target), float(chosen)))
    return out


def edit_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[Answer]:
    """Answers to the facts' own prompts against their new objects."""
    return answers(model, tokenizer, [fact.text for fact in facts], [fact.target for fact in facts])
