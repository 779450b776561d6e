"""LoRA: a low-rank adapter trained on the facts of one operation, then written into the base model's own weights.

Hu et al. 2021 (arXiv 2106.09685); as an editing baseline in EasyEdit (Zhang et al. 2024, arXiv 2401.01286): query and
value projections of all layers, Adam, a fixed number of passes, no early stop. Its numbers are in the presets; the
defaults are gentler (docs/defaults.md). EasyEdit trains AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) without ever
reallocating its ranks; `lora_type=adalora` does the same.

The adapter is peft's. Here it is turned into W ← W + s B A, one low-rank delta for each adapted matrix, and unloaded.
The base model stays in evaluation mode; only the adapter has dropout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.adapters import adapted_by
from lm_eval_edit.editors._shared.draws import seed_for
from lm_eval_edit.editors._shared.finetune import chunks, padded, target_row
from lm_eval_edit.editors._shared.progress import steps
from lm_eval_edit.editors._shared.rows import Row
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, edit_routed, option
from lm_eval_edit.editors.mixtures import ends_in, expert_names
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import Architecture, is_linear, is_transposed
from lm_eval_edit.weights.delta import Delta, linear_update
from lm_eval_edit.weights.edited import wide_dtype

ADAPTER = "edit"
ENOUGH, MOST_STEPS = (
    0.01,
    70,
)  # without `num_steps`: the mean loss of a pass that is the last one, FT's; EasyEdit's passes
IGNORED = -100  # the label that transformers' loss passes over


@dataclass(frozen=True)
class LoraOptions:
    """Hyper-parameters of LoRA, under EasyEdit's names."""

    layers: tuple[int, ...] = option("the adapted layers; all by default", default=())
    lora_type: str = option("lora, or adalora as in EasyEdit", default="lora")
    num_steps: int | None = option(
        "passes over the operation's facts", from_model="as many as bring the loss below 0.01, 70 at most", like=1
    )
    lr: float = option("Adam's learning rate", default=1e-3, sign="positive")
    weight_decay: float = option("Adam's weight decay", default=0.0, sign="not negative")
    rank: int = option("rank of each adapted matrix's update", default=8)
    lora_alpha: float = option("scale: s = lora_alpha / rank", default=32.0, sign="positive")
    lora_dropout: float = option("dropout of the adapter's input while it is trained", default=0.1)
    target_modules: Any = option(
        "names of the adapted modules, as a list or q_proj:v_proj; by default peft's choice for the model", default=None
    )
    batch_size: int = option("facts in one gradient step, within the facts of one operation", default=1, tuned=False)
    kl_factor: float = option("only 0, as in EasyEdit's files: EasyEdit never reads it", default=0.0, tuned=False)
    norm_constraint: Any = option("only false, as in EasyEdit's files: EasyEdit never reads it", default=None)

    def __post_init__(self) -> None:
        if self.lora_type not in ("lora", "adalora"):
            raise ValueError(f"lora_type={self.lora_type!r}: want lora or adalora")
        for name in ("num_steps", "rank", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: want at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout}: want a share of at least 0 and below 1")
        for name in ("kl_factor", "norm_constraint"):
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)}: LoRA has none, in EasyEdit neither; leave it out")
        given = self.target_modules
        names = given.split(":") if isinstance(given, str) else given
        if given is not None and not (isinstance(names, (list, tuple)) and names and all(map(_is_name, names))):
            raise ValueError(f"target_modules={given!r}: want module names, as a list or as q_proj:v_proj")
        object.__setattr__(self, "target_modules", None if given is None else tuple(names))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


