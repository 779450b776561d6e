"""No code is imported because data name it."""

from __future__ import annotations

import json
import sys

import pytest

from lm_eval_edit import ConfigurationError, edit_model
from lm_eval_edit.cli import main
from lm_eval_edit.edits.chosen import chosen_editor
from lm_eval_edit.export import export
from lm_eval_edit.plan import draft_plan
from lm_eval_edit.settings import parse_settings
from tests.support.tiny import FACTS, TEMPLATES, save_tiny, tiny_model, tiny_tokenizer, write_facts

OPTIONS = {"layers": [1], "v_num_grad_steps": 3, "context_templates": list(TEMPLATES)}
OWN = """
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
from lm_eval_edit.editors.rome import Rome
class Mine(Rome):
    name = "mine"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model, and a module on the Python path that leaves a mark when it is imported."""
    save_tiny(tmp_path / "model")
    (tmp_path / "somebodys.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def edit(place, editor, **options):
    model = tiny_model()
    edit_model(
        model, tiny_tokenizer(), FACTS[:2], editor, options=OPTIONS | options, ledger=place / "ledger", progress=False
    )


def export_it(place, **options):
    return export(place / "ledger", "deltas", place / "out", pretrained=str(place / "model"), device="cpu", **options)


def forget(place):
    sys.modules.pop("somebodys", None)
    (place / "somebodys.ran").unlink(missing_ok=True)


def header(place, change):
    file = place / "ledger" / "ledger.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    for operation in (place / "ledger" / "ops").glob("*.json"):  # whoever forges one file forges all
        record = json.loads(operation.read_text())
        del record["run"]
        operation.write_text(json.dumps(record))


def ran(place):
    return (place / "somebodys.ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["extra"].update(editor_class="somebodys:Mine"),
        lambda header: header["identity"].update(editor="somebodys:Mine"),
        lambda header: header["identity"].update(editor="mine"),
    ],
)
def test_a_ledger_does_not_choose_what_is_imported(place, change):
    edit(place, "rome")
    header(place, change)
    with pytest.raises(ConfigurationError, match="--editor module:Class"):
        export_it(place)
    assert not ran(place) and not (place / "out").exists()


def test_nor_the_editor_that_another_one_works_on(place):
    edit(place, "prune", over="rome")
    header(place, lambda content: content["identity"]["options"].update(over="somebodys:Mine"))
    with pytest.raises(ConfigurationError, match="over=somebodys:Mine: editor=somebodys:Mine is named by data"):
        export_it(place)
    assert not ran(place)


def test_nor_where_a_package_lies(place):
    (place / "clone" / "easyeditor").mkdir(parents=True)
    (place / "clone" / "easyeditor" / "__init__.py").write_text("raise SystemExit('imported')")
    edit(place, "prune", over="rome")
    more = {"over": "easyeditor:ROME", "easyedit_path": str(place / "clone")}
    header(place, lambda content: content["identity"]["options"].update(more))
    with pytest.raises(ValueError, match="named by data"):
        export_it(place)


def test_the_user_may_name_it(place):
    edit(place, "somebodys:Mine")
    forget(place)
    with pytest.raises(ConfigurationError, match=r"no such editor.*the ledger says it was somebodys:Mine"):
        export_it(place)
    assert not ran(place)
    assert export_it(place, editors=["somebodys:Mine"])["edits"]["editor"] == "mine"
    with pytest.raises(ConfigurationError, match="made by an editor called mine"):
        export(place / "ledger", "deltas", place / "two", editors=["lm_eval_edit.editors.rome:Rome"])


def test_a_file_of_hyper_parameters_does_not_choose_what_is_imported(place):
    """`over: module:Class` in a file that edit_config names was imported before a word was said."""
    forget(place)
    file = place / "hparams.yaml"
    file.write_text("over: somebodys:Mine\n")
    given = {"editor": "rect", "n_edits": 1, "edit_config": str(file)}
    _, problems = draft_plan(str(place / "model"), given, {})
    assert any("somebodys:Mine is named by data" in problem for problem in problems) and not ran(place)
    assert chosen_editor(str(place / "model"), parse_settings(given)[0], {}) is None and not ran(place)
    _, problems = draft_plan(str(place / "model"), given, {"over": "somebodys:Mine"})
    assert ran(place) and not any("named by data" in problem for problem in problems), "given beside the file"
    forget(place)
    draft_plan(str(place / "model"), given | {"edit_config": {"over": "somebodys:Mine"}}, {})
    assert ran(place), "a mapping is made by the program itself"


@pytest.mark.parametrize("entry", ["somebodys:Mine", {"editor": "rect", "over": "somebodys:Mine"}])
def test_a_sweeps_design_in_a_file_does_not_choose_what_is_imported(place, entry, capsys):
    file = place / "design.yaml"
    file.write_text(
        json.dumps({"models": [str(place / "model")], "editors": [entry], "n_edits": [1], "tasks": ["edithurt_sst2"],
                    "datasets": [str(write_facts(place / "facts.jsonl"))]})
    )  # fmt: skip
    forget(place)
    assert main(["sweep", str(file), "--dry_run"]) != 0
    assert "somebodys:Mine is named by data" in capsys.readouterr().err and not ran(place)
    word = entry if isinstance(entry, str) else "rect,over=somebodys:Mine"
    main(["sweep", str(file), "--editors", word, "--dry_run"])
    assert ran(place) and "named by data" not in capsys.readouterr().err, "given as a flag"
