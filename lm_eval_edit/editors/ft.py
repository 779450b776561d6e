"""FT: fine-tuning of one MLP matrix on the facts alone, the baseline every editing paper compares with.

FT-L as in Meng et al. 2022 (arXiv 2202.05262, appendix: fine-tuning of one layer within an L∞ ball, after Zhu et al.
2020, arXiv 2012.00363) and FT-M as named by EasyEdit (Zhang et al. 2024, arXiv 2401.01286): the same with the usual
loss of a language model. They differ in what is scored:

    FT-L  objective_optimization=prompt_last  every target token against the one distribution at the prompt's end
    FT-M  objective_optimization=target_new   each target token at its own position

FT-L gives a target of several tokens no order, so it rarely makes the model say one. Equal to EasyEdit for one fact at
a time. In batches of unequal lengths EasyEdit's FT-L reads left-padded rows at the wrong position and, where the
padding token is not the unknown one, learns padding; here neither happens.

LocFT-BF (arXiv 2509.22072, ICLR 2026) is FT-M of one matrix on all facts in one operation, in minibatches that are
drawn anew for every pass, with the end of the text behind every target: `append_eos`, `shuffle`, `minibatch`, and
edit_batch_size = n_edits. Its presets apply where `append_eos` is given as true.

Of a mixture of experts those are trained that the facts' prompts and targets are routed to, or those of `experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors._shared.above import Above
from lm_eval_edit.editors._shared.draws import generator_for
from lm_eval_edit.editors._shared.finetune import padded, target_loss, target_row
from lm_eval_edit.editors._shared.forward import without_parameter_gradients
from lm_eval_edit.editors._shared.progress import steps
from lm_eval_edit.editors._shared.rows import AlignedRows, Row
from lm_eval_edit.editors._shared.trained import expert_numbers, trained_parts
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, experts_option, option
from lm_eval_edit.editors.mixtures import check_experts
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import encode
from lm_eval_edit.models.architecture import Architecture

STOP_LOSS = 0.01  # EasyEdit's: no step on a batch below it, and an end when the mean of all batches is
OBJECTIVES = ("target_new", "prompt_last")


@dataclass(frozen=True)
class FtOptions:
    """Hyper-parameters of FT, under EasyEdit's names."""

    layers: tuple[int, ...] = option("the layers whose MLP down-projection (weight and bias) is trained", default=())
    objective_optimization: str = option(
        "target_new (FT-M: each target token at its place) or prompt_last (FT-L: all at the prompt's end)",
        default="target_new",
    )
    num_steps: int = option("passes over the operation's facts", default=25)
    lr: float = option("Adam's learning rate", default=5e-4, sign="positive")
    weight_decay: float = option("Adam's weight decay", default=0.0, sign="not negative")
    norm_constraint: float | bool | None = option(
        "no entry moves further than this from where it was; false for no limit", default=None
    )
    batch_size: int = option("facts in one gradient step, within the facts of one operation", default=1, tuned=False)
    kl_factor: float = option("only 0, as in EasyEdit's files: EasyEdit never reads it", default=0.0, tuned=False)
    append_eos: bool = option("LocFT-BF: the end-of-text token is learnt behind the target", default=False, later=True)
    shuffle: bool = option("LocFT-BF: every pass takes the facts in an order of its own", default=False, later=True)
    minibatch: int | None = option(
        "batch_size by another name, which the command does not take for the harness's", default=None, least=1,
        later=True,
    )  # fmt: skip

    edit_experts: str = experts_option()
    experts: Any = option(
        "numbers of the experts that are trained in each mixture (3:17); by default those that the facts are routed to",
        default=None, later=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_experts(self.edit_experts)
        object.__setattr__(self, "experts", expert_numbers(self.experts))
        if self.append_eos and self.objective_optimization != "target_new":
            raise ValueError(
                "append_eos=True: the end of the text comes behind the target's last token, which prompt_last does not "
                "score; give objective_optimization=target_new"
            )
        if self.minibatch is not None and self.batch_size not in (1, self.minibatch):
            raise ValueError(f"minibatch={self.minibatch} and batch_size={self.batch_size} are the same: give one")
        if self.objective_optimization not in OBJECTIVES:
            raise ValueError(
                f"objective_optimization={self.objective_optimization!r}: want target_new (FT-M) or prompt_last (FT-L)"
            )
        if self.kl_factor != 0:
            raise ValueError(f"kl_factor={self.kl_factor}: FT has no KL term, in EasyEdit neither; leave it 0")
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: want at least 1")
        object.__setattr__(self, "norm_constraint", _limit(self.norm_constraint))


def _limit(value: float | bool | str | None) -> float | None:
    """EasyEdit's `norm_constraint`: a number, or false for none. PyYAML reads its 5e-4 as text."""
    if value is None or value is False:
        return None
    try:
        limit = float(value) if value is not True else 0.0
    except (TypeError, ValueError):
        limit = 0.0
    if not limit > 0:
        raise ValueError(f"norm_constraint={value!r}: want a number above 0, or false for no limit")
    return limit


class Ft(Editor):
    """W ← argmin of the target's loss, by Adam from W₀, within ‖W − W₀‖∞ ≤ `norm_constraint`."""

    name = "ft"
    summary = "fine-tunes one MLP matrix on the facts (FT-L, FT-M)"
    source = "Meng et al. 2022, arXiv 2202.05262; Zhang et al. 2024, arXiv 2401.01286"
    Options = FtOptions
    options: FtOptions
    batches = True
    fact_rank = 0
    longest_object = None
    not_routed = ""

    @classmethod
    def default_layers(cls, n_layers: int) -> tuple[int, ...]:
        """Two thirds up (LLaMA: 21 of 32, GPT-J: 21 of 28)."""
        return (min(round(n_layers * 2 / 3), n_layers - 1),)

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        o, model = self.options, context.model
        rows = self._rows(context.tokenizer, facts)
        above = Above(model, context.architecture, [len(row.ids) for row in rows], min(o.layers))
        orders = generator_for(context.seed, facts, "order") if o.shuffle else None
        batches = self._batches(model, rows, range(len(rows)))
        parts = {
            part.name: part for part in trained_parts(model, context.architecture, o.layers, rows, o.experts or ())
        }
        # The model's own tensors are never written: the forward is given these in their place.
        trained = {name: part.start.requires_grad_() for name, part in parts.items()}
        bounds = {name: part.start for name, part in parts.items()}
        optimiser = torch.optim.Adam(trained.values(), lr=o.lr, weight_decay=o.weight_decay)
        epochs: list[float] = []
        with without_parameter_gradients(model), torch.enable_grad():
            for _ in steps(range(o.num_steps), "fine-tuning", "pass", show=context.progress):
                if orders is not None:
                    batches = self._batches(model, rows, torch.randperm(len(rows), generator=orders).tolist())
                total = 0.0
                for numbers, batch in batches:
                    weights = {name: parts[name].in_place(w) for name, w in trained.items()}
                    loss = target_loss(above.label_logits(batch, numbers, weights), batch)
                    value = loss.item()  # decides whether to step: one wait for each pass
                    total += value * len(numbers)
                    if value >= STOP_LOSS:
                        gradients = torch.autograd.grad(loss, list(trained.values()))
                        for weight, gradient in zip(trained.values(), gradients, strict=True):
                            weight.grad = gradient
                        optimiser.step()
                    if o.norm_constraint is not None:
                        with torch.no_grad():
                            for name, weight in trained.items():
                                low, high = bounds[name] - o.norm_constraint, bounds[name] + o.norm_constraint
                                weight.clamp_(low, high)
                epochs.append(total / len(facts))
                if epochs[-1] < STOP_LOSS:
                    break
        deltas = {name: parts[name].delta(w.detach() - bounds[name]) for name, w in trained.items()}
        chosen = {name: part.index.tolist() for name, part in parts.items() if part.index is not None}
        details: dict[str, Any] = {"loss": [epochs[0], epochs[-1]], "steps": len(epochs)}
        return EditResult(deltas, details | ({"experts": chosen} if chosen else {}))

    def tokenizer_problems(self, tokenizer_of: Callable[[], Any]) -> list[str]:
        tokenizer = tokenizer_of() if self.options.append_eos else None
        if tokenizer is None or tokenizer.eos_token_id is not None:
            return []
        return ["append_eos=True: the tokenizer has no end-of-text token; leave append_eos out"]

    def _rows(self, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[Row]:
        if self.options.objective_optimization != "target_new":
            return [_prompt_last_row(tokenizer, fact) for fact in facts]
        rows = [target_row(tokenizer, fact) for fact in facts]
        if not self.options.append_eos:
            return rows
        if problems := self.tokenizer_problems(lambda: tokenizer):
            raise UserError(problems[0])
        end = tokenizer.eos_token_id
        return [replace(row, ids=[*row.ids, row.labels[-1]], labels=(*row.labels, end)) for row in rows]

    def _batches(
        self, model: PreTrainedModel, rows: Sequence[Row], order: Sequence[int]
    ) -> list[tuple[Sequence[int], AlignedRows]]:
        """(numbers of the rows, those rows padded) of each minibatch."""
        size = self.options.minibatch or self.options.batch_size
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        return [(part, _batch(model, [rows[i] for i in part], self.options.objective_optimization)) for part in parts]

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str]:
        """Weight and, where there is one, bias of each layer's down-projection; of a mixture the experts' weights."""
        edited, layers = self.edited(architecture), [n for n in self.options.layers if n < architecture.n_layers]
        return [part.name for part in trained_parts(model, edited, layers, [], experts=[0])]

    def architecture_problems(self, architecture: Architecture) -> list[str]:
        problems, edited = super().architecture_problems(architecture), self.edited(architecture)
        for layer in self.options.layers if self.options.experts else ():
            mixture = edited.routed_mixture(layer) if layer < edited.n_layers else None
            if mixture is None:
                problems.append(f"experts={_listed(self.options.experts)}: no experts are edited in layer {layer}")
            elif beyond := [number for number in self.options.experts if number >= mixture.n_experts]:
                problems.append(f"experts={_listed(beyond)}: layer {layer} has experts 0 to {mixture.n_experts - 1}")
        return problems


def _listed(numbers: Sequence[int]) -> str:
    return ":".join(map(str, numbers))


def _prompt_last_row(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> Row:
    """The bare prompt; its labels, the target's tokens (a beginning-of-sequence token among them, as in EasyEdit)."""
    return Row(encode(tokenizer, fact.text), 0, tuple(encode(tokenizer, fact.target)))


def _batch(model: PreTrainedModel, rows: Sequence[Row], objective: str) -> AlignedRows:
    """Padded rows, every label of FT-L at its prompt's last position."""
    if objective == "target_new":
        return padded(model, rows)
    batch = padded(model, [replace(row, labels=()) for row in rows])
    lengths = torch.tensor([len(row.labels) for row in rows])
    at = torch.tensor([len(row.ids) - 1 for row in rows])
    device = batch.input_ids.device
    return replace(
        batch,
        label_rows=torch.arange(len(rows)).repeat_interleave(lengths).to(device),
        label_columns=at.repeat_interleave(lengths).to(device),
        labels=torch.tensor([label for row in rows for label in row.labels]).to(device),
    )
