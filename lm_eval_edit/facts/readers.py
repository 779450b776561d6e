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
from lm_eval_edit.facts.forms.ripple import RIPPLE
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
    given = root["id"].name() or root["case_id"].name() or default_id
    for number, entry in enumerate(values):
        if form is not OWN and entry.get("subject_at") is None:
            entry["subject_at"] = _place_of_form(form, entry["prompt"], entry["subject"])
        entry["id"] = f"{given}.{number}" if form.several else given
    if len(values) > 1:
        for entry in values:
            entry["case"] = [each["id"] for each in values]
    return values, list(root.problems)


<<<<<<< HEAD
=======
# ------------------------------------------------------------------------------------------------------ locality probes

_PROMPTS, _ANSWERS = ("prompt", "loc"), ("answer", "ground_truth", "loc_ans")


def _pairs(prompts: Field, answers: Field) -> Iterator[tuple[str, str]]:
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


def _probes(field: Field, *, strict: bool, categories: bool = True) -> list[tuple[str, str]]:
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
        return [probe for group in groups for probe in _probes(group, strict=False, categories=False)]
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
        return []
    if strict and answer == "answer" and not field[prompt].is_list:
        asked, true = field[prompt].text("a locality prompt"), field[answer].text("a locality answer")
        for name, text, what in ((prompt, asked, "prompt"), (answer, true, "answer")):
            if text is None and field[name].missing:
                field.wrong(f"{field.path}.{name}: a locality {what} should be text; got None")
        return [] if asked is None or true is None else [(asked, true)]
    return list(_pairs(field[prompt], field[answer]))


# ------------------------------------------------------------------------------------------------------------ the forms


@dataclass(frozen=True)
class Form:
    """One way to write a fact.

    Args:
        name: What errors call it.
        required: The fields by which it is known, each with its other names; a path for those of an object.
        read: Its facts, as fields of the package's own form.
    """

    name: str
    required: tuple[tuple[str, ...], ...]
    read: Callable[[Field], list[dict[str, Any]]]


def _zsre(r: Field) -> list[dict[str, Any]]:
    # EasyEdit and the paper edit towards `alt` (counterfactual); `answers` is the truth, `pred` the model's own answer.
    return [
        {
            "subject": r["subject"].text(),
            "prompt": r["src"].text(),
            "target_new": r["alt"].text(),
            "target_true": r["answers"].first(),
            "prediction": r["pred"].first(),
            "paraphrases": r["rephrase"].texts(),
            "locality": list(_pairs(r["loc"], r["loc_ans"])),
        }
    ]


def _rewrite(rewrite: Field) -> dict[str, Any]:
    return {
        "subject": rewrite["subject"].text(),
        "prompt": rewrite["prompt"].text(),
        "target_new": rewrite["target_new"]["str"].text(),
        "target_true": rewrite["target_true"]["str"].text(),
        "relation": rewrite["relation_id"].text(),
    }


def _counterfact(r: Field) -> list[dict[str, Any]]:
    values = _rewrite(r["requested_rewrite"])
    true = values["target_true"]
    # A neighbourhood prompt asks for the same object of another subject: the true object must stay.
    neighbours = r["neighborhood_prompts"].texts()
    values["locality"] = [(prompt, true) for prompt in neighbours] if true is not None else []
    return [
        values
        | {
            "paraphrases": r["paraphrase_prompts"].texts(),
            "generation_prompts": r["generation_prompts"].texts(),
            "target_new_id": r["requested_rewrite"]["target_new"]["id"].name(),
        }
    ]


def _mquake(r: Field) -> list[dict[str, Any]]:
    rewrites = r["requested_rewrite"].entries()
    if not rewrites:
        r.wrong("requested_rewrite is an empty list; give it at least one rewrite")
    for rewrite in rewrites:
        lacking = _lacking(rewrite, tuple((name,) for name in _REWRITE))
        for name in lacking:
            rewrite.wrong(f"field '{rewrite.path}.{name}' is missing")
    return [_rewrite(rewrite) | {"question": rewrite["question"].text()} for rewrite in rewrites]


def _wikibigedit(r: Field) -> list[dict[str, Any]]:
    # Personas ask in another voice and are a figure of their own there; they are no plain paraphrases.
    return [
        {
            "subject": r["subject"].text(),
            "prompt": r["update"].text(),
            "target_new": r["ans"].text(),
            "paraphrases": r["rephrase"].texts(),
            "locality": list(_pairs(r["loc"], r["loc_ans"])),
            "relation": r["relation_id"].text(),
        }
    ]


