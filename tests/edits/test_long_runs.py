"""What an edit costs does not grow with the edits before it: counted, never timed (`benchmarks/lifelong.py` times)."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from benchmarks.lifelong import tensor_bytes
from lm_eval_edit import Fact, UserError, edit_model
from lm_eval_edit.editors import Editor, EditResult
from lm_eval_edit.editors.betaedit import BetaEdit
from lm_eval_edit.edits.operations import Operation, Totals
from lm_eval_edit.edits.run import begin_editing
from lm_eval_edit.export.edited import select
from lm_eval_edit.weights.delta import DenseDelta
from lm_eval_edit.weights.fingerprint import OLDEST, model_fingerprint
from tests.support.tiny import (
    NESTED_TEMPLATES,
    SENTENCES,
    same_weights,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

WORDS = SENTENCES[1].split()
PROMPTS = ("The mother tongue of {}", "the city of {}", "{} was born in")
#: Twelve facts, no two alike.
FACTS = [
    Fact(
        f"{WORDS[i % 8]} {WORDS[(i + 1 + i // 8) % 8]}", PROMPTS[i % 3], WORDS[8 + i % 8], WORDS[8 + (i + 3) % 8],
        id=str(i),
    )
    for i in range(12)
]  # fmt: skip


@dataclass(frozen=True)
class NoOptions:
    pass


class Wandering(Editor):
    """Adds something to another parameter in each operation: what edits have touched grows from one to the next."""

    name = "wandering"
    summary = source = ""
    Options = NoOptions
    needs_subject = False

    def compute(self, context, facts, history=()):
        name, parameter = sorted(context.model.named_parameters())[len(history)]
        return EditResult(
            {name: DenseDelta(torch.full(parameter.shape, 1e-3, dtype=parameter.dtype))}, state={"n": torch.ones(1)}
        )


class Meddling(Wandering):
    """Changes a parameter behind the ledger's back as well: one that its first operation has edited."""

    name = "meddling"

    def compute(self, context, facts, history=()):
        if len(history) == 2:
            name = sorted(context.model.named_parameters())[0][0]
            context.model.get_parameter(name).data.add_(1.0)
        return super().compute(context, facts, history)


def wander(model, facts, ledger=None, editor="Wandering"):
    return edit_model(model, tiny_tokenizer(), facts, f"{__name__}:{editor}", ledger=ledger, progress=False)


def edit(model, facts, editor="memit_seq", ledger=None, size=1, **more):
    options = {"layers": (0, 1), "v_num_grad_steps": 2, **more}
    return edit_model(
        model, tiny_tokenizer(), facts, editor, size, options=options, context_templates=NESTED_TEMPLATES,
        second_moments=tiny_second_moments(tiny_model(torch.float64)), ledger=ledger, progress=False,
    )  # fmt: skip


@pytest.fixture
def counted(monkeypatch):
    """How often files of a ledger were read and tensors hashed, by what was done; `counted.clear()` starts anew."""
    found: Counter[str] = Counter()

    def count(where, name):
        stock = getattr(__import__(where, fromlist=[name]), name)

        def counting(*args, **kwargs):
            found[name] += 1
            return stock(*args, **kwargs)

        monkeypatch.setattr(f"{where}.{name}", counting)

    for name in ("read_json", "load_deltas", "state_names", "load_state"):
        count("lm_eval_edit.edits.operations", name)
    count("lm_eval_edit.weights.touched", "tensor_hash")
    return found


def stored(folder):
    return [json.loads((folder / "ops" / f"{n:05d}.json").read_text()) for n in range(len(FACTS)) if
            (folder / "ops" / f"{n:05d}.json").exists()]  # fmt: skip


# --------------------------------------------------------------------------------------------------- the fingerprint


