"""Target optimisation: the vector δ that, added at the subject's last token, makes the model say the new object.

ROME (Meng et al. 2022, arXiv 2202.05262) eq. 4 with δ at the MLP output, MEMIT (2210.07229) eq. 16 with δ at the block
output. As the published implementations do it: at most `v_num_grad_steps` − 1 Adam steps, stopped as soon as the loss
is below 0.05, δ kept within a ball of `clamp_norm_factor` times the site's initial norm after each step.

Many requests are optimised together. Their losses are summed, so each request's δ gets exactly the gradient it would
get alone; each stops and is clamped by itself, and one that has stopped leaves the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors._shared.forward import PartialForward, added_to_output, without_parameter_gradients
from lm_eval_edit.editors._shared.progress import steps as shown_steps
from lm_eval_edit.editors._shared.rows import align, essence_row, fact_rows
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import context_size
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.weights.edited import wide_dtype

STOP_LOSS = 0.05  # the published implementations' early stop


@dataclass(frozen=True)
class Targets:
    """What the optimisation found, for n requests.

    Attributes:
        delta: (n, d) the optimised shift.
        init: (n, d) the clean output of the site for each request's bare prompt.
        keys: (n, C, f) input of layer's down-projection at the subject's last token, one per context template.
        outputs: (n, C, d) output of that down-projection, likewise.
        losses: (n,) the last loss of each request.
        steps: (n,) the number of Adam steps each request took.
    """

    delta: Tensor
    init: Tensor
    keys: Tensor
    outputs: Tensor
    losses: Tensor
    steps: Tensor

    @property
    def value(self) -> Tensor:
        """(n, d) what the site's output should become: v* in ROME, z in MEMIT."""
        return self.init + self.delta


@dataclass(frozen=True)
class _Running:
    """The requests that have not stopped, and what a pass over their rows needs to know.

    Attributes:
        forward: Over their rows alone.
        requests: (m,) which of the n they are.
        label_rows, labels: (N,) the labels of their rows, on the device of δ like everything here: the loss is δ's.
        label_request: (N,) for each label, which of the m it belongs to.
        label_index: (N,) for each label, which of the computed columns predicts it.
        count: (m,) target tokens of a request over all its contexts.
    """

    forward: PartialForward
    requests: Tensor
    label_rows: Tensor
    labels: Tensor
    label_request: Tensor
    label_index: Tensor
    count: Tensor

    @classmethod
    def of(cls, forward: PartialForward, requests: Tensor, rows_each: int, columns: Tensor) -> _Running:
        device, rows = requests.device, forward.rows
        label_rows = rows.label_rows.to(device)
        label_request = label_rows // rows_each
        return cls(
            forward,
            requests,
            label_rows,
            rows.labels.to(device),
            label_request,
            torch.searchsorted(columns, rows.label_columns).to(device),
            torch.bincount(label_request, minlength=len(requests)),
        )


@dataclass
class _Objective:
    """What is minimised: how unlikely the new objects are, how far the subject has drifted, how large δ is.

    Attributes:
        delta: (n, d) the shift, which the gradient is taken of.
        site, projection: Where it is added; the MLP's down-projection there.
        rows_each: Rows of a request: its contexts, then the one for the drift.
        columns: Of the passes, those that need the language-model head.
        subject_index: Which of them is the subject's.
        decay: (n,) weight of δ's norm.
        kl_factor: Weight of the drift.
        reference: (n, V) the unedited log-probabilities behind the subject; the first pass sets it.
    """

    delta: Tensor
    site: Literal["mlp", "block"]
    projection: nn.Module
    rows_each: int
    columns: Tensor
    subject_index: int
    decay: Tensor
    kl_factor: float
    reference: Tensor | None = None

    def losses(self, running: _Running) -> Tensor:
        """(m,) the losses of the requests that are running."""
        delta, forward, requests = self.delta, running.forward, running.requests
        shift = delta[requests]
        shifts = shift.repeat_interleave(self.rows_each, dim=0)  # (R, d): the KL row is shifted too
        if self.site == "mlp":
            with added_to_output(self.projection, 0, shifts):
                logits = forward.logits(self.columns)
        else:
            entering = forward.entering
            assert entering is not None, "a block stands below the one that is run first: the edited layer's own"
            first = entering[:, :1] + shifts[:, None].to(device=entering.device, dtype=entering.dtype)
            logits = forward.logits(self.columns, torch.cat([first, entering[:, 1:]], dim=1))
        log_probs = F.log_softmax(logits.to(device=delta.device, dtype=wide_dtype(logits.dtype)), dim=-1)  # (R, C, V)
        nll = -log_probs[running.label_rows, running.label_index, running.labels]
        total = torch.zeros(len(requests), dtype=nll.dtype, device=nll.device).index_add_(0, running.label_request, nll)
        essence = log_probs[self.rows_each - 1 :: self.rows_each, self.subject_index]  # (m, V)
        if self.reference is None:  # the first pass has all requests and δ = 0: the unedited distribution
            self.reference = essence.detach()
        drift = F.kl_div(self.reference[requests], essence, log_target=True, reduction="none").sum(
            -1
        )  # KL(now ‖ initial)
        loss: Tensor = total / running.count + self.kl_factor * drift + self.decay[requests] * shift.norm(dim=1)
        return loss


