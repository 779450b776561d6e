"""Run a schedule of edits on a model: compute, apply, guard, record; resume where an earlier run stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit._support.files import hash_json
from lm_eval_edit._support.logging import say
from lm_eval_edit._support.versions import versions
from lm_eval_edit.editors._shared.history import History
from lm_eval_edit.editors.base import EditContext, Editor, find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.edits.answers import Answer, edit_answers
from lm_eval_edit.edits.continuing import batch_problems, batched, operations_after, taken_over
from lm_eval_edit.edits.guards import EditError, NotFiniteError, NotTakenError, check_finite, guard, summary
from lm_eval_edit.edits.header import hash_of_ledger
from lm_eval_edit.edits.ledger import Ledger, check_schedule, open_ledger
from lm_eval_edit.edits.needed_moments import check_second_moments, no_second_moments
from lm_eval_edit.edits.operations import Operation
from lm_eval_edit.edits.prompt_lengths import flat, too_long
from lm_eval_edit.edits.routing import Routing, tell_changed
from lm_eval_edit.edits.source import describe_source
from lm_eval_edit.edits.success import FEW, Success
from lm_eval_edit.edits.surroundings import chat_problems, kept_frame
from lm_eval_edit.edits.surroundings import context_templates as templates_for
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.facts.chat import ChatFrame, chat_frame, placed
from lm_eval_edit.facts.contradictions import Asked, repetitions
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.tokens import context_size, each_text_once
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.mixture import eager_experts
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import EditedWeights
from lm_eval_edit.weights.fingerprint import describe_weights

__all__ = [
    "EditError", "EditRun", "NotFiniteError", "NotTakenError", "batch_problems", "begin_editing",
    "check_second_moments", "edit_model", "guard", "no_second_moments", "run_operations",
]  # fmt: skip

logger = logging.getLogger("lm_eval_edit")


def edit_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    editor: str = "rome",
    edit_batch_size: int = 1,
    options: Mapping[str, Any] | None = None,
    context_templates: Sequence[Any] | None = None,
    second_moments: str | Path | Mapping[str, torch.Tensor] | SecondMoments | None = None,
    *,
    chat_template: bool = False,
    ledger: str | Path | None = None,
    seed: int = 0,
    min_success: float | None = None,
    progress: bool = True,
) -> Ledger:
    """Edit a model in place, in the order of `facts`.

    Args:
        model: A decoder; it is edited in place, and must be in evaluation mode. A float64 model stays float64.
        tokenizer: Its tokenizer.
        facts: What to edit, first to last.
        editor: A method's name, or `module:Class`.
        edit_batch_size: How many facts one operation edits together.
        options: Hyper-parameters under EasyEdit's names; the model's preset fills in the rest.
        context_templates: Texts with `{}` at the prompt's place, flat (ROME family) or nested (MEMIT family); sampled
            from the model when not given.
        second_moments: A safetensors file or {module name: (f, f) tensor E[k kᵀ]}, for methods that need them.
        chat_template: Whether to edit the facts where a chat user meets them, inside the model's chat template
            (`facts.chat`), instead of the prompts as they stand.
        ledger: A folder to store the operations in, or to replay and continue: with more facts behind those that it
            holds the run goes on, with its state, whether the model object carries them already or is unedited.
        seed: Seeds whatever is sampled.
        min_success: The share of the facts (0 to 1) that must be answered with the new object right after their own
            edit, and at the end; None only warns below half.
        progress: Show progress bars.

    Returns:
        The ledger; `ledger.restore()` puts the model back, bit for bit; `ledger.edit(facts)` goes on.

    Raises:
        ConfigurationError: with every problem of the arguments; the model is untouched.
        EditError: an edit failed its guards, or fewer than `min_success` took; the model is restored.
    """
    editor_class = find_editor(editor)
    problems = _broken(facts)
    problems += batch_problems(editor_class, edit_batch_size, options or {})
    if min_success is not None and not (isinstance(min_success, (int, float)) and 0 <= min_success <= 1):
        problems.append(f"min_success={min_success}: want a share between 0 and 1, or None")
    resolved, found = resolve(editor_class, model.config, options or {})
    problems += found
    problems += chat_problems(editor_class, options or {}, facts, lambda: tokenizer, {}) if chat_template else []
    if resolved is not None:
        problems += _unusable(resolved.editor, facts)
        problems += resolved.editor.schedule_problems(len(facts))
        problems += resolved.editor.tokenizer_problems(lambda: tokenizer)
    if resolved is not None:
        parts = Architecture.discover(model)
        problems += parts.check_layers(resolved.editor.layers()) or resolved.editor.architecture_problems(parts)
    if problems or resolved is None:
        raise ConfigurationError(problems)
    for notice in resolved.notices:
        logger.warning(notice)
    for warning in repetitions(facts).warnings():
        logger.warning(warning)
    directory = Path(ledger) if ledger is not None else None
    return run_operations(
        model,
        tokenizer,
        resolved.editor,
        operations_after(directory, facts, edit_batch_size),
        edit_batch_size=edit_batch_size,
        context_templates=context_templates,
        second_moments=SecondMoments.load(second_moments),
        chat=chat_frame(tokenizer) if chat_template else None,
        directory=directory,
        seed=seed,
        min_success=min_success,
        progress=progress,
    )


def _broken(facts: Sequence[Fact]) -> list[str]:
    return [f"fact {fact.id or index}: {why}" for index, fact in enumerate(facts) if (why := fact.problem())]


def _unusable(editor: Editor, facts: Sequence[Fact]) -> list[str]:
    return [f"fact {fact.id}: {why}" for fact in facts if (why := editor.fact_problem(fact))]


def run_operations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    operations: Sequence[Sequence[Fact]],
    **settings: Any,
) -> Ledger:
    """Run all of some checked operations; `begin_editing` describes the arguments."""
    run = begin_editing(model, tokenizer, editor, operations, **settings)
    run.edit_to()
    return run.ledger


def begin_editing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    operations: Sequence[Sequence[Fact]],
    *,
    edit_batch_size: int,
    context_templates: Sequence[Any] | None = None,
    second_moments: SecondMoments | None = None,
    chat: ChatFrame | None = None,
    directory: Path | None = None,
    seed: int = 0,
    min_success: float | None = None,
    progress: bool = True,
) -> EditRun:
    """Prepare checked operations on a model, which is not changed yet; see `edit_model` for the arguments.

    Args:
        chat: The chat template's frame to edit in; None for prompts as they stand.

    Edits of the very ledger that is given are taken off; with others the model counts as unedited, and that is told.

    Raises:
        UserError: second moments are missing, or the ledger's folder belongs to another run.
        ConfigurationError: naming every fact whose prompt is longer than the model's context.
    """
    with taken_over(model, directory):
        return _begin(
            model, tokenizer, editor, operations, edit_batch_size, context_templates,
            second_moments or SecondMoments(), kept_frame(chat, directory), directory, seed, min_success, progress,
        )  # fmt: skip


def _begin(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    operations: Sequence[Sequence[Fact]],
    edit_batch_size: int,
    context_templates: Sequence[Any] | None,
    second_moments: SecondMoments,
    chat: ChatFrame | None,
    directory: Path | None,
    seed: int,
    min_success: float | None,
    progress: bool,
) -> EditRun:
    """`begin_editing` on a model that carries none of the run's edits."""
    architecture = Architecture.discover(model)
    if problems := editor.architecture_problems(architecture):
        raise ConfigurationError(problems)
    needed = check_second_moments(editor, architecture, second_moments)
    architecture = editor.edited(architecture)
    templates = templates_for(model, tokenizer, editor, context_templates, directory, seed)
    facts = placed([fact for operation in operations for fact in operation], chat)
    if problems := too_long(facts, context_size(model.config), lambda: tokenizer, flat(templates)):
        raise ConfigurationError(problems)
    identity = {
        "model": describe_weights(model, hash_of_ledger(directory)),
        "editor": editor.name,
        "options": editor.describe(),
        "edit_batch_size": edit_batch_size,
        "seed": seed,
        "context_templates": hash_json(templates),
        "second_moments": second_moments.sha256(needed) if needed else None,
    } | ({"chat_template": chat.template} if chat else {})
    extra = {
        "model": describe_source(model),
        "editor_class": f"{type(editor).__module__}:{type(editor).__qualname__}",
        "context_templates": templates,
        "second_moments_source": second_moments.source,
        "versions": versions(),
    } | ({"chat": chat.record()} if chat else {})
    if picks := second_moments.picks_record(needed):
        extra["second_moments_picks"] = picks
    ledger = open_ledger(directory, identity, extra, EditedWeights(model), len(operations))
    check_schedule(directory, ledger.operations, operations)
    ledger.finish = editor.finish
    context = EditContext(model, tokenizer, architecture, templates, second_moments, seed, progress, facts, chat)
    run = EditRun(ledger, editor, context, [list(facts) for facts in operations], min_success)
    ledger.edit_more = run.edit_more
    return run


