"""A hypernetwork of MEND for `tiny_model`, as if it had been trained."""

from __future__ import annotations

import torch

from lm_eval_edit.editors.mend.network import MendNetwork

INNER = tuple(f"transformer.h.{layer}.mlp.{name}.weight" for layer in (1, 2) for name in ("c_proj", "c_fc"))
SHAPES = ((96, 32), (32, 96), (96, 32), (32, 96))


def trained_network(inner=INNER, shapes=SHAPES) -> MendNetwork:
    """A hypernetwork with random weights and statistics, as if it had been trained."""
    generator = torch.Generator().manual_seed(0)
    network = MendNetwork(inner, shapes, rank=8, edit_lr=0.01, generator=generator)
    for transform in network.mend.values():
        width_u, width_v = transform.widths
        transform.observe(
            torch.randn(40, width_u, generator=generator) * 2 + 1, torch.randn(40, width_v, generator=generator) * 0.01
        )
        for layer in transform.mlp["layers"]:
            for parameter in layer.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network
