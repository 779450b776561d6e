"""Names out of files are no paths: nothing is read or written outside the folder that the user named."""

from __future__ import annotations

import json
import logging

import pytest

from lm_eval_edit import ConfigurationError, UserError, cli
from lm_eval_edit._startup import hooks as _hooks
from lm_eval_edit.harness.our_tasks import tasks_dir
from lm_eval_edit.settings import parse_settings
from lm_eval_edit.sweep.design import is_plain, safe
from lm_eval_edit.sweep.folder import Cell, SweepFolder, cell_state
from lm_eval_edit.sweep.parsing import parse_design
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.sweep_folders import write_sweep

BAD = ["../x", "..", ".", "/etc", "a/b", "a\\b", "", "a\nb", "a\x1b[31mb", "...", 7, None, ["a"]]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name_of_a_folder(name):
    assert not is_plain(name)


@pytest.mark.parametrize("name", ["rome-zsre-seed0", "gpt2-xl", "émilie", "a.b", "_", "rome-v_lr_0.5"])
def test_what_is_one(name):
    assert is_plain(name)


@pytest.mark.parametrize("name", BAD[:8])
def test_labels_become_such_names(name):
    assert is_plain(safe(name))
    design = {"models": [{"pretrained": "demo", "label": name}], "editors": [{"editor": "rome", "label": name}]}
    design = parse_design(design | {"n_edits": 1, "datasets": [name or "x"]}, "x")
    assert all(is_plain(row.name) and is_plain(row.model.label) for row in design.rows())


@pytest.mark.parametrize("key", ["name", "model"])
@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "..", "a\x1b[2Jb", 7])
def test_rows_of_a_sweep_stay_in_its_folder(tmp_path, capsys, key, name):
    write_sweep(tmp_path / "out", {"editors": ["rome"]}, documents=2)
    file = tmp_path / "out" / "sweep.json"
    content = json.loads(file.read_text())
    content["rows"][0][key] = name
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="want names without a path"):
        load_sweep(tmp_path / "out")
    for command in ("plot", "report"):
        assert cli.main([command, str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert "want names without a path" in said and "\x1b" not in said


@pytest.mark.parametrize("changes", [{"checkpoints": ["x"]}, {"left_out": 3}, {"edit_batch_size": None}])
def test_a_damaged_row_is_told_in_a_sentence(tmp_path, changes):
    write_sweep(tmp_path / "out", {"editors": ["rome"]}, documents=2)
    file = tmp_path / "out" / "sweep.json"
    content = json.loads(file.read_text())
    content["rows"][0] |= changes
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"sweep.json is damaged"):
        load_sweep(tmp_path / "out")


def test_a_cell_names_files_of_its_own_folder(tmp_path):
    (tmp_path / "cell").mkdir()
    record = {"status": "done", "files": {"../secret": "0" * 64}}
    (tmp_path / "cell" / "cell.json").write_text(json.dumps(record))
    status, why = cell_state(tmp_path / "cell")
    assert status is None and "names a file outside its folder" in why


def test_a_tasks_name_is_no_path(tmp_path):
    cell = Cell("demo", None, 0, ("../../../evil",))
    with pytest.raises(UserError, match="can have no file of samples"):
        SweepFolder(tmp_path / "out").write(cell, {"status": "done"}, {}, {"../../../evil": [{}]})
    assert not list(tmp_path.rglob("evil*"))


# ------------------------------------------------------------------------------------------------ what a first run says

FOREIGN = """\
task: somebodys
custom_dataset: !function somebodys_data.load
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match}]
"""


def test_the_harness_gives_no_advice_about_our_tasks_and_keeps_it_for_others(tmp_path, caplog, monkeypatch):
    from lm_eval.tasks.manager import TaskManager

    _hooks.add_tasks()
    (tmp_path / "somebodys.yaml").write_text(FOREIGN)
    (tmp_path / "somebodys_data.py").write_text(
        "import datasets\n"
        "def load(**kwargs):\n"
        "    return {'test': datasets.Dataset.from_list([{'question': 'q', 'answer': 'a'}])}\n"
    )
    paths = [str(tasks_dir()), str(tmp_path)]
    manager = TaskManager(include_path=paths, include_defaults=False, metadata={"data_dir": "demo"})
    with caplog.at_level(logging.INFO):
        manager.load(["edithurt_sst2"])
        assert "Custom kwargs" not in caplog.text
        manager.load(["somebodys"])
        assert "somebodys: Custom kwargs" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_edits", 10**12, "n_edits: got 1000000000000, want at most 10000000"),
        ("edit_seeds", [10**23], "want whole numbers of at least 0, or none, below 2\\*\\*63"),
    ],
)
def test_numbers_beyond_all_use(key, value, message):
    """A dry run made a list of 10^12 operations to estimate what they cost."""
    given = {"name": "x", "models": ["demo"], "editors": ["rome"], "n_edits": [1]} | {key: value}
    with pytest.raises(ConfigurationError, match=message):
        parse_design(given, "design.yaml")


@pytest.mark.parametrize("value", [10**23, 10**400, "9" * 400, 2.0**70, float("inf")])
def test_settings_take_no_number_that_nothing_takes(value):
    assert parse_settings({"edit_seed": value})[1] == [f"edit_seed={shown(value)}: want a whole number below 2**63"]


def shown(value):
    return int(value) if isinstance(value, float) and value.is_integer() else value