def optimise_targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture,
    facts: Sequence[Fact],
    *,
    layer: int,
    site: Literal["mlp", "block"],
    contexts: Sequence[str],
    steps: int,
    lr: float,
    weight_decay: float,
    clamp_norm_factor: float,
    kl_factor: float,
    progress: bool = False,
) -> Targets:
    """Optimise δ for every fact.

    Args:
        layer: The edited layer.
        site: Where δ is added: the output of the layer's MLP (ROME) or of its whole block (MEMIT).
        contexts: Context templates; the first is the bare `{}`.
        steps, lr, weight_decay, clamp_norm_factor, kl_factor: EasyEdit's `v_num_grad_steps`, `v_lr`, `v_weight_decay`,
            `clamp_norm_factor`, `kl_factor`.
        progress: Whether to show the steps.
    """
    n, rows_each = len(facts), len(contexts) + 1
    rows = align(
        [row for fact in facts for row in (*fact_rows(tokenizer, fact, contexts), essence_row(tokenizer, fact))],
        input_device(model),
        context_size(model.config),
    )
    start = layer if site == "mlp" else layer + 1
    forward = PartialForward(model, architecture, rows, start, capture=(layer,))
    seen = forward.capture
    at_site = (seen.mlp_outputs if site == "mlp" else seen.block_outputs)[layer]
    wide = wide_dtype(at_site.dtype)
    at_site = at_site.to(wide).view(n, rows_each, -1)
    init = at_site[:, 0]  # (n, d): row 0 is the bare prompt

    # Only these columns need the language-model head: where targets are predicted, and the subject's own for the KL.
    columns = torch.unique(torch.cat([rows.label_columns, rows.label_columns.new_tensor([rows.column])]))
    subject_index = int(torch.searchsorted(columns, rows.label_columns.new_tensor(rows.column)))
    objective = _Objective(
        delta=torch.zeros_like(init, requires_grad=True),
        site=site,
        projection=model.get_submodule(architecture.down_projections[layer]),
        rows_each=rows_each,
        columns=columns,
        subject_index=subject_index,
        decay=weight_decay / init.norm(dim=1) ** 2,
        kl_factor=kl_factor,
    )
    what = f"optimising {n} target{'s' * (n != 1)}"
    with (
        without_parameter_gradients(model),
        torch.enable_grad(),
        shown_steps(None, what, "step", show=progress, total=steps) as bar,
    ):
        radius = clamp_norm_factor * init.norm(dim=1, keepdim=True)
        last_loss, taken = _descend(objective, forward, steps, lr, radius, bar.update)
    keys = seen.keys[layer].to(wide).view(n, rows_each, -1)[:, :-1]
    outputs = seen.mlp_outputs[layer].to(wide).view(n, rows_each, -1)[:, :-1]
    return Targets(objective.delta.detach(), init, keys, outputs, last_loss, taken)


def _descend(
    objective: _Objective,
    forward: PartialForward,
    steps: int,
    lr: float,
    radius: Tensor,
    told: Callable[[], object],
) -> tuple[Tensor, Tensor]:
    """Adam on all requests together, each stopped by its own loss and kept within its own ball.

    Args:
        forward: Over the rows of all requests.
        radius: (n, 1) of the balls.
        told: Called after every pass.

    Returns:
        (n,) the last loss of each request, (n,) the steps each took.
    """
    delta, rows_each, columns = objective.delta, objective.rows_each, objective.columns
    n, device = len(delta), delta.device
    optimiser = torch.optim.Adam([delta], lr=lr)
    active = torch.ones(n, dtype=torch.bool, device=device)
    taken = torch.zeros(n, dtype=torch.long, device=device)
    last_loss = torch.full((n,), float("nan"), dtype=delta.dtype, device=device)
    running = _Running.of(forward, torch.arange(n, device=device), rows_each, columns)
    for step in range(steps):
        loss = objective.losses(running)
        told()
        with torch.no_grad():
            at = running.requests
            last_loss[at] = torch.where(active[at], loss.detach(), last_loss[at])
            active[at] &= ~(loss.detach() < STOP_LOSS)
        if step == steps - 1:
            break
        # Reading `active` waits for the device; frozen requests do not move, so looking now and then is enough.
        if device.type == "cpu" or step % 5 == 4:
            left = active.nonzero()[:, 0]
            if not len(left):
                break
            if len(left) < len(running.requests):
                each = torch.arange(rows_each, device=device)
                chosen = forward.selected((left[:, None] * rows_each + each).flatten())
                running = _Running.of(chosen, left, rows_each, columns)
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        with torch.no_grad():
            before = delta.detach().clone()
            delta.grad = gradient
            optimiser.step()
            norm = delta.norm(dim=1, keepdim=True)
            delta.mul_(torch.where(norm > radius, radius / norm, torch.ones_like(norm)))
            delta.copy_(torch.where(active[:, None], delta, before))
            taken += active
    return last_loss, taken
