"""What editing costs in memory at the shapes of a 7B model (LLaMA: d = 4096, f = 11008, 32 layers), without having one.

- The ledger: 200 rank-one deltas of that shape, written as the ledger writes them, and their size on disk.
- Peak memory: live tensor bytes are followed through a whole ROME edit of real models of few layers at full width, and
  continued to 32 layers. Memory beyond the weights is a straight line in the number of layers: every layer adds its
  key-value prefix and, above the edited one, what the backward pass keeps.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lm_eval_edit import Fact
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.edits.ledger import open_ledger
from lm_eval_edit.weights.delta import LowRankDelta
from lm_eval_edit.weights.edited import EditedWeights

MIB = 2**20
MakeContext = Callable[[PreTrainedModel], tuple[EditContext, Sequence[Fact]]]


@dataclass(frozen=True)
class Shape:
    """Of a LLaMA model; 7B by default."""

    width: int = 4096
    inner: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32000


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that were made within the block and are alive; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._seen:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed() -> None:
            self._seen.discard(key)
            self.live -= size

        weakref.finalize(storage, freed)


def ledger_bytes(edits: int, width: int, inner: int) -> int:
    """Bytes on disk of a ledger of `edits` ROME edits of an nn.Linear (width, inner): deltas, records and header."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "ledger")
        ledger = open_ledger(folder, {"editor": "rome"}, {}, EditedWeights(torch.nn.Module()))
        for number in range(edits):
            delta = LowRankDelta(torch.randn(width, 1), torch.randn(1, inner))
            fact = Fact(f"Subject {number}", "The mother tongue of {} is", "Spanish", "French", id=str(number))
            ledger.append([fact], {"model.layers.5.mlp.down_proj.weight": delta}, {}, {"answers_changed": 1}).release()
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_bytes(layers: int, shape: Shape, make_context: MakeContext) -> tuple[int, int, int]:
    """Bytes of the weights, most beside them while a ROME edit of layer 0 is computed, and while it is applied."""
    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.inner, num_hidden_layers=layers, vocab_size=shape.vocabulary,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    context, facts = make_context(model)
    edited = EditedWeights(model)
    with LiveBytes() as computing:
        # By the third step everything is there at once: Adam's state, the graph of a pass, a gradient.
        deltas = Rome(RomeOptions(layers=(0,), v_num_grad_steps=3)).compute(context, facts).deltas
    with LiveBytes() as applying:
        edited.apply(deltas)
    return weights, computing.peak, applying.peak


def report(make_context: MakeContext, tiny: bool = False) -> str:
    """Both figures as text.

    Args:
        make_context: From a model to an editing context and one fact.
        tiny: Small shapes, to see that it runs.
    """
    shape, edits = (Shape(64, 176, 4, 4, 512), 5) if tiny else (Shape(), 200)
    size = ledger_bytes(edits, shape.width, shape.inner)
    lines = [f"ledger of {edits} ROME edits, d = {shape.width}, f = {shape.inner}: {size / MIB:.2f} MiB"]
    one, three = (peak_bytes(layers, shape, make_context) for layers in (1, 3))
    # The whole grows by a straight line in the layers; what is applied has the size of one matrix.
    whole = tuple(a + (b - a) * (shape.layers - 1) // 2 for a, b in zip(one, three, strict=True))
    for layers, (weights, computing, applying) in ((1, one), (3, three), (shape.layers, whole)):
        lines.append(
            f"{'measured' if layers < shape.layers else 'continued'}, {layers} layers, float32: weights "
            f"{weights / MIB:.0f} MiB, beside them {computing / MIB:.0f} MiB computing and {applying / MIB:.0f} MiB "
            f"applying, together {(computing + applying) / weights:.1%}"
        )
    return "\n".join(lines)
