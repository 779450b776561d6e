"""A forward pass of a model without its lowest blocks: they hand on what is known of them already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def hidden_of(output: Any) -> Tensor:
    """The hidden states among what a block returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextlib.contextmanager
def forwards(instead: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within, modules have other forwards; their own come back, those that accelerate has put there included."""
    replaced = []
    try:
        for module, forward in instead.items():
            replaced.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield
    finally:
        for module, previous in replaced:
            if previous is None:
                del module.forward
            else:
                module.forward = previous


@contextlib.contextmanager
def bridged(
    blocks: Sequence[nn.Module],
    entering: Tensor | None,
    returns_tuple: Sequence[bool],
    instead: Callable[[int, Iterable[Any]], None] = lambda layer, given: None,
) -> Iterator[None]:
    """Replace the forward of `blocks`, the lowest of a model, by handing on the hidden states, the last one `entering`.

    Args:
        returns_tuple: For each block, whether its own forward returns a tuple.
        instead: Called where a block would have been run, with its number and what it is given beside hidden states.
    """

    def bridge(layer: int) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            instead(layer, [*args, *kwargs.values()])
            out = entering if layer == len(blocks) - 1 else hidden_states
            return (out, None) if returns_tuple[layer] else out

        return forward

    with forwards({block: bridge(layer) for layer, block in enumerate(blocks)}):
        yield
