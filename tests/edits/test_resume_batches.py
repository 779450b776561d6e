"""Batches in sequence on the demo model: stopped and resumed equals never having stopped, whatever the editor keeps."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import demo, edit_model, load_facts
from lm_eval_edit.editors import find_editor
from tests.support.tiny import same_weights, weights_of


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be caught on its way."""


@pytest.mark.parametrize("editor", ["memit", "emmet", "alphaedit", "memit_seq", "encore", "mend", "ft"])
def test_stopped_between_two_batches_and_resumed(tmp_path, monkeypatch, editor):
    tokenizer, facts = AutoTokenizer.from_pretrained(demo.CHECKPOINT), list(load_facts("demo"))[:6]

    def edited(ledger=None):
        model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT).eval()
        unedited = weights_of(model)
        edit_model(
            model, tokenizer, facts, editor, edit_batch_size=2, second_moments=demo.SECOND_MOMENTS, ledger=ledger,
            progress=False,
        )  # fmt: skip
        assert not same_weights(model, unedited)
        return model

    wanted = weights_of(edited())
    cls = find_editor(editor)
    compute, calls = cls.compute, []

    def dies_at_the_second(self, context, batch, history=()):
        calls.append(batch)
        if len(calls) == 2:
            raise Killed
        return compute(self, context, batch, history)

    monkeypatch.setattr(cls, "compute", dies_at_the_second)
    with pytest.raises(Killed):
        edited(tmp_path)
    assert len(list((tmp_path / "ops").glob("*.json"))) == 1
    assert same_weights(edited(tmp_path), wanted)
    assert len(calls) == 4, "the finished batch is replayed, not computed again"
