"""Batches one after another on the demo: a table in docs/methods.md, a picture in docs/figures.

lm-eval-edit sweep examples/demo_sequential.yaml -o ONE
lm-eval-edit sweep examples/demo_sequential.yaml --editors alphaedit,L2=auto -o OTHER
python examples/demo_sequential.py ONE OTHER
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kept import replace_between

from lm_eval_edit.plots.picture import FORMATS, Picture, drawing
from lm_eval_edit.plots.style import grid, look
from lm_eval_edit.sweep.reading import CellData, Sweep, load_sweep
from lm_eval_edit.tasklib.suite.catalogue import GROUP

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- table: written by examples/demo_sequential.py -->", "<!-- end of the sequential table -->"
TASKS = {"paraphrase": "edithurt_generalization", "neighbourhood": "edithurt_locality", "suite": GROUP}
HEAD = ["method", "edits", "answered, all of them", "answered, the first 50", *TASKS]


def figures(cell: CellData) -> dict[str, float | None]:
    """{column: value} of one checkpoint; None where it has none (a model that has collapsed)."""
    found = {name: cell.value(task) for name, task in {"the first 50": "edithurt_efficacy", **TASKS}.items()}
    values = {name: None if value is None else value.value for name, value in found.items()}
    guards = cell.edit.get("guards", {}) if cell.results_file else {}
    return {"all": guards.get("retained", {}).get("em") if cell.n_edits else None, **values}


def lines(sweeps: list[Sweep]) -> dict[str, dict[int, dict[str, float | None]]]:
    """{method: {edits: figures}}, those of the unedited model under "none"."""
    found: dict[str, dict[int, dict[str, float | None]]] = {"none": {}}
    for row, cell in (pair for sweep in sweeps for pair in sweep.cells()):
        if row is None or cell.n_edits:
            found.setdefault(row.method if row else "none", {})[cell.n_edits] = figures(cell)
    return found


def table(found: dict[str, dict[int, dict[str, float | None]]]) -> str:
    """All of it as a markdown table."""
    out = [f"| {' | '.join(HEAD)} |", "|---|" + "---:|" * (len(HEAD) - 1)]
    for method, cells in found.items():
        for n, values in cells.items():
            shown = ["" if value is None else f"{value:.2f}" for value in values.values()]
            out.append(f"| {' | '.join([method, str(n) if n else '', *shown])} |")
    return "\n".join(out)


def picture(found: dict[str, dict[int, dict[str, float | None]]]) -> Picture:
    """Answered edits and the suite's score against the number of edits, a line a method."""
    from matplotlib.figure import Figure

    title = "The demo world, batches of ten one after another"
    with drawing():
        figure = Figure(figsize=(8.2, 3.4), layout="constrained")
        panels = figure.subplots(1, 2)
        unedited = found["none"][0]["suite"]
        for axes, (column, label) in zip(
            panels, {"all": "edits answered, of all so far", "suite": "mean of the eight tasks"}.items(), strict=True
        ):
            for index, (method, cells) in enumerate((m, c) for m, c in found.items() if m != "none"):
                points = {0: unedited} if column == "suite" else {}
                points |= {n: values[column] for n, values in cells.items()}
                shown = {n: value for n, value in points.items() if value is not None}
                axes.plot(list(shown), list(shown.values()), label=method, **look(index).plot())
            axes.set_ylim(-0.01, 1.02)
            axes.set_xlabel("edits")
            axes.set_ylabel(label)
            grid(axes, "both")
        panels[0].legend(frameon=False)
        figure.suptitle(title, fontsize=10)
    alt = f"{title}: {'; '.join(f'{m} {c}' for m, c in found.items())}"
    return Picture("sequential-demo", "methods", title, alt, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="the sweeps' folders")
    found = lines([load_sweep(folder) for folder in parser.parse_args().folders])
    replace_between(DOCS / "methods.md", BEGIN, END, table(found))
    drawn = picture(found)
    for ending in FORMATS:
        drawn.save(DOCS / "figures" / f"{drawn.name}.{ending}")
    print(table(found))


if __name__ == "__main__":
    main()
