"""The units of a cost estimate: a model's shape, a device's speed, and passes of the one on the other.

Every pass through a model takes the longest of three times: computing, reading the weights, launching the kernels.
Nothing here needs torch, but for `Shape.of`, which builds a model of the configuration without its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval_edit.errors import UserError


@dataclass(frozen=True)
class Shape:
    """What the work of a decoder depends on.

    Attributes:
        parameters: All weights, shared ones counted once.
        layers: L, the number of blocks.
        hidden: d, the width of the residual stream.
        inner: f, the width of the MLP's inner space.
        vocabulary: V.
        attention: The queries' width over all heads.
        block_weights: Entries of the matrices that one block multiplies a token with.
        model_type: As in the configuration.
    """

    parameters: int
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    attention: int
    block_weights: int
    model_type: str = ""

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a transformers configuration: a model of it is built on the meta device, where weights take no memory.

        Raises:
            UserError: the model is no decoder whose parts can be found (see `Architecture.discover`).
        """
        import torch
        from transformers import AutoModelForCausalLM

        from lm_eval_edit.models.architecture import Architecture

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        architecture, text = Architecture.discover(model), config.get_text_config(decoder=True)
        blocks = [model.get_submodule(path) for path in architecture.blocks]
        matrices = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim == 2)
        heads = text.num_attention_heads
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            layers=len(blocks),
            hidden=architecture.hidden_size,
            inner=architecture.key_size,
            vocabulary=text.vocab_size,
            attention=heads * (getattr(text, "head_dim", None) or text.hidden_size // heads),
            block_weights=matrices // len(blocks),
            model_type=text.model_type,
        )

    @property
    def head(self) -> int:
        """FLOP of the language-model head at one position."""
        return 2 * self.hidden * self.vocabulary

    def blocks(self, tokens: float, seen: float, count: int | None = None) -> float:
        """FLOP of `count` blocks (default: all).

        Args:
            tokens: New tokens, over all rows.
            seen: Σ over the new tokens of the positions each attends to. A mask hides the later ones but does not save
                their work: tokens² for a whole row.
        """
        return (self.layers if count is None else count) * (2 * self.block_weights * tokens + 4 * self.attention * seen)


@dataclass(frozen=True)
class Device:
    """A GPU by its datasheet (dense figures, SXM modules), and what is assumed about its use.

    Attributes:
        half, single, double: FLOP per second of matrix products in float16 or bfloat16, float32 and float64.
        bandwidth: Bytes per second from its memory.
        memory: Bytes.
        utilisation: Assumed share of all of these rates that is reached.
        seconds_per_block: Assumed time to launch one block's kernels from Python.
        load_rate: Assumed bytes per second from a disk to the device.
        start_seconds: Assumed time for imports and for building the tasks, once for each process that loads a model.
    """

    name: str
    half: float
    single: float
    double: float
    bandwidth: float
    memory: float
    utilisation: float = 0.35
    seconds_per_block: float = 6e-4
    load_rate: float = 1e9
    start_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise UserError(f"utilisation={self.utilisation}: want a share above 0 and at most 1")


DEVICES = {
    "a100": Device("A100 80 GB", 312e12, 19.5e12, 19.5e12, 2.04e12, 80e9),
    "h100": Device("H100 80 GB", 989e12, 67e12, 67e12, 3.35e12, 80e9),
}


@dataclass(frozen=True)
class Pass:
    """A pass through some blocks, forward or backward, that is made `count` times, each waiting for the last.

    Attributes:
        flop: Of one of them, in the model's dtype.
        blocks: How many blocks it runs.
    """

    count: float
    flop: float
    blocks: float


@dataclass(frozen=True)
class Work:
    """Passes through a model, and FLOP beside it.

    Attributes:
        single, double: FLOP of products in float32 and of factorisations in float64.
    """

    passes: tuple[Pass, ...] = ()
    single: float = 0.0
    double: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.passes + other.passes, self.single + other.single, self.double + other.double)

    def times(self, count: float) -> Work:
        """The same work so many times over."""
        passes = tuple(Pass(p.count * count, p.flop, p.blocks) for p in self.passes)
        return Work(passes, self.single * count, self.double * count)

    @property
    def flop(self) -> float:
        """All of it."""
        return sum(p.count * p.flop for p in self.passes) + self.single + self.double

    def seconds(self, shape: Shape, device: Device, weight_bytes: int) -> float:
        """Time on one device (several that hold one model between them work one after another)."""
        compute = device.half if weight_bytes <= 2 else device.single
        total = self.single / (device.single * device.utilisation) + self.double / (device.double * device.utilisation)
        for p in self.passes:
            computing = p.flop / (compute * device.utilisation)
            reading = p.blocks * shape.block_weights * weight_bytes / (device.bandwidth * device.utilisation)
            total += p.count * max(computing, reading, p.blocks * device.seconds_per_block)
        return total