def test_an_operation_hashes_what_it_changed_however_much_was_edited_before(counted, tmp_path, monkeypatch):
    at = []
    from lm_eval_edit.edits.ledger import Ledger

    append = Ledger.append
    monkeypatch.setattr(Ledger, "append", lambda *args: at.append(counted["tensor_hash"]) or append(*args))
    ledger = wander(tiny_model(), FACTS, tmp_path)
    assert len(ledger.weights.touched) == len(FACTS), "each operation has touched another parameter"
    assert [b - a for a, b in pairwise(at)] == [1] * (len(FACTS) - 1)
    assert counted["tensor_hash"] == 2 * len(FACTS), "and all of them are hashed once more at the end"
    again = tiny_model()
    assert wander(again, FACTS, tmp_path).fingerprint() == ledger.fingerprint()
    assert ledger.fingerprint() == stored(tmp_path)[-1]["fingerprint"]


def test_weights_that_something_else_changes_are_noticed(caplog):
    with caplog.at_level(logging.WARNING):
        ledger = wander(tiny_model(), FACTS[:5])
        assert "something else than the ledger's operations" not in caplog.text
        before = ledger.fingerprint()
        parameter = ledger.weights.model.get_parameter(ledger.weights.touched[0])
        parameter.data[0] += 1  # no version counter sees that
        assert ledger.fingerprint() != before
        wander(tiny_model(), FACTS[:5], editor="Meddling")
    assert caplog.text.count("something else than the ledger's operations has changed edited weights") == 1


def test_a_ledger_names_its_hash_and_an_older_one_keeps_its_own(tmp_path, monkeypatch):
    wander(tiny_model(), FACTS[:2], tmp_path / "new")
    described = json.loads((tmp_path / "new" / "ledger.json").read_text())["identity"]["model"]
    assert described["hash"] == "xxh3_128" and described["fingerprint"] == model_fingerprint(tiny_model())
    assert len(described["fingerprint"]) == len(stored(tmp_path / "new")[0]["fingerprint"]) == 32

    with monkeypatch.context() as older:
        older.setattr("lm_eval_edit.edits.run.hash_of_ledger", lambda directory: OLDEST)
        wander(tiny_model(), FACTS[:2], tmp_path / "old")
    described = json.loads((tmp_path / "old" / "ledger.json").read_text())["identity"]["model"]
    assert described == {"fingerprint": model_fingerprint(tiny_model(), OLDEST), "class": "GPT2LMHeadModel"}
    ledger = wander(tiny_model(), FACTS[:4], tmp_path / "old")
    assert ledger.fingerprint() == stored(tmp_path / "old")[-1]["fingerprint"]
    assert [len(operation["fingerprint"]) for operation in stored(tmp_path / "old")] == [64] * 4
    with pytest.raises(UserError, match=r"model.fingerprint is '\w{64}' in the ledger, '\w{64}' now"):
        wander(tiny_model(seed=1), FACTS[:4], tmp_path / "old")


