"""Files as they come: marks, encodings, nesting, repeated keys; and what a run says of facts it passes over."""

from __future__ import annotations

import codecs
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_edit import ConfigurationError, EditSchedule, UserError, load_facts
from lm_eval_edit._support.files import read_json
from lm_eval_edit.facts.fact import SkippedFact
from lm_eval_edit.facts.skipped import kind, reasons
from lm_eval_edit.plan import make_plan
from lm_eval_edit.tasklib.editing import documents as editing_documents
from tests.conftest import SHARED

FACT = {"subject": "Orvanta", "prompt": "The capital of Orvanta is", "target_new": "Kelm"}
LINE = json.dumps(FACT)
CASES = SHARED / "cases"


def written(tmp_path: Path, content: bytes | str, name: str = "facts.jsonl") -> Path:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("content", [LINE + "\n", f"[{LINE}]", json.dumps(FACT, indent=2), LINE.replace(", ", ",\r\n")])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_lists_lines_and_single_objects_are_read_with_and_without_a_byte_order_mark(tmp_path, content, mark):
    facts = load_facts(written(tmp_path, mark + content.encode()))
    assert [fact.record() for fact in facts] == [FACT | {"id": "0"}]
    assert facts.sha256 == load_facts(written(tmp_path, LINE, "plain.jsonl")).sha256


def test_a_mark_inside_a_file_of_several_put_together_is_read_over(tmp_path):
    assert len(load_facts(written(tmp_path, codecs.BOM_UTF8.join([b"", LINE.encode() + b"\n", LINE.encode()])))) == 2


def test_a_byte_order_mark_in_any_json_file_is_read(tmp_path):
    assert read_json(written(tmp_path, codecs.BOM_UTF8 + b'{"a": 1}')) == {"a": 1}


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINE.encode("utf-16"), r"facts.jsonl is UTF-16 text, not UTF-8; save it as UTF-8"),
        (codecs.BOM_UTF32_LE + LINE.encode("utf-32-le"), r"facts.jsonl is UTF-32 text"),
        (LINE.encode("utf-16-le"), r"facts.jsonl, line 1: holds a NUL byte"),
        (LINE.encode() + b"\n" + LINE.replace("K", "\xe9").encode("latin-1"), r"line 2: not UTF-8 text \(.* at byte 7"),
        (gzip.compress(LINE.encode(), mtime=0), r"facts.jsonl is compressed \(gzip\); unpack it first \(gunzip does\)"),
        ("", r"facts.jsonl is empty"),
        (b" \r\n\n", r"facts.jsonl is empty"),
        (codecs.BOM_UTF8, r"facts.jsonl is empty"),
        ("[]", r"facts.jsonl holds no facts"),
        (DEEP, r"facts.jsonl, line 1: JSON nested too deeply"),
        (f"{LINE}\n{DEEP}\n", r"facts.jsonl, line 2: not JSON|facts.jsonl, line 2: JSON nested too deeply"),
        (f'{LINE}\n{{"subject": {"[" * 100_000}', r"line 2: JSON nested too deeply"),
        (LINE.replace('"Kelm"', "1" * 5000), r"line 1: holds a number of too many digits"),
        ("subject,prompt,target_new\na,b,c\nd,e,f\n", r"line 1: not JSON .*No line of the file is JSON; give"),
        (LINE.replace("}", ', "subject": "Tor"}'), r"record 1: subject stands twice with different values"),
        ('{"requested_rewrite": {"subject": "a", "prompt": "{}", "target_new": {"str": "b", "str": "c"}}}',
         r"record 1: requested_rewrite.target_new.str stands twice"),
    ],
)  # fmt: skip
def test_unreadable_files_end_with_one_sentence(tmp_path, content, message):
    file = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        load_facts(file)
    assert not isinstance(error.value, ConfigurationError) and len(str(error.value)) < 500
    with pytest.raises(ConfigurationError, match=message):  # told as a problem of the run, before a model loads
        make_plan("demo", {"editor": "rome", "edit_dataset": str(file)}, {})
    with pytest.raises(ConfigurationError, match=message):
        editing_documents.check_tasks(["edithurt_efficacy"], {"edit_dataset": str(file), "editor": "none"})


def test_a_key_that_stands_twice_with_one_value_or_unread_is_no_matter(tmp_path):
    once = LINE.replace("}", ', "subject": "Orvanta", "note": 1, "note": 2, "rank": NaN, "rank": NaN}')
    assert len(load_facts(written(tmp_path, once))) == 1


def test_all_lines_that_are_wrong_are_told_at_once(tmp_path):
    lines = [LINE, "{", LINE.replace("Kelm", "\\ud800"), LINE.replace('"Kelm"', "true"), LINE + ","]
    with pytest.raises(ConfigurationError) as error:
        make_plan("demo", {"editor": "rome", "edit_dataset": str(written(tmp_path, "\n".join(lines)))}, {})
    problems = [problem.split("facts.jsonl, ")[-1][:12] for problem in error.value.problems]
    assert problems == ["line 2: not ", "record 3: ta", "record 4: ta", "line 5: not "]


