"""The ledger: resume equals never having stopped, bit for bit; another run's ledger is refused and left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.edits.run import begin_editing
from lm_eval_edit.export.edited import select
from tests.conftest import ROOT
from tests.support.small_edits import OPTIONS, edit
from tests.support.tiny import FACTS, TEMPLATES, same_weights, tiny_model, tiny_tokenizer, weights_of


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be caught on its way."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, dtype, stop_after):
    whole = tiny_model(dtype)
    edit(whole, FACTS)
    wanted = weights_of(whole)

    compute, calls = Rome.compute, []

    def dies(self, context, facts, history=()):
        if len(calls) == stop_after:
            raise Killed
        calls.append(facts)
        return compute(self, context, facts, history)

    monkeypatch.setattr(Rome, "compute", dies)
    with pytest.raises(Killed):
        edit(tiny_model(dtype), FACTS, tmp_path / "ledger")
    monkeypatch.setattr(Rome, "compute", compute)

    recomputed = []
    monkeypatch.setattr(Rome, "compute", lambda *args: recomputed.append(args[2]) or compute(*args))
    resumed = tiny_model(dtype)
    ledger = edit(resumed, FACTS, tmp_path / "ledger")
    assert len(recomputed) == len(FACTS) - stop_after, "the finished edits are replayed, not computed again"
    assert same_weights(resumed, wanted)
    assert not same_weights(tiny_model(dtype), wanted), "the earlier edits are in the weights, not skipped"
    assert ledger.n_edits == len(FACTS)


def test_a_half_written_operation_does_not_count(tmp_path):
    whole = tiny_model()
    edit(whole, FACTS[:3], tmp_path)
    (tmp_path / "ops" / "00002.json").unlink()  # the tensors are there, the record that would commit them is not
    resumed = tiny_model()
    edit(resumed, FACTS[:3], tmp_path)
    assert same_weights(resumed, weights_of(whole))


def test_any_prefix_of_a_ledger_equals_a_fresh_run_of_that_length(tmp_path):
    model = tiny_model()
    ledger = edit(model, FACTS, tmp_path)
    for n in (0, 1, 3):
        fresh = tiny_model()
        if n:
            edit(fresh, FACTS[:n])
        ledger.apply(n)
        assert same_weights(model, weights_of(fresh))
        replayed = tiny_model()
        edit(replayed, FACTS[:n], tmp_path)
        assert same_weights(replayed, weights_of(fresh))
    assert len(list((tmp_path / "ops").iterdir())) == 2 * len(FACTS), "a shorter run deletes nothing"


def test_a_finished_run_computes_nothing_again(tmp_path, monkeypatch):
    first = edit(tiny_model(), FACTS, tmp_path)
    monkeypatch.setattr(Rome, "compute", lambda *_: pytest.fail("computed again"))
    model = tiny_model()
    second = edit(model, FACTS, tmp_path)
    assert second.fingerprint() == first.fingerprint() == first.operations[-1].record["fingerprint"]
    assert second.guards == first.guards


def test_facts_without_an_id_are_found_again(tmp_path):
    facts = [replace(fact, id=None) for fact in FACTS]
    edit(tiny_model(), facts[:2], tmp_path)
    ledger = edit(tiny_model(), facts, tmp_path)
    assert ledger.n_edits == len(FACTS) and [o.facts[0] for o in ledger.operations] == facts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": tiny_model(seed=1)}, r"model.fingerprint is '\w+' in the ledger, '\w+' now"),
        ({"v_lr": 0.25}, r"options.v_lr is 0.5 in the ledger, 0.25 now"),
        ({"layers": [2]}, r"options.layers is \[1\] in the ledger, \(2,\) now"),
        ({"facts": FACTS[::-1]}, r"operation 0 edits fact 0 in the ledger, fact 3 in this schedule"),
        ({"templates": ("{}",)}, r"context_templates is"),
    ],
)
def test_anothers_ledger_is_refused_with_the_difference(tmp_path, change, message):
    edit(tiny_model(), FACTS[:2], tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    change = dict(change)
    model = change.pop("model", None) or tiny_model()
    kept = weights_of(model)
    facts, templates = change.pop("facts", FACTS[:2]), change.pop("templates", TEMPLATES)
    with pytest.raises(UserError, match=message):
        edit_model(
            model, tiny_tokenizer(), facts, options=OPTIONS | change, context_templates=templates, ledger=tmp_path,
            progress=False,
        )  # fmt: skip
    assert same_weights(model, kept)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a ledger"):
        edit(tiny_model(), FACTS[:1], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def _changed(file, **changes):
    """Harm: some fields of a JSON file get other values; those that become None are dropped."""

    def harm(folder):
        record = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({name: value for name, value in record.items() if value is not None}))

    return harm


SECOND = "ops/00001.json"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_changed(SECOND, sha256=None), r"00001.json is damaged \(no sha256 in it\)"),
        (_changed(SECOND, facts=None, fingerprint=None), r"00001.json is damaged \(no facts, fingerprint in it\)"),
        (_changed(SECOND, index=0), r"00001.json is damaged \(it is operation 0\)"),
        (_changed(SECOND, facts="x"), r"00001.json is damaged \(facts: not of the kind that is written there\)"),
        (_changed(SECOND, sha256=3, after="x"), r"00001.json is damaged \(sha256, after: not of the kind"),
        (_changed(SECOND, facts=[{}]), r"a fact of the ledger: field 'subject' is missing"),
        (lambda folder: (folder / SECOND).write_text("[]"), r"00001.json is damaged \(no index, facts, sha256, "),
        (lambda folder: (folder / SECOND).write_text(""), r"00001.json, line 1: not JSON"),
        (lambda folder: (folder / "ops/00001.safetensors").unlink(), r"00001.safetensors is missing"),
        (lambda folder: (folder / "ops/00001.safetensors").write_bytes(b"x"), r"00001.safetensors is damaged: its sha"),
    ],
)
def test_a_damaged_operation_is_refused_with_the_remedy(tmp_path, harm, message):
    whole = edit(tiny_model(), FACTS[:3], tmp_path)
    harm(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises(UserError, match=message) as caught:
        edit(model, FACTS[:3], tmp_path)
    assert f"Delete {tmp_path}/ops/00001.* and all operations after it to compute them again" in str(caught.value)
    assert same_weights(model, kept)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    for file in [*tmp_path.glob("ops/00001.*"), *tmp_path.glob("ops/00002.*")]:
        file.unlink()
    assert edit(tiny_model(), FACTS[:3], tmp_path).fingerprint() == whole.fingerprint()


def test_a_ledger_that_does_not_say_what_it_belongs_to_is_refused(tmp_path):
    edit(tiny_model(), FACTS[:1], tmp_path)
    (tmp_path / "ledger.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"ledger.json is damaged \(no identity and no extra\), so nobody knows"):
        edit(tiny_model(), FACTS[:1], tmp_path)


def test_what_a_model_was_unpacked_from_may_stand_in_the_header(tmp_path):
    """The real model's ledgers could not be read again: where it comes from is an object."""
    edit(tiny_model(), FACTS[:1], tmp_path)
    header = json.loads((tmp_path / "ledger.json").read_text())
    header["extra"]["model"]["unpacked_from"] = {"package": "some-wheel", "version": "1", "sha256": "0"}
    (tmp_path / "ledger.json").write_text(json.dumps(header))
    assert len(edit(tiny_model(), FACTS[:1], tmp_path).operations) == 1


