"""What the documents name is there: functions, classes, modules, files, make targets, versions."""

from __future__ import annotations

import fnmatch
import importlib
import itertools
import re
from pathlib import Path

import pytest
import yaml

import lm_eval_edit
from tests.conftest import ROOT
from tests.support.processes import python

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "lm_eval_edit/**/*.md",
        "examples/**/*.md",
        "benchmarks/*.md",
        "tasks/*/*.md",
        "tests/oracle/*.md",
    )
    for page in ROOT.glob(pattern)
)
FOLDERS = ("lm_eval_edit", "tests", "docs", "examples", "benchmarks", "tasks")
PACKAGE = Path(lm_eval_edit.__file__).parent
MODULES = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def spans(text: str) -> list[str]:
    """What stands in single backticks, outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def find(name: str) -> object:
    """The module, or what is reached from one, that a dotted name means.

    Raises:
        ImportError, AttributeError: there is none.
    """
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if cut == 1 or not name.startswith(str(error.name)):
                raise
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def python_names(page: str) -> list[str]:
    """The names below `lm_eval_edit` that a page's prose has; ARCHITECTURE.md writes them without that word."""
    given = [span.removesuffix("()") for span in spans(text_of(page))]
    dotted = [name for name in given if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name)]
    names = [name for name in dotted if name.startswith("lm_eval_edit.") and name != "lm_eval_edit.json"]  # a file
    if page == "ARCHITECTURE.md":
        names += [f"lm_eval_edit.{name}" for name in given if name.partition(".")[0] in MODULES and name in dotted]
    return names


def paths(page: str) -> list[str]:
    """The files of this repository that a page's prose and links have: of the whole tree, or of the page's folder."""
    text = text_of(page)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    named = [
        span.partition(":")[0].partition("#")[0].strip("/")
        for span in spans(text)
        if span.split("/")[0] in FOLDERS and re.fullmatch(r"[\w./*-]+", span) and "/" in span
    ]
    return [link for link in links if link] + named


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_package_can_be_imported(page):
    lost = []
    for name in python_names(page):
        try:
            find(name)
        except (ImportError, AttributeError) as error:
            lost.append(f"{name}: {error}")
    assert not lost


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page):
    lost = []
    for path in paths(page):
        capitals = re.search(r"\b[A-Z]{3,}\b", path)  # tasks/FAMILY: a place to fill
        if capitals and not (ROOT / path).exists() and not path.endswith(".md"):
            path = path[: capitals.start()].rstrip("/")
        places = [ROOT, (ROOT / page).parent]
        if not any(list(place.glob(path)) if "*" in path else (place / path).exists() for place in places):
            lost.append(path)
    assert not lost


