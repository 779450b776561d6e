"""One rule for where a prompt ends and a subject stands: editors, checks and tasks go by the very same tokens."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizer

from lm_eval_edit import ConfigurationError, EditedHFLM, Fact, UserError, demo, edit_model, load_facts
from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.edits.answers import answers, edit_answers
from lm_eval_edit.facts.tokens import appended, context_size, continuation, encode, last_token
from tests.support.harness_runs import evaluate
from tests.support.made_up_tokenizers import AFTER, BEFORE, MADE_UP, SUBJECTS, TARGETS, llama_for, records
from tests.support.tiny import tiny_model, tiny_tokenizer

REFERENCE = ("gpt2-tiny", "llama-tiny")


@pytest.fixture(scope="module", params=[*MADE_UP, *REFERENCE, "smollm2"])
def tokenizer(request):
    if request.param in MADE_UP:
        return MADE_UP[request.param]()
    if request.param == "smollm2":
        folder = os.environ.get("SMOLLM2")
        if not folder:
            pytest.skip("SMOLLM2 names no folder with SmolLM2's tokenizer")
        return AutoTokenizer.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(request.getfixturevalue("reference") / "models" / request.param)


@pytest.fixture(scope="module")
def lm(tokenizer):
    """An edited_hf whose tokenizer is `tokenizer`; its model is never asked in most tests."""
    return EditedHFLM(pretrained=llama_for(tokenizer), tokenizer=tokenizer, editor="none", device="cpu")


# ------------------------------------------------------------------------------------------------- the rule as a whole

PIECES = st.one_of(
    st.sampled_from([*AFTER, *BEFORE]), st.text(st.characters(codec="utf-8", exclude_categories=["Cn"]), max_size=6)
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(before=PIECES, subject=st.sampled_from(SUBJECTS), after=PIECES, target=st.sampled_from(TARGETS))
def test_what_is_edited_is_what_is_checked_and_what_is_asked(lm, before, subject, after, target):
    fact = Fact(subject, "{}", target, id="0")
    template = type(fact.template)(before, after)
    text = template.about(subject)
    continued = fact.continuing(text, target)
    try:
        row = prompt_row(lm.tokenizer, template, subject, continued)
    except UserError as refused:
        assert "no token of" in str(refused) or "adds no token" in str(refused)
        return
    asked = lm.tok_encode(text)
    assert encode(lm.tokenizer, text) == asked
    assert not appended(lm.tokenizer) or asked[-1:] != appended(lm.tokenizer)
    prompt, labels = continuation(lm.tokenizer, text, continued)
    assert row.ids == prompt + labels[:-1] and row.labels == tuple(labels)
    assert prompt + labels == lm.tok_encode(text + continued)
    assert prompt == asked[: len(prompt)]
    # The subject's last token: all characters of the subject's end are read by then, and it is no later word's.
    offsets = lm.tokenizer(text, return_offsets_mapping=True, add_special_tokens=len(asked) > 0)["offset_mapping"]
    end = len(before) + len(subject.rstrip())
    if encode(lm.tokenizer, text) == lm.tokenizer.encode(text):
        assert offsets[row.subject_last][0] < end
        assert all(c >= end or c == d for c, d in offsets[row.subject_last + 1 :])


@pytest.fixture(scope="module")
def facts_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records(7, 30)), "utf-8")
    return file


@pytest.mark.parametrize("plain", [False, True], ids=["edited_hf", "hf"])
def test_the_tasks_ask_the_tokens_of_the_rule(lm, plain, facts_file, tmp_path, monkeypatch):
    """Through the harness: each request that reaches the model is one token of the object, behind the prompt's."""
    lm.tokenizer.save_pretrained(tmp_path)
    lm.model.config.save_pretrained(tmp_path)
    asks = HFLM(lm.model, tokenizer=lm.tokenizer, device="cpu") if plain else lm
    seen = []

    def recorded(requests, **_):
        seen.extend((before, after) for _, before, after in requests)
        return [(0.0, True)] * len(requests)

    monkeypatch.setattr(asks, "_loglikelihood_tokens", recorded)
    monkeypatch.setattr(asks, "generate_until", lambda requests, **_: [""] * len(requests))
    given = {"pretrained": str(tmp_path), "edit_dataset": str(facts_file), "n_edits": 24, "edit_seed": None}
    found = evaluate(asks, given, ["edithurt_editing", "edithurt_counterfact"])["samples"]
    wanted = set()
    for task in ("efficacy", "generalization", "locality"):
        for sample in found[f"edithurt_{task}"]:
            doc = sample["doc"]
            for text in filter(None, (doc["target"], doc["other"])):
                prompt, labels = continuation(lm.tokenizer, doc["prompt"], text)
                wanted |= {(tuple(prompt + labels[:i]), (label,)) for i, label in enumerate(labels)}
    assert {(tuple(before), tuple(after)) for before, after in seen} >= wanted
    assert all(len(after) == 1 for _, after in seen)
    for sample in found["edithurt_efficacy"]:
        fact = next(fact for fact in load_facts(facts_file) if fact.id == sample["doc"]["fact_id"])
        assert (sample["doc"]["prompt"], sample["doc"]["target"]) == (fact.text, fact.target)
    assert not vars(asks).get("_encode_pair"), "a plain model is as it was afterwards"


