"""What an editor is, and how one is found by name.

An editor computes `{parameter name: Delta}` for a batch of facts and leaves the model as it was. Everything else
(order, application, restoring, storing, resuming, guarding) is done once, outside, for all editors.

Third parties add an editor with the entry point group `lm_eval_edit.editors` (name = "package.module:Class"), or name
it directly: `editor=package.module:Class`. A name may carry a parameter (`editor=easyeditor:PMET`): the class of that
name says what it means, in `Editor.with_parameter`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors.mixtures import mixture_problems
from lm_eval_edit.editors.named_by_data import refuse_code_of_data
from lm_eval_edit.editors.templates import TemplatePlan
from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.facts.chat import ChatFrame
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.delta import Delta

#: Characters of a long sentence (KnowEdit's WikiBio edits such). A method that finds one vector from which a model goes
#: on with the object finds none for a text of many sentences: what it says then follows from what it has just said.
LONGEST_OBJECT = 500


@dataclass(frozen=True)
class EditContext:
    """What every editor is given beside the facts.

    Attributes:
        model: In evaluation mode, carrying all earlier operations of the schedule.
        tokenizer: Its tokenizer.
        architecture: Its parts, with what the editor's options edit as its down-projections (`Editor.edited`).
        context_templates: As `Editor.template_plan` asks: flat for the ROME family, nested for the MEMIT family.
        second_moments: E[k kᵀ] per module, for editors that need them.
        seed: The schedule's seed, for editors that draw random numbers (from generators of their own).
        progress: Whether long work inside one operation may show a progress bar.
        schedule: The facts of the whole schedule, first to last; empty where there is none.
        chat: The chat template's frame that these facts and those to be edited stand in; None for facts as they are.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    context_templates: Sequence[Any]
    second_moments: SecondMoments
    seed: int = 0
    progress: bool = False
    schedule: Sequence[Fact] = ()
    chat: ChatFrame | None = None


@dataclass(frozen=True)
class EditResult:
    """What one operation computed.

    Attributes:
        deltas: The update of each parameter.
        details: JSON-able figures about the operation (losses, steps), for the ledger.
        state: What this operation leaves behind for the editor's later ones; stored in the ledger and handed back.
    """

    deltas: Mapping[str, Delta]
    details: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


