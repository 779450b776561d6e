"""Which form a record has, of those in which the field's data files write a fact (`forms`), and what is wrong with it.

The forms are told apart by the fields of each record, so mixed files work. A field that is there but empty (null, NaN)
is missing: a fact without prompt or target is read with an empty one, and skipped later; one without a subject is for
editors that need none. A field that is not there at all means another form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_edit.facts.fields import Field, named
from lm_eval_edit.facts.forms.asked import ULTRAEDITBENCH, UNKE, WIKIBIGEDIT, ZSRE
from lm_eval_edit.facts.forms.form import Form, lacking
from lm_eval_edit.facts.forms.own import FLAT, FLAT_ONLY, OWN
from lm_eval_edit.facts.forms.rewrites import COUNTERFACT, MQUAKE
from lm_eval_edit.facts.forms.ripple import AXES, RIPPLE
from lm_eval_edit.facts.slots import SLOT, subject_place
from lm_eval_edit.facts.subject_span import subject_span

FORMS = (OWN, ZSRE, COUNTERFACT, MQUAKE, FLAT, WIKIBIGEDIT, ULTRAEDITBENCH, UNKE, RIPPLE)


def read_record(record: Mapping[str, Any], default_id: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The facts of one record, as fields of the package's own form, and its problems.

    Args:
        record: A parsed JSON object. MQuAKE's holds several facts; all others hold one.
        default_id: What its id is where it has none.

    Returns:
        ([values], [problems as sentences, each naming the field]); see `forms.form.Values`. With problems, the values
        are not to be used.
    """
    root = Field(record)
    form = _form(root)
    absent = lacking(root, form.required)
    if absent:
        root.wrong(_not_this_form(root, form, absent))
        return [], list(root.problems)
    values = form.read(root)
    for entry in values:  # no matter in which form, these are texts, empty ones skipped later
        for name in ("subject", "prompt", "target_new"):
            entry[name] = entry[name] or ""
    given = _stated_id(root) or default_id
    for number, entry in enumerate(values):
        if form is not OWN and entry.get("subject_at") is None:
            entry["subject_at"] = _place_of_form(form, entry["prompt"], entry["subject"])
        entry["id"] = f"{given}.{number}" if form.several else given
    if len(values) > 1:
        for entry in values:
            entry["case"] = [each["id"] for each in values]
    return values, list(root.problems)


def stated_id(record: Any) -> str | None:
    """The id that a record states of itself; None where it has none."""
    return _stated_id(Field(record)) if isinstance(record, Mapping) else None


def _stated_id(r: Field) -> str | None:
    stated = r["id"].name() or r["case_id"].name()
    # QAEdit, whose object is `target`, is made of several sets and counts anew in each.
    source = r["source"].name() if stated and r.has("target") else None
    return f"{source} {stated}" if source else stated


def _place_of_form(form: Form, prompt: str, subject: str) -> int | None:
    """Where a prompt holds `{}` and the subject in clear, its form says which is the subject's place."""
    if SLOT not in prompt or not subject.strip() or not isinstance(subject_place(prompt, subject), str):
        return None
    if form.slot_first:
        return prompt.index(SLOT)
    span = subject_span(prompt, subject)
    return span[0] if span else None


def _form(r: Field) -> Form:
    rewrites = MQUAKE if r["requested_rewrite"].is_list else COUNTERFACT
    plain = FLAT if _is_flat(r) else OWN
    # Fields that no other form has. WikiBigEdit's are common words, and count only where all it needs is there.
    marks = {("requested_rewrite",): rewrites, ("src", "alt"): ZSRE, ("update", "ans"): WIKIBIGEDIT}
    common = (WIKIBIGEDIT,)
    for names, form in marks.items():
        if any(not r[name].missing for name in names) and (form not in common or not lacking(r, form.required)):
            return form
    if not lacking(r, plain.required):
        return plain
    if not lacking(r, ULTRAEDITBENCH.required):
        return ULTRAEDITBENCH
    if any(r["edit"].has(name) for name in ("prompt", "fact_prompt")) or any(r.has(axis) for axis in AXES):
        return RIPPLE
    if any(r.has(name) for name in ("para_question", "sub_question")):
        return UNKE
    # A row of a table has the columns of other forms, too, without values.
    return next((form for names, form in marks.items() if any(r.has(name) for name in names)), plain)


def _is_flat(r: Field) -> bool:
    """Whether a record has fields, or shapes of them, that the package's own form does not have."""
    return any(r.has(name) for name in FLAT_ONLY) or _is_flat_locality(r["locality"]) or _is_flat_portability(r)


def _is_flat_locality(locality: Field) -> bool:
    first = locality[0] if locality.is_list and locality.value else locality
    return isinstance(locality.value, Mapping) or first.has("loc") or first.has("ground_truth")


def _is_flat_portability(r: Field) -> bool:
    """Whether it is there, and not as the package's own form has it: a list of questions that say their kind."""
    portability = r["portability"]
    if not portability.is_list:
        return r.has("portability")
    return not all(entry.has("kind") for entry in portability.entries())


# ----------------------------------------------------------------------------------------------- records of other forms

NEAREST = 3  # forms that a record of no form may be meant for


def _not_this_form(r: Field, form: Form, absent: list[str]) -> str:
    if not r.value:
        return "field 'subject' is missing, as is every other. A fact needs at least subject, prompt and target_new"
    fields = ", ".join(map(named, list(r.value)[:20]))
    # RippleEdits' axes are no other form's, whatever else is missing.
    if form is not RIPPLE and len(form.required) - len(absent) < min(2, len(form.required)):
        known = "; ".join(f"{one.name}: {', '.join(' or '.join(names) for names in one.required)}" for one in FORMS)
        return (
            f"the fields ({fields}) are of no form that is read. The forms and what they need: {known}"
            f"{_where_else(r) or _nearest(r)}"
        )
    some = ", ".join(repr(name) for name in absent)
    subject = (
        ". Every form names the subject, save UltraEditBench's (prompt and ans) and UnKE's (question, para_question "
        "and answer)"
        if "subject" in absent
        else ""
    )
    remark = f". {form.remark}" if form.remark else ""
    return (
        f"field{'s' * (len(absent) > 1)} {some} {'are' if len(absent) > 1 else 'is'} missing (read as a {form.name} "
        f"record with the fields {fields}). A fact needs at least subject, prompt and target_new{subject}{remark}"
    )


def _nearest(r: Field) -> str:
    """The forms of which the record has something, and what it lacks of them, as a sentence to append, or nothing."""
    near: list[tuple[int, str]] = []
    for form in FORMS:
        absent = [names[0] for names in form.required if not any(_at(r, name) for name in names)]
        if len(absent) < len(form.required):
            near.append((len(absent), f"{form.name}, of which it lacks {', '.join(absent)}"))
    near.sort(key=lambda each: each[0])
    return f". It comes nearest to {'; '.join(text for _, text in near[:NEAREST])}" if near else ""


def _at(r: Field, path: str) -> bool:
    *above, name = path.split(".")
    return r[above[0]].has(name) if above and isinstance(r[above[0]].value, Mapping) else not above and r.has(name)


def _where_else(r: Field) -> str:
    """Where the facts may be in an object that is no fact, as a sentence to append, or nothing."""
    for key, value in r.value.items():
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            return f". If the facts are the list under {key!r}, give a file that holds that list"
    if len(r.value) > 1 and all(isinstance(value, Mapping) for value in r.value.values()):
        return ". If the facts are the values of this object, give a file that holds them as a list"
    return ""
