"""Editors that spare what earlier operations wrote: every operation leaves its keys, later ones keep their values.

The keys are taken on the edited weights, after all layers: those are the keys that the model has from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from torch import Tensor

from lm_eval_edit.editors._shared.history import History
from lm_eval_edit.editors._shared.inverse_root import InverseRoot
from lm_eval_edit.editors._shared.keys import subject_states
from lm_eval_edit.editors.base import EditContext, Editor
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.weights.edited import wide_dtype


class KeepsKeys(Editor):
    """A mix-in before `Memit`: its state is the keys of every edited layer, and a running solve takes them up."""

    def _state(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, Tensor]:
        """K (f, n) of every edited layer on the edited weights: what later operations must not disturb."""
        layers = self.layers()
        keys = subject_states(context, facts, layers, layers[-1]).keys
        modules = {layer: context.architecture.down_projections[layer] for layer in layers}
        dtype = wide_dtype(context.model.dtype)
        return {keys_name(modules[layer]): keys[layer].to(dtype).contiguous() for layer in layers}

    def _earlier(
        self,
        history: Sequence[Mapping[str, Tensor]],
        module: str,
        size: int,
        like: Tensor,
        into: Callable[[Tensor], Tensor],
        setting: Hashable,
    ) -> InverseRoot:
        """The root of (I + V Vᵀ)⁻¹, V (m, N) made of the keys K_p (f, N) that earlier operations left at a module.

        Args:
            history: What they left.
            module: Path of the down-projection.
            size: m.
            like: On the device where it is wanted, in float64.
            into: K_p of one operation -> V.
            setting: Everything `into` depends on beside the module and the second moments.
        """

        def add(root: InverseRoot, state: Mapping[str, Tensor]) -> InverseRoot:
            return root.absorb(into(state[keys_name(module)].to(like.device, like.dtype)))

        name = (type(self), module, like.device, setting)
        return History.of(history).summed(name, lambda: InverseRoot(size), add)


def keys_name(module: str) -> str:
    """The name of a down-projection's keys in an operation's state."""
    return f"{module}.keys"
