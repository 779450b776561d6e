"""The sentences of the page that depend on the form and the cells."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_edit.editors.base import BUILT_IN

from . import tables
from .cells import Cells
from .design import Form
from .hypotheses import DELTA, damage, distinct, names, no_drop, sizes

#: The tasks about ability, and WILD's about edits, that a reader might miss.
TASKS = (
    "edithurt_gsm8k", "edithurt_rte", "edithurt_nq", "edithurt_boolq", "edithurt_mutual", "edithurt_samsum",
    "edithurt_conll2003", "edithurt_boolq_mc", "edithurt_rte_mc", "edithurt_mutual_mc", "edithurt_samsum_mc",
    "edithurt_glue_rte", "edithurt_glue_nli", "edithurt_glue_cola", "edithurt_glue_mrpc", "edithurt_glue_mmlu",
    "edithurt_wild",
)  # fmt: skip
FACTCHECK = "edithurt_factcheck"


def small(cells: Cells, this: Form) -> str:
    """How small the study is."""
    counts = ", ".join(
        f"{cells.first.documents(task)} of `{task}`" for task, _ in (cells.first.run.samples if cells.first.run else ())
    )
    what = (
        "It is a study of a small model"
        if this.numbers["documents"] is None
        else "It is a small study of a small model"
    )
    return f"**{what}.** 135 million parameters, {len(cells.seeds)} edit seeds, documents: {counts}."


def span(seeds: Sequence[int]) -> str:
    """Seeds in a sentence."""
    together = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if together else " and ".join(map(str, seeds))


def count(things: Sequence[str]) -> str:
    """How many, a small number as a word."""
    words = ("no", "one", "two", "three", "four", "five")
    return words[len(things)] if len(things) < len(words) else str(len(things))


def checkpoints(this: Form) -> str:
    """After how many edits the model is asked."""
    first, *others = this.parts.values()
    said = f"0, {', '.join(map(str, first['n_edits']))} edits"
    for part in others:
        if part.get("methods") and list(part["n_edits"]) != list(first["n_edits"]):
            said += f"; {', '.join(map(str, part['n_edits']))} for {names(part['methods'])}, where edits cost little"
    return said


def who(cells: Cells, this: Form) -> str:
    """How many of the package's methods are here."""
    return f"{len(this.editors(cells.methods))} of this package's methods"


def controls(cells: Cells, this: Form) -> str:
    """How many controls are."""
    return f"{count(this.controls(cells.methods))} controls"


def methods(cells: Cells, this: Form) -> str:
    """The rows by what they are, and which of the package's methods are not among them."""
    varied, here = this.variants(cells.methods), this.editors(cells.methods)
    controlling = {this.study["methods"][label]["editor"] for label in this.controls(cells.methods)}
    absent = sorted(set(BUILT_IN) - set(here) - controlling)
    said = f"{len(cells.methods)} rows: {who(cells, this)}, {controls(cells, this)}"
    said += f" and {count(varied)} variants ({names(varied)})" if varied else ""
    return said + (f"; not here: {names(absent)}" if absent else "")


def contexts(this: Form) -> str:
    """Which context templates the methods see."""
    given = this.numbers["contexts"]
    if not given:
        return "Context templates are sampled from the model, as their presets say."
    return (
        f"One thing is not the presets': ROME's and MEMIT's families see {len(given)} fixed texts before the prompt in "
        f"place of the 20 and 5 that they sample from the model, which is where most of an edit's time goes."
    )


def text(this: Form) -> str:
    """Which text the bits per byte are of: rows from the end of the corpus are taken where documents are counted."""
    return (
        "the text of `edithurt_perplexity`"
        if this.numbers["documents"] is None
        else "a text that no second moments are from"
    )


def scored(cells: Cells) -> str:
    """Which tasks the mean score is of, and how many documents."""
    found = tables.scored(cells)
    if not found:
        return "No task is above its floor: there is no mean score."
    each = ", ".join(f"{n} of `{task}`" for task, n in found.items())
    return f"The mean score is of {sum(found.values())} documents: {each}."


def not_asked(cells: Cells) -> str:
    """The tasks that were not asked, as a sentence; nothing where all were."""
    absent = [task for task in TASKS if task not in cells.asked]
    return (
        f"  Left out because this model cannot do them at all, or for what they cost: {names(absent)}."
        if absent
        else ""
    )


def probing(cells: Cells) -> str:
    """What asks whether a fact is known."""
    said = (
        f"- **Fact checks** (`{FACTCHECK}`) are at chance with this model before and after edits "
        f"([edit_quality.md](edit_quality.md))"
    )
    return f"{said}." if FACTCHECK in cells.asked else f'{said}, so\n  "known" is asked by negation alone.'


def longer(this: Form) -> str:
    """The most edits."""
    return f"{max(max(part['n_edits']) for part in this.parts.values())} edits are the most."


def equal(cells: Cells) -> str:
    """Which rows are one observation."""
    counts = sorted({n for method in cells.methods for n in cells.checkpoints(method)})
    said = []
    for n in counts:
        first: dict[str, list[str]] = {}
        for method, other in cells.equals(n).items():
            first.setdefault(other, []).append(method)
        said += [
            f"after {_edits(n)} {names(same)} {'is' if len(same) == 1 else 'are'} `{other}` to the bit"
            for other, same in first.items()
        ]
    return f"Rows that are equal count once: {'; '.join(said)}." if said else ""


def certain(cells: Cells) -> str:
    """For each checkpoint which methods have done damage, which show no drop, of which neither is known."""
    lines = []
    counts = sorted({n for method in cells.methods for n in cells.checkpoints(method)})
    for n in counts:
        here = [method for method in cells.methods if n in cells.checkpoints(method)]
        different = len(distinct(cells, here, n))
        hurt = [method for method in here if damage(cells, method, n)]
        safe = [method for method in here if no_drop(cells, method, n)]
        rest = [method for method in here if method not in (*hurt, *safe)]
        rows = f"{len(here)} rows" + (f", {different} that differ" if different < len(here) else "")
        lines.append(
            f"- **After {_edits(n)}** ({rows}). "
            f"Damage: {'; '.join(sizes(cells, method, n) for method in hurt) or 'none shown'}. "
            f"No drop of the mean score beyond {DELTA}: {names(safe)}. Neither shown: {names(rest)}."
        )
    return "\n".join(lines)


def _edits(n: int) -> str:
    return f"{n} edit{'s' if n > 1 else ''}"
