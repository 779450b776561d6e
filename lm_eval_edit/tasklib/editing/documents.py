"""The documents of the edit-quality tasks: the facts of the schedule that the run's own arguments describe.

One document for each prompt that is asked. All have

    fact_id     the fact; documents of one fact are not independent, so standard errors resample facts
    edit        its place in the schedule, from 0
    prompt      in clear
    target      what is asked for, as it continues the prompt: with what stands between them (`separators`)
    other       what it has to be likelier than; None where that is not known

The targets: o* over o for `efficacy` (the fact's own prompt; with `edit_chat_template` its question, if it has one) and
`generalization` (each paraphrase), the probe's answer over o* for `locality` (each probe). `counterfact`, `zsre` and
`counterfact_generation` have one document for each fact, with lists of its prompts. Those of `edithurt_probing` are in
`probing.documents`, those of `edithurt_portability` in `portability`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.facts.chat import said
from lm_eval_edit.facts.fact import Fact, Facts, in_clear
from lm_eval_edit.facts.separators import continuing, separator
from lm_eval_edit.facts.tokens import over_context
from lm_eval_edit.tasklib.editing import generation_inputs, portability
from lm_eval_edit.tasklib.editing.probing import chat
from lm_eval_edit.tasklib.editing.probing import documents as probing
from lm_eval_edit.tasklib.editing.schedule import in_chat, scheduled_facts, settings_of
from lm_eval_edit.tasklib.shorten import budget_of

logger = logging.getLogger("lm_eval_edit")

Document = dict[str, Any]
GROUP = "edithurt_editing"


# ---------------------------------------------------------------------------------------------------------- documents


def _continuing(fact: Fact, prompt: str, text: str | None) -> str | None:
    return fact.continuing(prompt, text) if text and text.strip() else None


def _document(fact: Fact, edit: int, prompt: str, target: str, other: str | None) -> Document:
    # Two answers of the same words cannot be told apart by their probabilities.
    other = None if other is not None and other.strip() == target.strip() else other
    return {
        "fact_id": fact.id,
        "edit": edit,
        "subject": fact.subject,
        "prompt": prompt,
        "target": target,
        "other": other,
    }


def efficacy(fact: Fact, edit: int, in_chat: bool = False) -> list[Document]:
    """The fact's own prompt; with `edit_chat_template` what the user says where it is edited."""
    prompt = said(fact) if in_chat else fact.text
    target, other = fact.continuing(prompt, fact.target_new), _continuing(fact, prompt, fact.target_true)
    return [_document(fact, edit, prompt, target, other)]


def generalization(fact: Fact, edit: int) -> list[Document]:
    """Each paraphrase."""
    return [
        _document(
            fact, edit, prompt, fact.continuing(prompt, fact.target_new), _continuing(fact, prompt, fact.target_true)
        )
        for prompt in (in_clear(paraphrase, fact.subject) for paraphrase in fact.paraphrases)
    ]


def locality(fact: Fact, edit: int) -> list[Document]:
    """Each locality probe: CounterFact's neighbourhood prompts, ZsRE's `loc`."""
    return [
        _document(fact, edit, probe.prompt, answer, fact.continuing(probe.prompt, fact.target_new))
        for probe in fact.locality
        if (answer := _continuing(fact, probe.prompt, probe.answer)) is not None
    ]


def counterfact(fact: Fact, edit: int) -> list[Document]:
    """The fact with all its prompts, if it has what CounterFact's score is made of: a true object, paraphrases, and
    neighbourhood prompts, which ask another subject for the same object."""
    true = _continuing(fact, fact.text, fact.target_true)
    neighbourhood = [
        probe.prompt for probe in fact.locality if true is not None and probe.answer.strip() == true.strip()
    ]
    if not fact.paraphrases or not neighbourhood or true is None or true.strip() == fact.target.strip():
        return []
    return [
        _whole(fact, edit, neighbourhood)
        | {
            "target": fact.target,
            "other": true,
            "target_script": _spaced(fact.target_new),
            "other_script": _spaced(fact.target_true or ""),
        }
    ]


def _whole(fact: Fact, edit: int, neighbourhood: list[str]) -> Document:
    """What a document of all a fact's prompts begins with."""
    return {
        "fact_id": fact.id,
        "edit": edit,
        "subject": fact.subject,
        "prompt": fact.text,
        "paraphrases": [in_clear(prompt, fact.subject) for prompt in fact.paraphrases],
        "neighbourhood": neighbourhood,
    }


