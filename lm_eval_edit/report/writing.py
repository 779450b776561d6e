"""The report as a file: written whole or not at all, and over nothing that is no report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_edit._support.files import write_bytes
from lm_eval_edit.errors import UserError
from lm_eval_edit.report.page import GENERATOR, Options, render
from lm_eval_edit.sweep.reading import Sweep

if TYPE_CHECKING:
    from lm_eval_edit.plots.picture import Picture


def check_output(file: Path) -> None:
    """Refuse a place where a report would replace something else.

    Raises:
        UserError: a folder, or a file that is no report; a report may be replaced.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; give a file, such as {file / 'report.html'}")
    if file.exists():
        with file.open("rb") as opened:
            if f'content="{GENERATOR}'.encode() not in opened.read(2_000):
                raise UserError(
                    f"{file} exists and is no report of lm-eval-edit; nothing was changed. Give another name"
                )


def write_report(
    sweep: Sweep, file: Path, pictures: Sequence[Picture], options: Options | None = None, *,
    notices: Sequence[str] = (), progress: bool = False,
) -> int:  # fmt: skip
    """Write a sweep's report and return its size in bytes.

    Raises:
        UserError: as `check_output` and `render`, or the file cannot be written.
    """
    check_output(file)
    content = render(sweep, pictures, options, notices=notices, progress=progress).encode("utf-8", "backslashreplace")
    try:
        write_bytes(file, content)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}; give another place") from error
    return len(content)
