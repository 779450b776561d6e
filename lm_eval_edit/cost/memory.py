"""What editing holds in memory beside the model: counted from shapes, like the work.

Not in it: activations, the cache of keys and values, what the allocator keeps, the text of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_edit.cost.editing import FactLength, edited_layers, innermost, moment_layers
from lm_eval_edit.cost.work import Shape


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: The model.
        factors: Cholesky factors of C in float64, of all edited layers, where the model is.
        keys: The keys of one operation in one layer and two solutions of their size, in float64, where the model is.
        training: What FT holds at the most while it trains, where the model is.
        originals: What the edits reach of the edited matrices, as it was, and in half precision their exact sums.
        moments: C of all edited layers in float32, in main memory.
        update: One operation's update in float32, in main memory until it is in the ledger.
    """

    weights: float
    factors: float
    keys: float
    training: float
    originals: float
    moments: float
    update: float

    @property
    def on_device(self) -> float:
        """Where the model is."""
        return self.weights + self.factors + self.keys + self.training + self.originals


def editing_memory(
    shape: Shape, editor: str, options: Mapping[str, Any], facts: int, weight_bytes: int = 2, operations: int = 1
) -> Memory:
    """What an editor that changes down-projections holds.

    Args:
        shape: Of the model.
        editor, options: As in `cost.estimate`.
        facts: Of one operation.
        weight_bytes: Of one weight.
        operations: How many are done: of a mixture, they reach ever more experts.

    Raises:
        UserError: there is no estimate of the editor.
    """
    method = innermost(editor, options)
    layers, needed = len(edited_layers(options)), len(moment_layers(method, options))
    d, f, blocks = shape.hidden, shape.inner, shape.experts if shape.routed else 1
    one, reached = (_reached(shape, method, options, facts * times) for times in (1, operations))
    rank = facts if needed else 1
    return Memory(
        weights=float(shape.parameters * weight_bytes),
        factors=8.0 * needed * blocks * f**2,
        keys=3 * 8.0 * blocks * f * facts if needed else 0.0,
        training=_training(shape, layers, one, weight_bytes) if method == "ft" else 0.0,
        originals=layers * reached * d * f * (weight_bytes + (0 if weight_bytes > 2 else 4)),
        moments=4.0 * needed * blocks * f**2,
        update=4.0 * layers * (one * d * f if method == "ft" else rank * (d + one * f)),
    )


def _training(shape: Shape, layers: int, matrices: float, weight_bytes: int) -> float:
    """The most that `Ft.compute` holds at once: in a step of Adam, or where gradients come down to the lowest layer.

    Of every trained entry in float32: where it started, what it is, its gradient and Adam's two moments; within the
    step two more of a matrix's size, in the backward pass the gradient of the step before. A pass is given the trained
    values in the model's dtype, which of experts is a copy of the whole parameter. That copy's gradient is as large,
    for each layer until the end of the pass, and another one comes while an expert adds its part.

    Args:
        matrices: Trained in each layer.
    """
    size = shape.hidden * shape.inner
    entries = layers * matrices * size
    whole = (shape.experts if shape.routed else matrices if weight_bytes < 4 else 0.0) * size * weight_bytes
    gradients = (layers + 1) * whole if shape.routed else layers * whole
    return max(7 * 4.0 * entries, 6 * 4.0 * entries + gradients) + layers * whole


def _reached(shape: Shape, method: str, options: Mapping[str, Any], facts: float) -> float:
    """How many matrices of a layer the edits of so many facts change."""
    if not shape.routed:
        return 1.0
    if method == "ft" and isinstance(named := options.get("experts"), (tuple, list)):
        return float(len(named))
    if method in ("rome", "r_rome"):  # the one with the largest gate
        return shape.experts * (1 - (1 - 1 / shape.experts) ** facts)
    length = FactLength.of_zsre(4.0)
    return shape.edited(facts * (length.prompt + length.target - 1) if method == "ft" else facts)
