"""What tests of pictures read: the numbers in a folder without any of our code, and what a figure shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.text import Text

from lm_eval_edit.plots import Picture, figures
from lm_eval_edit.sweep.reading import load_sweep


def draw(folder: Path, *kinds: str, **options: Any) -> list[Picture]:
    return figures(load_sweep(folder), kinds=kinds or None, **options)


def figure_of(folder: Path, row: str, n: int, task: str, key: str = "score") -> float:
    """The folder's own number, read without any of our code."""
    (file,) = (folder / row / f"n{n:05d}" if n else folder / row.split("/")[0] / "unedited").glob("results_*.json")
    return json.loads(file.read_text())["results"][task][f"{key},none"]


def lines_of(picture: Picture, axes: int = 0) -> Mapping[str, Any]:
    """Label -> line, of the lines that are data."""
    return {line.get_label(): line for line in picture.figure.axes[axes].lines if not line.get_label().startswith("_")}


def words_of(picture: Picture) -> str:
    """Every word in it."""
    return "\n".join(text.get_text() for text in picture.figure.findobj(Text))
