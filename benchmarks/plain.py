"""Straightforward editors with the cost structure of the published implementations, to measure ours against.

What costs time there (EasyEdit, July 2026, and the repositories of ROME and MEMIT) and is done the same way here:
- every optimisation step runs all blocks on all positions of all rows, and takes the log-softmax of all logits;
  MEMIT evaluates the language-model head twice;
- requests are optimised one after another;
- ROME's key, and the key and output of the bare prompt, take forward passes of their own;
- MEMIT runs two full passes per layer, and factors an f x f matrix by LU in float64 per layer and batch;
- KN runs, per layer and answer token, one full pass and one with `steps` copies of the whole text;
- second moments take one pass over the corpus per layer, stopped after that layer.

Nothing here is used by the package; results equal the package's up to round-off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm_eval_edit.editors._shared.rows import Row, essence_row, fact_rows, prompt_row
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import is_transposed

STOP_LOSS = 0.05


def _pad(rows: Sequence[Row], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """(padded inputs, positions of the subjects' last tokens)."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows], device=device)
    last = torch.tensor([row.subject_last for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}, last


@contextlib.contextmanager
def _traced(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block, the module's last input and output."""
    seen: dict[str, Tensor] = {}

    def hook(_module, args, output):
        seen["input"], seen["output"] = args[0], output[0] if isinstance(output, tuple) else output

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def _at_subject(context: EditContext, rows: Sequence[Row], module: str) -> tuple[Tensor, Tensor]:
    """(R, in), (R, out) of a module at the subjects' last tokens, by a full forward pass."""
    inputs, last = _pad(rows, context.model.device)
    with _traced(context.model.get_submodule(module)) as seen:
        context.model(**inputs)
    rows_index = torch.arange(len(rows))
    return seen["input"][rows_index, last], seen["output"][rows_index, last]


def _optimise(
    context: EditContext, fact: Fact, contexts: Sequence[str], layer: int, site: str, o: Any
) -> tuple[Tensor, Tensor]:
    """(initial value, δ) of one request."""
    model, architecture = context.model, context.architecture
    rows = [*fact_rows(context.tokenizer, fact, contexts), essence_row(context.tokenizer, fact)]
    inputs, last = _pad(rows, model.device)
    labels = torch.full_like(inputs["input_ids"], -100)
    for r, row in enumerate(rows[:-1]):
        end = len(row.ids)
        labels[r, end - len(row.labels) : end] = torch.tensor(row.labels, device=labels.device)
    module = architecture.blocks[layer] if site == "block" else architecture.down_projections[layer].rpartition(".")[0]
    trunk = model.base_model
    norm, head = getattr(trunk, "ln_f", None) or trunk.norm, model.get_output_embeddings()
    row_index = torch.arange(len(rows), device=last.device)
    delta = torch.zeros(architecture.hidden_size, dtype=model.dtype, device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=o.v_lr)
    first: list[Tensor] = []
    reference = None

    def shift(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if not first:
            first.append(hidden[0, last[0]].detach().clone())
        hidden = hidden.clone()
        hidden[row_index, last] += delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.get_submodule(module).register_forward_hook(shift)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        for step in range(o.v_num_grad_steps):
            with _traced(model.get_submodule(architecture.blocks[-1])) as seen:
                logits = model(**inputs).logits
            if site == "block":
                logits_again = head(norm(seen["output"]))[:-1]
            log_probs = F.log_softmax(logits_again if site == "block" else logits[:-1], dim=2)
            at = torch.where(labels[:-1] != -100, labels[:-1], 0)
            nll = -log_probs.gather(2, at[:, :, None])[:, :, 0] * (labels[:-1] != -100)
            essence = F.log_softmax(logits[-1:, last[-1]], dim=1)
            reference = essence.detach() if reference is None else reference
            loss = (nll.sum(1) / (labels[:-1] != -100).sum(1)).mean()
            loss = loss + o.kl_factor * F.kl_div(reference, essence, log_target=True, reduction="batchmean")
            loss = loss + o.v_weight_decay * delta.norm() / first[0].norm() ** 2
            if loss.item() < STOP_LOSS or step == o.v_num_grad_steps - 1:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                radius = o.clamp_norm_factor * first[0].norm()
                if delta.norm() > radius:
                    delta.mul_(radius / delta.norm())
    finally:
        handle.remove()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    return first[0], delta.detach()


def rome(context: EditContext, fact: Fact, o: Any) -> dict[str, Tensor]:
    """{parameter: ΔW} of ROME without covariance."""
    (layer,) = o.layers
    projection = context.architecture.down_projections[layer]
    contexts = context.context_templates
    rows = [prompt_row(context.tokenizer, fact.template, fact.subject, context=template) for template in contexts]
    keys, _ = _at_subject(context, rows, projection)
    direction = keys.mean(dim=0)
    direction = direction / direction.norm()
    init, delta = _optimise(context, fact, contexts, layer, "mlp", o)
    key, output = _at_subject(context, rows[:1], projection)
    update = torch.outer(direction, (init + delta - output[0]) / (key[0] @ direction))
    transposed = is_transposed(context.model.get_submodule(projection))
    return {projection + ".weight": update if transposed else update.T}


@torch.no_grad()
def memit(context: EditContext, facts: Sequence[Fact], o: Any) -> dict[str, Tensor]:
    """{parameter: ΔW} of MEMIT."""
    model, tokenizer, architecture = context.model, context.tokenizer, context.architecture
    types = context.context_templates
    flat = [template for templates in types for template in templates]
    last = o.layers[-1]
    values = []
    for fact in facts:
        with torch.enable_grad():
            init, delta = _optimise(context, fact, flat, last, "block", o)
        values.append(init + delta)
    weights = {layer: model.get_parameter(architecture.weight(layer)) for layer in o.layers}
    kept = {layer: weight.clone() for layer, weight in weights.items()}
    deltas = {}
    for index, layer in enumerate(o.layers):
        projection = architecture.down_projections[layer]
        rows = [prompt_row(tokenizer, fact.template, fact.subject, context=t) for fact in facts for t in flat]
        keys, _ = _at_subject(context, rows, projection)
        keys = keys.view(len(facts), len(flat), -1)
        parts = keys.split([len(templates) for templates in types], dim=1)
        keys = torch.stack([part.mean(dim=1) for part in parts]).mean(dim=0).T.double()  # (f, n)
        bare = [prompt_row(tokenizer, fact.template, fact.subject) for fact in facts]
        _, outputs = _at_subject(context, bare, architecture.blocks[last])
        rest = (torch.stack(values) - outputs).T.double() / (len(o.layers) - index)  # (d, n)
        moment = context.second_moments[projection].to(keys.device).double()
        directions = torch.linalg.solve(o.mom2_update_weight * moment + keys @ keys.T, keys)
        update = directions @ rest.T
        update = update if is_transposed(model.get_submodule(projection)) else update.T
        deltas[architecture.weight(layer)] = update
        weights[layer].copy_(kept[layer] + update.to(kept[layer].dtype))
    for layer, weight in weights.items():
        weight.copy_(kept[layer])
    return deltas


def kn_scores(context: EditContext, prompt: str, answer: str, steps: int, extend: bool) -> Tensor:
    """(L, f) attributions of all neurons, as EasyEdit computes them.

    Args:
        extend: Whether the model's greedy token joins the text after each answer token (LLaMA), or not (GPT-2).
    """
    model, tokenizer, architecture = context.model, context.tokenizer, context.architecture
    wanted = tokenizer.encode(answer)
    scores = []
    for layer in range(architecture.n_layers):
        module = model.get_submodule(architecture.gate_projection(model, layer))
        text, total = prompt, 0.0
        for token in wanted:
            ids = torch.tensor([tokenizer.encode(text)], device=model.device)
            with _traced(module) as seen, torch.no_grad():
                logits = model(input_ids=ids).logits
            vector = seen["output"][0, -1]
            factors = torch.linspace(0, 1, steps, dtype=vector.dtype, device=vector.device)
            grown = (factors[:, None] * vector).requires_grad_()

            def replace(_module, _args, output, grown=grown):
                return torch.cat([output[:, :-1], grown[:, None]], dim=1)

            handle = module.register_forward_hook(replace)
            try:
                probability = model(input_ids=ids.repeat(steps, 1)).logits[:, -1].softmax(dim=-1)[:, token]
            finally:
                handle.remove()
            (gradient,) = torch.autograd.grad(probability.sum(), grown)
            total = total + vector * gradient.sum(dim=0) / steps
            if extend:
                text += tokenizer.decode([int(logits[0, -1].argmax())])
        scores.append(total / len(wanted))
    return torch.stack(scores)


class _Stop(Exception):
    pass


@torch.no_grad()
def second_moments(context: EditContext, texts: Sequence[str], layers: Sequence[int], max_length: int) -> list[Tensor]:
    """E[k kᵀ] of each layer, one pass over the texts per layer."""
    model, tokenizer = context.model, context.tokenizer
    found = []
    for layer in layers:
        module = model.get_submodule(context.architecture.down_projections[layer])
        total, count = 0.0, 0
        for start in range(0, len(texts), 100):
            encoded = tokenizer(texts[start : start + 100], truncation=True, max_length=max_length)["input_ids"]
            batches: list[list[list[int]]] = [[]]
            for ids in sorted(encoded, key=len, reverse=True):
                if batches[-1] and len(batches[-1][0]) * (len(batches[-1]) + 1) > 3 * max_length:
                    batches.append([])
                batches[-1].append(ids)
            for batch in batches:
                inputs, _ = _pad([Row(ids, 0) for ids in batch], model.device)

                def keep(_module, args, output, inputs=inputs):
                    nonlocal total, count
                    keys = args[0][inputs["attention_mask"].bool()]
                    total, count = total + keys.T @ keys, count + len(keys)
                    raise _Stop

                handle = module.register_forward_hook(keep)
                with contextlib.suppress(_Stop):
                    model(**inputs)
                handle.remove()
        found.append(total / count)
    return found