@dataclass
class EditRun:
    """A schedule of operations on one model, carried out as far as it is asked for.

    Attributes:
        ledger: The operations done so far.
        editor: Computes the others.
        context: What it is given.
        operations: The facts of every operation of the schedule.
        min_success: The share of the edits that must have taken whenever `edit_to` has done its work.
        history: What the operations that this run has seen left for later ones.
        asked: What they ask, for telling whether more facts contradict them; found when more facts come.
    """

    ledger: Ledger
    editor: Editor
    context: EditContext
    operations: list[list[Fact]]
    min_success: float | None = None
    history: History = field(default_factory=History)
    asked: Asked | None = None

    def edit_to(self, n_operations: int | None = None, ask_from: int = 0) -> None:
        """Bring the model to the state after the first n operations (default: all), computing those still missing.

        Any state may follow any other: earlier operations are replayed from the ledger, never computed again.

        Args:
            n_operations: n.
            ask_from: The first operation whose facts are asked at the end, whether they hold.

        Raises:
            EditError: an edit failed its guards (the ledger holds the operations before it), or fewer edits took than
                `min_success` asks for (it holds them all); the model is restored.
        """
        n = len(self.operations) if n_operations is None else min(n_operations, len(self.operations))
        with eager_experts(self.context.model):
            self._edit_to(n, ask_from)

    def _edit_to(self, n: int, ask_from: int) -> None:
        ledger = self.ledger
        try:
            if n > len(ledger.operations):
                with ledger.growing(self.operations):
                    self._replay(n)
                    self._compute(n)
            else:
                self._replay(n)
            ledger.close()
            ledger.guards = guard(ledger)
            told = ledger.operations[ask_from : ledger.applied]
            facts = [fact for operation in told for fact in operation.facts]
            ledger.guards["retained"] = summary(self._answers(facts))
            if facts:
                self._tell_success(told)
        except BaseException:
            ledger.restore()
            raise

    def edit_more(self, facts: Sequence[Fact], ask_all: bool = True) -> None:
        """`Ledger.edit`: further operations behind those of the ledger."""
        contexts, context = flat(self.context.context_templates), self.context
        problems = _broken(facts) or (
            _unusable(self.editor, facts)
            + too_long(
                placed(facts, context.chat), context_size(context.model.config), lambda: context.tokenizer, contexts
            )
        )
        if problems:
            raise ConfigurationError(problems)
        stored = self.ledger.operations
        if self.asked is None or self.asked.n_facts != self.ledger.n_edits:
            self.asked = Asked([fact for operation in stored for fact in operation.facts])
        for warning in self.asked.add(facts).warnings():
            logger.warning(warning)
        done, known = len(stored), len(self.operations)
        self.operations[known:] = [operation.facts for operation in stored[known:]]
        self.operations[done:] = batched(facts, self.ledger.identity["edit_batch_size"])
        try:
            self.edit_to(ask_from=0 if ask_all else done)
        finally:
            del self.operations[len(self.ledger.operations) :]

    def _tell_success(self, told: Sequence[Operation]) -> None:
        """Say and record how many of the edits of some operations took.

        Raises:
            NotTakenError: fewer than `min_success` asks for.
        """
        ledger = self.ledger
        records = [operation.record for operation in told]
        found = Success.of(records, ledger.guards["retained"], in_chat=self.context.chat is not None)
        ledger.guards |= found.record()
        if problem := found.problem(self.min_success):
            raise NotTakenError(problem)
        if found.share < FEW:
            logger.warning("%s: most edits did not take, or did not last", found.line())
        else:
            say(logger, found.line())

    def _replay(self, n: int) -> None:
        """Apply what the ledger already holds of the first n operations."""
        ledger = self.ledger
        before = ledger.applied
        ledger.replay(n)
        if ledger.applied > before:
            ledger.compare_with_record()

    @each_text_once()
    def _compute(self, n: int) -> None:
        """Compute, apply and record the operations up to the nth that are not in the ledger yet."""
        ledger, editor, context = self.ledger, self.editor, self.context
        states = self._states()
        rest = self.operations[len(ledger.operations) : n]
        for facts in tqdm(rest, desc=f"editing ({editor.name})", unit="op", disable=not context.progress):
            before, where = self._answers(facts), placed(facts, context.chat)
            routing = Routing(context, editor, where)
            started = time.perf_counter()
            result = editor.compute(context, where, states)
            check_finite(result, facts)
            ledger.weights.apply(result.deltas)
            seconds = time.perf_counter() - started
            after = self._answers(facts)
            record = {
                "seconds": seconds,
                "delta_norms": {name: delta.norm() for name, delta in result.deltas.items()},
                "ranks": {name: delta.rank for name, delta in result.deltas.items()},
                "details": result.details | routing.details(),
                "before": summary(before),
                "after": summary(after),
                "answers_changed": sum(a.predicted != b.predicted for a, b in zip(after, before, strict=True)),
                "fingerprint": ledger.fingerprint(unseen=False),
            }
            operation = ledger.append(facts, result.deltas, result.state, record)
            ledger.applied += 1
            states.append(operation.state)
            operation.release()
        if rest:
            tell_changed(operation.record["details"] for operation in ledger.operations[-len(rest) :])
            ledger.compare_with_weights()

    def _answers(self, facts: Sequence[Fact]) -> list[Answer]:
        """The model's answers to facts where they are edited."""
        return edit_answers(self.context.model, self.context.tokenizer, placed(facts, self.context.chat))

    def _states(self) -> History:
        """What each operation in the ledger left behind for later ones; each is read once for the life of this run."""
        if len(self.history) > len(self.ledger.operations):  # another run has taken some away
            self.history = History()
        for operation in self.ledger.operations[len(self.history) :]:
            self.history.append(operation.state)
            operation.release()
        return self.history