def _spaced(text: str) -> str:
    """An object as the MEMIT repository's scripts write it behind a prompt."""
    return " " + text.lstrip(" ")


def zsre(fact: Fact, edit: int) -> list[Document]:
    """The fact with all its prompts, if it has paraphrases and probes."""
    probes = [probe for probe in fact.locality if probe.answer.strip()]
    if not fact.paraphrases or not probes:
        return []
    return [
        _whole(fact, edit, [_asked_as_question(probe.prompt) for probe in probes])
        | {
            "answers": [_spaced(probe.answer) for probe in probes],
            "target": _spaced(fact.target_new),
            "other": None,
        }
    ]


def _asked_as_question(prompt: str) -> str:
    """ZsRE's probes are questions of Natural Questions without their mark, which the MEMIT repository adds."""
    return f"{prompt}?" if "nq question: " in prompt and not prompt.endswith("?") else prompt


def generation(fact: Fact, edit: int) -> list[Document]:
    """The fact with its generation prompts, if it has any."""
    prompts = [in_clear(prompt, fact.subject) for prompt in fact.generation_prompts]
    if not prompts:
        return []
    return [
        {
            "fact_id": fact.id,
            "edit": edit,
            "subject": fact.subject,
            "prompt": prompts[0],
            "prompts": prompts,
            "relation": fact.relation or "",
            "object": fact.target_new_id or fact.target_new.strip(),
            "target": fact.target,
            "other": None,
        }
    ]


def in_context(doc: Mapping[str, Any], role: str, prompt: str, chat: bool = False) -> str:
    """A document's target or other object as it continues another text than the document's own prompt.

    Args:
        role: `target` or `other`.
        prompt: The text, or a prompt with a chat template around it.
        chat: Whether it is; an answer then begins as the template's end leaves it, as in the harness's own tasks.
    """
    joined = doc[role]
    if prompt == doc["prompt"]:
        return joined
    text = joined.lstrip()
    between = joined[: len(joined) - len(text)]
    stated = None if between == separator(doc["prompt"], text) else between
    return continuing(prompt, text, "" if chat else stated)


GENERATION = "counterfact_generation"

#: Task -> its documents of one fact, and what a fact without any lacks.
KINDS: dict[str, tuple[Callable[..., list[Document]], str]] = {
    "efficacy": (efficacy, "prompt"),
    "generalization": (generalization, "paraphrase"),
    "locality": (locality, "locality probe"),
    "counterfact": (counterfact, "true object with paraphrases and neighbourhood prompts"),
    "zsre": (zsre, "paraphrase with a locality probe"),
    GENERATION: (generation, "generation prompt (generation_prompts)"),
    portability.TASK: (portability.of_fact, portability.LACKS),
    **probing.KINDS,
}
#: Those that ask a fact's own prompt, or with `edit_chat_template` what the user says where it is edited.
WHERE_EDITED = ("efficacy", "negation")
OF_GROUP = ("efficacy", "generalization", "locality")
#: Group -> the tasks that it asks for.
GROUPS: dict[str, tuple[str, ...]] = {GROUP: OF_GROUP, probing.GROUP: probing.IN_GROUP}


def load(task: str, metadata: Mapping[str, Any]) -> tuple[list[Document], dict[str, Any]]:
    """The task's documents, and what is known about them.

    Raises:
        UserError: no data, an empty schedule, or none of its facts has what the task asks about.
    """
    facts, scheduled = scheduled_facts(metadata)
    _check_has(task, facts, scheduled)
    by_fact = _by_fact(task, scheduled, chatting=in_chat(metadata))
    docs = [doc for some in by_fact for doc in some]
    known = {
        "source": facts.source,
        "sha256": facts.sha256,
        "facts": len(scheduled),
        "facts_without": sum(not some for some in by_fact),
        "documents": len(docs),
        "without_other": sum(doc["other"] is None for doc in docs),
        "edit_when": settings_of(metadata).edit_when,
    }
    return docs, known | (portability.known(scheduled, by_fact) if task == portability.TASK else {})


def _by_fact(task: str, scheduled: Sequence[Fact], chatting: bool = False) -> list[list[Document]]:
    """For each fact of the schedule its documents.

    Args:
        chatting: Whether facts are edited inside the model's chat template.
    """
    if task == portability.TASK:
        return portability.of_schedule(scheduled)
    made = partial(KINDS[task][0], in_chat=chatting) if task in WHERE_EDITED else KINDS[task][0]
    return [made(fact, edit) for edit, fact in enumerate(scheduled)]


