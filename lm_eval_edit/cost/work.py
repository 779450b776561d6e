"""The units of a cost estimate: a model's shape, a device's speed, and passes of the one on the other.

Every pass through a model takes the longest of three times: computing, reading the weights, launching the kernels.
Nothing here needs torch, but for `Shape.of`, which builds a model of the configuration without its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval_edit.errors import UserError

#: Kernels that an expert launches when it runs by itself, as a share of a dense block's: some ten of some thirty.
EXPERT_LAUNCH = 0.3


@dataclass(frozen=True)
class Shape:
    """What the work of a decoder depends on.

    Attributes:
        parameters: All weights, shared ones counted once.
        layers: L, the number of blocks.
        hidden: d, the width of the residual stream.
        inner: f, the width of the MLP's inner space; of one expert where experts are edited, whatever dense blocks
            there are beside them.
        vocabulary: V.
        attention: The queries' width over all heads.
        block_weights: Entries of the matrices that one block multiplies a token with.
        model_type: As in the configuration.
        experts: E, how many experts a mixture has; 0 for a dense model.
        picked: k, how many of them are picked for a token.
        expert_weights: Entries of one expert's matrices; a mean over all blocks, where some are dense.
        routed: Whether the experts are what is edited, and not an MLP that every token passes through.
    """

    parameters: int
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    attention: int
    block_weights: int
    model_type: str = ""
    experts: int = 0
    picked: int = 0
    expert_weights: int = 0
    routed: bool = False

    @classmethod
    def of(cls, config: Any, routed: bool = False) -> Shape:
        """Of a transformers configuration: a model of it is built on the meta device, where weights take no memory.

        Args:
            routed: Experts are edited also where there is a shared one (`edit_experts=routed`).

        Raises:
            UserError: the model is no decoder whose parts can be found (see `Architecture.discover`).
        """
        import torch
        from transformers import AutoModelForCausalLM

        from lm_eval_edit.models.architecture import Architecture

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        architecture, text = Architecture.discover(model), config.get_text_config(decoder=True)
        if routed:
            architecture = architecture.routed()
        mixtures = [mixture for mixture in architecture.mixtures if mixture is not None]
        held = {name for mixture in mixtures for name in (mixture.up, mixture.down, mixture.up_bias, mixture.down_bias)}
        parameters = {
            name: p.numel()
            for path in architecture.blocks
            for name, p in model.get_submodule(path).named_parameters(prefix=path)
            if p.ndim == 2 and name not in held
        }
        layers, heads = len(architecture.blocks), text.num_attention_heads
        widths = [architecture.key_sizes[layer] for layer in range(layers) if architecture.is_routed(layer)]
        matrices = [model.get_parameter(name) for mixture in mixtures for name in (mixture.up, mixture.down)]
        expert_weights = sum(p[0].numel() for p in matrices) // layers
        picked = max((mixture.top_k for mixture in mixtures), default=0)
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            layers=layers,
            hidden=architecture.hidden_size,
            inner=max(widths, default=architecture.key_size),
            vocabulary=text.vocab_size,
            attention=heads * sum(_head_sizes(text)) // 2,
            block_weights=sum(parameters.values()) // layers + picked * expert_weights,
            model_type=text.model_type,
            experts=max((mixture.n_experts for mixture in mixtures), default=0),
            picked=picked,
            expert_weights=expert_weights,
            routed=bool(widths),
        )

    def hit(self, tokens: float) -> float:
        """How many different experts some tokens pick in a block, if each picks at random; 1 of a dense model."""
        if not self.experts:
            return 1.0
        return self.experts * (1 - (1 - self.picked / self.experts) ** tokens)

    def edited(self, tokens: float) -> float:
        """How many matrices of a layer an edit of some tokens' keys changes."""
        return self.hit(tokens) if self.routed else 1.0

    def read(self, tokens: float) -> float:
        """Entries of the matrices of a block that are read for some tokens: those of each expert that one picks."""
        return self.block_weights + (max(self.hit(tokens), self.picked) - self.picked) * self.expert_weights

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


def _head_sizes(config: Any) -> tuple[int, int]:
    """The widths of a head's queries and of its values: latent attention has two."""
    usual = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return getattr(config, "qk_head_dim", None) or usual, getattr(config, "v_head_dim", None) or usual


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

    def seconds(self, shape: Shape, device: Device, weight_bytes: int, experts_apart: bool = False) -> float:
        """Time on one device (several that hold one model between them work one after another).

        Args:
            experts_apart: Whether experts run one after another, as they do while a mixture is edited.
        """
        compute = device.half if weight_bytes <= 2 else device.single
        total = self.single / (device.single * device.utilisation) + self.double / (device.double * device.utilisation)
        for p in self.passes:
            tokens = p.flop / (2 * shape.block_weights * p.blocks) if p.blocks else 0.0  # at most
            computing = p.flop / (compute * device.utilisation)
            reading = p.blocks * shape.read(tokens) * weight_bytes / (device.bandwidth * device.utilisation)
            kernels = 1 + (EXPERT_LAUNCH * shape.hit(tokens) if experts_apart and shape.experts else 0)
            total += p.count * max(computing, reading, p.blocks * device.seconds_per_block * kernels)
        return total
