"""Editors that change what another editor computes: its deltas are made first, by its own rules, then altered.

The hyper-parameters of both are given together (`editor=rect,over=memit,keep=0.4,v_lr=0.1`). What the inner editor
needs (context templates, second moments, layers, its state from earlier operations) is handed through.

The inner editor's state is what it leaves when its own, unaltered deltas are made; a method that accumulates keys of
the model it has just edited (AlphaEdit) accumulates them as if its edit had been applied whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit.editors.base import EditContext, Editor, EditResult, find_editor, option_names
from lm_eval_edit.editors.templates import TemplatePlan
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.weights.delta import Delta


class WrappingEditor(Editor):
    """An editor with another one inside.

    Class attributes:
        chooser: The option that names the inner editor.
    """

    chooser: ClassVar[str] = "over"
    needs: ClassVar[str] = "what the editor it changes needs"

    def __init__(self, options: Any, inner: Editor):
        super().__init__(options)
        self.inner = inner
        self.without_second_moments = inner.without_second_moments

    @classmethod
    def wraps(cls, given: Mapping[str, Any]) -> type[Editor]:
        own = {f.name: f.default for f in fields(cls.Options)}
        name = str(given.get(cls.chooser, own[cls.chooser]))
        try:
            inner = find_editor(name)
            rest = {option: value for option, value in given.items() if option not in own}
            theirs = set() if issubclass(inner, cls) else set(option_names(inner, rest))
        except UserError as error:
            raise UserError(f"{cls.chooser}={name}: {error}") from error
        shared = [option for option in own if option in theirs]
        if issubclass(inner, cls) or shared:
            why = f"both have an option {shared[0]}" if shared else "it is the same method"
            raise UserError(f"{cls.chooser}={name}: {cls.name} cannot change what {inner.name} computes ({why})")
        return inner

    @classmethod
    def edits_batches(cls, given: Mapping[str, Any]) -> bool:
        return cls.wraps(given).edits_batches(given)

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        result = self.inner.compute(context, facts, history)
        deltas = {name: self.alter(context, facts, name, delta) for name, delta in result.deltas.items()}
        details = dict(result.details)
        if type(self).alter is not WrappingEditor.alter:
            details.pop("closed", None)  # by the inner editor's own update, not by the one that is applied
        return EditResult(deltas, details, result.state)

    def alter(self, context: EditContext, facts: Sequence[Fact], parameter: str, delta: Delta) -> Delta:
        """The delta this method applies to `parameter` in place of the inner editor's; the same one by default."""
        return delta

    def fact_problem(self, fact: Fact) -> str | None:
        return self.inner.fact_problem(fact)  # also whether it needs a subject

    def schedule_problems(self, n_facts: int) -> list[str]:
        return self.inner.schedule_problems(n_facts)

    def tokenizer_problems(self, tokenizer_of: Callable[[], Any]) -> list[str]:
        return self.inner.tokenizer_problems(tokenizer_of)

    def finish(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Delta]:
        return self.inner.finish(weights)

    def describe(self) -> dict[str, Any]:
        return asdict(self.options) | self.inner.describe()

    def given_templates(self) -> Sequence[Any]:
        return self.inner.given_templates()

    def template_plan(self) -> TemplatePlan | None:
        return self.inner.template_plan()

    def needs_second_moments(self) -> list[int]:
        return self.inner.needs_second_moments()

    def layers(self) -> list[int]:
        return self.inner.layers()

    def architecture_problems(self, architecture: Architecture) -> list[str]:
        return self.inner.architecture_problems(architecture)

    def edited(self, architecture: Architecture) -> Architecture:
        return self.inner.edited(architecture)

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str] | None:
        return self.inner.parameters(model, architecture)

    def file_problems(self, model: Callable[[], PreTrainedModel]) -> list[str]:
        return self.inner.file_problems(model)
