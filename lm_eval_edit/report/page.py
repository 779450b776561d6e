"""The page itself: one HTML file with everything in it, the same bytes for the same folder."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

import lm_eval_edit.report.budget as budget
import lm_eval_edit.report.overview as overview
import lm_eval_edit.report.settings as settings
import lm_eval_edit.report.tables as tables
from lm_eval_edit import __version__
from lm_eval_edit._support.terminal import printable
from lm_eval_edit.comparison.tables import interval, number
from lm_eval_edit.comparison.verdicts import IMPROVED, INCONCLUSIVE, REGRESSED, UNHARMED, Row, Settings
from lm_eval_edit.report.comparing import below, between_seeds, compare_sweep
from lm_eval_edit.report.items import broken
from lm_eval_edit.report.quality import quality
from lm_eval_edit.sweep.reading import RowData, Sweep

if TYPE_CHECKING:
    from lm_eval_edit.plots.picture import Picture

GENERATOR = "lm-eval-edit report"
LARGEST = 3_000_000  # bytes of all pictures
_TEMPLATES = Path(__file__).parent / "templates"
_MARKS = {REGRESSED: "▼", IMPROVED: "▲", UNHARMED: "", INCONCLUSIVE: "?"}


@dataclass(frozen=True)
class Options:
    """What a report shows.

    Attributes:
        alpha: Intervals are at 1 − alpha.
        deltas: The drops for which the damage budget is given.
        seed: Of the bootstraps and permutations.
        items: Broken documents shown of each row and task.
    """

    alpha: float = 0.05
    deltas: tuple[float, ...] = budget.DELTAS
    seed: int = 0
    items: int = 5


def render(
    sweep: Sweep, pictures: Sequence[Picture], options: Options | None = None, *, notices: Sequence[str] = (),
    progress: bool = False,
) -> str:  # fmt: skip
    """A sweep's report as HTML.

    Args:
        pictures: The plots; shown in this order, as many as `LARGEST` has room for.
        options: What to show.
        notices: What the plots leave out, one sentence each.
        progress: Show a progress bar while cells are compared.

    Raises:
        UserError: nothing that could be compared, as `compare_sweep`.
    """
    options = options or Options()
    compared = compare_sweep(sweep, Settings(alpha=options.alpha, seed=options.seed), progress=progress)
    found = broken(tables.by_row(compared), options.items)
    shown_pictures = _embedded(pictures)
    script = (_TEMPLATES / "folds.js").read_text(encoding="utf-8")
    page = _environment(sweep).get_template("report.html.j2").render(
        sweep=sweep,
        design=sweep.header["design"],
        options=options,
        generator=GENERATOR,
        version=__version__,
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        states=overview.states(sweep),
        state_names=overview.STATES,
        sources=overview.sources(sweep),
        warnings=overview.warnings(sweep, compared),
        pictures=shown_pictures,
        notices=notices,
        not_shown=pictures[len(shown_pictures) :],
        tables=tables.model_tables(compared),
        comparable=any(each.tasks for each in compared),
        budgets=tables.budgets(sweep, compared, options.deltas),
        seeds=between_seeds(sweep, compared, options.alpha),
        quality=quality(sweep),
        broken=found.tasks,
        shown=found.most,
        shortened=found.shortened,
        rows=[settings.row_settings(sweep, row) for row in sweep.rows],
        unedited=_unedited(sweep),
        versions=settings.versions(sweep),
        design_yaml=settings.design_yaml(sweep),
        delta=Settings().delta,
    )  # fmt: skip
    return printable(page)  # HTML has no room for controls, and a page may be read by `less` too


def _environment(sweep: Sweep) -> jinja2.Environment:
    datasets, models = ({getattr(row, name) for row in sweep.rows} for name in ("dataset", "model"))

    def method(row: RowData) -> str:
        facts = f"{Path(row.dataset).name} facts" if row.dataset else "default facts"
        return f"{row.series} · {facts}" if len(datasets) > 1 else row.series

    def named(row: RowData) -> str:
        return f"{method(row)} · {row.model}" if len(models) > 1 else method(row)

    def span(rows: Sequence[Row]) -> str:
        low, high = (number(end(row.edited for row in rows)) for end in (min, max))
        return low if low == high else f"{low} to {high}"

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # what models say is shown, never interpreted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": lambda value: number(value, sign=True),
        "interval": lambda pair: interval(*pair),
        "task": sweep.short,
        "spread": _spread,
        "method": method,
        "named": named,
        "span": span,
        "seed": lambda row: "file order" if row.edit_seed is None else f"seed {row.edit_seed}",
        "edits": lambda n: "1 edit" if n == 1 else f"{n} edits",
        "mark": _MARKS.__getitem__,
        "below": lambda folder: below(sweep, folder),
        "held": budget.words,
    }
    return environment


def _spread(pair: tuple[float, float]) -> str:
    """An interval between seeds; seeds that agree in every digit have none."""
    low, high = pair
    return interval(low, high) if high - low > 1e-9 else "no spread seen"


def _embedded(pictures: Sequence[Picture]) -> list[tuple[Picture, str]]:
    """The first pictures with their addresses, as many as `LARGEST` has room for."""
    found, size = [], 0
    for picture in pictures:
        source = _data_uri(picture.svg)
        size += len(source)
        if size > LARGEST:
            break
        found.append((picture, source))
    return found


def _data_uri(svg: str) -> str:
    """A picture apart from the page: its names and styles cannot meet those of the page or of another picture."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _unedited(sweep: Sweep) -> list[tuple[str, str]]:
    """(path, command) of the unedited models."""
    cells = {row.baseline.folder: row.baseline for row in sweep.rows}.values()
    return [(below(sweep, cell.folder), settings.command(sweep, cell)) for cell in cells if cell.results]
