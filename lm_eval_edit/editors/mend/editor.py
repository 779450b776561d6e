"""MEND: a trained hypernetwork turns the gradient of the wanted answer into an edit.

Mitchell et al., *Fast Model Editing at Scale*, ICLR 2022 (arXiv 2110.11309). One forward and backward pass per
operation, of one fact or of many. The hypernetwork is the model's own: `lm-eval-edit train mend` makes one, and
EasyEdit's and the authors' archives are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit import demo
from lm_eval_edit._support.extras import found
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, option
from lm_eval_edit.editors.mend.archive import HOW_TO_GET_ONE, MendArchive, load_archive, not_a_file
from lm_eval_edit.editors.mend.batch import easyedit_batch, exact_batch, gradient_factors
from lm_eval_edit.editors.mend.network import MendNetwork, inner_module
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import Architecture, is_transposed
from lm_eval_edit.models.devices import weight_of
from lm_eval_edit.weights.delta import linear_update
from lm_eval_edit.weights.edited import wide_dtype

INNER_LOSSES = ("archive", "exact", "easyedit")


@dataclass(frozen=True)
class MendOptions:
    """Options of MEND, under EasyEdit's names where it has them."""

    archive: str = option(
        "the trained hypernetwork: ours (safetensors), EasyEdit's or the authors'; demo is the demo model's", default=""
    )
    inner_params: tuple[str, ...] = option("the edited weights, if the archive does not name them", default=())
    inner_loss: str = option(
        "whose gradient is taken: exact (the targets' tokens, each fact's mean), easyedit (one mean, their padding and "
        "any beginning-of-sequence token included), or archive (as the archive was trained)",
        default="archive",
    )

    def __post_init__(self) -> None:
        if self.inner_loss not in INNER_LOSSES:
            raise ValueError(f"inner_loss={self.inner_loss!r}: want one of {', '.join(INNER_LOSSES)}")
        if not self.archive:
            raise ValueError(f"archive is not given. {HOW_TO_GET_ONE}")
        if not self.path.is_file():
            raise ValueError(f"archive={self.archive}: {not_a_file(self.path)}. {HOW_TO_GET_ONE}")

    @property
    def path(self) -> Path:
        """The archive's file."""
        return demo.MEND_ARCHIVE if self.archive == "demo" else found(Path(self.archive).expanduser())


class Mend(Editor):
    """W ← W + α Σ_tokens ũ ⊗ δ̃ with (ũ, δ̃) = g(u, δ), for each edited weight (sec. 3.2)."""

    name = "mend"
    summary = "a trained hypernetwork maps the answer's gradient to an edit; facts one by one or in batches"
    source = "Mitchell et al. 2022, arXiv 2110.11309"
    Options = MendOptions
    options: MendOptions
    not_routed = "its hypernetwork maps the gradient of linear maps that every token passes through"
    not_in_chat = "its hypernetwork has learnt from prompts as they stand; use ft, lora, or a method of the ROME family"
    needs = "a trained hypernetwork, archive=FILE: `lm-eval-edit train mend` makes one, published ones work too"
    batches = True
    # How the archive was trained: EasyEdit keeps it in the same file as what an edit needs.
    # fmt: off
    unused_fields = frozenset((
        "lr", "edit_lr", "lr_lr", "lr_scale", "seed", "debug", "cedit", "cloc", "cbase", "dropout", "train_base",
        "no_grad_layers", "one_sided", "n_hidden", "hidden_dim", "init", "norm", "combine", "x_only", "delta_only",
        "act", "rank", "mlp_class", "shared", "model_save_pt", "silent", "log_interval", "eval_log_interval",
        "final_eval", "val_interval", "early_stop_patience", "early_stop_key", "eval_only", "half", "save", "verbose",
        "val_batch_size", "accumulate_bs", "val_steps", "opt", "grad_clip", "max_output_length", "max_epochs",
        "max_iters",
    ))
    # fmt: on

    def describe(self) -> dict[str, Any]:
        # The ledger's identity is the hypernetwork, not where it lies.
        described = asdict(self.options)
        return described | {"archive": self.options.path.name, "archive_sha256": self._archive_sha256}

    @cached_property
    def _archive_sha256(self) -> str:
        digest = hashlib.sha256()
        with self.options.path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def _archive(self) -> MendArchive:
        return load_archive(self.options.path)

    @cached_property
    def _network(self) -> MendNetwork:
        names = self.options.inner_params or self._archive.inner_params
        if not names:
            raise UserError(
                f"archive={self.options.archive} does not say which weights it edits; give inner_params=[...], or "
                f"EasyEdit's hparams file that it was made with as edit_config"
            )
        network = MendNetwork.from_tensors(self._archive.tensors, names, f"archive={self.options.archive}")
        return network.eval().requires_grad_(False)

    def architecture_problems(self, architecture: Architecture) -> list[str]:
        """None: its archive names what is edited, linear maps beside a mixture's routed experts as well."""
        return []

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str]:
        return list(self._network.inner_params)

    def file_problems(self, model: Callable[[], PreTrainedModel]) -> list[str]:
        """Of the archive: whether it is one, and of this model."""
        try:
            network = self._network
        except UserError as error:
            return [str(error)]
        try:
            shapes = model()
        except ValueError:
            return []
        try:
            network.fit_to(shapes, f"archive={self.options.archive}")
        except UserError as error:
            return [str(error)]
        return []

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        model, network = context.model, self._network
        network.fit_to(model, f"archive={self.options.archive}")
        modules = [inner_module(model, name) for name in network.inner_params]
        kind = self._archive.inner_loss if self.options.inner_loss == "archive" else self.options.inner_loss
        batch = (
            easyedit_batch(context.tokenizer, facts) if kind == "easyedit" else exact_batch(context.tokenizer, facts)
        )
        loss, factors = gradient_factors(model, modules, batch)
        deltas = {}
        with torch.no_grad():
            for index, (module, (u, delta)) in enumerate(zip(modules, factors, strict=True)):
                wide = wide_dtype(weight_of(module).dtype)
                u, delta = (t.reshape(-1, t.shape[-1]).to(wide) for t in (u, delta))
                kept = (u != 0).any(dim=1) & (delta != 0).any(dim=1)
                network.to(device=u.device, dtype=wide)
                keys, values = network.transform(index, u[kept], delta[kept])
                keys = keys * network.edit_lrs[index]
                deltas[network.inner_params[index]] = linear_update(is_transposed(module), keys.T, values.T)
        return EditResult(deltas, {"loss": loss})