class Lora(Editor):
    """W ← W + s B A for each adapted matrix, A and B trained by Adam on the facts alone."""

    name = "lora"
    summary = "a low-rank adapter trained on the facts, written into the weights"
    source = "Hu et al. 2021, arXiv 2106.09685; Zhang et al. 2024, arXiv 2401.01286"
    Options = LoraOptions
    options: LoraOptions
    not_routed = "its adapters are for linear maps, and the routed experts of a mixture are slices of one tensor"
    batches = True
    longest_object = None

    @classmethod
    def default_layers(cls, n_layers: int) -> tuple[int, ...]:
        """All, as in EasyEdit."""
        return tuple(range(n_layers))

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        o, model = self.options, context.model
        rows = [target_row(context.tokenizer, fact) for fact in facts]
        batches = [_batch(model, chunk) for chunk in chunks(rows, o.batch_size)]
        targets = self._targets(model, context.architecture)
        with (
            _seeded(seed_for(context.seed, facts, self.name)),
            adapted_by(model, self._config(targets), ADAPTER) as adapted,
        ):
            trained = [p for p in model.parameters() if p.requires_grad]  # peft lets only the adapter learn
            optimiser = torch.optim.Adam(trained, lr=o.lr, weight_decay=o.weight_decay)
            means: list[Tensor] = []
            with torch.enable_grad():
                for _ in steps(range(o.num_steps or MOST_STEPS), "training the adapter", "pass", show=context.progress):
                    losses = []
                    for batch in batches:
                        loss = adapted(**batch, use_cache=False).loss  # AdaLoRA adds its orthogonality term here
                        optimiser.zero_grad()
                        loss.backward()
                        optimiser.step()
                        losses.append(loss.detach())
                    means.append(torch.stack(losses).mean())
                    if o.num_steps is None and float(means[-1]) < ENOUGH:
                        break
            deltas = {f"{path}.weight": _delta(model.get_submodule(path)) for path in targets}
        return EditResult(deltas, {"loss": [float(means[0]), float(means[-1])], "steps": len(means)})

    def architecture_problems(self, architecture: Architecture) -> list[str]:
        """None: which modules are adapted is a matter of their names (`file_problems`)."""
        return []

    def file_problems(self, model: Callable[[], PreTrainedModel]) -> list[str]:
        """Of `target_modules`: whether the model has them, as linear maps."""
        try:
            shapes = model()
            architecture = Architecture.discover(shapes)
        except ValueError:  # told with what does not depend on the method
            return []
        try:
            self._targets(shapes, architecture)
        except UserError as error:
            return [str(error)]
        return []

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str]:
        return [f"{path}.weight" for path in self._targets(model, architecture)]

    def _targets(self, model: PreTrainedModel, architecture: Architecture) -> list[str]:
        """Paths of the adapted modules in the chosen layers.

        Raises:
            UserError: these layers have no linear module of the names wanted, or it is not known which are wanted, or
                a name is that of a mixture's stacked experts alone.
        """
        config = model.config.get_text_config(decoder=True)
        layers = [layer for layer in self.options.layers if layer < architecture.n_layers]
        linears = {
            f"{block}.{path}": path
            for block in (architecture.blocks[layer] for layer in layers)
            for path, module in model.get_submodule(block).named_modules()
            if is_linear(module)
        }
        names = sorted(set(linears.values()))
        wanted = self.options.target_modules or PEFT_TARGETS.get(config.model_type) or _query_and_value(names)
        found = [full for full, path in linears.items() if any(ends_in(path, name) for name in wanted)]
        unknown = [n for n in self.options.target_modules or () if not any(ends_in(path, n) for path in found)]
        if stacked := expert_names(architecture, layers, unknown):
            raise UserError(
                f"target_modules: {', '.join(stacked)} holds a mixture's experts: {self.not_routed}. Give linear maps, "
                f"among {', '.join(names)}, or use editor={', '.join(edit_routed())}"
            )
        if not found:
            asked = f"target_modules={':'.join(wanted)}" if wanted else f"peft knows no targets for {config.model_type}"
            raise UserError(f"{asked}: give target_modules among the linear maps of a layer: {', '.join(names)}")
        return found

    def _config(self, targets: list[str]) -> peft.PeftConfig:
        o = self.options
        common: dict[str, Any] = {"target_modules": targets, "lora_alpha": o.lora_alpha, "lora_dropout": o.lora_dropout}
        if o.lora_type == "lora":
            return peft.LoraConfig(r=o.rank, **common)
        return peft.AdaLoraConfig(init_r=o.rank, target_r=o.rank, total_step=o.num_steps or MOST_STEPS, **common)


def _query_and_value(names: Sequence[str]) -> list[str]:
    """The query and value projections among a layer's linear maps, or the fused one; empty when neither is named so."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return [name for name in last if name in ("q_proj", "v_proj")] or [name for name in last if "qkv" in name]


def _batch(model: PreTrainedModel, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Model inputs with labels: the whole text in, the loss on its target."""
    whole = padded(model, [Row([*row.ids, row.labels[-1]], 0) for row in rows])
    labels = torch.full(whole.input_ids.shape, IGNORED)
    for r, row in enumerate(rows):
        end = len(row.ids) + 1
        labels[r, end - len(row.labels) : end] = torch.tensor(row.labels)
    mask = whole.attention_mask
    return {"input_ids": whole.input_ids, "attention_mask": mask, "labels": labels.to(mask.device)}


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within the block the global generators, which peft draws from, are seeded; afterwards they are as before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _delta(layer: Any) -> Delta:
    """s B A of one module that peft has adapted, in the layout of its base weight and in float32 or wider."""
    with torch.no_grad():
        a, b, scale = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], layer.scaling[ADAPTER]
        if isinstance(a, nn.Module):
            a, b = a.weight, b.weight  # (r, in), (out, r)
        else:  # AdaLoRA: B diag(E) A
            a, scale = a * layer.lora_E[ADAPTER], scale / (layer.ranknum[ADAPTER] + 1e-5)
        base = layer.get_base_layer()
        wide = wide_dtype(base.weight.dtype)
        # A view of a parameter asks for gradients even where it is made without any.
        return linear_update(is_transposed(base), a.detach().T.to(wide), (b * scale).to(wide))
