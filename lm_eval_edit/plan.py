"""Turn the options of `edited_hf` into a plan of edits, checking everything that can be known before a model loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lm_eval_edit import demo
from lm_eval_edit._support.differences import differences
from lm_eval_edit._support.extras import beside
from lm_eval_edit.editors.base import Editor, find_editor, option_names
from lm_eval_edit.editors.hyperparameters import Hyperparameters, from_the_model, presets, resolve
from lm_eval_edit.edits import opened, scheduled
from lm_eval_edit.edits.chosen import (
    HFLM_OPTIONS,
    given_options,
    hyperparameters_of_all,
    model_config,
    no_code_of_files,
    split_options,
)
from lm_eval_edit.edits.ledger import mismatch, read_header
from lm_eval_edit.edits.needed_moments import no_second_moments
from lm_eval_edit.edits.prompt_lengths import flat, planned_tokenizer, too_long
from lm_eval_edit.edits.run import batch_problems
from lm_eval_edit.edits.surroundings import chat_problems, template_arguments
from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.facts.chat import chat_frame, placed
from lm_eval_edit.facts.contradictions import Repetitions, repetitions
from lm_eval_edit.facts.fact import Fact, Facts
from lm_eval_edit.facts.tokens import context_size
from lm_eval_edit.models import gguf, quantised
from lm_eval_edit.models.architecture import layer_problems
from lm_eval_edit.moments.corpus import corpus_problem
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.settings import EditSettings, parse_settings, unknown_option_problems
from lm_eval_edit.tasklib.records.sources import check_data_dir

#: Options that HFLM hands on to from_pretrained. Attributes of the model's configuration are accepted too.
# fmt: off
FROM_PRETRAINED = frozenset((
    "attn_implementation", "cache_dir", "code_revision", "config", "device_map", "experts_implementation",
    "force_download", "ignore_mismatched_sizes", "key_mapping", "local_files_only", "low_cpu_mem_usage", "max_memory",
    "offload_buffers", "proxies", "token", "torch_dtype", "use_kernels", "use_safetensors", "variant", "weights_only",
))
# fmt: on

#: HFLM options that make weights uneditable, and why.
_UNEDITABLE = {
    "autogptq": "GPTQ weights are integers: give the checkpoint they were made from",
    "gptqmodel": "GPTQ weights are integers: give the checkpoint they were made from",
    "load_in_4bit": "4-bit weights cannot hold an edit: leave it out, dtype=bfloat16 is the smallest that can",
    "load_in_8bit": "8-bit weights cannot hold an edit: leave it out, dtype=bfloat16 is the smallest that can",
    "quantization_config": "quantised weights cannot hold an edit: leave it out, and give a dtype",
    "tp_plan": "tensor-parallel weights are spread over devices; use parallelize=True, which keeps each matrix whole",
    "peft": "with an adapter nobody could say which of the two did what: merge it into a checkpoint first",
}


@dataclass(frozen=True)
class EditPlan:
    """Everything decided before the model loads.

    Attributes:
        settings: The checked options.
        pretrained: What HFLM is to load: a path, a hub id, or a model object.
        hyperparameters: The editor with its options; None for editor=none.
        facts: The data set; None for editor=none.
        operations: The batches of facts, in order.
        second_moments: For editors that need them.
        model_options: What is left for HFLM.
        config: The model's configuration; None where none was found.
        origins: For each hyper-parameter where its value comes from, in words.
    """

    settings: EditSettings
    pretrained: str | PreTrainedModel
    hyperparameters: Hyperparameters | None = None
    facts: Facts | None = None
    operations: tuple[list[Fact], ...] = ()
    second_moments: SecondMoments | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    config: PretrainedConfig | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def repetitions(self) -> Repetitions:
        """The scheduled facts that contradict one another, and those that stand more than once."""
        return repetitions([fact for operation in self.operations for fact in operation])


def make_plan(pretrained: str | PreTrainedModel, ours: Mapping[str, Any], others: Mapping[str, Any]) -> EditPlan:
    """Check all options and plan the edits.

    Args:
        pretrained: `demo`, `smollm2`, a path or hub id, or a model object.
        ours: Options of `EditSettings`, as given.
        others: All other options given, for HFLM and from_pretrained.

    Raises:
        ConfigurationError: with every problem found. No weights have been loaded.
    """
    plan, problems = draft_plan(pretrained, ours, others)
    if problems:
        raise ConfigurationError(problems)
    return plan


def draft_plan(
    pretrained: str | PreTrainedModel, ours: Mapping[str, Any], others: Mapping[str, Any]
) -> tuple[EditPlan, list[str]]:
    """The plan as far as the options allow, and all their problems as sentences; see `make_plan`."""
    settings, problems = parse_settings(ours)
    with no_code_of_files(settings, others):
        return _draft_plan(pretrained, settings, others, problems)


def _draft_plan(
    pretrained: str | PreTrainedModel, settings: EditSettings, others: Mapping[str, Any], problems: list[str]
) -> tuple[EditPlan, list[str]]:
    problems += _uneditable(pretrained, others)
    config, found = model_config(pretrained, others)
    problems += found
    source = pretrained if config is None else demo.loadable(pretrained)
    given, found = given_options(settings)
    problems += found
    others, direct = split_options(settings.editor, given, others)
    problems += _unknown(others, config, settings.editor)
    problems += check_data_dir(settings.data_dir)
    if settings.edit_corpus and (problem := corpus_problem(settings.edit_corpus)):
        problems.append(f"edit_corpus={problem}")
    plan = EditPlan(settings, source)
    if config is None:
        return plan, problems
    problems += _unsupported_model(config)
    problems += _facts_for(settings)
    if settings.editor != "none":
        plan, found = _plan_edits(settings, source, config, {**given, **direct})
        problems += found + _in_chat(plan, {**given, **direct}, others) + _too_long(plan, config, others)
        chosen = plan.hyperparameters
        if chosen is not None:
            plan = replace(plan, origins=_origins(chosen, given, direct, settings))
            depth = config.get_text_config(decoder=True).num_hidden_layers
            if not layer_problems(chosen.editor.layers(), depth):
                found = _opened(plan, chosen.editor, config, others)
                problems += [problem for problem in found if problem not in problems]
    return replace(plan, model_options=others, config=config), problems


def _facts_for(settings: EditSettings) -> list[str]:
    if settings.edit_facts_for is None:
        return []
    if settings.editor != "none":
        return [
            f"edit_facts_for={settings.edit_facts_for}: goes with editor=none; {settings.editor} is asked about the "
            f"facts it edits"
        ]
    try:
        find_editor(settings.edit_facts_for)
    except UserError as error:
        return [f"edit_facts_for={settings.edit_facts_for}: {error}"]
    return []


def _uneditable(pretrained: Any, others: Mapping[str, Any]) -> list[str]:
    problems = [f"{name}={others[name]}: {why}" for name, why in _UNEDITABLE.items() if others.get(name)]
    if others.get("gguf_file"):
        problems += gguf.problems(pretrained, str(others["gguf_file"]))
    if others.get("backend") == "seq2seq":
        problems.append("backend=seq2seq: edited_hf edits decoder-only models")
    return problems


def _unknown(others: Mapping[str, Any], config: PretrainedConfig | None, editor: str) -> list[str]:
    known = {*HFLM_OPTIONS, *FROM_PRETRAINED, *_UNEDITABLE}
    unknown = [name for name in others if name not in known and not hasattr(config, name)]
    owners = hyperparameters_of_all() if unknown else {}
    problems = unknown_option_problems(
        [name for name in unknown if name not in owners], [*HFLM_OPTIONS, *FROM_PRETRAINED]
    )
    return problems + [
        f"{name}: editor={editor} has no such hyper-parameter; {', '.join(owners[name])} "
        f"{'have' if len(owners[name]) > 1 else 'has'} it (`lm-eval-edit ls editors` lists them)"
        for name in unknown
        if name in owners
    ]


def _unsupported_model(config: PretrainedConfig) -> list[str]:
    problems = []
    if getattr(config, "is_encoder_decoder", False):
        problems.append(f"the model is a {config.model_type} encoder-decoder; edited_hf edits decoder-only models")
    if (method := quantised.method_of(config)) is not None:
        problems.append(f"the checkpoint is quantised{method} and cannot hold an edit; {quantised.REMEDY}")
    return problems


def _plan_edits(
    settings: EditSettings,
    source: str | PreTrainedModel,
    config: PretrainedConfig,
    given: Mapping[str, Any],
) -> tuple[EditPlan, list[str]]:
    problems: list[str] = []
    hyperparameters = facts = moments = None
    operations: list[list[Fact]] = []
    try:
        editor_class = find_editor(settings.editor)
        hyperparameters, found = resolve(editor_class, config, given, settings.edit_layers)
        problems += found + batch_problems(editor_class, settings.edit_batch_size, given)
        if hyperparameters is not None:
            moments = _second_moments(settings, source, hyperparameters)
            problems += lacking_second_moments(settings, hyperparameters.editor, moments)
    except UserError as error:
        problems.append(str(error))
    layers = hyperparameters.editor.layers() if hyperparameters else list(settings.edit_layers or ())
    problems += layer_problems(layers, config.get_text_config(decoder=True).num_hidden_layers)
    try:
        editor = hyperparameters.editor if hyperparameters else None
        everything = scheduled.read_facts(settings, source)
        facts = scheduled.usable(everything, editor) if editor else everything
        operations = scheduled.operations(settings, everything, editor)
        if editor is not None:
            problems += editor.schedule_problems(sum(map(len, operations)))
    except UserError as error:
        problems += problems_of(error)
    if settings.edit_ledger and hyperparameters is not None:
        try:
            check_ledger_header(Path(settings.edit_ledger), hyperparameters, settings)
        except UserError as error:
            problems.append(str(error))
    return EditPlan(settings, source, hyperparameters, facts, tuple(operations), moments), problems


def _too_long(plan: EditPlan, config: PretrainedConfig, others: Mapping[str, Any]) -> list[str]:
    """The facts whose prompts do not fit into the context; templates that are sampled are looked at when they are."""
    editor = plan.hyperparameters.editor if plan.hyperparameters else None
    given = editor.given_templates() if editor and editor.template_plan() else None
    facts = [fact for operation in plan.operations for fact in operation]
    try:
        if plan.settings.edit_chat_template:
            tokenizer = planned_tokenizer(plan.pretrained, others)
            frame = None if tokenizer is None else chat_frame(tokenizer, template_arguments(others))
            facts = placed(facts, frame)
        contexts, size = flat(given), context_size(config, others.get("max_length"))
        return too_long(facts, size, lambda: planned_tokenizer(plan.pretrained, others), contexts)
    except (TypeError, ValueError, UserError):  # templates or a length that are told elsewhere
        return []


def _in_chat(plan: EditPlan, given: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The problems of editing inside the chat template, where that is asked for."""
    if not plan.settings.edit_chat_template:
        return []
    try:
        editor = find_editor(plan.settings.editor)
    except UserError:  # told with the other problems of the plan
        return []
    facts = [fact for operation in plan.operations for fact in operation]
    arguments = template_arguments(others)
    return chat_problems(editor, given, facts, lambda: planned_tokenizer(plan.pretrained, others), arguments)