class Editor(ABC):
    """A knowledge-editing method.

    Class attributes:
        name: As in `editor=name`.
        summary: One line for `lm-eval-edit ls editors`.
        source: The paper.
        Options: A frozen dataclass of hyper-parameters under EasyEdit's field names, each made with `option`.
        batches: Whether one operation may edit several facts.
        needs: What it needs beside the model, in words for `lm-eval-edit ls editors`; empty for nothing.
        other_options: Name of the field of `Options`, a mapping, that takes the options that are no fields; None to
            refuse those. For editors whose hyper-parameters another library defines.
        easyedit_name: The method's `alg_name` in EasyEdit's hparams files, where that is not its name.
        unused_fields: Fields of the method's published hparams files that its published code does not read; accepted
            and passed over.
        needs_subject: Whether a fact must name its subject, and where it stands.
        longest_object: How many characters an object may have; None where the method learns a text of any length.
        instead_of_layers: Name of the field of `Options` that names modules in place of `layers`, if there is one.
        not_routed: Why it cannot edit a mixture's experts, of which each token reads a few, for the error; empty where
            it can. A method that can takes what it edits from `_shared.sites`, not from the down-projection's module.
        fact_rank: The rank that a fact adds at most to the update of one matrix; 0 for updates that are not low rank;
            None where that shows once the edits are made.
        not_in_chat: Why it cannot edit inside a chat template, for the error; empty where it can: it takes prompts
            from `Fact.text`, `behind` and `essence`, and objects from `target`.
        without_second_moments: How to do without E[k kᵀ], for the error when there is none; empty if there is no way.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Options: ClassVar[type]
    batches: ClassVar[bool] = False
    needs: ClassVar[str] = ""
    other_options: ClassVar[str | None] = None
    easyedit_name: ClassVar[str | None] = None
    unused_fields: ClassVar[frozenset[str]] = frozenset()
    without_second_moments: str = ""
    not_in_chat: ClassVar[str] = ""
    not_routed: ClassVar[str] = "it edits linear maps, and a mixture's experts are slices of one tensor"
    needs_subject: ClassVar[bool] = True
    longest_object: ClassVar[int | None] = LONGEST_OBJECT
    fact_rank: ClassVar[int | None] = None
    instead_of_layers: ClassVar[str | None] = None
    options: Any  # an `Options`; a method says which, for the type checker

    @classmethod
    def with_parameter(cls, parameter: str) -> type[Editor]:
        """The editor that `editor=name:parameter` means.

        Raises:
            UserError: the method takes no parameter, or not this one.
        """
        raise UserError(f"editor={cls.name}:{parameter}: {cls.name} takes no parameter; use editor={cls.name}")

    def __init__(self, options: Any):
        self.options = options

    @abstractmethod
    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        """The update that edits `facts` together. The model is the same, bit for bit, before and after.

        Args:
            context: The model and its surroundings.
            facts: One operation's facts; one only, unless `batches`.
            history: `EditResult.state` of the schedule's earlier operations, first to last.
        """

    def fact_problem(self, fact: Fact) -> str | None:
        """Why this method cannot edit a fact that others can, or None. Such facts are skipped and reported by id.

        A subclass with reasons of its own asks this one first.
        """
        if self.needs_subject and not fact.subject.strip():
            return f"{self.name} needs the subject, and the fact names none; editor=ultraedit needs none"
        length = len(fact.target_new.strip())
        if self.longest_object is not None and length > self.longest_object:
            return (
                f"{self.name} writes names, phrases and a sentence at most ({self.longest_object} characters), and the "
                f"object is a text of {length}; editor=ft, lora and ultraedit learn texts"
            )
        return None

    def schedule_problems(self, n_facts: int) -> list[str]:
        """Why these options cannot edit a schedule of so many facts, as sentences; none by default."""
        return []

    def tokenizer_problems(self, tokenizer_of: Callable[[], Any]) -> list[str]:
        """Why these options cannot edit with a tokenizer; `tokenizer_of` may give None where it cannot be had yet."""
        return []

    def finish(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Delta]:
        """A last correction after all operations of a schedule, for methods that restrain the sum of their edits.

        It depends on where the schedule ends: computed anew for every length, it is no operation of the ledger.

        Args:
            weights: Per touched parameter the unedited weight W₀ and the change W_n − W₀, in float32 or wider; each
                pair is made when it is asked for (`EditedWeights.changes`).

        Returns:
            Deltas to add to W_n; none by default.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """The hyper-parameters as JSON-able values; None for one that is found in the model when editing begins.

        An option that came later than its method is told only where it is used, so that older ledgers still fit.
        """
        unused = {f.name for f in fields(self.options) if f.metadata.get("later") and _is_default(self.options, f)}
        return {name: value for name, value in asdict(self.options).items() if name not in unused}

    @classmethod
    def wraps(cls, given: Mapping[str, Any]) -> type[Editor] | None:
        """The editor whose deltas this one changes, as the given hyper-parameters choose it; None for most editors.

        The hyper-parameters of the two are given together. See `lm_eval_edit.editors._shared.wrapping`.

        Raises:
            UserError: the choice is no editor, or cannot be wrapped by this one.
        """
        return None

    @classmethod
    def edits_batches(cls, given: Mapping[str, Any]) -> bool:
        """Whether one operation may edit several facts, with these hyper-parameters."""
        return cls.batches

    def given_templates(self) -> Sequence[Any]:
        """The context templates among the hyper-parameters; empty for none."""
        return getattr(self.options, "context_templates", ())

    def template_plan(self) -> TemplatePlan | None:
        """The context templates to sample when none are given; None for a method without templates."""
        return None

    def needs_second_moments(self) -> list[int]:
        """Layers whose E[k kᵀ] these options need; empty for none."""
        return []

    @classmethod
    def default_layers(cls, n_layers: int) -> tuple[int, ...]:
        """Layers to edit in a model without a preset, by relative depth: about a third (GPT-2 XL: 17 of 48)."""
        return (round(n_layers * 0.35),)

    def layers(self) -> list[int]:
        """The layers these options edit."""
        return list(getattr(self.options, "layers", ()))

    def edited(self, architecture: Architecture) -> Architecture:
        """A model's parts with what these options edit as its down-projections: `edit_experts`, where there is one."""
        return architecture.routed() if getattr(self.options, "edit_experts", "") == "routed" else architecture

    def architecture_problems(self, architecture: Architecture) -> list[str]:
        """Why these options cannot edit a model with such parts, as sentences.

        Args:
            architecture: As it was found.
        """
        named = self.instead_of_layers is not None and bool(getattr(self.options, self.instead_of_layers))
        layers = [layer for layer in self.layers() or range(architecture.n_layers) if layer < architecture.n_layers]
        asked = getattr(self.options, "edit_experts", "")
        not_routed = "" if named else self.not_routed
        return mixture_problems(
            self.name, asked, architecture, self.edited(architecture), layers, not_routed, edit_routed
        )

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str] | None:
        """Names of the parameters that an edit may change; None where only an edit tells.

        By default the weights of the down-projections of `layers`.

        Args:
            model: The model, or its shapes alone.
            architecture: Its parts, as they were found.
        """
        edited = self.edited(architecture)
        return [edited.weight(layer) for layer in self.layers() if layer < edited.n_layers] or None

    def file_problems(self, model: Callable[[], PreTrainedModel]) -> list[str]:
        """What is wrong with the files that these options name, as sentences; none by default.

        Args:
            model: Makes the model, or its shapes alone; raises ValueError where it cannot be made.
        """
        return []


def _is_default(options: Any, f: Field[Any]) -> bool:
    return bool(getattr(options, f.name) == f.default)


