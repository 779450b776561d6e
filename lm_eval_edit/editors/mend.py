"""MEND: a trained hypernetwork turns the gradient of the wanted answer into an edit.

Mitchell et al., *Fast Model Editing at Scale*, ICLR 2022 (arXiv 2110.11309). One forward and backward pass per
operation, of one fact or of many. The hypernetwork is the model's own: `lm-eval-edit train mend` makes one, and
EasyEdit's and the authors' archives are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.architecture import is_transposed
from lm_eval_edit.delta import linear_update
from lm_eval_edit.editors._forward import without_parameter_gradients
from lm_eval_edit.editors._mend_archive import HOW_TO_GET_ONE, MendArchive, load_archive
from lm_eval_edit.editors._mend_network import MendNetwork, inner_module, token_factors
from lm_eval_edit.editors._rows import target_ids
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, option
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts import Fact
from lm_eval_edit.weights import wide_dtype

INNER_LOSSES = ("archive", "exact", "easyedit")


@dataclass(frozen=True)
class MendOptions:
    """Options of MEND, under EasyEdit's names where it has them."""

    archive: str = option("the trained hypernetwork: ours (safetensors), EasyEdit's or the authors'", default="")
    inner_params: tuple[str, ...] = option("the edited weights, if the archive does not name them", default=())
    inner_loss: str = option(
        "whose gradient is taken: exact (the target's tokens), easyedit (their padding and any beginning-of-sequence "
        "token too), or archive (as the archive was trained)",
        default="archive",
    )

    def __post_init__(self) -> None:
        if self.inner_loss not in INNER_LOSSES:
            raise ValueError(f"inner_loss={self.inner_loss!r}: want one of {', '.join(INNER_LOSSES)}")
        if not self.archive:
            raise ValueError(f"archive is not given. {HOW_TO_GET_ONE}")
        if not Path(self.archive).expanduser().is_file():
            raise ValueError(f"archive={self.archive}: no such file. {HOW_TO_GET_ONE}")


class Mend(Editor):
    """W ← W + α Σ_tokens ũ ⊗ δ̃ with (ũ, δ̃) = g(u, δ), for each edited weight (sec. 3.2)."""

    name = "mend"
    summary = "a trained hypernetwork maps the answer's gradient to an edit; facts one by one or in batches"
    source = "Mitchell et al. 2022, arXiv 2110.11309"
    Options = MendOptions
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
        return described | {"archive": Path(self.options.archive).name, "archive_sha256": self._archive_sha256}

    @cached_property
    def _archive_sha256(self) -> str:
        digest = hashlib.sha256()
        with Path(self.options.archive).expanduser().open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def _archive(self) -> MendArchive:
        return load_archive(self.options.archive)

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
                wide = wide_dtype(module.weight.dtype)
                u, delta = (t.reshape(-1, t.shape[-1]).to(wide) for t in (u, delta))
                kept = (u != 0).any(dim=1) & (delta != 0).any(dim=1)
                network.to(device=u.device, dtype=wide)
                keys, values = network.transform(index, u[kept], delta[kept])
                keys = keys * network.edit_lrs[index]
                deltas[network.inner_params[index]] = linear_update(is_transposed(module), keys.T, values.T)
        return EditResult(deltas, {"loss": loss})


@dataclass(frozen=True)
class Batch:
    """Token rows and where they must predict what.

    Attributes:
        input_ids, attention_mask: (B, T).
        label_rows, label_columns, labels: (N,) row, column of the logits, and the token they must predict.
    """

    input_ids: Tensor
    attention_mask: Tensor
    label_rows: Tensor
    label_columns: Tensor
    labels: Tensor

    def nll(self, model: PreTrainedModel) -> Tensor:
        """Mean negative log-likelihood of the labels."""
        device = model.get_input_embeddings().weight.device
        logits = model(input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device)).logits
        at = logits[self.label_rows.to(logits.device), self.label_columns.to(logits.device)]
        return F.cross_entropy(at.to(wide_dtype(at.dtype)), self.labels.to(at.device))


def exact_batch(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Batch:
    """Each fact's prompt and target; every target token counts, and nothing else."""
    pairs = [(tokenizer.encode(fact.text), target_ids(tokenizer, fact.target)) for fact in facts]
    return rows_batch(pairs)


def rows_batch(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """(prompt ids, target ids) pairs, padded on the right, where a decoder does not look."""
    width = max(len(prompt) + len(target) for prompt, target in pairs)
    input_ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    rows, columns, labels = [], [], []
    for r, (prompt, target) in enumerate(pairs):
        length = len(prompt) + len(target)
        input_ids[r, :length] = torch.tensor([*prompt, *target])
        mask[r, :length] = 1
        rows += [r] * len(target)
        columns += range(len(prompt) - 1, length - 1)
        labels += target
    return Batch(input_ids, mask, *(torch.tensor(values) for values in (rows, columns, labels)))


def easyedit_batch(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Batch:
    """As EasyEdit builds it: padded on the left with positions counted from the padding, and labels that keep both the
    padding of shorter targets and a beginning-of-sequence token. For one fact and GPT's tokenizers it is exact.
    """
    pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id or 0
    texts = [tokenizer.encode(fact.text + fact.target) for fact in facts]
    targets = [tokenizer.encode(fact.target) for fact in facts]
    width, count = max(map(len, texts)), max(map(len, targets))
    if count >= width:
        raise UserError(f"the target {facts[0].target!r} has no prompt before it; inner_loss=exact may help")
    input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in texts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in texts])
    labels = torch.tensor([[pad] * (count - len(ids)) + ids for ids in targets])
    rows = torch.arange(len(facts)).repeat_interleave(count)
    columns = torch.arange(width - 1 - count, width - 1).repeat(len(facts))
    return Batch(input_ids, mask, rows, columns, labels.flatten())


def gradient_factors(
    model: PreTrainedModel, modules: Sequence[torch.nn.Module], batch: Batch
) -> tuple[float, list[tuple[Tensor, Tensor]]]:
    """The loss, and (u, δ) of each module: its (B, T, in) inputs and the loss's (B, T, out) gradient at its output."""
    scale = 1024.0 if model.dtype == torch.float16 else 1.0  # small gradients would vanish in float16
    with without_parameter_gradients(model), token_factors(modules) as factors, torch.enable_grad():
        loss = batch.nll(model)
        gradients = torch.autograd.grad(loss * scale, [probe for _, probe in factors])
    wide = [gradient.to(wide_dtype(gradient.dtype)) / scale for gradient in gradients]
    return float(loss.detach()), [(u, gradient) for (u, _), gradient in zip(factors, wide, strict=True)]
