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
from lm_eval_edit.editors._shared.groups import in_groups
from lm_eval_edit.editors._shared.progress import steps as shown_steps
from lm_eval_edit.editors._shared.rows import align, essence_row, fact_rows
from lm_eval_edit.editors._shared.sites import site_of
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
        keys: (n, C, m) what the layer's edited matrix reads at the subject's last token, one per context template.
        outputs: (n, C, d) output of that MLP, likewise.
        losses: (n,) the last loss of each request.
        steps: (n,) the number of Adam steps each request took.
        stopped: (n,) which of them ended because their targets were right for long enough.
    """

    delta: Tensor
    init: Tensor
    keys: Tensor
    outputs: Tensor
    losses: Tensor
    steps: Tensor
    stopped: Tensor

    @property
    def value(self) -> Tensor:
        """(n, d) what the site's output should become: v* in ROME, z in MEMIT."""
        return self.init + self.delta


@dataclass(frozen=True)
class _Part:
    """Rows that a pass runs together, and where it reads them.

    Attributes:
        forward: Over these rows alone, as far as they are read.
        row_request: (R,) for each row, which of the running requests it belongs to; on the device of δ like all here.
        label_request: (N,) for each label, likewise.
        labels: (N,) the labels.
        at_rows, at_columns: (N + E,) where logits are read: each label's place, then the subject in each row for the
            drift.
        drift_requests: (E,) for each of the latter, which of the running requests it belongs to.
    """

    forward: PartialForward
    row_request: Tensor
    label_request: Tensor
    labels: Tensor
    at_rows: Tensor
    at_columns: Tensor
    drift_requests: Tensor

    @classmethod
    def of(cls, forward: PartialForward, numbers: Tensor, rows_each: int, device: torch.device) -> _Part:
        """Of rows with these numbers among those of the running requests; `forward` is over them."""
        rows = forward.rows
        numbers = numbers.to(device)
        drift = (numbers % rows_each == rows_each - 1).nonzero()[:, 0]
        label_rows = rows.label_rows.to(device)
        at_subject = torch.full((len(drift),), rows.column, device=device)
        return cls(
            forward,
            numbers // rows_each,
            numbers[label_rows] // rows_each,
            rows.labels.to(device),
            torch.cat([label_rows, drift]),
            torch.cat([rows.label_columns.to(device), at_subject]),
            numbers[drift] // rows_each,
        )


