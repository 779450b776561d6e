"""An export and its check. It is written beside its final place and moved there once it has passed its check."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import lm_eval_edit.export.card as card
from lm_eval_edit import demo
from lm_eval_edit._support.differences import differences
from lm_eval_edit._support.files import not_empty, publish, read_json, write_bytes, write_json
from lm_eval_edit._support.versions import versions
from lm_eval_edit.edits.surroundings import frame_of
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.export.adapter import (
    Adapter,
    check_adapter,
    load_adapter,
    make_adapter,
    no_adapter_of_experts,
    refused,
    write_adapter,
)
from lm_eval_edit.export.checkpoint import reloaded_logits, write_checkpoint
from lm_eval_edit.export.deltas import read_deltas, write_deltas
from lm_eval_edit.export.edited import Edited, Selection, load, select
from lm_eval_edit.export.selfcheck import ExportError, Verdict, compare, last_logits, prompts_of
from lm_eval_edit.export.sums import sum_deltas
from lm_eval_edit.facts.exported import RECORD
from lm_eval_edit.facts.fact import identity_of
from lm_eval_edit.models.dtypes import dtype_name
from lm_eval_edit.weights.edited import EditedWeights, wide_dtype
from lm_eval_edit.weights.fingerprint import parameter_hashes
from lm_eval_edit.weights.stacked import SliceWise

logger = logging.getLogger("lm_eval_edit")

FORMS = ("hf", "peft", "deltas")


def export(
    ledger: str | Path,
    to: str,
    output: str | Path,
    *,
    n_edits: int | None = None,
    rank: int | None = None,
    pretrained: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    editors: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the edited model that a ledger stands for, for another engine, and check it.

    Args:
        ledger: A folder made by `edit_ledger=`.
        to: hf (a checkpoint), peft (a LoRA adapter) or deltas (plain summed updates).
        output: A folder that is absent or empty.
        n_edits: How many facts, counted from the first; an operation must end there. All by default.
        rank: With to=peft: at most this rank, by the best approximation.
        pretrained: The unedited model, if the ledger does not say or it has moved: demo, a folder or a hub id.
        revision: Its revision on the hub.
        dtype: Its dtype, if not the ledger's.
        device: cpu, cuda:0, ..., or auto for all GPUs.
        trust_remote_code: As in transformers.
        editors: `module:Class` of the ledger's editor where it was given so, and of one that it works on: no code is
            imported because a ledger names it.

    Returns:
        What the export's JSON file says.

    Raises:
        ConfigurationError: every problem of the arguments, before any model loads.
        ExportError: what was written does not answer like the edited model; nothing is left at `output`.
    """
    output = Path(output)
    problems = _argument_problems(to, rank)
    if problem := not_empty(output):
        problems.append(problem)
    selection = None
    try:
        selection = select(Path(ledger), n_edits, editors, pretrained=pretrained, revision=revision, dtype=dtype)
    except ConfigurationError as error:
        problems += error.problems
    if selection is not None and to == "peft":
        found = {name: kind for operation in selection.operations for name, kind in operation.kinds.items()}
        problems += [
            refused(no_adapter_of_experts(name)) for name, kind in found.items() if issubclass(kind, SliceWise)
        ]
    if problems or selection is None:
        raise ConfigurationError(problems)
    job = _Job(load(selection, device, trust_remote_code), to, rank, device, trust_remote_code)
    publish(output, job.write, job.approve)
    return job.record


def check(ledger: str | Path, folder: str | Path, **options: Any) -> dict[str, Any]:
    """Check an export again: what lies in `folder` against the edited model of the ledger. Nothing is written.

    Args:
        ledger: The ledger it was made from.
        folder: The export.
        options: As in `export`: pretrained, revision, dtype, device, trust_remote_code, editors.

    Returns:
        What the export's JSON file would say if it were made now, with this check's figures.

    Raises:
        UserError: the folder is no export of this ledger.
        ExportError: it does not answer like the edited model.
    """
    folder = Path(folder)
    stored = read_json(folder / RECORD)
    if not isinstance(stored, Mapping) or stored.get("format") != card.FORMAT:
        raise UserError(f"{folder / RECORD} is not of format {card.FORMAT}, which this version reads")
    device, trust = options.pop("device", None), options.pop("trust_remote_code", False)
    selection = select(Path(ledger), stored["edits"]["n_edits"], **options)
    if other := _other_edits(stored, selection):
        raise UserError(f"{folder} is not an export of {ledger}: {'; '.join(other)}")
    job = _Job(load(selection, device, trust), stored["to"], stored["rank"], device, trust)
    if job.record["fingerprint"] != stored["fingerprint"]:
        logger.warning(
            "%s: the edited weights had other last bits where it was written (another processor or library rounds "
            "differently, or the same facts were edited with another seed, templates or second moments); its answers "
            "are compared, not its bits",
            folder,
        )
        job.weight_hashes = None
    job.record["check"] = job.verdict(folder).record()
    return job.record


def _other_edits(stored: Mapping[str, Any], selection: Selection) -> list[str]:
    """In what an export is of another model or of other edits than a ledger's, as sentences."""
    identity, edits = selection.header["identity"], stored["edits"]
    names = ("editor", "options")
    found = {name: edits[name] for name in names} | {"model": stored["base"]["fingerprint"], "facts": edits["facts"]}
    wanted = {name: identity[name] for name in names} | {"model": identity["model"]["fingerprint"]}
    wanted["facts"] = [fact.identity() for fact in selection.facts]
    # What tasks ask about facts may have come to one of the two later; no edit depends on it.
    found["facts"] = [identity_of(fact) for fact in found["facts"]]
    return differences(found, wanted, where="in the export")