@pytest.mark.parametrize(
    ("extra", "wrong"),
    [
        ({}, "context_templates, second_moments_source"),
        ({"model": "evil"}, "model"),
        ({"model": {"pretrained": 3}}, "model"),
        ({"model": 1, "editor_class": [], "context_templates": "{}", "versions": 2}, "model, editor_class, context_te"),
    ],
)
def test_what_a_ledger_says_beside_its_identity_is_of_the_kind_that_is_written(tmp_path, extra, wrong):
    """A traceback of `export` before, and of the run itself."""
    edit(tiny_model(), FACTS[:1], tmp_path)
    header = json.loads((tmp_path / "ledger.json").read_text())
    header["extra"] = header["extra"] | extra if extra else {}
    (tmp_path / "ledger.json").write_text(json.dumps(header))
    for look in (lambda: edit(tiny_model(), FACTS[:1], tmp_path), lambda: select(tmp_path)):
        with pytest.raises(UserError, match=rf"ledger.json is damaged \(extra: {wrong}.*not of the kind"):
            look()


def test_a_file_where_the_operations_should_be(tmp_path):
    edit(tiny_model(), FACTS[:1], tmp_path)
    shutil.rmtree(tmp_path / "ops")
    (tmp_path / "ops").touch()
    with pytest.raises(UserError, match="ops is a file; a ledger keeps its operations in a folder of that name"):
        edit(tiny_model(), FACTS[:1], tmp_path)