@dataclass(frozen=True)
class _Running:
    """The requests that have not stopped, and what a pass over their rows needs to know.

    Attributes:
        parts: Their rows, those that end at about the same column together.
        requests: (m,) which of the n they are, on the device of δ: the loss is δ's.
        count: (m,) target tokens of a request over all its contexts.
    """

    parts: tuple[_Part, ...]
    requests: Tensor
    count: Tensor

    @classmethod
    def of(cls, forward: PartialForward, requests: Tensor, rows_each: int) -> _Running:
        """Of a pass over all rows of these requests, in their order."""
        rows, device = forward.rows, requests.device
        # What is read last in each row: its last label, and without labels the subject.
        last = torch.full((len(rows),), rows.column, device=rows.label_columns.device)
        ends: list[int] = last.scatter_reduce(0, rows.label_rows, rows.label_columns, "amax").tolist()
        parts = []
        for numbers in in_groups(ends, rows.column, rows.input_ids.device.type):
            chosen = forward if len(numbers) == len(rows) else forward.selected(torch.tensor(numbers))
            end = max(ends[number] for number in numbers)
            parts.append(_Part.of(chosen.up_to(end), torch.tensor(numbers), rows_each, device))
        count = torch.bincount(rows.label_rows.to(device) // rows_each, minlength=len(requests))
        return cls(tuple(parts), requests, count)


@dataclass
class _Objective:
    """What is minimised: how unlikely the new objects are, how far the subject has drifted, how large δ is.

    Attributes:
        delta: (n, d) the shift, which the gradient is taken of.
        site, projection: Where it is added; what gives the MLP's output there, the down-projection or a whole mixture.
        rows_each: Rows of a request: its contexts, then the one for the drift.
        decay: (n,) weight of δ's norm.
        kl_factor: Weight of the drift.
        reference: (n, V) the unedited log-probabilities behind the subject; the first pass sets it.
        correct_for: (n,) for how many passes in a row all target tokens of a request were the most probable ones; None
            where nobody asks.
    """

    delta: Tensor
    site: Literal["mlp", "block"]
    projection: nn.Module
    rows_each: int
    decay: Tensor
    kl_factor: float
    reference: Tensor | None = None
    correct_for: Tensor | None = None

    def losses(self, running: _Running) -> Tensor:
        """(m,) the losses of the requests that are running."""
        requests = running.requests
        shift = self.delta[requests]
        total = wrong = torch.zeros(len(requests), dtype=wide_dtype(self.delta.dtype), device=self.delta.device)
        drifts, of_requests = [], []
        for part in running.parts:
            log_probs = self._log_probs(part, shift)  # (N + E, V)
            at_labels, essence = log_probs[: len(part.labels)], log_probs[len(part.labels) :]
            nll = -at_labels.gather(1, part.labels[:, None])[:, 0]
            total = total.index_add(0, part.label_request, nll)
            if self.correct_for is not None:
                misses = (at_labels.detach().argmax(dim=-1) != part.labels).to(wrong.dtype)
                wrong = wrong.index_add(0, part.label_request, misses)
            drifts.append(essence)
            of_requests.append(part.drift_requests)
        if self.correct_for is not None:
            self.correct_for[requests] = torch.where(wrong == 0, self.correct_for[requests] + 1, 0)
        essence = torch.cat(drifts)[torch.cat(of_requests).argsort()]  # (m, V), in the order of the requests
        if self.reference is None:  # the first pass has all requests and δ = 0: the unedited distribution
            self.reference = essence.detach()
        # KL(now ‖ initial)
        drift = F.kl_div(self.reference[requests], essence, log_target=True, reduction="none").sum(-1)
        loss: Tensor = total / running.count + self.kl_factor * drift + self.decay[requests] * shift.norm(dim=1)
        return loss

    def _log_probs(self, part: _Part, shift: Tensor) -> Tensor:
        """(N + E, V) where a part is read, with the running requests' shifts (m, d) at their subjects."""
        forward, shifts = part.forward, shift[part.row_request]  # (R, d): the row for the drift is shifted too
        if self.site == "mlp":
            with added_to_output(self.projection, forward.column, shifts):
                logits = forward.logits(part.at_rows, part.at_columns)
        else:
            entering, at = forward.entering, forward.column
            assert entering is not None, "a block stands below the one that is run first: the edited layer's own"
            shifted = entering[:, at : at + 1] + shifts[:, None].to(device=entering.device, dtype=entering.dtype)
            entering = torch.cat([entering[:, :at], shifted, entering[:, at + 1 :]], dim=1)
            logits = forward.logits(part.at_rows, part.at_columns, entering)
        return F.log_softmax(logits.to(device=self.delta.device, dtype=wide_dtype(logits.dtype)), dim=-1)


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
    stop_after_correct: int | None = None,
    progress: bool = False,
) -> Targets:
    """Optimise δ for every fact.

    Args:
        layer: The edited layer.
        site: Where δ is added: the output of the layer's MLP (ROME) or of its whole block (MEMIT).
        contexts: Context templates; the first is the bare `{}`.
        steps, lr, weight_decay, clamp_norm_factor, kl_factor: EasyEdit's `v_num_grad_steps`, `v_lr`, `v_weight_decay`,
            `clamp_norm_factor`, `kl_factor`.
        stop_after_correct: A request ends that many steps after its target tokens have become the most probable ones in
            all contexts, if they have stayed so; None for no such stop (ENCORE, arXiv 2502.01636).
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

    objective = _Objective(
        delta=torch.zeros_like(init, requires_grad=True),
        site=site,
        projection=model.get_submodule(site_of(model, architecture, layer).output),
        rows_each=rows_each,
        decay=weight_decay / init.norm(dim=1) ** 2,
        kl_factor=kl_factor,
        correct_for=None if stop_after_correct is None else torch.zeros(n, dtype=torch.long, device=init.device),
    )
    what = f"optimising {n} target{'s' * (n != 1)}"
    with (
        without_parameter_gradients(model),
        torch.enable_grad(),
        shown_steps(None, what, "step", show=progress, total=steps) as bar,
    ):
        radius = clamp_norm_factor * init.norm(dim=1, keepdim=True)
        last_loss, taken, stopped = _descend(objective, forward, steps, lr, radius, stop_after_correct, bar.update)
    keys = seen.keys[layer].to(wide).view(n, rows_each, -1)[:, :-1]
    outputs = seen.mlp_outputs[layer].to(wide).view(n, rows_each, -1)[:, :-1]
    return Targets(objective.delta.detach(), init, keys, outputs, last_loss, taken, stopped)


def _descend(
    objective: _Objective,
    forward: PartialForward,
    steps: int,
    lr: float,
    radius: Tensor,
    stop_after_correct: int | None,
    told: Callable[[], object],
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam on all requests together, each stopped by its own loss (or its target) and kept within its own ball.

    Args:
        forward: Over the rows of all requests.
        radius: (n, 1) of the balls.
        stop_after_correct: As for `optimise_targets`.
        told: Called after every pass.

    Returns:
        (n,) the last loss of each request, (n,) the steps each took, (n,) which its target has stopped.
    """
    delta, rows_each = objective.delta, objective.rows_each
    n, device = len(delta), delta.device
    optimiser = torch.optim.Adam([delta], lr=lr)
    active = torch.ones(n, dtype=torch.bool, device=device)
    taken = torch.zeros(n, dtype=torch.long, device=device)
    last_loss = torch.full((n,), float("nan"), dtype=delta.dtype, device=device)
    stopped = torch.zeros(n, dtype=torch.bool, device=device)
    running = _Running.of(forward, torch.arange(n, device=device), rows_each)
    for step in range(steps):
        loss = objective.losses(running)
        told()
        with torch.no_grad():
            at = running.requests
            last_loss[at] = torch.where(active[at], loss.detach(), last_loss[at])
            active[at] &= ~(loss.detach() < STOP_LOSS)
            if stop_after_correct is not None and objective.correct_for is not None:
                enough = active & (objective.correct_for > stop_after_correct)
                stopped |= enough
                active &= ~enough
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
                running = _Running.of(chosen, left, rows_each)
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        with torch.no_grad():
            before = delta.detach().clone()
            delta.grad = gradient
            optimiser.step()
            norm = delta.norm(dim=1, keepdim=True)
            delta.mul_(torch.where(norm > radius, radius / norm, torch.ones_like(norm)))
            delta.copy_(torch.where(active[:, None], delta, before))
            taken += active
    return last_loss, taken, stopped