def _opened(plan: EditPlan, editor: Editor, config: PretrainedConfig, others: Mapping[str, Any]) -> list[str]:
    """The problems of the files that the edits will open, opened now."""
    settings, source = plan.settings, plan.pretrained
    trusted = bool(others.get("trust_remote_code"))
    problems = opened.editor_problems(
        editor,
        (lambda: opened.without_weights(config, trusted)) if isinstance(source, str) else lambda: source,
        plan.second_moments and plan.second_moments.regularised(settings.edit_mom2_regularisation),
        bool(settings.edit_corpus),
    )
    problems += editor.tokenizer_problems(lambda: planned_tokenizer(source, others))
    if settings.edit_ledger and plan.operations:
        problems += opened.ledger_problems(Path(settings.edit_ledger), plan.operations)
    return problems


def _origins(
    hyperparameters: Hyperparameters, given: Mapping[str, Any], direct: Mapping[str, Any], settings: EditSettings
) -> dict[str, str]:
    """Where each hyper-parameter's value comes from, in the order in which `resolve` lets one win over another."""
    editor, preset = type(hyperparameters.editor), hyperparameters.preset
    inner = editor.wraps({**given, **direct})
    names = option_names(editor, {**given, **direct})
    chosen = [p for name in (editor.name, getattr(inner, "name", "")) for p in presets(name) if p.name == preset]
    published = chosen[0].options if chosen else {}
    file = settings.edit_config if isinstance(settings.edit_config, str) else "edit_config"
    origins = {}
    from_model = from_the_model(hyperparameters.editor)
    for name in names:
        if name in from_model:
            origins[name] = f"the model: {from_model[name]}"
        elif name == "layers" and settings.edit_layers is not None:
            origins[name] = "edit_layers"
        elif name in direct:
            origins[name] = "model_args"
        elif name in given:
            origins[name] = file
        elif name in published:
            origins[name] = f"preset {preset}"
        else:
            origins[name] = "relative depth" if name == "layers" else "default"
    return origins