def test_templates_are_sampled_once_stored_and_used_again(tmp_path, monkeypatch):
    state = torch.random.get_rng_state()
    edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], options=OPTIONS, ledger=tmp_path, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"
    stored = json.loads((tmp_path / "ledger.json").read_text())["extra"]["context_templates"]
    assert len(stored) == 21 and stored[0] == "{}" and all(t.endswith(". {}") for t in stored[1:])
    monkeypatch.setattr("lm_eval_edit.edits.surroundings.sample_templates", lambda *_: pytest.fail("sampled again"))
    edit_model(tiny_model(), tiny_tokenizer(), FACTS[:2], options=OPTIONS, ledger=tmp_path, progress=False)


# ------------------------------------------------------------------------------------------------- two runs, one folder


def _writing(folder):
    """Another process that is writing this ledger's folder."""
    code = (
        "import sys; from pathlib import Path; from lm_eval_edit._support.locks import only_writer\n"
        "with only_writer(Path(sys.argv[1]), 'run'):\n    print('mine', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, **pipes)
    assert other.stdout.readline() == "mine\n"
    return other


def test_a_ledger_is_written_by_one_run_at_a_time(tmp_path):
    edit(tiny_model(), FACTS[:2], tmp_path)
    model = tiny_model()
    kept = weights_of(model)
    with _writing(tmp_path) as other:
        edit(tiny_model(), FACTS[:2], tmp_path)  # reads only
        with pytest.raises(UserError, match="another run with this edit_ledger is writing"):
            edit(model, FACTS[:3], tmp_path)
        other.kill()
    assert same_weights(model, kept)
    assert len(list((tmp_path / "ops").iterdir())) == 4
    assert edit(model, FACTS[:3], tmp_path).n_edits == 3


def test_a_new_ledger_is_begun_by_one_run(tmp_path):
    with _writing(tmp_path) as other:
        with pytest.raises(UserError, match="is writing"):
            edit(tiny_model(), FACTS[:1], tmp_path)
        other.kill()
    assert not (tmp_path / "ledger.json").exists()


def test_what_a_run_of_the_same_schedule_has_added_meanwhile_is_taken_up(tmp_path, monkeypatch):
    first = begin(tiny_model(), FACTS[:3], tmp_path)
    edit(tiny_model(), FACTS[:3], tmp_path)
    monkeypatch.setattr(Rome, "compute", lambda *_: pytest.fail("computed again"))
    first.edit_to()
    assert first.ledger.n_edits == 3


def test_a_folder_that_became_another_runs_meanwhile_is_left_alone(tmp_path):
    first = begin(tiny_model(), FACTS[:2], tmp_path)
    (tmp_path / "ledger.json").unlink()
    edit(tiny_model(), FACTS[:2], tmp_path, v_lr=0.25)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.json")}
    with pytest.raises(UserError, match=r"belongs to another run:\n.*v_lr is 0.25 in the ledger, 0.5 now"):
        first.edit_to()
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*.json")}


def begin(model, facts, directory):
    return begin_editing(
        model, tiny_tokenizer(), Rome(RomeOptions(**OPTIONS | {"layers": (1,)})), [[fact] for fact in facts],
        edit_batch_size=1, context_templates=TEMPLATES, directory=directory, progress=False,
    )  # fmt: skip


def test_operations_of_another_run_are_refused_by_name(tmp_path):
    edit(tiny_model(), FACTS[:3], tmp_path / "one")
    edit(tiny_model(), FACTS[:3], tmp_path / "two", v_lr=0.25)
    for suffix in ("json", "safetensors"):
        shutil.copy(tmp_path / "two" / "ops" / f"00001.{suffix}", tmp_path / "one" / "ops")
    model = tiny_model()
    with pytest.raises(UserError, match=r"00001\.json is of another run than ledger.json beside it"):
        edit(model, FACTS[:3], tmp_path / "one")
    assert same_weights(model, weights_of(tiny_model()))


def test_ledgers_of_earlier_versions_are_read(tmp_path):
    model = tiny_model()
    edit(model, FACTS[:2], tmp_path)
    for file in (tmp_path / "ops").glob("*.json"):
        record = json.loads(file.read_text())
        assert record.pop("run")
        file.write_text(json.dumps(record))
    again = tiny_model()
    edit(again, FACTS[:2], tmp_path)
    assert same_weights(again, weights_of(model))
