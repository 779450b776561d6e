"""Pages of the documentation: their code, and what it is said to print."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT


class Block(NamedTuple):
    """A fenced block: its language, its text, and the heading above it."""

    language: str
    text: str
    heading: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, first to last."""
    found, heading = [], ""
    text = (ROOT / page).read_text(encoding="utf-8")
    for part in re.finditer(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if part[1]:
            heading = part[1]
        else:
            found.append(Block(part[2], part[3], heading))
    return found


def commands(page: str) -> list[str]:
    """The blocks that are typed into a shell, but for those that install something."""
    return [block.text for block in blocks(page) if block.language == "bash" and "pip install" not in block.text]


def type_in(command: str, cwd: Path, programs: Path) -> str:
    """Run a block in a shell that finds our console scripts; returns what it prints.

    Args:
        programs: The folder of `lm_eval` and `lm-eval-edit`.
    """
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def tables(page: str) -> list[list[dict[str, str]]]:
    """The tables of a page, each a list of rows by column."""
    found = []
    text = (ROOT / page).read_text(encoding="utf-8")
    for part in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found
