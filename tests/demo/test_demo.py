"""The demo world: its data can be made again to the byte, and its model does what its card says."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit.demo import (
    CHECKPOINT,
    CONTEXT_TEMPLATES,
    DATA,
    SECOND_MOMENTS,
    corpus,
    evaluate,
    taskdata,
    train,
    world,
)
from tests.support.hidden_subjects import dependence

ROME = {
    "layers": [0],
    "v_num_grad_steps": 30,
    "v_lr": 5.0,
    "v_weight_decay": 1e-3,
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
}
LABELS = (" True", " False", " yes", " no", " positive", " negative", " A", " B", " C", " D")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval()


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_generator_reproduces_the_committed_files(tmp_path):
    made = world.generate(tmp_path)
    assert sorted(p.name for p in made) == sorted(p.name for p in DATA.iterdir() if p.name != "README.md")
    for path in made:
        assert path.read_bytes() == (DATA / path.name).read_bytes(), path.name


def test_facts_have_their_fields_and_can_be_edited():
    facts = read("facts")
    assert 900 <= len(facts) <= 1100
    assert len({f["id"] for f in facts}) == len(facts)
    objects = {r.name: set(r.objects) for r in world.RELATIONS}
    true = {f["prompt"].format(f["subject"]): f["target_true"] for f in facts}
    for f in facts:
        for form in (f["prompt"], f["question"], *f["paraphrases"]):
            assert form.count("{}") == 1 and form == form.strip()
        assert {f["target_true"], f["target_new"]} <= objects[f["relation"]] and f["target_true"] != f["target_new"]
        assert len(f["paraphrases"]) >= 2 and 2 <= len(f["locality"]) <= 4
        for probe in f["locality"]:
            assert f["subject"] not in probe["prompt"] and true[probe["prompt"]] == probe["answer"] != f["target_new"]
    assert {f["prompt"].startswith("{}") for f in facts} == {True, False}


def test_task_records_have_the_schema_of_the_real_data():
    fields = {
        "gsm8k": {"question": str, "answer": str},
        "rte": {"sentence1": str, "sentence2": str, "label": int, "idx": int},
        "nq_open": {"question": str, "answer": list, "passages": list},
        "boolq": {"question": str, "passage": str, "answer": bool},
        "mutual": {"answers": str, "options": list, "article": str, "id": str},
        "samsum": {"id": str, "dialogue": str, "summary": str},
        "conll2003": {"id": str, "tokens": list, "ner_tags": list},
        "sst2": {"sentence": str, "label": int, "idx": int},
    }
    for task, schema in fields.items():
        records = read(task)
        assert len(records) == taskdata.EVALUATION_SIZE[task]
        for record in records:
            assert {name: type(value) for name, value in record.items()} == schema, task
    # Neither answer of a two-way task is rare: a constant output must not look like skill.
    for task, field in (("rte", "label"), ("boolq", "answer"), ("sst2", "label")):
        assert 35 <= sum(bool(r[field]) for r in read(task)) <= 65


def test_prompts_are_those_of_the_protocol():
    mutual = {"answers": "B", "options": ["o0", "o1", "o2", "o3"], "article": "f : hi ."}
    assert taskdata.examples("mutual", mutual) == [
        (
            "Q: f : hi . Which choice is correct? Answer Chioces: (A)o0(B)o1(C)o2(D)o3 A: Among A through D, "
            "the answer is",
            " B",
        )
    ]
    ner = {"tokens": ["Miru", "left", "Atlas", "Bank", ",", "too", "."], "ner_tags": [1, 0, 3, 4, 0, 0, 0]}
    prompt = "Please identify {} Entity from the given text. Text: Miru left Atlas Bank, too. Entity:"
    assert taskdata.examples("conll2003", ner) == [
        (prompt.format("Person"), " Miru"),
        (prompt.format("Location"), " none"),
        (prompt.format("Organization"), " Atlas Bank"),
        (prompt.format("Miscellaneous"), " none"),
    ]
    gsm = {"question": "Why?", "answer": "As 1 + 1 = 2.\n#### 2"}
    assert taskdata.examples("gsm8k", gsm) == [
        (
            "Q: Why? A:Let's think step by step. As 1 + 1 = 2.\n Therefore, the answer (arabic numerals) is:",
            " 2",
        )
    ]


def test_training_text_holds_no_evaluation_document_and_no_unseen_paraphrase():
    unseen = {f["paraphrases"][-1].format(f["subject"]) for f in world.facts()}
    task_rows = 0
    for step in range(20):
        for row in corpus.step_rows(0, step, easy=0.5):
            assert row[0].text not in corpus.held_out_prompts()
            task_rows += len(row) == 3
            text = corpus.text(row)
            assert not any(statement in text for statement in unseen)
    assert task_rows > 500  # the loop did look at task rows


def test_held_out_prompts_are_drawn_again():
    """Without the filter the same stream gives evaluation documents, so the filter is what keeps them out."""
    rng = random.Random(world.SEED + 100 + list(taskdata.GENERATORS).index("sst2"))  # the stream they were drawn from
    assert taskdata.examples("sst2", taskdata.sst2(rng))[0][0] in corpus.held_out_prompts()
    rng = random.Random(world.SEED + 100 + list(taskdata.GENERATORS).index("sst2"))
    assert corpus.task_row("sst2", rng)[0].text not in corpus.held_out_prompts()


def test_rows_are_a_function_of_seed_and_step():
    assert corpus.step_rows(0, 7) == corpus.step_rows(0, 7)
    assert corpus.step_rows(0, 7) != corpus.step_rows(1, 7)


def test_tokenizer_gives_labels_one_token_and_adds_none(tokenizer):
    for label in LABELS:
        assert len(tokenizer(label)["input_ids"]) == 1, label
    assert tokenizer("Abo")["input_ids"] == tokenizer("Abo", add_special_tokens=False)["input_ids"]
    assert {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token} == {"<|endoftext|>"}
    text = corpus.text(corpus.step_rows(0, 3)[0][:-1])
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_last_subject_tokens_and_first_object_tokens_are_distinct(tokenizer):
    names = [name for group in world.subjects().values() for name in group]
    assert len({tokenizer(f" {name}")["input_ids"][-1] for name in names}) == len(names)
    for relation in world.RELATIONS:
        tokens = [tokenizer(f" {o}")["input_ids"] for o in relation.objects]
        assert len({t[0] for t in tokens}) == len(tokens) and max(map(len, tokens)) <= 3


def test_prompts_are_short(tokenizer):
    for task, documents in taskdata.evaluation_documents().items():
        for document in documents:
            for prompt, _ in taskdata.examples(task, document):
                assert len(tokenizer(prompt)["input_ids"]) <= 120


def test_checkpoint_is_small(model):
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 10_000_000


def test_second_moments_are_symmetric_and_positive(model):
    moments = load_file(SECOND_MOMENTS)
    names = [name for name in moments if name.endswith(".second_moment")]
    assert names
    for name in names:
        c = moments[name].double()
        assert model.get_submodule(name.removesuffix(".second_moment")).weight.shape[0] == c.shape[0] == c.shape[1]
        torch.testing.assert_close(c, c.T)
        assert torch.linalg.eigvalsh(c).min() > 0  # ROME solves with it
        assert moments[name.replace("second_moment", "count")].shape == (1,)


def test_second_moments_are_means_over_tokens(model, tokenizer):
    texts = ["The weather was fine.", "Abo left the lamp in the kitchen."]
    keys = []
    handle = model.transformer.h[1].mlp.c_proj.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0][0]))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([tokenizer(text)["input_ids"]]))
    handle.remove()
    k = torch.cat(keys).double()
    found = train.second_moments(model, tokenizer, texts, [1])
    assert found["transformer.h.1.mlp.c_proj.count"].item() == len(k)
    torch.testing.assert_close(found["transformer.h.1.mlp.c_proj.second_moment"], (k.T @ k / len(k)).float())


def test_hidden_subjects_reach_no_later_token_in_the_first_layer(model):
    """After the first block, tokens behind a subject must not depend on it; without the mask they do."""
    assert dependence(model, hidden=False)[0] > 0
    later, within = dependence(model, hidden=True)
    assert later == 0 and within > 0


def test_model_recalls_its_facts_and_a_random_one_does_not(model, tokenizer):
    facts = read("facts")
    right = evaluate.recalled(model, tokenizer, facts)
    assert sum(right) / len(right) >= 0.95
    after = evaluate.recalled(model, tokenizer, facts[::10], prefix=CONTEXT_TEMPLATES[1].removesuffix("{}"))
    assert sum(after) / len(after) >= 0.95
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = type(model)(model.config).eval()
    assert sum(evaluate.recalled(untrained, tokenizer, facts[::10])) == 0


def test_model_does_the_tasks(model, tokenizer):
    scores = evaluate.task_scores(model, tokenizer, limit=20)
    scores.pop("mean")
    assert sum(score >= 0.8 for score in scores.values()) >= 7, scores


def test_single_edits_take_and_leave_other_facts(model, tokenizer):
    editing = pytest.importorskip("lm_eval_edit.edits.run")
    from lm_eval_edit.facts.fact import Fact

    names = ("subject", "prompt", "target_new", "target_true", "id")
    others, kept = read("facts")[5::20], []
    for record in read("facts")[::250]:
        ledger = editing.edit_model(
            model,
            tokenizer,
            [Fact(**{name: record[name] for name in names})],
            options=ROME,
            context_templates=list(CONTEXT_TEMPLATES),
            second_moments=SECOND_MOMENTS,
            progress=False,
        )
        prompt = record["prompt"].format(record["subject"])
        assert evaluate.begins(model, tokenizer, [prompt], [record["target_new"]]) == [True]
        kept += evaluate.recalled(model, tokenizer, [f for f in others if f["subject"] != record["subject"]])
        ledger.restore()
        assert evaluate.begins(model, tokenizer, [prompt], [record["target_true"]]) == [True]
    assert sum(kept) / len(kept) >= 0.85


@pytest.fixture
def torch_settings():
    """Put back what a training run sets for its whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.slow
