"""Edits inside a chat template: kept, continued, told apart from edits of plain prompts, and refused before loading."""

from __future__ import annotations

import json

import pytest

from lm_eval_edit import EditedHFLM, Fact, edit_model
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.facts.chat import chat_frame
from lm_eval_edit.plan import draft_plan
from tests.support.chat_models import SHAPES, chat_model, chat_tokenizer, save_chat
from tests.support.tiny import weights_of, write_facts

FACTS = [
    Fact(name, "The mother tongue of {} is", "ab", "cd", id=str(i)) for i, name in enumerate(("Nils", "Rosa", "Ida"))
]
FT = {"layers": [1], "num_steps": 4, "lr": 5e-3, "objective_optimization": "target_new"}
PLAIN = "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}"
DATED = "{{ strftime_now('%Y') }}" + PLAIN


def edited(facts, folder, chat=True, template=PLAIN):
    model = chat_model()
    ledger = edit_model(
        model,
        chat_tokenizer(template),
        facts,
        editor="ft",
        options=FT,
        chat_template=chat,
        ledger=folder,
        progress=False,
    )
    return model, ledger


def test_a_ledger_keeps_plain_facts_and_goes_on_to_the_same_bits(tmp_path):
    whole, _ = edited(FACTS, tmp_path / "whole")
    edited(FACTS[:2], tmp_path / "parts")
    resumed, ledger = edited(FACTS, tmp_path / "parts")
    first, second = weights_of(whole), weights_of(resumed)
    assert all(first[name].equal(second[name]) for name in first)
    assert [o.facts for o in ledger.operations] == [[fact] for fact in FACTS]
    header = json.loads((tmp_path / "parts" / "ledger.json").read_text())
    assert header["extra"]["chat"] == chat_frame(chat_tokenizer(PLAIN)).record()


def test_a_ledger_of_plain_edits_is_as_it_was(tmp_path):
    edited(FACTS[:1], tmp_path / "plain", chat=False)
    header = json.loads((tmp_path / "plain" / "ledger.json").read_text())
    assert "chat_template" not in header["identity"] and "chat" not in header["extra"]


@pytest.mark.parametrize(("first", "then"), [((True, PLAIN), (False, PLAIN)), ((True, PLAIN), (True, "!" + PLAIN))])
def test_a_ledger_of_another_place_is_refused(tmp_path, first, then):
    edited(FACTS[:1], tmp_path / "ledger", *first)
    with pytest.raises(UserError, match=r"chat_template is .* in the ledger"):
        edited(FACTS[:1], tmp_path / "ledger", *then)


def test_a_template_that_tells_the_date_goes_on_with_the_first_edits(tmp_path):
    edited(FACTS[:1], tmp_path / "ledger", template=DATED)
    file = tmp_path / "ledger" / "ledger.json"
    header = json.loads(file.read_text())
    header["extra"]["chat"]["before"] = "1999<|start|>"  # as if that edit had been made long ago
    file.write_text(json.dumps(header))
    _, ledger = edited(FACTS[:2], tmp_path / "ledger", template=DATED)
    assert ledger.extra["chat"]["before"] == "1999<|start|>" and len(ledger.operations) == 2


def test_more_facts_are_edited_in_the_same_place(tmp_path):
    model, ledger = edited(FACTS[:1], None)
    ledger.edit(FACTS[1:])
    whole, _ = edited(FACTS, None)
    first, second = weights_of(whole), weights_of(model)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.fixture
def given(tmp_path):
    return {
        "pretrained": str(save_chat(tmp_path / "model", SHAPES["BOS, trims"][0])),
        "editor": "ft", "n_edits": 3, "edit_seed": None, "edit_chat_template": True, "edit_config": FT,
        "edit_dataset": str(write_facts(tmp_path / "facts.jsonl", FACTS)),
    }  # fmt: skip


def test_the_model_type_edits_there_and_says_so(given, caplog):
    with caplog.at_level("INFO", logger="lm_eval_edit"):
        lm = EditedHFLM(**given, device="cpu")
    assert "3 edits inside the chat template: " in caplog.text
    assert lm.edit_record()["chat_template"]["after"] == SHAPES["BOS, trims"][2]


def test_what_a_template_is_rendered_with_counts(given):
    template = "{{ word }}" + PLAIN
    chat_tokenizer(template).save_pretrained(given["pretrained"])
    lm = EditedHFLM(**given, chat_template_args={"word": "Please: "}, device="cpu")
    assert lm.edit_record()["chat_template"]["before"] == "Please: <|start|>"


def problems_of(given, **more):
    ours = {name: value for name, value in given.items() if name != "pretrained"}
    return draft_plan(given["pretrained"], ours | more, {})[1]


def test_all_is_told_before_the_model_loads(given, tmp_path):
    assert not problems_of(given)
    chat_tokenizer(None).save_pretrained(given["pretrained"])
    (tmp_path / "model" / "chat_template.jinja").unlink()
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    found = problems_of(given, n_edits=9)
    assert any("no chat template" in each for each in found) and any("9" in each for each in found)
    with pytest.raises(ConfigurationError, match="no chat template"):
        EditedHFLM(**given, device="cpu")


@pytest.mark.parametrize("editor", ["mend", "easyeditor:ROME"])
def test_methods_that_cannot_are_told(given, editor):
    found = problems_of(given, editor=editor, edit_config=None)
    assert any(each.startswith("edit_chat_template=true: ") and "cannot edit inside" in each for each in found)


def test_prompts_are_too_long_with_the_template_around_them(given):
    room = len(FACTS[0].text) + 8
    chat_model(max_position_embeddings=room).save_pretrained(given["pretrained"])
    assert not problems_of(given, edit_chat_template=False)
    found = problems_of(given)
    assert len(found) == 3 and all(f"this model's context holds {room}" in each for each in found)


@pytest.mark.parametrize("value", ["maybe", 2, "chatml"])
def test_the_option_is_true_or_false(given, value):
    assert problems_of(given, edit_chat_template=value) == [f"edit_chat_template={value}: want true or false"]
