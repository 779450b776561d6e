"""Files from outside: what could not be read in reasonable time and space is refused at once, in a sentence."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from lm_eval_edit import UserError
from lm_eval_edit._support import files
from lm_eval_edit._support.files import parse_json, read_json, read_yaml
from lm_eval_edit.cli import main
from lm_eval_edit.errors import CannotWriteError
from lm_eval_edit.tasklib.records import layouts


def _bomb(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [" + ",".join("x" * width) + "]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [" + ",".join([f"*a{level - 1}"] * width) + "]")
    return "\n".join([*lines, f"models: *a{levels - 1}", f"editors: *a{levels - 1}", "n_edits: 1"])


BAD_YAML = {
    "aliases of aliases": (_bomb(9), "aliases .* make more than 10,000 values"),
    "merge keys": (
        "a: &a {" + ",".join(f"k{i}: 1" for i in range(20)) + "}\n"
        + "\n".join(
            f"b{n}: &b{n} {{" + ",".join(f"k{i}: *{'a' if not n else f'b{n - 1}'}" for i in range(20)) + "}"
            for n in range(6)
        ),
        "aliases",
    ),
    "a list that holds itself": ("models: &a [*a]", "stands within the value that it names"),
    "a mapping that holds itself": ("models: &a {b: [1, *a]}", "stands within the value"),
    "depth in brackets": ("[" * 100_000, "more than 100 deep"),
    "depth in braces": ("{a: " * 5_000, "more than 100 deep"),
    "depth by indentation": ("\n".join(" " * i + "a:" for i in range(400)), "more than 100 deep"),
    "depth by dashes": ("- " * 3_000 + "x", "more than 100 deep"),
    "a date that is none": ("name: 2020-99-99", "cannot be read"),
    "a number without end": ("name: " + "1" * 5_000, "cannot be read"),
    "two documents": ("a: 1\n---\nb: 2", "not YAML"),
    "a python object": ("a: !!python/object/apply:os.system [true]", "not YAML"),
    "a control character": ("a: \x01", "not YAML"),
    "a list as a key": ("? [a]\n: b", "not YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_is_refused_at_once(tmp_path, name):
    text, message = BAD_YAML[name]
    (tmp_path / "file.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(tmp_path / "file.yaml")
    assert time.process_time() - started < 2
    assert str(tmp_path / "file.yaml") in str(caught.value)


def test_ordinary_aliases_are_read(tmp_path):
    (tmp_path / "file.yaml").write_text(
        "base: &base {lr: 1, layers: &l [1, 2]}\nother: {<<: *base, more: *l}\nlist: *l"
    )
    assert read_yaml(tmp_path / "file.yaml")["other"] == {"lr": 1, "layers": [1, 2], "more": [1, 2]}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 150 + "1" + "}" * 150, "[" * 101 + "]" * 101])
def test_deep_json_is_refused(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match="more than 100 deep"):
        read_json(tmp_path / "file.json")


def test_json_of_ordinary_depth_is_read(tmp_path):
    assert parse_json("[" * 100 + "]" * 100, tmp_path) and parse_json("null", tmp_path) is None


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 7: holds a number of too many digits"):
        parse_json("[" + "1" * 5_000 + "]", tmp_path, 7)


@pytest.mark.parametrize("command", [["sweep"], ["check", "--baseline", "x", "--current", "y", "--config"]])
def test_commands_refuse_such_files_in_a_sentence(tmp_path, capsys, command):
    (tmp_path / "laughs.yaml").write_text(_bomb(9))
    started = time.process_time()
    assert main([*command, str(tmp_path / "laughs.yaml"), *(["--dry_run"] if command == ["sweep"] else [])]) != 0
    assert time.process_time() - started < 10
    said = capsys.readouterr()
    assert "laughs.yaml, line" in said.err + said.out and "write out what is meant" in said.err + said.out


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "[" * 100_000, '{"a": ' + "1" * 5_000 + "}"])
def test_task_data_that_cannot_be_read(tmp_path, text):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"data.jsonl.*JSON"):
        list(layouts._json(tmp_path / "data.jsonl"))


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    """`--json /dev/full` of root made a file of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_bytes(pipe, b"content")
    assert os.read(reader, 20) == b"content" and stat.S_ISFIFO(pipe.lstat().st_mode)
    os.close(reader)
    files.write_bytes(Path(os.devnull), b"content")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for place, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "below", "")):
        with pytest.raises(CannotWriteError, match=f"{place} cannot be written: .*{why}"):
            files.write_bytes(place, b"content")
    told = pytest.raises(CannotWriteError, match=f"^{tmp_path / 'file'} cannot be written: .*same command again")
    with told, files.writing(tmp_path / "file"):
        files.write_bytes(tmp_path / "file" / "below", b"content")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError, match=f"{tmp_path / 'file' / 'out'} cannot be written"):
        files.publish(tmp_path / "file" / "out", lambda folder: None)


def test_a_folder_appears_when_it_is_whole_and_has_passed_its_check(tmp_path):
    def write(folder):
        (folder / "file").write_text("content")

    def refuse(folder):
        assert (folder / "file").exists() and not (tmp_path / "out").exists()
        raise UserError("no")

    for fill, verify, error in ((write, refuse, UserError), (lambda folder: 1 / 0, refuse, ZeroDivisionError)):
        with pytest.raises(error):
            files.publish(tmp_path / "out", fill, verify)
        assert not list(tmp_path.iterdir())
    files.publish(tmp_path / "out", write)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "file").read_text() == "content"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_a_folder_with_something_in_it_is_left_as_it_is(tmp_path):
    for folder in (tmp_path / "out", tmp_path / "empty"):
        folder.mkdir()
    (tmp_path / "out" / "mine").touch()
    assert files.not_empty(tmp_path / "empty") is files.not_empty(tmp_path / "absent") is None
    for place in (tmp_path / "out", tmp_path / "out" / "mine"):
        assert str(files.not_empty(place)).startswith(f"{place} exists and is not an empty folder; give a new one")
    with pytest.raises(CannotWriteError, match="Directory not empty"):
        files.publish(tmp_path / "out", lambda folder: (folder / "theirs").touch())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["empty", "mine", "out"]