def _check_has(task: str, facts: Facts, scheduled: Sequence[Fact]) -> None:
    if _has(task, scheduled):
        return
    if task == portability.TASK:
        raise UserError(portability.why_none(facts.source, scheduled))
    none = (
        f"edithurt_{task}: none of the {len(scheduled)} facts of the schedule ({facts.source}) has a {KINDS[task][1]}"
    )
    group = probing.GROUP if task in probing.KINDS else GROUP
    if task not in GROUPS[group]:
        raise UserError(f"{none}; leave the task out, or give another edit_dataset")
    alone = [f"edithurt_{name}" for name in GROUPS[group] if name != task and _has(name, scheduled)]
    raise UserError(f"{none}; ask for {','.join(alone)} instead of {group}, or give another edit_dataset")


def _has(task: str, scheduled: Sequence[Fact]) -> bool:
    return any(_by_fact(task, scheduled))


def check_tasks(names: Iterable[str], metadata: Mapping[str, Any]) -> None:
    """Check that every edit-quality task among `names` has documents, before anything is loaded.

    Args:
        names: Task and group names as the harness resolved them.
        metadata: All model arguments and `--metadata`.

    Raises:
        ConfigurationError: naming every task without documents, and why.
    """
    names = set(names)
    grouped = {task for group, tasks in GROUPS.items() if group in names for task in tasks}
    wanted = [task for task in KINDS if f"edithurt_{task}" in names or task in grouped]
    if not wanted:
        return
    try:
        facts, scheduled = scheduled_facts(metadata)
    except UserError as error:
        raise ConfigurationError(problems_of(error)) from error
    problems = []
    for task in wanted:
        try:
            _check_has(task, facts, scheduled)
        except UserError as error:
            problems.append(str(error))
            continue
        if task == GENERATION:
            docs = [doc for fact in scheduled for doc in generation(fact, 0)]
            problems += generation_inputs.problems(metadata, facts.source, docs)
    if probing.CHAT in wanted and (found := chat.problem(metadata)):
        problems.append(found)
    if problems:
        raise ConfigurationError(problems)


def dataset(edithurt: str, provenance: Any = None, **metadata: Any) -> dict[str, Any]:
    """`custom_dataset` of the task YAMLs: `{"test": datasets.Dataset}`; see `sources.dataset` for the arguments."""
    import datasets

    docs, known = load(edithurt, metadata)
    if known["facts_without"]:
        logger.warning(
            "edithurt_%s: %d of %d facts have no %s and are not asked",
            edithurt,
            known["facts_without"],
            known["facts"],
            KINDS[edithurt][1],
        )
    if known.get("cases_cut"):
        logger.warning("edithurt_%s: %s", edithurt, portability.told_cut(known["cases_cut"]))
    if known["without_other"] and edithurt in (*OF_GROUP, *probing.AGAINST_OTHER):
        logger.warning(
            "edithurt_%s: %s out %d of %d documents: nothing is known that the target should beat",
            edithurt,
            probing.AGAINST_OTHER.get(edithurt, "prob_success leaves"),
            known["without_other"],
            known["documents"],
        )
    known["over_context"] = _over_context(edithurt, docs, metadata)
    if isinstance(provenance, dict):
        provenance.update(known)
    return {"test": datasets.Dataset.from_list(docs)}


_PROMPTS = ("paraphrases", "neighbourhood", "prompts")


def _over_context(task: str, docs: Sequence[Document], metadata: Mapping[str, Any]) -> int:
    """How many prompts the harness will cut from the left, as they are longer than the model's context; told."""
    budget = budget_of(dict(metadata), 0)
    if budget is None:
        return 0
    asked = {
        (doc["fact_id"], prompt, in_context(doc, role, prompt))
        for doc in docs
        for prompt in (*probing.prompts(doc), *(each for name in _PROMPTS for each in doc.get(name, ())))
        for role in ("target", "other")
        if doc[role] is not None
    }
    counted = {
        (tokens, fact_id, prompt)
        for fact_id, prompt, text in asked
        if (tokens := over_context(budget.tokenizer, prompt, text, budget.limit)) is not None
    }
    prompts = {prompt for _, _, prompt in counted}
    if prompts:
        tokens, fact_id, _ = max(counted)
        logger.warning(
            "edithurt_%s: %d of the prompts are with their object longer than the model's context of %d tokens (up to "
            "%d, fact %s): the harness cuts off their start",
            task,
            len(prompts),
            budget.limit,
            tokens,
            fact_id,
        )
    return len(prompts)
