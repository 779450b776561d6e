"""How a model's first block lets later tokens see a subject, with and without `demo.steps.hide_subjects`."""

from __future__ import annotations

import torch

from lm_eval_edit.demo import steps
from lm_eval_edit.models.architecture import Architecture


def dependence(model, hidden: bool) -> tuple[float, float]:
    """How much of the first block's output depends on a subject's tokens, by its gradient.

    Args:
        model: Any decoder with embeddings of its own for tokens 5 to 10.
        hidden: Whether the subject is.

    Returns:
        What tokens behind the subject have of its two tokens, and what its last token has of its first.
    """
    subjects, ids = torch.tensor([[0, 0, 3, 3, 0, 0]]), torch.tensor([[5, 6, 7, 8, 9, 10]])
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    out = []
    block = model.get_submodule(Architecture.discover(model).blocks[0])
    handle = block.register_forward_hook(lambda module, args, output: out.append(output))
    with steps.hide_subjects(model, subjects, torch.tensor([hidden])):
        model.base_model(inputs_embeds=embedded, use_cache=False)
    handle.remove()
    first = out[0][0] if isinstance(out[0], tuple) else out[0]
    (later,) = torch.autograd.grad(first[0, 4:].square().sum(), embedded, retain_graph=True)
    (last,) = torch.autograd.grad(first[0, 3].square().sum(), embedded)
    return float(later[0, 2:4].abs().sum()), float(last[0, 2].abs().sum())