def _ultraeditbench(r: Field) -> list[dict[str, Any]]:
    # Most of its records name no subject.
    return [
        {
            "subject": r["subject"].text(),
            "prompt": r["prompt"].text(),
            "target_new": r["ans"].text(),
            "paraphrases": _either(r, "rephrase_prompt", "rephrase").texts(),
            "locality": list(_pairs(r["loc"], r["loc_ans"])),
        }
    ]


def _either(r: Field, *names: str) -> Field:
    """The first of these fields that holds something."""
    return next((r[name] for name in names if r.has(name) and not r[name].missing), r[names[0]])


def _flat(r: Field) -> list[dict[str, Any]]:
    # EasyEdit's flattened CounterFact, KnowEdit (its WikiBio with names of its own) and QAEdit.
    asked = _either(r, "rephrase_prompt", "rephrase", "paraphrases")
    texts = asked.texts() or _either(r, "rephrase", "paraphrases").texts()
    flat = list(_pairs(r["locality_prompt"], r["locality_ground_truth"]))
    return [
        {
            "subject": _either(r, "subject", "concept").text(),
            "prompt": _either(r, "prompt", "text").text(),
            "target_new": _either(r, "target_new", "target", "labels").first(),
            "target_true": _either(r, "ground_truth", "target_true").first(),
            "prediction": r["prediction"].text(),
            "paraphrases": texts,
            "question": r["question"].text(),
            "locality": flat + _probes(r["locality"], strict=False),
            "relation": r["relation"].text(),
            **_place(r),
        }
    ]


def _place(r: Field) -> dict[str, Any]:
    """`separator`, which may be empty, and `subject_at`."""
    separator, at = r["separator"], r["subject_at"]
    if not separator.missing and not isinstance(separator.value, str):
        separator.wrong(f'{separator.path} should be text ("" for none); got {shown(separator.value)}')
    if not at.missing and (isinstance(at.value, bool) or not isinstance(at.value, int)):
        at.wrong(f"{at.path} should be a whole number, the place of a character; got {shown(at.value)}")
    return {"separator": separator.text(), "subject_at": None if at.missing else at.value}


>>>>>>> w_cf
def _place_of_form(form: Form, prompt: str, subject: str) -> int | None:
    """Where a prompt holds `{}` and the subject in clear, its form says which is the subject's place."""
    if SLOT not in prompt or not subject.strip() or not isinstance(subject_place(prompt, subject), str):
        return None
    if form.slot_first:
        return prompt.index(SLOT)
    span = subject_span(prompt, subject)
    return span[0] if span else None


<<<<<<< HEAD
=======
def _own(r: Field) -> list[dict[str, Any]]:
    optional = ("target_true", "prediction", "question", "relation", "target_new_id")
    return [
        {name: r[name].text() for name in ("subject", "prompt", "target_new", *optional)}
        | {name: r[name].texts() for name in ("paraphrases", "generation_prompts")}
        | {"locality": _probes(r["locality"], strict=True)}
        | _place(r)
    ]


_REWRITE = ("subject", "prompt", "target_new")
_COUNTERFACT = Form("CounterFact", tuple((f"requested_rewrite.{name}",) for name in _REWRITE), _counterfact)
_MQUAKE = Form("MQuAKE", (("requested_rewrite",),), _mquake)
_ZSRE = Form("ZsRE", (("subject",), ("src",), ("alt",)), _zsre)
_WIKIBIGEDIT = Form("WikiBigEdit", (("subject",), ("update",), ("ans",)), _wikibigedit)
_ULTRAEDITBENCH = Form("UltraEditBench", (("prompt",), ("ans",)), _ultraeditbench)
_FLAT = Form(
    "flat (EasyEdit, KnowEdit, QAEdit)",
    (("subject", "concept"), ("prompt", "text"), ("target_new", "target", "labels")),
    _flat,
)
_OWN = Form("lm-eval-edit", (("subject",), ("prompt",), ("target_new",)), _own)

_FLAT_ONLY = ("ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth", "rephrase", "portability")
_OTHER_NAMES = ("text", "concept", "labels", "target")  # of KnowEdit's WikiBio, and of QAEdit


>>>>>>> w_cf
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
    if isinstance(r["edit"].value, Mapping) and r["edit"].has("prompt"):
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
    if len(form.required) - len(absent) < min(2, len(form.required)):
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
