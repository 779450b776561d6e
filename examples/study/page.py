"""Write the page of the study and its pictures from the collected cells, or say where the page is not what they give.

    python -m examples.study.page                # docs/study.md and docs/figures/study-*.{png,svg}
    python -m examples.study.page --check        # exit status 1 and the lines that differ
    python -m examples.study.page --form full    # build/study/full/study.md, from examples/study/results/full

Every figure of the page comes from the cells (`examples/study/results`), the design and docs/chat.json.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import read_json, read_text, write_bytes
from lm_eval_edit.errors import UserError

from . import tables
from .cells import ALPHA, METRICS, Cells
from .design import HERE, RESULTS, ROOT, Form, form
from .hypotheses import DELTA, DIGITS, HANDFUL, MEASURES, all_verdicts, damage, harmless, names, signed
from .pictures import pictures

DOCS = ROOT / "docs"
CHAT = DOCS / "chat.json"
REDUCED = "reduced"

TEMPLATE = HERE / "page.template"


def text(cells: Cells, this: Form, chat: Any, drawn: dict[str, str]) -> str:
    """The page.

    Args:
        drawn: Picture -> what it shows, in words.
    """
    verdicts = all_verdicts(cells, chat)
    asked = [len(cells.seeds) * HANDFUL, 1 / (len(cells.seeds) * HANDFUL)]
    least, most = tables.detectable(cells)
    missing = tables.left_out(cells, this)
    values = {
        "form": this.name,
        "small": _small(cells, this),
        "dtype": this.study["model_args"]["dtype"],
        "pool": this.numbers["facts"]["pool"],
        "seeds": " and ".join(map(str, this.seeds)),
        "checkpoints": _checkpoints(this),
        "n_methods": len(cells.methods),
        "contexts": _contexts(this),
        "mend_steps": this.numbers["mend"]["max_steps"],
        "tokens": f"{this.numbers['moments']['tokens']:,}",
        "tasks": ", ".join(f"`{task}`" for task in next(iter(this.parts.values()))["tasks"]),
        "tasks_table": tables.tasks_table(cells),
        "handful": HANDFUL,
        "main_table": tables.main_table(cells),
        "delta_points": f"{100 * DELTA:.0f}",
        "delta": DELTA,
        "n_seeds": len(cells.seeds),
        "asked": asked[0],
        "one_fact": f"{asked[1]:.2f}",
        "locality": "The model prefers the neighbours' own objects for the share in the first row before any edit.",
        "verdict_table": tables.verdict_table(verdicts),
        "rules": "\n".join(f"- *{each.claim}*: {each.rule}." for each in verdicts),
        "certain": _certain(cells),
        "pairs": len(cells.methods) * len(METRICS),
        "by_chance": f"{len(cells.methods) * len(METRICS) * ALPHA / 2:.1f}",
        "cost_table": tables.cost_table(cells),
        "detectable_least": least,
        "detectable_most": most,
        "not_asked": _not_asked(this),
        "longer": _longer(this),
        "n_facts": HANDFUL,
        "missing": "".join(f"- **Not in the tables** {line}.\n" for line in missing),
        **{f"alt_{name}": alt for name, alt in drawn.items()},
    }
    return TEMPLATE.read_text(encoding="utf-8").format_map(values).replace("\n\n\n", "\n\n")


# ----------------------------------------------------------------------------------------------------------- sentences


def _small(cells: Cells, this: Form) -> str:
    counts = ", ".join(
        f"{cells.first.documents(task)} of `{task}`"
        for task in next(iter(this.parts.values()))["tasks"]
        if cells.first.documents(task)
    )
    return f"135 million parameters, {len(cells.seeds)} edit seeds, documents: {counts}."


def _checkpoints(this: Form) -> str:
    first, *others = this.parts.values()
    said = f"0, {', '.join(map(str, first['n_edits']))} edits"
    for part in others:
        if part.get("methods") and list(part["n_edits"]) != list(first["n_edits"]):
            said += f"; {', '.join(map(str, part['n_edits']))} for {names(part['methods'])}, where edits cost little"
    return said


def _contexts(this: Form) -> str:
    given = this.numbers["contexts"]
    if not given:
        return "Context templates are sampled from the model, as their presets say."
    return (
        f"One thing is not the presets': ROME's and MEMIT's families see {len(given)} fixed texts before the prompt in "
        f"place of the 20 and 5 that they sample from the model, which is where most of an edit's time goes."
    )


def _not_asked(this: Form) -> str:
    tasks = set(next(iter(this.parts.values()))["tasks"])
    wanted = [
        "edithurt_gsm8k", "edithurt_rte", "edithurt_nq", "edithurt_boolq", "edithurt_mutual", "edithurt_samsum",
        "edithurt_conll2003", "edithurt_boolq_mc", "edithurt_rte_mc", "edithurt_mutual_mc", "edithurt_samsum_mc",
        "edithurt_glue_rte", "edithurt_glue_nli", "edithurt_glue_cola", "edithurt_glue_mrpc", "edithurt_glue_mmlu",
        "edithurt_wild",
    ]  # fmt: skip
    groups = {"edithurt_suite", "edithurt_suite_mc", "edithurt_glue", "edithurt_probing"} & tasks
    return "none" if len(groups) == 4 else ", ".join(f"`{task}`" for task in wanted if task not in tasks)


def _longer(this: Form) -> str:
    parts = [part for part in this.parts.values() if max(part["n_edits"]) > HANDFUL]
    if not parts:
        return ""
    return f"{max(max(part['n_edits']) for part in parts)} edits are the most."


def _certain(cells: Cells) -> str:
    """For each checkpoint which methods have done damage, which are harmless, of which neither is known."""
    lines = []
    counts = sorted({n for method in cells.methods for n in cells.checkpoints(method)})
    for n in counts:
        here = [method for method in cells.methods if n in cells.checkpoints(method)]
        by = {method: damage(cells, method, n) for method in here}
        hurt = [f"`{method}` ({_sizes(cells, method, n, kinds)})" for method, kinds in by.items() if kinds]
        safe = [method for method in here if not by[method] and harmless(cells, method, n)]
        rest = [method for method in here if not by[method] and method not in safe]
        lines.append(
            f"- **After {n} edit{'s' if n > 1 else ''}** ({len(here)} methods). "
            f"Damage: {'; '.join(hurt) or 'none shown'}. Shown harmless: {names(safe)}. Neither shown: {names(rest)}."
        )
    return "\n".join(lines)


def _sizes(cells: Cells, method: str, n: int, kinds: list[str]) -> str:
    """What was lost by each measure: a loss that is certain may be small."""
    found = [(kind, cells.changes(method, n, kind)) for kind in kinds]
    return ", ".join(
        f"{MEASURES[kind]} {signed(change.value, DIGITS.get(kind, 2))}" for kind, change in found if change is not None
    )


# --------------------------------------------------------------------------------------------------------------- files


def page_of(this: Form) -> Path:
    """Where a form's page lies: only the reduced form's is part of the documentation."""
    return DOCS / "study.md" if this.name == REDUCED else ROOT / "build" / "study" / this.name / "study.md"


def made(this: Form, results: Path) -> tuple[str, dict[str, Any]]:
    """The page, and its pictures by name."""
    cells = Cells(results)
    drawn = {picture.kind: picture for picture in pictures(cells)}
    alts = {kind: re.sub(r"[\[\]]", "", picture.alt) for kind, picture in drawn.items()}
    return text(cells, this, read_json(CHAT), alts), {picture.name: picture for picture in drawn.values()}


def differences(page: str, wanted: str) -> list[str]:
    """The lines of a page that are not what the cells give, with what they give."""
    changes = difflib.unified_diff(page.splitlines(), wanted.splitlines(), "the page", "the cells", n=0, lineterm="")
    return list(changes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--form", default=REDUCED)
    parser.add_argument("--results", type=Path, help="default: examples/study/results/FORM")
    parser.add_argument("--page", type=Path, help="default: docs/study.md, for another form build/study/FORM/study.md")
    parser.add_argument("--check", action="store_true", help="write nothing, say where the page differs")
    given = parser.parse_args(argv)
    try:
        return _main(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def _main(given: argparse.Namespace) -> int:
    this = form(given.form)
    page = given.page or page_of(this)
    wanted, drawn = made(this, given.results or RESULTS / this.name)
    if given.check:
        found = differences(read_text(page), wanted)
        print("\n".join(found) or f"{page} is what the cells give")
        return 1 if found else 0
    write_bytes(page, wanted.encode())
    for name, picture in drawn.items():
        for suffix in ("png", "svg"):
            picture.save(page.parent / "figures" / f"{name}.{suffix}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