@pytest.mark.parametrize("kind", ["digits apart", "BOS and EOS", "prefix space", "metaspace"])
def test_one_results_file_does_not_contradict_itself(kind, facts_file, tmp_path):
    """The ledger's own check of every fact, right after its edit, against the task's figures in that state."""
    tokenizer = MADE_UP[kind]()
    tokenizer.save_pretrained(tmp_path)
    llama_for(tokenizer).save_pretrained(tmp_path)
    options = {
        "pretrained": str(tmp_path), "editor": "ft", "n_edits": 14, "edit_seed": None, "edit_dataset": str(facts_file),
        "edit_config": {"layers": [1], "num_steps": 8, "lr": 0.01, "norm_constraint": None},
        "edit_when": "after_each",
    }  # fmt: skip
    lm = EditedHFLM(**options, device="cpu", batch_size=4)
    found = evaluate(lm, options, ["edithurt_efficacy"])["samples"]["edithurt_efficacy"]
    ledger = lm.edit_record()["after_each_edit"]
    task = {sample["doc"]["edit"]: sample for sample in found}
    assert [task[i]["em"] for i in range(14)] == [each["em"] for each in ledger]
    assert [task[i]["token_acc"] for i in range(14)] == pytest.approx([each["token_acc"] for each in ledger])
    assert len({each["token_acc"] for each in ledger}) > 1


def test_a_space_that_is_a_token_of_its_own_is_counted_as_one(tmp_path):
    """EasyEdit's token accuracy of " 1998" is over five tokens; text alone could only ask for " 1" together."""
    tokenizer = MADE_UP["digits apart"]()
    tokenizer.save_pretrained(tmp_path)
    model = llama_for(tokenizer)
    model.save_pretrained(tmp_path)
    records = [
        {"subject": "Rome", "prompt": f"{{}} was {word} in", "target_new": str(1990 + i), "id": str(i)}
        for i, word in enumerate(("built", "born", "found", "made", "lost", "sold"))
    ]
    assert len(tokenizer.tokenize(" 1998")) == 5
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(records))
    given = {"pretrained": str(tmp_path), "n_edits": 6, "edit_dataset": str(file), "edit_seed": None}
    facts = load_facts(file)
    wanted = [answer.token_acc for answer in edit_answers(model, tokenizer, facts)]
    for lm in (HFLM(model, tokenizer=tokenizer, device="cpu"), EditedHFLM(**given, editor="none", device="cpu")):
        samples = evaluate(lm, given, ["edithurt_efficacy"])["samples"]["edithurt_efficacy"]
        assert [sample["token_acc"] for sample in samples] == pytest.approx(wanted)
        assert all([tokens for _, tokens, _ in sample["filtered_resps"]] == [1] * 5 for sample in samples)