def _second_moments(
    settings: EditSettings, source: str | PreTrainedModel, hyperparameters: Hyperparameters
) -> SecondMoments:
    if settings.edit_second_moments:
        return SecondMoments.load(settings.edit_second_moments)
    belonging = beside(Path(source), "second_moments.safetensors") if isinstance(source, str) else None
    if hyperparameters.editor.needs_second_moments() and belonging is not None and belonging.is_file():
        return SecondMoments.load(belonging)
    return SecondMoments()


def lacking_second_moments(settings: EditSettings, editor: Editor, moments: SecondMoments) -> list[str]:
    """The problem of second moments that are needed, not there, and not to be computed, as a list of sentences.

    Which module a layer's moments belong to is known with the model only, so moments of any module of that layer count
    as there; `editing.check_second_moments` looks again.
    """
    lacking = [layer for layer in editor.needs_second_moments() if not moments.may_have(layer)]
    if settings.edit_corpus or not lacking:
        return []
    layers = f"layer{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}"
    return [no_second_moments(editor, layers, moments)]


def check_ledger_header(directory: Path, hyperparameters: Hyperparameters, settings: EditSettings) -> None:
    """Compare a ledger's identity with the options, as far as it does not depend on the weights.

    Raises:
        UserError: naming each difference.
    """
    header = read_header(directory)
    if header is None:
        return
    wanted = {
        "editor": hyperparameters.editor.name,
        "options": hyperparameters.editor.describe(),
        "edit_batch_size": settings.edit_batch_size,
        "edit_chat_template": settings.edit_chat_template,
    }
    kept = header["identity"] | {"edit_chat_template": "chat_template" in header["identity"]}
    found = differences({name: kept.get(name) for name in wanted}, wanted)
    if found:
        raise mismatch(directory, found)