def test_names_and_paths_are_found_where_they_are_wrong(tmp_path, monkeypatch):
    page = tmp_path / "ARCHITECTURE.md"
    text = "`plan.make_plans`, `lm_eval_edit.nowhere.f`, `docs/nothing.md`, [a](gone.md)\n```\n`edits.x`\n```\n"
    page.write_text(text, encoding="utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert python_names("ARCHITECTURE.md") == ["lm_eval_edit.nowhere.f", "lm_eval_edit.plan.make_plans"]
    assert paths("ARCHITECTURE.md") == ["gone.md", "docs/nothing.md"]
    for name in python_names("ARCHITECTURE.md"):
        with pytest.raises((ImportError, AttributeError)):
            find(name)


WRAPPED = """
import inspect, sys
from lm_eval_edit._startup import hooks
hooks.connect()
hooks.look_at_chat_templates()
import lm_eval.evaluator, lm_eval_edit.tasklib.editing.tasks
found = set()
for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "lm_eval"]:
    owners = [module, *(v for v in vars(module).values() if inspect.isclass(v) and v.__module__ == module.__name__)]
    for owner in owners:
        for name, value in list(vars(owner).items()):
            code = getattr(value, "__code__", None)
            if code and "lm_eval_edit" in code.co_filename and value.__module__ == module.__name__:
                found.add(f"{owner.__name__.removeprefix('lm_eval.')}.{name}")
print("\\n".join(sorted(found)))
"""


# -------------------------------------------------------------------------------------------------------------- tables


def cut_tables(text: str) -> list[int]:
    """The lines, from 1, at which rows go on behind an empty line: a table has a line of dashes below its first row."""
    lines = re.sub(r"^```.*?^```$", lambda block: re.sub(r"[^\n]+", "x", block[0]), text, flags=re.M | re.S).split("\n")
    found = []
    for place, line in enumerate(lines, start=1):
        begins = line.startswith("|") and (place < 2 or not lines[place - 2].startswith("|"))
        if begins and not re.fullmatch(r"\|[-:| ]+\|", lines[place] if place < len(lines) else ""):
            found.append(place)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_no_table_is_cut(page):
    assert not cut_tables(text_of(page))


def test_a_cut_table_is_found():
    head = "| a | b |\n|---|---:|\n| 1 | 2 |\n"
    assert cut_tables(head + "\ntext\n\n" + head) == [] and cut_tables("```\n| x |\n\n| y |\n```\n" + head) == []
    assert cut_tables(head + "\n| 3 | 4 |\n") == [5] and cut_tables("| a |") == [1]


def test_the_page_on_chat_models_says_what_a_template_does_to_every_task():
    table = text_of("docs/chat.md").partition("## What the template does to each task")[2]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w[\w*]*)`", row)]
    tasks = {task for path in ROOT.glob("tasks/*/*.yaml") if isinstance(task := _plain(path).get("task"), str)}
    assert len(tasks) > 30
    for task in sorted(tasks):
        fitting = [name for name in named if fnmatch.fnmatchcase(task, name)]
        assert len(fitting) == 1, (task, fitting)
    for name in named:
        assert fnmatch.filter(tasks, name), f"{name} is no task"


def _plain(path: Path) -> dict:
    """A task's YAML, what is marked `!function` as text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    found = yaml.load(path.read_text(encoding="utf-8"), Loader)
    return found if isinstance(found, dict) else {}


def test_discovery_tells_what_of_the_harness_is_wrapped():
    done = python("-c", WRAPPED, path=ROOT)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^- `([\w.]+)`[:,]", text_of("docs/discovery.md"), re.MULTILINE)
    assert sorted(listed) == done.stdout.split()


# -------------------------------------------------------------------------------------------------------- architecture


def rooms_of_the_page() -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", text_of("ARCHITECTURE.md"), re.MULTILINE)


def test_architecture_names_every_room_once():
    there = {
        path.stem for path in PACKAGE.iterdir()
        if (path / "__init__.py").is_file() or (path.suffix == ".py" and not path.stem.startswith("__"))
    }  # fmt: skip
    assert sorted(rooms_of_the_page()) == sorted(there)


def test_architecture_has_the_order_of_the_contracts():
    """By text: Python 3.10 reads no TOML."""
    layers = re.search(r'^id = "layers"$.*?^layers = \[(.*?)^\]', text_of("pyproject.toml"), re.MULTILINE | re.DOTALL)
    assert re.findall(r'"(\w+)"', layers[1]) == ["__main__", *rooms_of_the_page()]


def test_architecture_is_two_pages():
    assert len(text_of("ARCHITECTURE.md").splitlines()) <= 120


def test_the_way_of_a_fact_enters_every_room_it_goes_through():
    way = text_of("ARCHITECTURE.md").partition("## The way of a fact")[2].partition("\n## ")[0]
    entered = {name.partition(".")[0] for name in spans(way)}
    aside = {"cli", "cost", "demo", "_support", "weights"} - entered
    assert set(rooms_of_the_page()) - entered <= aside
    assert [int(number) for number in re.findall(r"^(\d+)\. ", way, re.MULTILINE)] == list(range(1, 12))


def test_the_readme_links_both_pages():
    for page in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        assert f"]({page})" in text_of("README.md")


def test_the_readme_is_short_and_begins_with_what_matters():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 120
    first = text.partition("\n## ")[0]
    (picture,) = re.findall(r"^!\[(.+)\]\((\S+)\)$", first, re.MULTILINE)
    assert picture[1] == "docs/figures/real-hundred.png" and "SmolLM2" in picture[0]  # of a real model
    (shown,) = re.findall(r"^```bash\n(.*?)^```$", first, re.MULTILINE | re.DOTALL)
    assert [line.split()[:2] for line in shown.splitlines()] == [["make", "demo"], ["make", "demo-real"]]
    assert "no claim about your model" in first


# ----------------------------------------------------------------------------------------- what a public project keeps


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("page", [*PAGES, ".pre-commit-config.yaml", ".ci/run"])
def test_every_make_target_that_is_named_exists(page):
    text = text_of(page)
    code = [*spans(text), *re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)]
    lines = (text if page == ".ci/run" else "\n".join(code)).splitlines()
    asked = set()
    for line in lines:
        words = line.partition("#")[0].partition("|")[0].split()
        if words[:1] == ["make"]:  # then targets, then settings
            asked |= set(itertools.takewhile(lambda word: "=" not in word, words[1:]))
    assert asked <= targets()


def test_the_workflow_runs_targets_of_the_makefile():
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    jobs = workflow["jobs"]
    matrix = {target for job in jobs.values() for target in job.get("strategy", {}).get("matrix", {}).get("target", [])}
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    asked = {word for run in runs for word in run.split()[1:] if re.fullmatch(r"[a-z-]+", word)}
    assert matrix == {"test", "test-oldest", "test-newest"}
    assert {"lint", "types", "imports"} <= asked
    assert matrix | asked <= targets()


def test_issue_forms_ask_for_validate_and_are_forms():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    read = {form.stem: yaml.safe_load(form.read_text(encoding="utf-8")) for form in forms}
    assert isinstance(read.pop("config")["blank_issues_enabled"], bool)
    for form in read.values():
        assert {"name", "description", "body"} <= form.keys()
        for part in form["body"]:
            assert part["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
            assert part["type"] == "markdown" or part["attributes"]["label"]
        ids = [part["id"] for part in form["body"] if "id" in part]
        assert len(ids) == len(set(ids))
    for name in ("defect", "wrong_figure"):
        (asked,) = [part for part in read[name]["body"] if part["id"] == "validate"]
        assert "lm-eval-edit validate" in asked["attributes"]["label"] and asked["validations"]["required"]


def test_the_citation_has_this_version_and_the_paper():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["version"] == lm_eval_edit.__version__
    assert citation["license"] == "Apache-2.0" and {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert [each["url"] for each in citation["references"]] == ["https://arxiv.org/abs/2401.04700"]


def test_the_hooks_before_a_commit_run_what_the_checks_run():
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"]}
    assert all(hook["language"] == "system" for hook in local["hooks"])  # the pinned versions, not some others
    assert entries["ruff"].startswith("ruff check") and entries["ruff-format"] == "ruff format"
    assert entries["imports"] in text_of("Makefile")
