"""UltraEdit: a closed form from one forward and one backward pass, without subjects and without second moments.

*UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models*, TMLR 2026 (arXiv 2505.14679). For
each edited matrix and every token of the prompts and targets of an operation: h (f), what enters the matrix, and g (d),
the gradient at its output of the loss of the targets. Mean and standard deviation of [h; g] run over all tokens of all
operations so far (matrices of one shape share them); with ĥ, ĝ normalised by them,

    V = −lr · ‖ĥ‖² · ĝ     and     ΔWᵀ = (HᵀH + I)⁻¹ Hᵀ V = Hᵀ (HHᵀ + I)⁻¹ V

the second form with as many unknowns as there are tokens, so that the update comes as factors. H is not normalised.

The loss is the mean over the target tokens of `batch_size_once` facts, which go through the model together; the running
figures are updated once for each such group. In EasyEdit's code, and so in the published results, a group of n tokens
adds n times its unbiased variance, which is n / (n − 1) of its squared deviations; here it does the same. There the
labels of a group hold the padding of shorter targets, too; here they do not.

Where nobody has searched for an lr, it comes from the first operation: to first order an update lowers the loss by
−Σ ⟨g, ΔW h⟩, which is proportional to lr, and lr is such that this is STEEP times the loss (docs/defaults.md).

The running figures are this editor's state: each operation leaves them as they stand after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.progress import steps
from lm_eval_edit.editors._shared.scale import kept, to_keep
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, option
from lm_eval_edit.editors.mend.batch import gradient_factors, rows_batch
from lm_eval_edit.editors.mend.network import check_names, inner_module
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import context_size, continuation
from lm_eval_edit.models.architecture import Architecture, is_transposed, linear_shape
from lm_eval_edit.models.devices import weight_of
from lm_eval_edit.weights.delta import Delta, DenseDelta, linear_update
from lm_eval_edit.weights.edited import wide_dtype

STEEP = 5.0  # losses that the first operation would take away if the loss fell on as it begins to fall
_TINY = torch.finfo(torch.float32).eps  # beside the standard deviation, as published


@dataclass(frozen=True)
class UltraEditOptions:
    """Hyper-parameters of UltraEdit, under EasyEdit's names."""

    layers: tuple[int, ...] = option("the layers whose MLP down-projection is edited", default=())
    inner_params: tuple[str, ...] = option("the edited linear maps by name, in place of layers", default=())
    lr: float | None = option(
        "scale of V", from_model="such that the first operation's loss would fall by five times itself, to first order"
    )
    batch_size_once: int = option("facts in one pass through the model, and in one mean loss", default=10, tuned=False)
    token: str = option("which tokens count: only mask, all of prompt and target", default="mask")

    def __post_init__(self) -> None:
        if self.layers and self.inner_params:
            raise ValueError("layers and inner_params both say what is edited: give one of them")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ValueError(f"lr={self.lr:g}: want a positive number, or auto; published for 7 B parameters is 1e-6")
        if self.batch_size_once < 1:
            raise ValueError(f"batch_size_once={self.batch_size_once}: want at least 1")
        if self.token != "mask":
            raise ValueError(f"token={self.token!r}: only 'mask' is supported, which every published file has")
        names = tuple(name if name.endswith(".weight") else f"{name}.weight" for name in self.inner_params)
        check_names(names)
        object.__setattr__(self, "inner_params", names)


class UltraEdit(Editor):
    """W ← W − lr Σ_tokens ‖ĥ‖² ĝ ((HᵀH + I)⁻¹ h)ᵀ, for each edited matrix."""

    name = "ultraedit"
    summary = "closed form from normalised keys and output gradients; no subject, no second moments"
    source = "UltraEdit 2025, arXiv 2505.14679"
    Options = UltraEditOptions
    batches = True
    needs_subject = False
    longest_object = None
    not_routed = "it takes one key and one output gradient per token of a linear map; name other maps with inner_params"
    instead_of_layers: ClassVar[str] = "inner_params"
    # How EasyEdit's trainer is set up.
    unused_fields = frozenset(("dropout", "no_grad_layers", "editor_batch_size", "silent", "half", "class_name"))

    @classmethod
    def default_layers(cls, n_layers: int) -> tuple[int, ...]:
        """Two just below the last, as published for Mistral-7B (29 and 30 of 32)."""
        return tuple(sorted({max(0, n_layers - 3), max(0, n_layers - 2)}))

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        model, size = context.model, self.options.batch_size_once
        names = self.parameters(model, context.architecture)
        modules = [inner_module(model, name) for name in names]
        running = {linear_shape(module): Running.after(history, linear_shape(module)) for module in modules}
        tokens: list[list[tuple[Tensor, Tensor]]] = [[] for _ in modules]
        losses = []
        starts = range(0, len(facts), size)
        for start in steps(starts, "gradients", "pass", show=context.progress):
            loss, factors = _factors(context, modules, facts[start : start + size])
            losses.append(loss)
            for module, found, (h, g) in zip(modules, tokens, factors, strict=True):
                running[linear_shape(module)].update(torch.cat([h, g], dim=1))
                found.append((h, g))
        solved: dict[str, tuple[Tensor, Tensor | None]] = {}
        slope = 0.0
        for name, module, found in zip(names, modules, tokens, strict=True):
            h, g = (torch.cat(parts) for parts in zip(*found, strict=True))
            left, right = solved[name] = _solve(h, running[linear_shape(module)].values(h, g))
            slope -= float((g * (h @ left @ right if right is not None else h @ left)).sum())
        lr, scale = self.options.lr, kept(history)
        if lr is None:
            scale = scale if history else {"lr": _steep(sum(losses), slope)}
            lr = scale["lr"]
        deltas = {name: _delta(module, lr, *solved[name]) for name, module in zip(names, modules, strict=True)}
        state = {name: tensor for each in running.values() for name, tensor in each.state().items()}
        details: dict[str, Any] = {"loss": sum(losses) / len(losses), "tokens": sum(len(h) for h, _ in tokens[0])}
        details |= {"from_model": scale} if scale else {}
        return EditResult(deltas, details, state | ({} if history else to_keep(scale)))

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str]:
        return list(self.options.inner_params) or [architecture.weight(layer) for layer in self.options.layers]

    def file_problems(self, model: Any) -> list[str]:
        """Of `inner_params`: whether the model has them."""
        try:
            shapes = model()
        except ValueError:
            return []
        problems = []
        for name in self.options.inner_params:
            try:
                inner_module(shapes, name)
            except UserError as error:
                problems.append(str(error))
        return problems