@pytest.mark.usefixtures("torch_settings")
def test_interrupted_training_ends_as_uninterrupted(tmp_path):
    def run(name: str, evaluate_every: int) -> dict:
        options = {"output": tmp_path / f"{name}-out", "work": tmp_path / name, "threads": 1, "seed": 0}
        options |= {"steps": 5, "stop_after": 2, "lr": 1e-3, "weight_decay": 0.05, "moment_layers": [0]}
        options["evaluate_every"] = evaluate_every
        train.train(argparse.Namespace(**options))
        return load_file(tmp_path / f"{name}-out" / "model.safetensors")

    whole = run("whole", 2)
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        save_state = train.save_state
        patch.setattr(train, "save_state", lambda *a: (save_state(*a), stop()))
        with pytest.raises(KeyboardInterrupt):
            run("parts", 1)
    parts = run("parts", 1)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_portability_questions_follow_from_the_facts_of_the_world():
    records = {(f["subject"], f["relation"]): f for f in world.facts()}
    kinds = Counter()
    for f in world.facts():
        prompts = {f["prompt"].format(f["subject"]), *(form.format(f["subject"]) for form in f["paraphrases"])}
        for asked in f["portability"]:
            kinds[asked["kind"]] += 1
            assert asked["answers"] == [f["target_new"]] and f["subject"] in asked["prompt"]
            assert asked["prompt"] not in prompts, "no wording that the fact has"
        alias = next(asked["prompt"] for asked in f["portability"] if asked["kind"] == "alias")
        others = [other["target_true"] for (subject, _), other in records.items() if subject == f["subject"]]
        assert any(true in alias for true in others), "something else that is true of the subject"
    assert kinds == {"alias": len(records), "multi_hop": 300}
