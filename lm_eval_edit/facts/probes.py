"""Locality probes in every shape in which the field's data files write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lm_eval_edit.facts.fields import Field, shown

_PROMPTS, _ANSWERS = ("prompt", "loc"), ("answer", "ground_truth", "loc_ans")


def pairs(prompts: Field, answers: Field) -> Iterator[tuple[str, str]]:
    """Probes of a prompt and its answer, or of parallel lists of them; without a prompt or an answer there is none.

    Beside a single prompt, and within a list of answers, a list holds other wordings of one answer: the first is taken.
    """
    if not prompts.is_list or answers.missing:
        both = [(prompts, answers)] if not prompts.is_list else []
    else:
        asked, answered = prompts.entries(), answers.entries() if answers.is_list else [answers]
        both = list(zip(asked, answered, strict=False))
        if len(asked) != len(answered):
            prompts.wrong(
                f"{prompts.path} and {answers.path} should be lists of the same length; got {len(asked)} and "
                f"{len(answered)} entries"
            )
    for prompt, answer in both:
        text, true = prompt.text("a locality prompt"), answer.first()
        if text and true is not None:
            yield text, true


def probes(field: Field, *, strict: bool, categories: bool = True) -> list[tuple[str, str]]:
    """Locality in any of its shapes: a list of probes, or by category a list of probes or parallel lists.

    Args:
        field: The field `locality`.
        strict: As the package's own form has it: a probe without an answer is a mistake, not a probe to leave out.
        categories: Whether there may be categories; within one there are none.
    """
    if field.missing:
        return []
    if isinstance(field.value, Mapping) and (_one_of(field, _PROMPTS) or not categories):
        return _probe(field, strict)
    if isinstance(field.value, Mapping):
        groups = [field[category] for category in field.value]
        return [probe for group in groups for probe in probes(group, strict=False, categories=False)]
    if not field.is_list:
        field.wrong(f"{field.path} should be a list of {_SHAPE}, or such lists by category; got {shown(field.value)}")
        return []
    return [probe for entry in field.entries() for probe in _probe(entry, strict)]


_SHAPE = '{"prompt": ..., "answer": ...}'


def _one_of(field: Field, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if field.has(name)), None)


def _probe(field: Field, strict: bool) -> list[tuple[str, str]]:
    if field.missing and not strict:
        return []
    prompt, answer = _one_of(field, _PROMPTS), _one_of(field, _ANSWERS)
    if prompt is None or answer is None:
        if strict or (prompt is None and answer is None):
            field.wrong(f"{field.path} should be {_SHAPE}; locality should be a list of such objects")
        elif lacking := {("loc", None): "loc_ans", (None, "loc_ans"): "loc"}.get((prompt, answer)):  # QAEdit's names
            field.needs(lacking)
        return []
    if strict and answer == "answer" and not field[prompt].is_list:
        asked, true = field[prompt].text("a locality prompt"), field[answer].text("a locality answer")
        for name, text, what in ((prompt, asked, "prompt"), (answer, true, "answer")):
            if text is None and field[name].missing:
                field.wrong(f"{field.path}.{name}: a locality {what} should be text; got None")
        return [] if asked is None or true is None else [(asked, true)]
    return list(pairs(field[prompt], field[answer]))