def test_a_hash_of_a_later_version_is_told(tmp_path):
    wander(tiny_model(), FACTS[:1], tmp_path)
    header = json.loads((tmp_path / "ledger.json").read_text())
    header["identity"]["model"]["hash"] = "xxh7"
    (tmp_path / "ledger.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"hash 'xxh7'; this version of lm-eval-edit knows xxh3_128 and sha256"):
        wander(tiny_model(), FACTS[:1], tmp_path)


# --------------------------------------------------------------------------------------------------------- the ledger


@pytest.mark.parametrize("k", [1, 4, 9])
def test_replaying_a_prefix_opens_the_files_of_that_prefix(tmp_path, counted, k):
    wander(tiny_model(), FACTS, tmp_path)
    counted.clear()
    model, fresh = tiny_model(), tiny_model()
    ledger = wander(model, FACTS[:k], tmp_path)
    assert len(ledger.operations) == k
    assert counted["load_deltas"] == k and counted["read_json"] <= 3 * k + 1
    wander(fresh, FACTS[:k])
    assert same_weights(model, weights_of(fresh))
    counted.clear()
    assert len(select(tmp_path, k, [f"{__name__}:Wandering"], pretrained="demo").operations) == k
    assert counted["read_json"] == k


def test_more_edits_read_nothing_of_the_earlier_ones(tmp_path, counted):
    model = tiny_model()
    ledger = edit(model, FACTS[:1], ledger=tmp_path)
    ledger.edit(FACTS[1:2])
    each = []
    for fact in FACTS[2:]:
        counted.clear()
        ledger.edit([fact], ask_all=False)
        each.append(dict(counted))
    assert each == each[:1] * len(each), "the last call reads and hashes as much as the first"
    assert not counted["read_json"] and not counted["load_deltas"]
    assert counted["load_state"] <= 5, "the keys of the operation before, and the numbers that the first one found"
    whole = tiny_model()
    edit(whole, FACTS)
    assert same_weights(model, weights_of(whole))


class Looked(list):
    """Facts that note when somebody looks how many they are, or at one of them."""

    times = 0

    def __len__(self):
        self.times += 1
        return super().__len__()

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def test_more_edits_look_at_no_earlier_facts_or_figures(tmp_path):
    class Record(dict):
        def __getitem__(self, name):
            looked.append(name)
            return super().__getitem__(name)

    looked: list[str] = []
    ledger = wander(tiny_model(), FACTS[:3], tmp_path)
    ledger.edit(FACTS[3:4], ask_all=False)
    for operation in ledger.operations:
        operation.facts, operation.record = Looked(operation.facts), Record(operation.record)
    for fact in FACTS[4:7]:
        ledger.edit([fact], ask_all=False)
    assert sum(operation.facts.times for operation in ledger.operations[:4]) == 0
    assert set(looked) <= {"fingerprint"}, "that of the last operation, which the weights are compared with"
    assert ledger.n_edits == 7 and ledger.guards["retained"]["n"] == 1


def test_totals_are_of_the_operations_that_there_are():
    def operation(n_facts, changed):
        return Operation(0, FACTS[:n_facts], {"answers_changed": changed})

    totals, first, second, other = Totals(), operation(2, 1), operation(3, 3), operation(1, 0)
    assert totals.of([], 0) == (0, 0)
    assert [totals.of([first, second], n) for n in (2, 0, 1, 2)] == [(5, 4), (0, 0), (2, 1), (5, 4)]
    assert totals.of([first, other], 2) == (3, 1), "another in the place of the last"
    assert totals.of([first], 1) == (2, 1) and totals.of([first, second, other], 3) == (6, 4)
    assert totals.of([other], 1) == (1, 0)


def test_more_edits_ask_their_own_facts_or_all(tmp_path):
    ledger = edit(tiny_model(), FACTS[:3], ledger=tmp_path)
    ledger.edit(FACTS[3:5], ask_all=False)
    assert ledger.guards["retained"]["n"] == ledger.guards["edits"] == 2
    ledger.edit(FACTS[5:6])
    assert ledger.guards["retained"]["n"] == ledger.guards["edits"] == ledger.n_edits == 6


def test_what_others_did_in_the_folder_meanwhile_is_still_taken_up(tmp_path):
    run = begin_editing(
        tiny_model(), tiny_tokenizer(), Wandering(NoOptions()), [[fact] for fact in FACTS[:6]], edit_batch_size=1,
        directory=tmp_path, progress=False,
    )  # fmt: skip
    run.edit_to(2)
    begin_editing(
        tiny_model(), tiny_tokenizer(), Wandering(NoOptions()), [[fact] for fact in FACTS[:6]], edit_batch_size=1,
        directory=tmp_path, progress=False,
    ).edit_to(4)  # fmt: skip
    run.edit_to(5)
    assert [len(run.ledger.operations), run.ledger.applied] == [5, 5]
    for name in ("00004.json", "00003.json"):  # as the remedy for a damaged operation says
        os.unlink(tmp_path / "ops" / name)
    run.edit_to(6)
    whole = tiny_model()
    wander(whole, FACTS[:6])
    assert same_weights(run.context.model, weights_of(whole)) and len(stored(tmp_path)) == 6


def test_contradictions_are_told_with_the_facts_that_make_them(tmp_path, caplog):
    ledger = wander(tiny_model(), FACTS[:2])
    other = Fact(FACTS[0].subject, FACTS[0].prompt, "Oslo", FACTS[0].target_true, id="other")
    with caplog.at_level(logging.WARNING):
        ledger.edit([other])
        assert "contradict each other (same prompt, different objects): 0, other" in caplog.text
        caplog.clear()
        ledger.edit(FACTS[4:5])
    assert "contradict" not in caplog.text, "it was told when it came"


def test_a_last_correction_is_taken_off_and_nothing_applied_again(tmp_path, counted):
    options = {"over": "memit", "alpha": 1.2, "layers": (0, 1), "v_num_grad_steps": 8, "mom2_update_weight": 0.01}
    given = {
        "options": options, "context_templates": NESTED_TEMPLATES, "progress": False,
        "second_moments": tiny_second_moments(tiny_model(torch.float64)),
    }  # fmt: skip
    fresh = {}
    for k in (3, 6):
        alone = tiny_model()
        assert edit_model(alone, tiny_tokenizer(), FACTS[:k], "prune", **given).correction, "there is one"
        fresh[k] = weights_of(alone)
    model = tiny_model()
    ledger = edit_model(model, tiny_tokenizer(), FACTS[:6], "prune", ledger=tmp_path, **given)
    ledger.restore()
    counted.clear()
    for k in range(1, 7):
        ledger.apply(k)
        if k in fresh:
            assert same_weights(model, fresh[k])
    assert counted["load_deltas"] == 6, "each operation once"
    ledger.restore()
    assert same_weights(model, weights_of(tiny_model()))


# ------------------------------------------------------------------------------------------------------ the states


@pytest.mark.parametrize("editor", ["ultraedit", "betaedit"])
def test_what_earlier_operations_left_lies_on_disk(tmp_path, editor):
    def held(n):
        options = (
            {"lr": 1e-3} if editor == "ultraedit" else {"refresh_every": 2, "nullspace_threshold": 0.3, "L2": 1e-2}
        )
        options |= {"layers": (0, 1)} | ({"v_num_grad_steps": 2} if editor == "betaedit" else {})
        templates = None if editor == "ultraedit" else NESTED_TEMPLATES
        model = tiny_model()
        run = edit_model(
            model, tiny_tokenizer(), FACTS[:n], editor, options=options, context_templates=templates, progress=False,
            second_moments=None if editor == "ultraedit" else moments, ledger=tmp_path / str(n),
        )  # fmt: skip
        bytes_ = tensor_bytes()
        assert run.n_edits == n
        return bytes_

    moments = tiny_second_moments(tiny_model(torch.float64))
    held(2)  # whatever the first use of a library makes
    few, many = held(4), held(12)
    assert many - few <= 1024, "no operation's tensors stay"


def test_a_projector_found_anew_reads_no_earlier_key_again(tmp_path, counted):
    def reads(n):
        counted.clear()
        edit(
            tiny_model(), FACTS[:n], "betaedit", tmp_path / str(n), refresh_every=1, nullspace_threshold=0.3, L2=1e-2,
            mom2_update_weight=0.1,
        )  # fmt: skip
        return counted["load_state"]

    assert BetaEdit.batches
    assert reads(10) - reads(5) == reads(12) - reads(7), "as many for every operation"
    assert counted["load_state"] <= 4 * 7, "of 42 if each refresh read all"


def test_a_state_that_was_changed_on_disk_is_refused(tmp_path):
    ledger = edit(tiny_model(), FACTS[:2], ledger=tmp_path)
    state = ledger.operations[0].state
    name = next(name for name in state if name.endswith(".keys"))
    assert state[name].shape[1] == 1 and name in state and len(list(state)) == len(state)
    file = tmp_path / "ops" / "00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"00000.safetensors is damaged: its sha256 is"):
        state[name]
    with pytest.raises(KeyError):
        state["no such"]