# -------------------------------------------------------------------------------------------------- front and back


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("kind", ["BOS", "BOS and EOS", "demo", "metaspace"])
def test_a_runs_own_options_reach_the_editors(kind, bos):
    """`add_bos_token` and `prefix_token_id` of HFLM decide for editors and checks too."""
    tokenizer = MADE_UP[kind]()
    model = llama_for(tokenizer)
    options = {"pretrained": model, "tokenizer": tokenizer, "editor": "none", "device": "cpu", "add_bos_token": bos}
    for prefix in (None, tokenizer.eos_token_id):
        lm = EditedHFLM(**options, prefix_token_id=prefix)
        for front in ("", tokenizer.bos_token or "", tokenizer.eos_token):
            fact = Fact("Rome", front + "The city of {} is", "Oslo", id="0")
            assert prompt_row(lm.tokenizer, fact.template, fact.subject).ids == lm.tok_encode(fact.text)
            (answer,) = edit_answers(model, lm.tokenizer, [fact])
            assert lm.tok_encode(fact.text) + list(answer.target) == lm.tok_encode(fact.text + fact.target)


def test_what_stands_behind_a_text_by_itself_stays():
    tokenizer = MADE_UP["EOS appended"]()
    assert appended(tokenizer) == [tokenizer.eos_token_id] and appended(MADE_UP["BOS"]()) == []
    plain = MADE_UP["byte level, no BOS"]()
    for text in ("The city", "The city</s>", "</s>", "a</s></s>"):
        assert encode(tokenizer, text) == plain.encode(text)


def test_generation_sees_no_appended_token(caplog):
    tokenizer = MADE_UP["BOS and EOS"]()
    lm = EditedHFLM(pretrained=llama_for(tokenizer), tokenizer=tokenizer, editor="none", device="cpu")
    assert "appends '</s>' to every text" in caplog.text
    ids, mask = lm.tok_batch_encode(["The city of Rome", "Rome"])
    for row, seen, text in zip(ids, mask, ["The city of Rome", "Rome"], strict=True):
        assert row[seen.bool()].tolist() == lm.tok_encode(text)
        assert seen.tolist() == sorted(seen.tolist())
    assert lm.tok_batch_encode(["The city of Rome"], left_truncate_len=2)[0].tolist() == [
        lm.tok_encode("The city of Rome")[-2:]
    ]


def test_a_tokenizer_that_appends_a_token_gives_the_same_figures(tmp_path):
    """The demo's model, its tokenizer saved as many fine-tuning scripts do."""
    figures = {}
    for name in ("plain", "appends"):
        tokenizer = MADE_UP["demo"]()
        if name == "appends":
            eos = tokenizer.eos_token
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
            )
            assert tokenizer.encode("a")[-1] == tokenizer.eos_token_id
        lm = EditedHFLM(
            pretrained=AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT), tokenizer=tokenizer, device="cpu",
            editor="ft", n_edits=2, edit_dataset="demo", edit_config={"layers": [1], "num_steps": 4},
        )  # fmt: skip
        given = {"pretrained": "demo", "editor": "ft", "n_edits": 2, "edit_dataset": "demo"}
        found = evaluate(lm, given, ["edithurt_efficacy"])["samples"]["edithurt_efficacy"]
        figures[name] = [sample["filtered_resps"] for sample in found], lm.edit_record()["after_each_edit"]
    assert figures["plain"] == figures["appends"]


# ------------------------------------------------------------------------------------------------- the subject's end


@pytest.mark.parametrize("after", ["", " is", ", is", "的"])
@pytest.mark.parametrize("subject", ["Rome", "Rome ", "Rome\n", "Łódź", "Łódź  "])
def test_white_space_at_a_subjects_end_is_not_its_last_token(tokenizer, subject, after):
    text = f"The city of {subject}{after}"
    start, bare = len("The city of "), subject.rstrip()
    place = last_token(tokenizer, text, start, start + len(subject))
    assert place == last_token(tokenizer, text, start, start + len(bare))
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert offsets[place][0] < start + len(bare) <= offsets[place][1]


class Characters(PreTrainedTokenizer):
    """A tokenizer written in Python, without offsets: a token for each character, one for "e,"."""

    def __init__(self, **kwargs):
        self.words = {chr(code): code for code in range(128)} | {"e,": 128}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return dict(self.words)

    def _tokenize(self, text, **kwargs):
        return re.findall("e,|.", text, re.DOTALL)

    def _convert_token_to_id(self, token):
        return self.words.get(token, 0)

    def _convert_id_to_token(self, index):
        return next(word for word, place in self.words.items() if place == index)