def option(
    help: str,
    *,
    from_model: str = "",
    like: float = 1.0,
    tuned: bool = True,
    later: bool = False,
    least: int | None = None,
    sign: str = "",
    **kwargs: Any,
) -> Any:
    """A dataclass field with a description.

    Args:
        help: The description.
        from_model: How a number is found in the model where none is given, in words; its default is then None, and
            `auto` asks for it explicitly (docs/defaults.md).
        like: A number of the type of such an option.
        tuned: Whether a number is the result of somebody's search over models, so that its default is worth a notice
            where no published value is known.
        later: Whether ledgers have been written before there was this option: it is not told at its default.
        least: For a whole number that may also be none, the smallest that is accepted.
        sign: "positive" or "not negative", for a number that must be; "" for any.
        kwargs: Those of `dataclasses.field`.
    """
    if from_model:
        kwargs["default"] = None
    told = {"help": help, "from_model": from_model, "like": like, "tuned": tuned, "later": later, "least": least}
    told["sign"] = sign
    return field(metadata=told, **kwargs)


def experts_option() -> Any:
    """The field `edit_experts` of methods that can edit a mixture's experts; see `mixtures.check_experts`."""
    return option(
        "where a mixture has a shared expert: edit that one (shared), or those that the router picks (routed), as is "
        "done where it has none",
        default="shared", later=True,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the registry

BUILT_IN: dict[str, str] = {
    "rome": "lm_eval_edit.editors.rome:Rome",
    "r_rome": "lm_eval_edit.editors.r_rome:RRome",
    "memit": "lm_eval_edit.editors.memit:Memit",
    "memit_seq": "lm_eval_edit.editors.memit_seq:MemitSeq",
    "encore": "lm_eval_edit.editors.encore:Encore",
    "emmet": "lm_eval_edit.editors.emmet:Emmet",
    "alphaedit": "lm_eval_edit.editors.alphaedit:AlphaEdit",
    "betaedit": "lm_eval_edit.editors.betaedit:BetaEdit",
    "kn": "lm_eval_edit.editors.kn:Kn",
    "mend": "lm_eval_edit.editors.mend.editor:Mend",
    "ft": "lm_eval_edit.editors.ft:Ft",
    "rect": "lm_eval_edit.editors.rect:Rect",
    "prune": "lm_eval_edit.editors.prune:Prune",
    "sphere": "lm_eval_edit.editors.sphere:Sphere",
    "ultraedit": "lm_eval_edit.editors.ultraedit:UltraEdit",
    "lora": "lm_eval_edit.editors.lora:Lora",
    "random": "lm_eval_edit.editors.random:Random",
    "easyeditor": "lm_eval_edit.editors.easyeditor.editor:EasyEdit",
}


def _entry_points() -> dict[str, str]:
    return {point.name: point.value for point in importlib.metadata.entry_points(group="lm_eval_edit.editors")}


def editor_names() -> list[str]:
    """Names `editor=` knows, `none` included: the built-in ones, then those of installed packages."""
    return ["none", *BUILT_IN, *(name for name in _entry_points() if name not in BUILT_IN)]


def edit_routed() -> list[str]:
    """Names of the methods that edit a mixture's routed experts, in the registry's order."""
    found = []
    for name in editor_names()[1:]:
        with contextlib.suppress(UserError):  # another package's that cannot be imported
            found += [] if find_editor(name).not_routed else [name]
    return found


def find_editor(name: str) -> type[Editor]:
    """The editor class for a name (with a parameter: `name:parameter`), an entry point or `module:Class`.

    Raises:
        UserError: nothing of that name, it is not an Editor, it does not take the parameter, or it is a `module:Class`
            within `names_out_of_data`.
    """
    known = _entry_points() | BUILT_IN
    first, _, parameter = name.partition(":")
    if parameter and (first in BUILT_IN or (first in known and _takes_parameter(find_editor(first)))):
        return find_editor(first).with_parameter(parameter)
    target = known.get(name) or (name if ":" in name else None)
    if target is None:
        raise UserError(
            f"editor={name}: no such editor.{nearest(name, editor_names())} "
            f"Known are {', '.join(editor_names())}; another package's is given as editor=module:Class"
        )
    if name not in known:
        refuse_code_of_data(name, f"editor={name}")
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"editor={name}: {target} cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Editor)):
        raise UserError(f"editor={name}: {target} is not a subclass of lm_eval_edit.editors.Editor")
    return found


def _takes_parameter(editor: type[Editor]) -> bool:
    return next(c for c in editor.__mro__ if "with_parameter" in vars(c)) is not Editor


def option_names(editor: type[Editor], given: Mapping[str, Any] | None = None) -> list[str]:
    """Names of an editor's hyper-parameters and of those of the editor it wraps, if any.

    Args:
        given: The hyper-parameters given, which may choose the wrapped editor.
    """
    inner = editor.wraps(given or {})
    return [f.name for f in fields(editor.Options)] + (option_names(inner, given) if inner is not None else [])
