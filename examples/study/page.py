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

from . import sentences, tables
from .cells import ALPHA, METRICS, Cells
from .design import HERE, RESULTS, ROOT, Form, form
from .hypotheses import DELTA, HANDFUL, all_verdicts, distinct
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
    verdicts = all_verdicts(cells, chat, this)
    asked = [len(cells.seeds) * HANDFUL, 1 / (len(cells.seeds) * HANDFUL)]
    least, most = tables.detectable(cells)
    missing = tables.left_out(cells, this)
    pairs = len(distinct(cells, cells.methods, HANDFUL)) * len(METRICS)
    values = {
        "form": this.name,
        "small": sentences.small(cells, this),
        "dtype": this.study["model_args"]["dtype"],
        "pool": this.numbers["facts"]["pool"],
        "seeds": sentences.span(this.seeds),
        "checkpoints": sentences.checkpoints(this),
        "who": sentences.who(cells, this),
        "controls": sentences.controls(cells, this),
        "methods": sentences.methods(cells, this),
        "contexts": sentences.contexts(this),
        "mend_steps": this.numbers["mend"]["max_steps"],
        "tokens": f"{this.numbers['moments']['tokens']:,}",
        "tasks": ", ".join(f"`{task}`" for task in next(iter(this.parts.values()))["tasks"]),
        "tasks_table": tables.tasks_table(cells),
        "scored": sentences.scored(cells),
        "handful": HANDFUL,
        "main_table": tables.main_table(cells),
        "text": sentences.text(this),
        "delta_points": f"{100 * DELTA:.0f}",
        "delta": DELTA,
        "n_seeds": len(cells.seeds),
        "asked": asked[0],
        "one_fact": f"{asked[1]:.2f}",
        "locality": "The model prefers the neighbours' own objects for the share in the first row before any edit.",
        "verdict_table": tables.verdict_table(verdicts),
        "rules": "\n".join(f"- *{each.claim}*: {each.rule}." for each in verdicts),
        "equal": sentences.equal(cells),
        "certain": sentences.certain(cells),
        "pairs": pairs,
        "by_chance": f"{pairs * ALPHA / 2:.1f}",
        "cost_table": tables.cost_table(cells),
        "detectable_least": least,
        "detectable_most": most,
        "not_asked": sentences.not_asked(cells),
        "probing": sentences.probing(cells),
        "longer": sentences.longer(this),
        "missing": "".join(f"- **Not in the tables** {line}.\n" for line in missing),
        "check": "" if this.name == REDUCED else f" --form {this.name}",
        **{f"alt_{name}": alt for name, alt in drawn.items()},
    }
    return TEMPLATE.read_text(encoding="utf-8").format_map(values).replace("\n\n\n", "\n\n")


# --------------------------------------------------------------------------------------------------------------- files


def page_of(this: Form) -> Path:
    """Where a form's page lies: only the reduced form's is part of the documentation."""
    return DOCS / "study.md" if this.name == REDUCED else ROOT / "build" / "study" / this.name / "study.md"


def made(this: Form, results: Path) -> tuple[str, dict[str, Any]]:
    """The page, and its pictures by name.

    Raises:
        UserError: there are no cells, or those of another form.
    """
    cells = Cells(results)
    if cells.about["form"] != this.name:
        raise UserError(f"{results} holds cells of the form {cells.about['form']}, and the page is of {this.name}")
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
    if given.results and not (given.page or given.check):
        raise UserError("--results: give --page FILE too, or --check; the page of the study is of the stored cells")
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