def test_without_offsets_the_tokens_of_a_prefix_are_counted_where_that_is_right():
    tokenizer = Characters()
    assert prompt_row(tokenizer, "In {} is", "Rome").subject_last == 6
    with pytest.raises(UserError, match="lies within a token of 'In Rome, is', and this tokenizer"):
        prompt_row(tokenizer, "In {}, is", "Rome")


# -------------------------------------------------------------------------------------------- longer than the context

LONG = "The weather is fine . " * 20 + "{} was born in"


def test_prompts_over_the_context_are_named_all_at_once_before_weights_load(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)  # there are no weights to load
    facts = [{"id": f"long{i}", "subject": "Rosa Novak", "prompt": LONG, "target_new": "Oslo"} for i in range(2)]
    facts.append({"id": "short", "subject": "Rosa Novak", "prompt": "{} was born in", "target_new": "Oslo"})
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(facts))
    with pytest.raises(ConfigurationError) as refused:
        EditedHFLM(
            pretrained=str(tmp_path), editor="rome", n_edits=3, edit_dataset=str(file), v_lr="fast", device="cpu"
        )
    told = str(refused.value)
    assert "v_lr" in told, "with all other problems"
    for i in range(2):
        assert f"fact long{i}: its prompt has 105 tokens; this model's context holds 48" in told
    assert "fact short" not in told


def test_templates_and_targets_count():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ends = Fact("Rosa Novak", "The weather is fine . " * 8 + "{} was born in", "Oslo", id="7")  # 45 tokens
    edit_model(model, tokenizer, [ends], "ft", options={"layers": [1], "num_steps": 1}, progress=False).restore()
    full = Fact(ends.subject, "and is " + ends.prompt, "Oslo", id="7")  # 47, and one more fills the context
    for editor in ("ft", "lora", "rome"):
        edit_model(
            model, tokenizer, [full], editor, options={"layers": [1]}, context_templates=("{}",), progress=False
        ).restore()
    over = Fact(ends.subject, "is and is " + ends.prompt, "Oslo", id="7")
    (answer,) = answers(model, tokenizer, [over.text], [over.target])  # which reads no target's last token
    assert len(answer.target) == 1
    with pytest.raises(ConfigurationError, match="fact 7: its prompt has 48 tokens and its target 1 more; this"):
        edit_model(model, tokenizer, [over], "lora", options={"layers": [1]}, progress=False)
    long = Fact(ends.subject, ends.prompt, "Oslo and Rome is a city and Oslo", id="7")
    with pytest.raises(
        ConfigurationError, match="fact 7: its prompt has 45 tokens and its target 8 more; this model's"
    ):
        edit_model(model, tokenizer, [long], "ft", options={"layers": [1]}, progress=False)
    templates = ("{}", "The weather is fine . {}")
    with pytest.raises(
        ConfigurationError, match=r"has 50 tokens behind the context template 'The weather is fine \. {}'"
    ):
        edit_model(
            model, tokenizer, [ends], "rome", context_templates=templates, options={"layers": [1]}, progress=False
        )
    with pytest.raises(UserError, match="has 105 tokens with its target; this model's context holds 48"):
        answers(model, tokenizer, [LONG.format("Rosa Novak")], [" Oslo"])


def test_a_task_tells_of_prompts_that_the_harness_cuts(tmp_path, caplog):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "facts.json"
    fact = {
        "id": "7",
        "subject": "Rosa Novak",
        "prompt": "{} was born in",
        "target_new": "Oslo",
        "target_true": "Prague",
    }
    file.write_text(json.dumps([fact | {"paraphrases": [LONG, "{} is in"]}]))
    given = {"pretrained": str(tmp_path), "editor": "none", "n_edits": 1, "edit_dataset": str(file)}
    found = evaluate(EditedHFLM(**given, device="cpu"), given, ["edithurt_efficacy", "edithurt_generalization"])
    assert (
        "edithurt_generalization: 1 of the prompts are with their object longer than the model's context of 48"
        in caplog.text
    )
    assert "edithurt_efficacy: 1 of" not in caplog.text
    known = found["configs"]["edithurt_generalization"]["metadata"]["provenance"]
    assert known["over_context"] == 1


def test_the_context_of_a_configuration():
    assert context_size(tiny_model().config) == 48 and context_size(tiny_model().config, 20) == 20
    assert context_size(object()) is None
