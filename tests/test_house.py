"""The tree is true and stays so: who imports whom, what a room says it holds, and that nothing outgrows its room."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lm_eval_edit

PACKAGE = Path(lm_eval_edit.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

LARGEST_MODULE, LARGEST_FUNCTION, LARGEST_CLASS = 400, 80, 250  # lines; what is near them is looked at once more
#: What may be larger, each with its reason. Nothing else may, and nothing stays here that has become smaller.
LARGER: dict[str, str] = {}

#: What the rooms above `harness/` may import of the harness: what it offers to those who use or extend it.
PUBLIC = {
    "lm_eval",
    "lm_eval.api.instance",  # requests
    "lm_eval.api.model",
    "lm_eval.api.registry",
    "lm_eval.api.task",  # a task class of one's own
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
    "lm_eval.utils",
}
#: Rooms that touch its insides: `_startup/hooks` extends it when a program imports it.
INSIDE = ("harness", "_startup")


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Every import of a module, inside functions too, but for those that only a type checker sees."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            found += imports(node)
    return found


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports; `from room import module` imports the room as well."""
    names = {name_of(file) for file in FILES}
    found = {}
    for file in FILES:
        wanted: set[str] = set()
        for node in imports(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif node.module:
                wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name_of(file)] = (wanted & names) - {name_of(file)}
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules of which each reaches every other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_no_circle_among_modules():
    """As `make imports`, and rooms count as modules: what their `__init__` names must not ask them back."""
    assert circles(graph()) == []


@pytest.fixture
def copy(tmp_path) -> Path:
    """The package and its contracts, to be changed."""
    pytest.importorskip("importlinter")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the contracts are in the source's pyproject.toml, which an installed package has not")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file in FILES:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_contracts_hold(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "wrong", "told"),
    [
        ("facts/fact.py", "lm_eval_edit.edits.ledger", "lm_eval_edit.facts.fact -> lm_eval_edit.edits.ledger"),
        ("weights/delta.py", "lm_eval_edit.weights.edited", "lm_eval_edit.weights"),
        ("editors/rome.py", "lm_eval_edit.editors.memit", "lm_eval_edit.editors.rome -> lm_eval_edit.editors.memit"),
        ("editors/_shared/keys.py", "lm_eval_edit.editors.rome", "lm_eval_edit.editors._shared.keys"),
        ("tasklib/suite/ner.py", "lm_eval_edit.tasklib.editing.figures", "lm_eval_edit.tasklib.suite.ner"),
    ],
    ids=["upwards", "a circle", "another method", "a method from below", "another family"],
)
def test_a_wrong_import_breaks_a_contract(copy, module, wrong, told):
    file = copy / "lm_eval_edit" / module
    file.write_text(file.read_text() + f"\nimport {wrong}  # noqa\n")
    done = lint_imports(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert told in done.stdout


def test_a_new_room_needs_a_place_in_the_contracts(copy):
    (copy / "lm_eval_edit/attic").mkdir()
    (copy / "lm_eval_edit/attic/__init__.py").write_text("")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "attic" in done.stdout


def test_every_method_is_in_both_contracts_about_methods(copy):
    contracts = pytest.importorskip("tomllib").loads((copy / "pyproject.toml").read_text())["tool"]["importlinter"]
    by_id = {contract["id"]: contract for contract in contracts["contracts"]}
    (layer,) = (layer for layer in by_id["methods-below"]["layers"] if "rome" in layer)
    assert sorted(by_id["methods"]["modules"]) == sorted(f"lm_eval_edit.editors.{name}" for name in layer.split(" : "))


def test_the_top_holds_the_doors_only():
    entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "tasks")]  # tasks: in wheels
    modules = [path for path in entries if path.suffix == ".py"]
    folders = [path for path in entries if path.is_dir()]
    assert len(modules) <= 8 and len(folders) <= 18, sorted(path.name for path in entries)


ROOMS = [file.parent for file in FILES if file.name == "__init__.py" and file.parent != PACKAGE]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_a_room_names_what_it_holds(room):
    """One line each in its docstring, `name  what it is`, for modules and inner rooms alike."""
    doc = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    named = [line.split()[0] for line in doc.splitlines() if re.match(r"\s*\w+ {2,}\S", line)]
    there = [path.stem for path in room.glob("*.py") if path.name != "__init__.py"]
    there += [path.parent.name for path in room.glob("*/__init__.py")]
    assert sorted(named) == sorted(there)


def sizes() -> dict[str, tuple[int, int]]:
    """Name -> its lines and how many it may have, for every module, class and function."""
    found = {}
    for file in FILES:
        text = file.read_text()
        found[name_of(file)] = (len(text.splitlines()), LARGEST_MODULE)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                most = LARGEST_FUNCTION if isinstance(node, ast.FunctionDef) else LARGEST_CLASS
                found[f"{name_of(file)}:{node.name}"] = ((node.end_lineno or 0) - node.lineno + 1, most)
    return found


def test_nothing_outgrows_its_room():
    larger = {name: lines for name, (lines, most) in sizes().items() if lines > most}
    assert {name: lines for name, lines in larger.items() if name not in LARGER} == {}
    assert [name for name in LARGER if name not in larger] == [], "small again: take it off the list"


def test_only_the_harness_room_touches_the_harness_inside():
    found = []
    for file in FILES:
        if file.relative_to(PACKAGE).parts[0] in INSIDE:
            continue
        for node in imports(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                f"{name_of(file)} imports {n}" for n in names if re.match(r"lm_eval(\.|$)", n) and n not in PUBLIC
            ]
    assert found == []
