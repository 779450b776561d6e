"""Train a hypernetwork for MEND (Mitchell et al. 2022, arXiv 2110.11309, algorithm 1).

For each fact the model's gradient is turned into an edit; the edited model is to give the new answer (L_e) and to
answer unrelated prompts as before (L_loc); the hypernetwork follows the gradient of c_e L_e + c_loc L_loc.

A batch of facts is a batch of differently edited models. None of them is ever built: an edit is a sum of outer
products, so the edited layer's output is x W + Σ_t (x · ũ_t) δ̃_t, each row with its own fact's factors.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit._support.differences import differences
from lm_eval_edit._support.files import load_tensors, read_json, save_tensors, write_json
from lm_eval_edit.editors._shared.forward import without_parameter_gradients
from lm_eval_edit.editors.mend.archive import save_archive
from lm_eval_edit.editors.mend.batch import Batch, Factors, edited, exact_batch, gradient_factors, rows_batch
from lm_eval_edit.editors.mend.network import MendNetwork, check_names, inner_module
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact, Facts, Probe, in_clear
from lm_eval_edit.facts.tokens import continuation
from lm_eval_edit.models.architecture import Architecture, linear_shape
from lm_eval_edit.models.devices import weight_of
from lm_eval_edit.weights.edited import wide_dtype
from lm_eval_edit.weights.fingerprint import OLDEST, model_fingerprint


@dataclass(frozen=True)
class Score:
    """What edits did, as means over facts.

    Attributes:
        edit_loss: L_e, negative log-likelihood per token of the new answer in the edited model.
        loc_loss: L_loc, KL(unedited ‖ edited) per token of unrelated answers.
        edited: Share of facts whose new answer is the edited model's likeliest, token by token.
        kept: Share of facts whose unrelated answer has the same likeliest tokens as before.
    """

    edit_loss: float
    loc_loss: float
    edited: float
    kept: float


def train_mend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    output: str | Path,
    settings: MendTrainingSettings | None = None,
    *,
    progress: bool = True,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a hypernetwork and write the best one found, by validation loss, to `output`.

    A run that was stopped goes on from its last validation when it is started again with the same arguments, and ends
    with the same bits; the state is in the folder `<output>.training`.

    Args:
        model: In evaluation mode; it is not changed.
        facts: With paraphrases and locality probes, if there are any; another fact's prompt serves as a probe else.
        report: Takes one line for each validation; they go to stderr by default.

    Returns:
        The record of the training: `steps`, `best_step`, `history` (a `Score` for each validation), `stopped_early`.

    Raises:
        UserError: too few facts, weights that cannot be edited, or a folder of another training.
    """
    settings = settings or MendTrainingSettings()
    if len(facts) < settings.val_facts + settings.batch_size:
        raise UserError(
            f"{facts.source} has {len(facts)} usable facts; val_facts={settings.val_facts} and "
            f"batch_size={settings.batch_size} need {settings.val_facts + settings.batch_size}"
        )
    trainer = _Trainer(model.eval(), tokenizer, facts, Path(output).expanduser(), settings)
    trainer.resume()
    s = settings
    bar = tqdm(total=s.max_steps, initial=trainer.step, desc="training mend", unit="step", disable=not progress)
    with bar, without_parameter_gradients(model):
        while trainer.step < s.max_steps and not trainer.stopped_early:
            bar.set_postfix(loss=f"{trainer.train_step():.3f}", refresh=False)
            bar.update()
            if trainer.step % s.val_interval == 0 or trainer.step == s.max_steps:
                line = trainer.validate()
                report(line) if report else tqdm.write(line, file=sys.stderr)
                trainer.save()
    return trainer.record()


