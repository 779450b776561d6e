"""Long passages lose their end, never the instruction, and no prompt that can be saved is over the budget."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib import shorten
from lm_eval_edit.tasklib.suite import prompts, sources
from lm_eval_edit.tasklib.suite.catalogue import TASKS
from tests.support.suite_records import sample_of

# task -> what must be left at the start and at the end of every shortened prompt
INSTRUCTION = {
    "gsm8k": ("Q: ", " Therefore, the answer (arabic numerals) is:"),
    "rte": ("", ". True or False? answer:"),
    "nq": ("Refer to the passage below and answer the following question. Passage: ", " Question: {question}"),
    "boolq": (
        "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'. passage: ",
        " question: {question}. answer:",
    ),
    "mutual": ("Q: ", "(D){options[3]} A: Among A through D, the answer is"),
    "samsum": ("", "\nTL;DR:"),
    "conll2003": ("Please identify ", " Entity:"),
    "sst2": ("For each snippet of text,label the sentiment of the text as positive or negative.", " answer:"),
}


class Characters:
    """A tokenizer with one token for each character and a beginning-of-text token."""

    is_fast = False

    def __call__(self, texts, add_special_tokens=True, verbose=True):
        return {"input_ids": [[0] * add_special_tokens + [ord(character) for character in text] for text in texts]}


def marked(**fields):
    return {**fields, "shortened": False, "overlong": False}


def test_cut_to_the_last_token():
    docs = [marked(text="0123456789", tail=""), marked(text="01234", tail=""), marked(text="x", tail="9" * 30)]
    shorten.shorten(docs, lambda d: f"<{d['text']}{d['tail']}>", ("text",), shorten.Budget(Characters(), 8))
    assert docs == [
        {"text": "01234", "tail": "", "shortened": True, "overlong": False},  # 1 + 5 + 2 tokens
        {"text": "01234", "tail": "", "shortened": False, "overlong": False},
        {"text": "x", "tail": "9" * 30, "shortened": False, "overlong": True},  # left as it was
    ]


def test_fields_are_cut_in_order():
    def run(limit, add_special_tokens=True):
        docs = [marked(a="aaaa", b="bbbb"), marked(a="", b="bbbbbbbb")]
        budget = shorten.Budget(Characters(), limit, add_special_tokens)
        shorten.shorten(docs, lambda d: d["a"] + d["b"], ("a", "b"), budget)
        return [(d["a"], d["b"]) for d in docs]

    assert run(7) == [("aa", "bbbb"), ("", "bbbbbb")]
    assert run(7, add_special_tokens=False) == [("aaa", "bbbb"), ("", "bbbbbbb")]
    assert run(3) == [("", "bb"), ("", "bb")]


@pytest.fixture(params=["gpt2-tiny", "llama-tiny"])
def model(request, reference):
    return str(reference / "models" / request.param)


@pytest.fixture(scope="session")
def sample(data, tmp_path_factory):
    return sample_of(data, tmp_path_factory.mktemp("sample"), 150)


@pytest.mark.parametrize("task", TASKS)
def test_real_data_fits(task, model, sample):
    """128 positions are too few for nearly every document. Whole documents come from a run without a budget."""
    from transformers import AutoTokenizer

    folder = str(sample)
    whole, _ = sources.load(task, {"data_dir": folder, "model": "an-api"})
    docs, known = sources.load(task, {"data_dir": folder, "pretrained": model})
    assert known["prompt_budget"] == 128 - TASKS[task].new_tokens
    assert known["shortened"] == sum(doc["shortened"] for doc in docs)
    assert known["overlong"] == sum(doc["overlong"] for doc in docs)
    assert known["shortened"] + known["overlong"] > 10

    prompt = getattr(prompts, task)
    texts = [prompt(doc) for doc in docs]
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(model)(texts)["input_ids"]]
    start, end = INSTRUCTION[task]
    for doc, before, text, length in zip(docs, whole, texts, lengths, strict=True):
        if doc["overlong"] or not doc["shortened"]:
            assert doc == {**before, "overlong": doc["overlong"]}
            assert doc["overlong"] == (length > known["prompt_budget"])
        else:
            assert length <= known["prompt_budget"]
            assert text.startswith(start) and text.endswith(end.format(**before))
            assert all(before[name].startswith(doc[name]) for name in TASKS[task].shortenable)
            untouched = set(before) - {*TASKS[task].shortenable, "shortened"}
            assert all(doc[name] == before[name] for name in untouched)


def test_little_is_lost(model, sample):
    """No more than a few tokens of the budget stay unused where only a passage was cut."""
    from transformers import AutoTokenizer

    docs, known = sources.load("samsum", {"data_dir": str(sample), "pretrained": model})
    texts = [prompts.samsum(doc) for doc in docs if doc["shortened"]]
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(model)(texts)["input_ids"]]
    assert min(lengths) > known["prompt_budget"] - 8


def test_characters_of_many_bytes_stay_whole(model):
    """Both tokenizers work on bytes: an emoji is four tokens, and is kept or dropped as one."""
    docs = [marked(dialogue="😀é漢" * 40 + "x" * n) for n in range(4)]
    limit = shorten.fit(docs, prompts.samsum, ("dialogue",), 25, {"pretrained": model})
    budget = shorten.budget_of({"pretrained": model}, 25)
    for doc in docs:
        assert doc["shortened"] and ("😀é漢" * 40).startswith(doc["dialogue"])
    assert all(-6 < n <= 0 for n in budget.excess([prompts.samsum(doc) for doc in docs])) and limit == 103


def test_certainly_short_prompts_are_short(model):
    """Random text of every script that `certain` lets through does fit."""
    rng = random.Random(5)
    alphabet = "ab ,\n" * 8 + "éß漢😀ﷺ\u0301"
    budget = shorten.budget_of({"pretrained": model, "max_length": 120}, 20)
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 120))) for _ in range(2000)]
    texts += ["ab" * n for n in range(60)]
    certain = [text for text in texts if budget.certain(text)]
    assert 50 < len(certain) < len(texts)
    assert max(budget.excess(certain)) <= 0


def test_arguments(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shorten, "DEMO_CHECKPOINT", tmp_path / "absent")

    def limit(**metadata):
        budget = shorten.budget_of(metadata, 5)
        return budget and budget.limit

    assert limit(pretrained=model) == 123
    assert limit(pretrained=model, max_length="64") == limit(pretrained=model, max_length=64.0) == 59
    assert limit(pretrained=model, max_model_len=100) == 95  # vllm's name
    assert limit(model="an-api", tokenizer=model, max_length=100) == 95
    assert limit(pretrained="no/such-model", tokenizer=model, max_length=100) == 95
    assert limit(model="an-api") is None
    assert limit() is None and limit(pretrained="demo") is None
    monkeypatch.setattr(shorten, "DEMO_CHECKPOINT", type(tmp_path)(model))
    assert limit() == limit(pretrained="demo") == limit(pretrained=None) == 123
    assert limit(model="an-api") is None


def test_an_unknown_model_is_left_to_its_loader(caplog):
    assert shorten.budget_of({"pretrained": "/no/such/model"}, 5) is None
    assert "prompts are not shortened to fit: AutoTokenizer of /no/such/model cannot be loaded" in caplog.text


def test_the_word_for_the_real_model_is_the_folder_it_is_unpacked_into(model, monkeypatch):
    """No hub id: prompts were not shortened, and the figures that need a tokenizer left out."""
    monkeypatch.setattr("lm_eval_edit.demo.smollm2.unpack", lambda: model)
    assert shorten.budget_of({"pretrained": "smollm2"}, 5).limit == 123
    assert shorten.budget_of({"model": "smollm2"}, 5) is None, "an API's name"

    def absent():
        raise UserError("not installed")

    monkeypatch.setattr("lm_eval_edit.demo.smollm2.unpack", absent)
    assert shorten.budget_of({"pretrained": "smollm2"}, 5) is None, "which its loader will say"


def test_objects_from_python(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    assert shorten.budget_of({"pretrained": loaded}, 5).limit == 123
    budget = shorten.budget_of({"pretrained": loaded, "tokenizer": tokenizer}, 5)
    assert budget.limit == 123 and budget.tokenizer is tokenizer


def test_bos_is_counted_as_the_model_will_encode(reference):
    """llama-tiny adds a beginning-of-text token, unless the run says otherwise."""
    llama = str(reference / "models" / "llama-tiny")
    excess = {bos: shorten.budget_of({"pretrained": llama, "add_bos_token": bos}, 5).excess(["x"]) for bos in (0, None)}
    assert excess[None][0] == excess[0][0] + 1


def test_length_is_hflms():
    from lm_eval.models.utils import resolve_max_length

    for config in (
        SimpleNamespace(n_positions=7, max_position_embeddings=8),
        SimpleNamespace(max_position_embeddings=9),
        SimpleNamespace(n_ctx=10),
        SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=11), n_positions=5),
        SimpleNamespace(text_config=None, n_positions=6),
        SimpleNamespace(),
    ):
        for length in (None, 12, 1000000000000000019884624838656):  # the last is transformers' "unset"
            tokenizer = SimpleNamespace(model_max_length=length)
            assert shorten.model_length(config, tokenizer) == resolve_max_length(config, tokenizer)