def _solve(h: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of H (N, f), V (N, d): Hᵀ and (HHᵀ + I)⁻¹V while that takes less than the matrix, else (HᵀH + I)⁻¹HᵀV alone."""
    (n, f), d = h.shape, values.shape[1]
    as_factors = n <= f * d / (f + d)
    system = h @ h.T if as_factors else h.T @ h
    system.diagonal().add_(1)
    root = torch.linalg.cholesky(system)
    if as_factors:
        return h.T, torch.cholesky_solve(values, root)
    return torch.cholesky_solve(h.T @ values, root), None


def _delta(module: nn.Module, lr: float, left: Tensor, right: Tensor | None) -> Delta:
    dtype = wide_dtype(weight_of(module).dtype)
    if right is not None:
        return linear_update(is_transposed(module), left.to(dtype), (lr * right).T.to(dtype))
    change = lr * left
    return DenseDelta((change if is_transposed(module) else change.T).to(dtype).contiguous())


def _steep(loss: float, slope: float) -> float:
    """The lr with which the loss would fall by STEEP times itself, if it falls by `slope` for an lr of 1."""
    if not slope > 0:
        raise UserError(
            f"lr: to first order the first operation's loss {loss:g} does not fall, whatever lr is; give lr=NUMBER"
        )
    return STEEP * loss / slope


def _factors(
    context: EditContext, modules: Sequence[nn.Module], facts: Sequence[Fact]
) -> tuple[float, list[tuple[Tensor, Tensor]]]:
    """The mean loss of all target tokens, and for each module (H (N, f), G (N, d)) of all tokens, in float64."""
    rows = [continuation(context.tokenizer, fact.text, fact.target) for fact in facts]
    longest, most = max(len(ids) + len(labels) for ids, labels in rows), context_size(context.model.config)
    if most is not None and longest > most:
        raise UserError(f"an edit's prompt and target have {longest} tokens; this model's context holds {most}")
    batch = rows_batch(rows)
    batch = replace(batch, weights=torch.full(batch.labels.shape, 1 / len(batch.labels)))
    loss, factors = gradient_factors(context.model, modules, batch)
    real = batch.attention_mask.flatten().bool()

    def of_tokens(states: Tensor) -> Tensor:
        return states.reshape(-1, states.shape[-1])[real.to(states.device)].double()

    return loss, [(of_tokens(u), of_tokens(gradient)) for u, gradient in factors]


@dataclass
class Running:
    """Mean and sum of squared deviations of [h; g] (f + d) over all tokens seen, for all matrices of one shape.

    Attributes:
        shape: (f, d) of the matrices.
        count: How many tokens.
        mean, squares: (f + d,) in float64.
    """

    shape: tuple[int, int]
    count: float
    mean: Tensor
    squares: Tensor

    @classmethod
    def after(cls, history: Sequence[Mapping[str, Tensor]], shape: tuple[int, int]) -> Running:
        """As the last operation left it; at its beginning where there is none."""
        zeros = torch.zeros(sum(shape), dtype=torch.float64)
        new = cls(shape, 0.0, zeros, zeros.clone())
        if not history:
            return new
        last = history[-1]
        return cls(shape, float(last[new._name("count")]), last[new._name("mean")], last[new._name("squares")])

    def update(self, values: Tensor) -> None:
        """Add tokens (N, f + d), the matrices of this shape one after another."""
        values = values.to(self.mean.device if self.count else values.device)
        mean, squares = (t.to(values.device) for t in (self.mean, self.squares))
        n = len(values)
        total = self.count + n
        away = values.mean(dim=0) - mean
        own = values.var(dim=0) * n if n > 1 else torch.zeros_like(mean)
        self.mean = mean + away * (n / total)
        self.squares = squares + own + away.square() * (self.count * n / total)
        self.count = total

    def values(self, h: Tensor, g: Tensor) -> Tensor:
        """V (N, d) = −‖ĥ‖² ĝ, for an lr of 1, of H (N, f) and G (N, d); ^: less the mean, over the deviation."""
        values = torch.cat([h, g], dim=1)
        mean, squares = (t.to(values.device) for t in (self.mean, self.squares))
        normalised = (values - mean) / ((squares / max(self.count - 1, 1)).sqrt() + _TINY)
        h_hat, g_hat = normalised.split([h.shape[1], g.shape[1]], dim=1)
        found: Tensor = -h_hat.square().sum(dim=1, keepdim=True) * g_hat
        return found

    def state(self) -> dict[str, Tensor]:
        """What the next operation needs, exact to the last bit."""
        count = torch.tensor([self.count], dtype=torch.float64)
        return {
            self._name("count"): count,
            self._name("mean"): self.mean.cpu().contiguous(),
            self._name("squares"): self.squares.cpu().contiguous(),
        }

    def _name(self, what: str) -> str:
        return f"running:{self.shape[0]}x{self.shape[1]}:{what}"
