"""Texts of other people's files reach a terminal without what it would act upon."""

from __future__ import annotations

import json
import logging

import pytest

from lm_eval_edit import cli
from lm_eval_edit._support.logging import log_safely
from tests.support.tiny import (
    FACTS,
    save_tiny,
)


def test_log_lines(caplog):
    log_safely()
    log_safely()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("lm_eval_edit").warning("fact %s of %d is skipped", "a\x1b[2Jb\ud800", 3)
    assert caplog.messages == ["fact a\\x1b[2Jb\\ud800 of 3 is skipped"]


def test_validate_and_its_problems(tmp_path, capsys):
    save_tiny(tmp_path / "model")
    records = [FACTS[0].record() | {"id": "a\x1b[2Jb"}, FACTS[1].record() | {"id": "c\x9b31md", "target_new": " "}]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    model = f"pretrained={tmp_path / 'model'},edit_dataset={tmp_path / 'facts.jsonl'},edit_layers=1"
    assert cli.main(["validate", "--model_args", f"{model},editor=rome,v_lr\x1b[2J=1"]) == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x9b" not in said
    assert "a\\x1b[2Jb" in said and "v_lr\\x1b[2J" in said


@pytest.mark.parametrize(
    "arguments", [["ls", "editors", "r\x1b[2J"], ["sweep", "no\x1bsuch"], ["export", "no\x1bledger"]]
)
def test_errors_of_other_commands(arguments, capsys):
    assert cli.main([*arguments, *(["--to", "hf", "-o", "x"] if arguments[0] == "export" else [])]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.err + said.out and "\\x1b" in said.err