def _generator(*parts: int | str) -> torch.Generator:
    """A generator for one purpose, whatever has been drawn for others: nothing of it need be stored to resume."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class _Trainer:
    """The state of one training."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Facts,
        output: Path,
        settings: MendTrainingSettings,
    ):
        self.model, self.tokenizer, self.output, self.settings = model, tokenizer, output, settings
        self._folder = output.with_name(output.name + ".training")
        self.names = inner_params_of(model, settings)
        self.modules = [inner_module(model, name) for name in self.names]
        self.device = weight_of(self.modules[0]).device
        shapes, draw = [linear_shape(module) for module in self.modules], _generator(settings.seed, "weights")
        network = MendNetwork(self.names, shapes, settings.rank, settings.edit_lr, draw)
        self.network = network.to(self.device, wide_dtype(model.dtype))
        groups: list[dict[str, Any]] = [
            {"params": list(network.mend.parameters())},
            {"params": [network.edit_lrs], "lr": settings.lr_lr},
        ]
        self.optimiser = torch.optim.Adam(groups, settings.lr)
        order = torch.randperm(len(facts), generator=_generator(settings.seed, "split")).tolist()
        self.validation = [facts[i] for i in order[: settings.val_facts]]
        self.training = [facts[i] for i in order[settings.val_facts :]]
        self.identity = {
            "model": model_fingerprint(model, OLDEST),  # beside hours of training it costs nothing, and old ones go on
            "facts": facts.sha256,
            "settings": asdict(replace(settings, inner_params=tuple(self.names))) | {"max_steps": None},
        }
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.history: list[dict[str, Any]] = []

    @property
    def stopped_early(self) -> bool:
        return self.step - self.best_step >= self.settings.patience

    # ------------------------------------------------------------------------------------------------------ the losses

    def _facts_of(self, number: int) -> list[Fact]:
        """The facts of one pass: every fact once, in a new order each time round."""
        size, n = self.settings.batch_size, len(self.training)
        positions = range(number * size, (number + 1) * size)
        rounds = {position // n for position in positions}
        orders = {r: torch.randperm(n, generator=_generator(self.settings.seed, "order", r)) for r in rounds}
        return [self.training[int(orders[position // n][position % n])] for position in positions]

    def _batches(self, facts: Sequence[Fact], draw: torch.Generator, outer: str) -> tuple[Batch, Batch]:
        """What the edited models are asked: their own fact, and something unrelated."""

        def pick(items: Sequence[Any]) -> Any:
            return items[int(torch.randint(len(items), (1,), generator=draw))]

        def pair(fact: Fact, prompt: str, answer: str) -> tuple[list[int], list[int]]:
            return continuation(self.tokenizer, prompt, fact.continuing(prompt, answer))

        edits, probes = [], []
        for fact in facts:
            others = [in_clear(paraphrase, fact.subject) for paraphrase in fact.paraphrases]
            prompts = {"prompt": [fact.text], "paraphrase": others or [fact.text], "any": [fact.text, *others]}[outer]
            edits.append(pair(fact, pick(prompts), fact.target_new))
            probe, other = pick(fact.locality or (None,)), pick(self.training)
            asked = (fact, probe) if probe else (other, Probe(other.text, other.target_true or other.target_new))
            probes.append(pair(asked[0], asked[1].prompt, asked[1].answer))
        return rows_batch(edits), rows_batch(probes)

    def _factors(self, facts: Sequence[Fact], observe: bool) -> Factors:
        """(ũ α, δ̃) of each weight: (B, T, in) and (B, T, out), zero where a token has no gradient."""
        _, raw = gradient_factors(self.model, self.modules, exact_batch(self.tokenizer, facts))
        out = []
        for index, (u, delta) in enumerate(raw):
            wide = self.network.edit_lrs.dtype
            u, delta = u.to(self.device, wide), delta.to(self.device, wide)
            used = (u != 0).any(-1) & (delta != 0).any(-1)
            if observe:
                self.network.transform_of(self.network.places[index].key).observe(u[used], delta[used])
            keys, values = self.network.transform(index, u, delta)
            out.append((keys * used[..., None] * self.network.edit_lrs[index], values))
        return out

    def _losses(self, facts: Sequence[Fact], factors: Factors, edit: Batch, probe: Batch) -> tuple[Tensor, ...]:
        """Per fact: L_e, L_loc, whether the edit took, and whether the probe's answer stayed."""
        before = probe.log_probs(self.model).detach()
        with edited(self.modules, factors):
            after_edit, after_probe = edit.log_probs(self.model), probe.log_probs(self.model)
        labels = edit.labels.to(after_edit.device)[:, None]
        divergence = F.kl_div(after_probe, before, log_target=True, reduction="none").sum(-1)  # KL(before ‖ after)
        return (
            edit.row_means(-after_edit.gather(1, labels)[:, 0]),
            probe.row_means(divergence),
            edit.row_means((after_edit.argmax(1) == labels[:, 0]).float()).eq(1),
            probe.row_means((after_probe.argmax(1) == before.argmax(1)).float()).eq(1),
        )

    def train_step(self) -> float:
        """One step of the optimiser. Returns the loss."""
        s, total = self.settings, 0.0
        self.optimiser.zero_grad()
        for number in range(self.step * s.accumulate, (self.step + 1) * s.accumulate):
            facts = self._facts_of(number)
            batches = self._batches(facts, _generator(s.seed, "prompts", number), s.outer)
            edit, loc, _, _ = self._losses(facts, self._factors(facts, observe=True), *batches)
            loss = (s.cedit * edit.mean() + s.cloc * loc.mean()) / s.accumulate
            loss.backward()
            total += float(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), s.grad_clip)
        if math.isfinite(float(norm)):
            self.optimiser.step()
        self.step += 1
        return total

    @torch.no_grad()
    def score(self, facts: Sequence[Fact], outer: str = "prompt") -> Score:
        """What the hypernetwork's edits do to these facts, each edited alone."""
        columns = []
        for start in range(0, len(facts), self.settings.batch_size):
            some = facts[start : start + self.settings.batch_size]
            batches = self._batches(some, _generator(self.settings.seed, "validation", start), outer)
            columns.append(torch.stack([t.double() for t in self._losses(some, self._factors(some, False), *batches)]))
        return Score(*torch.cat(columns, dim=1).mean(dim=1).tolist())

    def validate(self) -> str:
        """Score the facts kept out, and write the archive if this is the best so far. Returns a line about it."""
        score = self.score(self.validation, self.settings.outer)
        loss = self.settings.cedit * score.edit_loss + self.settings.cloc * score.loc_loss
        self.history.append({"step": self.step, "loss": loss} | asdict(score))
        better = loss < self.best or len(self.history) == 1  # the first in any case: a NaN is worth looking at
        if better:
            self.best, self.best_step = loss, self.step
            tensors = self.network.state_dict()
            save_archive(self.output, tensors, self.names, self.identity | {"step": self.step, "score": asdict(score)})
        return (
            f"step {self.step}: validation loss {loss:.4f}{' (best)' if better else ''}, "
            f"edited {score.edited:.0%}, unrelated answers kept {score.kept:.0%}"
        )

    # ------------------------------------------------------------------------------------------------- stop and resume

    def record(self) -> dict[str, Any]:
        """What is known of the training so far."""
        done = {"steps": self.step, "best_step": self.best_step, "stopped_early": self.stopped_early}
        return done | {"history": self.history}

    def save(self) -> None:
        """Write the state: the tensors under a new name, then the JSON that names them, whole or not at all."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in values.items()}
        file = f"step-{self.step:06d}.safetensors"
        digest = save_tensors(self._folder / file, tensors)
        state = {"identity": self.identity, "best": self.best, "file": file, "sha256": digest} | self.record()
        write_json(self._folder / "state.json", state)
        for old in set(self._folder.glob("step-*.safetensors")) - {self._folder / file}:
            old.unlink()

    def resume(self) -> None:
        """Go on from a stored state, if there is one.

        Raises:
            UserError: it belongs to another training (each difference named).
        """
        if not (self._folder / "state.json").exists():
            return
        state = read_json(self._folder / "state.json")
        wanted = {"identity", "best", "file", "sha256", "steps", "best_step", "history"}
        if not isinstance(state, dict) or not wanted <= state.keys():
            raise UserError(f"{self._folder / 'state.json'} is damaged; delete {self._folder} to begin again")
        found = differences(state["identity"], json.loads(json.dumps(self.identity)), where="there")
        if not self.output.exists():
            found.append(f"{self.output}, which it wrote, is gone")
        if found:
            lines = "\n    ".join(found)
            raise UserError(f"{self._folder} is another training's:\n    {lines}\n  Delete it, or give another output")
        try:
            tensors = load_tensors(self._folder / Path(state["file"]).name, state["sha256"])
        except UserError as error:
            raise UserError(f"{error}; delete {self._folder} to begin again") from None
        stored: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, field = name.split(".")
                stored.setdefault(int(index), {})[field] = tensor
        held = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        self.network.load_state_dict(held)
        self.optimiser.load_state_dict({"state": stored, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step, self.best, self.best_step = state["steps"], state["best"], state["best_step"]
        self.history = state["history"]


def default_inner_params(model: PreTrainedModel) -> tuple[str, ...]:
    """All MLP matrices of the last three blocks, as in the published archives; of a mixture those of its shared expert.

    Args:
        model: The model, or its shapes alone.

    Raises:
        UserError: one of these blocks has none that every token passes.
    """
    architecture = Architecture.discover(model)
    last = range(max(architecture.n_layers - 3, 0), architecture.n_layers)
    found = {layer: architecture.mlp_projections(model, layer) for layer in last}
    if without := [str(layer) for layer, paths in found.items() if not paths]:
        raise UserError(
            f"inner_params: MEND edits linear maps that every token passes, and the MLP{'s' * (len(without) > 1)} of "
            f"layer{'s' * (len(without) > 1)} {', '.join(without)} are mixtures of experts without a shared one. Give "
            f"inner_params, the weights of linear maps such as attention's, or use a method that edits experts "
            f"(editor=memit, rome or ft)"
        )
    return tuple(f"{path}.weight" for paths in found.values() for path in paths)


def inner_params_of(model: PreTrainedModel, settings: MendTrainingSettings) -> tuple[str, ...]:
    """Names of the weights that a training is about.

    Args:
        model: The model, or its shapes alone.
        settings: Of the training.

    Raises:
        UserError: there are none, or one is no linear map's, or is there twice.
    """
    names = settings.inner_params or default_inner_params(model)
    check_names(names)
    for name in names:
        inner_module(model, name)
    return names