def test_ids_that_stand_twice_are_all_told(tmp_path):
    records = [FACT | {"id": name} for name in "abab"]
    with pytest.raises(ConfigurationError) as error:
        load_facts(written(tmp_path, json.dumps(records)))
    assert [problem.split(": ")[-1] for problem in error.value.problems] == [
        "records 1 and 3 have the same id 'a'",
        "records 2 and 4 have the same id 'b'",
    ]


# ------------------------------------------------------------------------------------------------- facts that fall out


def records(usable: int, absent: int = 0, empty: int = 0) -> list[dict]:
    out = [FACT | {"id": f"u{i}"} for i in range(usable)]
    out += [FACT | {"id": f"a{i}", "subject": f"Tor {i}"} for i in range(absent)]
    return out + [FACT | {"id": f"e{i}", "target_new": None} for i in range(empty)]


def test_too_few_facts_counts_those_that_fell_out_and_says_why(tmp_path):
    file = written(tmp_path, json.dumps(records(5, absent=1)))
    message = (
        r"n_edits=6: only 5 usable facts are there \(of 6\): record 6 \(id a0\): the subject 'Tor 0' is not in the "
        r"prompt 'The capital of Orvanta is'. Lower n_edits"
    )
    for call in (
        lambda: EditSchedule(6).operations(load_facts(file)),
        lambda: make_plan("demo", {"editor": "rome", "n_edits": 6, "edit_dataset": str(file)}, {}),
        lambda: editing_documents.load("efficacy", {"editor": "none", "n_edits": 6, "edit_dataset": str(file)}),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(UserError, match=r"only 3 usable facts are there after edit_offset=2 \(of 6\): record 6"):
        EditSchedule(4, offset=2).operations(load_facts(file))


def test_facts_that_only_the_editor_cannot_edit_are_counted_with_the_others(tmp_path):
    file = written(tmp_path, json.dumps(records(2, empty=1)))
    with pytest.raises(
        ConfigurationError, match=r"only 0 usable facts are there \(of 3\): record 3 \(id e0\): the target is emp"
    ):
        make_plan("demo", {"editor": "kn", "n_edits": 1, "edit_dataset": str(file)}, {})


def test_many_that_fell_out_are_counted_by_reason(tmp_path):
    facts = load_facts(written(tmp_path, json.dumps(records(1, absent=4, empty=2))))
    told = reasons(facts.skipped)
    assert told.startswith("record 2 (id a0): the subject 'Tor 0' is not") and told.count("record") == 3
    assert told.endswith("... In all: 4 because the subject is not in the prompt, 2 because the target is empty")


def test_a_reason_without_what_it_quotes_is_one_for_all():
    assert (
        kind("""the subject "O'Hara" is not in the prompt 'It\\'s "x" of'; 'a' differs""")
        == "the subject is not in the prompt"
    )
    assert len(reasons([SkippedFact("a", "x" * 5000)])) < 400


# --------------------------------------------------------------------------------------- the cases this was found with


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("nan_target", ["kept Tor target_new 'Arl' target_true None paraphrases ()", "the target is empty"]),
        ("record_forms", [f"{name:24} OK" for name in ("bom.jsonl", "mquake.json", "nfd.jsonl", "wikibigedit.json")]),
    ],
)
def test_shared_cases(case, wanted):
    run = subprocess.run([sys.executable, "read.py"], cwd=CASES / case, capture_output=True, text=True, check=True)
    assert all(line in run.stdout for line in wanted) and "Error" not in run.stdout


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("zsre.jsonl", "3aca2c734c3caee035ed4b32e9365512211a394c846fca2e21e5518bef3da60e"),
        ("paper_layout/edited-data/zsre.json", "3aca2c734c3caee035ed4b32e9365512211a394c846fca2e21e5518bef3da60e"),
        ("counterfact.jsonl", "06fee4159fccb0af80f8a164de39932bca4d747bc16b1e9dd7d712e79e9b2d11"),
        ("zsre_train.jsonl", "e637142d17cc86edf92373a34e401f4d539bf7c61da585ad13af2dbf8f167b4a"),
    ],
)
def test_clean_files_read_to_the_facts_that_ledgers_and_frozen_baselines_name(data, name, sha256):
    """Whatever is mended for other files leaves these as they are."""
    facts = load_facts(data / name)
    assert facts.sha256 == sha256 and not facts.skipped


def test_the_demos_facts_stay_what_ledgers_and_frozen_baselines_name():
    assert load_facts("demo").sha256 == "5f28d8a1b4511a5856c03b5b3b3e7554a239be5578039dd6cd6392ffb496d2d8"