def _argument_problems(to: str, rank: int | None) -> list[str]:
    problems = [] if to in FORMS else [f"to={to}: want one of {', '.join(FORMS)}"]
    if rank is not None and rank < 1:
        problems.append(f"rank={rank}: want a whole number of at least 1")
    if rank is not None and to != "peft":
        problems.append(f"rank={rank}: only to=peft has a rank; leave it out")
    return problems


@dataclass
class _Job:
    """One export: what is to be written, what it must answer, and its record."""

    edited: Edited
    to: str
    rank: int | None
    device: str | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        edited = self.edited
        self.tokenizer, self.dtype = edited.tokenizer, edited.model.dtype
        self.prompts = prompts_of(edited.selection.facts, frame_of(edited.selection.header))
        self.unedited = self._logits()
        edited.apply()
        self.wanted = self._logits()
        self.record = self._describe()
        self.adapter: Adapter | None = None
        self.weight_hashes: dict[str, list[Any]] | None = None
        if self.to == "hf":
            self.weight_hashes = parameter_hashes(edited.model)
        else:
            self.sums = sum_deltas(edited.deltas(), edited.model, wide_dtype(self.dtype))
            edited.restore()
        if self.to == "peft":
            self._decompose()

    def _logits(self) -> Tensor:
        return last_logits(self.edited.model, self.tokenizer, self.prompts)

    def _describe(self) -> dict[str, Any]:
        selection, ledger = self.edited.selection, self.edited.ledger
        identity = selection.header["identity"]
        return {
            "format": card.FORMAT,
            "to": self.to,
            "rank": self.rank,
            "fingerprint": ledger.fingerprint(),
            "base": {
                **selection.source,
                "dtype": dtype_name(self.dtype),
                "architecture": type(self.edited.model).__name__,
                "fingerprint": identity["model"]["fingerprint"],
                "hash": ledger.hash_name,
            },
            "edits": {
                "editor": identity["editor"],
                "source": self.edited.paper,
                "options": identity["options"],
                "edit_batch_size": identity["edit_batch_size"],
                "operations": len(selection.operations),
                "n_edits": len(selection.facts),
                "facts": [fact.record() for fact in selection.facts],
                "chat_template": selection.header["extra"].get("chat"),
            },
            "parameters": ledger.weights.report(),
            "versions": versions(),
        }

    def _decompose(self) -> None:
        """Make the adapter; an approximate one stands for other weights, which are what it is checked against."""
        model = self.edited.model
        self.adapter = adapter = make_adapter(model, self.sums, self.rank)
        exact, error = self.wanted, 0.0
        if not adapter.is_exact:
            weights = EditedWeights(model)
            weights.apply(adapter.factors)
            self.wanted = self._logits()
            weights.restore()
            error = float((self.wanted - exact).abs().max())
        self.record["adapter"] = {
            "rank": adapter.rank,
            "exact": adapter.is_exact,
            "factors_dtype": dtype_name(wide_dtype(self.dtype)),
            "logit_error": error,
            "parameters": {
                name: {"rank": delta.rank, "true_rank": adapter.true_ranks[name], "energy_kept": adapter.energy[name]}
                for name, delta in adapter.factors.items()
            },
        }

    def write(self, folder: Path) -> None:
        """Write the export into an empty folder."""
        if self.to == "hf":
            write_checkpoint(self.edited.model, self.tokenizer, folder)
            self.edited.release()  # the check loads a model of the same size
        elif self.to == "peft":
            assert self.adapter is not None, "it is made at the beginning"
            base = self.record["base"]
            write_adapter(self.edited.model, self.adapter, folder, demo.loadable(base["pretrained"]), base["revision"])
        else:
            about = {name: self.record[name] for name in ("base", "fingerprint")}
            write_deltas(folder, {name: total.delta() for name, total in self.sums.items()}, about)

    def approve(self, folder: Path) -> None:
        """Read an export back, compare it, and write the verdict beside it, in JSON and in the card."""
        self.record["check"] = self.verdict(folder).record()
        write_json(folder / RECORD, self.record)
        write_bytes(folder / "README.md", card.model_card(self.record).encode())

    def verdict(self, folder: Path) -> Verdict:
        """Compare what lies in a folder with what it stands for."""
        try:
            found = self._reloaded(folder)
            return compare(found, self.wanted, self.unedited, self.dtype, summed_apart=self.to == "peft")
        except ExportError as error:
            raise ExportError(f"the export to={self.to} failed its check and is not to be used: {error}") from None

    def _reloaded(self, folder: Path) -> Tensor:
        if self.to == "hf":
            self.edited.release()
            device = "auto" if self.device == "auto" else str(self.edited.device)
            return reloaded_logits(
                folder, self.weight_hashes, self.tokenizer, self.prompts, device, self.trust_remote_code
            )
        model = self.edited.model
        if self.to == "peft":
            adapted = load_adapter(model, folder)
            assert self.adapter is not None, "it is made at the beginning"
            check_adapter(adapted, self.adapter)
            return last_logits(adapted, self.tokenizer, self.prompts)
        weights = EditedWeights(model)
        weights.apply(read_deltas(folder))
        try:
            return self._logits()
        finally:
            weights.restore()
