"""What mkdocs does not do by itself: pages outside docs/, links to files of the repository, the command line's page.

A page stays beside what it describes (the tasks' READMEs, CONTRIBUTING.md, the demo model's card) and its links are
written as they work in the repository. Here they are turned into links between pages of the site; a linked file that
is no page, such as a script, becomes a file of the site. The page of options and commands is made of what the commands
themselves say.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from lm_eval_edit.cli import build_parser
from lm_eval_edit.settings import EditSettings

ROOT = Path(__file__).resolve().parents[1]

#: Path in the repository -> path among the pages; beside these every README of tasks/.
OUTSIDE = {
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "examples/README.md": "examples.md",
    "benchmarks/README.md": "benchmarks.md",
    "lm_eval_edit/demo/checkpoint/README.md": "demo_model.md",
    "lm_eval_edit/demo/data/README.md": "demo_data.md",
}
#: Where files that are linked, and are no pages, lie on the site.
LINKED = "files"

_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """Path in the repository -> path among the pages, of every page outside docs/."""
    tasks = {
        path.relative_to(ROOT).as_posix(): f"tasks/{path.parent.name}.md" for path in ROOT.glob("tasks/*/README.md")
    }
    return OUTSIDE | dict(sorted(tasks.items()))


def source_of(place: str) -> str:
    """The path in the repository of a page, by its path among the pages."""
    return {there: here for here, there in pages().items()}.get(place, f"docs/{place}")


def place_of(path: str) -> str | None:
    """The path on the site of a file of the repository; None where there is no such file."""
    if path in pages():
        return pages()[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{LINKED}/{path}" if (ROOT / path).is_file() else None


def links(text: str) -> Iterator[re.Match[str]]:
    """The links of a page to other files, outside code."""
    code = [found.span() for found in _CODE.finditer(text)]
    for found in _LINK.finditer(text):
        inside = any(start <= found.start(2) < end for start, end in code)
        if not (inside or "://" in found[2] or found[2].startswith(("#", "mailto:"))):
            yield found


def rewritten(text: str, place: str) -> str:
    """A page's text with its links as they are on the site.

    A link to nothing is left as it is, so that the build tells it.
    """
    source = posixpath.dirname(source_of(place))
    out, end = [], 0
    for found in links(text):
        path, hash_, anchor = found[2].partition("#")
        target = place_of(posixpath.normpath(posixpath.join(source, path)))
        if target is not None:
            relative = posixpath.relpath(target, posixpath.dirname(place) or ".")
            out += [text[end : found.start(2)], relative, hash_, anchor]
            end = found.end(2)
    return "".join([*out, text[end:]])


def command_line() -> str:
    """The page of every option of `--model edited_hf` and of every sub-command, as they describe themselves."""

    def cell(value: object) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    lines = [
        "# Options and commands",
        "",
        "## Options of `--model edited_hf`",
        "",
        "Written `--model_args name=value,name=value,...`. Every argument of the harness's `hf` passes through,",
        "and an editor's hyper-parameters stand beside them (`lm-eval-edit ls editors NAME` lists them).",
        "",
        "| option | what it is | takes | default |",
        "|---|---|---|---|",
    ]
    for each in fields(EditSettings):
        default = "" if each.default is None else f"`{each.default}`"
        about = each.metadata
        lines.append(f"| `{each.name}` | {cell(about['help'])} | {cell(about['accepts'])} | {default} |")
    for parser in commands(build_parser()):
        level = "#" * (1 + parser.prog.count(" "))
        lines += ["", f"{level} `{parser.prog}`", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join([*lines, ""])


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a parser's sub-commands, each followed by those of its own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from commands(command)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside docs/, and every file that a page links."""
    for here, there in pages().items():
        files.append(File.generated(config, there, abs_src_path=str(ROOT / here)))
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # of the help texts, whatever terminal this runs in
    try:
        files.append(File.generated(config, "reference/command_line.md", content=command_line()))
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    linked = set()
    for file in files.documentation_pages():
        base = posixpath.dirname(source_of(file.src_uri))
        for found in links(file.content_string):
            path = posixpath.normpath(posixpath.join(base, found[2].partition("#")[0]))
            if (place := place_of(path)) and place.startswith(f"{LINKED}/"):
                linked.add((place, path))
    for place, path in sorted(linked):
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    return rewritten(markdown, page.file.src_uri)
