"""Objects of several tokens, behind tokenizers that cannot decode a part of a text and encode it again."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from lm_eval_edit import Fact
from lm_eval_edit.editors._shared.finetune import target_row
from lm_eval_edit.editors._shared.rows import fact_rows, prompt_row
from lm_eval_edit.editors._shared.target import optimise_targets
from lm_eval_edit.editors.mend.batch import exact_batch
from lm_eval_edit.edits.answers import answers
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.tokens import continuation
from lm_eval_edit.models.architecture import Architecture
from tests.support.made_up_tokenizers import OBJECTS, byte_level, llama_for, sentencepiece

CONTEXTS = ("{}", "The city. {}")


TOKENIZERS = {
    "metaspace": lambda: sentencepiece("metaspace"),
    "prepend": lambda: sentencepiece("prepend"),
    "bytes": byte_level,
}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def test_the_tokenizers_are_of_the_kind_that_breaks():
    """What these tests are about: parts of a text do not come through decoding, or not through encoding alone."""
    metaspace, prepend, by_byte = (make() for make in TOKENIZERS.values())
    assert metaspace.tokenize("is New York") == ["▁is", "▁New", "▁York"]
    assert metaspace.decode(metaspace.encode(" New", add_special_tokens=False)) == "New"
    assert prepend.tokenize(" Oslo")[0] == "▁"
    lodz = by_byte.encode(" Łódź")
    assert by_byte.decode(lodz[:-1]).endswith("\N{REPLACEMENT CHARACTER}")


@every_tokenizer
@pytest.mark.parametrize("new", OBJECTS)
def test_rows_are_the_text_with_its_object_less_the_last_token(name, new):
    tokenizer = TOKENIZERS[name]()
    fact = Fact("Rome", "The city of {} is", new, id="0")
    for row, context in zip(fact_rows(tokenizer, fact, CONTEXTS), CONTEXTS, strict=True):
        text = context.format(fact.text)
        whole = tokenizer.encode(text + fact.target)
        assert row.ids == whole[:-1]
        assert row.labels == tuple(whole[len(tokenizer.encode(text)) :])
    assert target_row(tokenizer, fact).ids == fact_rows(tokenizer, fact, CONTEXTS[:1])[0].ids
    batch = exact_batch(tokenizer, [fact])
    assert batch.input_ids[0].tolist() == tokenizer.encode(fact.text + fact.target)
    assert tuple(batch.labels.tolist()) == target_row(tokenizer, fact).labels


@every_tokenizer
def test_an_answer_is_asked_for_as_the_text_goes_on(name):
    tokenizer = TOKENIZERS[name]()
    model = llama_for(tokenizer)
    text, target = "The city of Rome is", " Oslo"
    whole = tokenizer.encode(text + target)
    (answer,) = answers(model, tokenizer, [text], [target])
    start = len(tokenizer.encode(text))
    assert answer.target == tuple(whole[start:])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole])).logits[0, start - 1 : -1]
    assert answer.predicted == tuple(logits.argmax(-1).tolist())


def test_only_the_logits_of_the_targets_leave_the_device(monkeypatch):
    tokenizer = byte_level()
    model = llama_for(tokenizer)
    prompts, targets = ["The city of Rome is", "Oslo is in"], [" New", " the north"]
    alone = [answers(model, tokenizer, [p], [t])[0] for p, t in zip(prompts, targets, strict=True)]
    moved, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tuple(tensor.shape)) or cpu(tensor))
    together = answers(model, tokenizer, prompts, targets)
    assert moved == [(len(" New the north"), len(tokenizer))]
    assert [(a.predicted, a.target) for a in together] == [(a.predicted, a.target) for a in alone]
    assert [a.log_prob for a in together] == pytest.approx([a.log_prob for a in alone], rel=1e-5)


@every_tokenizer
@pytest.mark.parametrize("new", OBJECTS[:2])
def test_target_optimisation_lowers_the_loss_of_the_very_text(name, new):
    """Its first loss, with nothing added yet, is the model's own of the object behind the prompt."""
    tokenizer = TOKENIZERS[name]()
    model = llama_for(tokenizer)
    fact = Fact("Rome", "The city of {} is", new, id="0")
    found = optimise_targets(
        model, tokenizer, Architecture.discover(model), [fact], layer=1, site="mlp", contexts=["{}"], steps=1, lr=0.1,
        weight_decay=0.0, clamp_norm_factor=1.0, kl_factor=0.0,
    )  # fmt: skip
    whole, start = torch.tensor(tokenizer.encode(fact.text + fact.target)), len(tokenizer.encode(fact.text))
    with torch.no_grad():
        wanted = cross_entropy(model(input_ids=whole[None]).logits[0, start - 1 : -1], whole[start:])
    torch.testing.assert_close(found.losses[0], wanted, rtol=1e-4, atol=1e-4)


def test_where_the_texts_last_token_becomes_another_the_prediction_begins_there():
    """Behind a trailing space: the space is one with the next word's, or a token of its own before it."""
    tokenizer = sentencepiece("metaspace")
    vocabulary = [tokenizer.tokenize(text) for text in ("The city of ", "The city of Oslo")]
    assert vocabulary[0][-1] == "▁" and vocabulary[1][-2] == "▁Os"
    ids, labels = continuation(tokenizer, "The city of ", "Oslo")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁The", "▁city", "▁of"]
    assert tokenizer.convert_ids_to_tokens(labels) == ["▁Os", "lo"]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [("The city", "", "'' adds no token to the prompt 'The city'"), ("", "x", "'x' leaves no token of the prompt ''")],
)
def test_a_text_and_its_target_each_have_a_token(text, target, message):
    with pytest.raises(UserError, match=f"the target {message}"):
        continuation(byte_level(), text, target)


def test_a_subject_whose_last_token_the_target_changes_is_refused():
    tokenizer = sentencepiece("metaspace")
    assert tokenizer.tokenize("The Rom")[-1] != tokenizer.tokenize("The Rome")[1]
    with pytest.raises(UserError, match="the subject 'Rom' has no token of its own in 'The Rom' followed by 'e'"):
        prompt_row(tokenizer, "The {}", "Rom", "e")
