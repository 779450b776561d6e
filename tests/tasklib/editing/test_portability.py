"""`edithurt_portability`: which questions are asked and when, what counts as answered, and what it adds up to."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from lm_eval_edit import ConfigurationError, EditedHFLM, load_facts
from lm_eval_edit.facts.portability import KINDS
from lm_eval_edit.tasklib.bootstrap import cluster_bootstrap
from lm_eval_edit.tasklib.editing.documents import check_tasks, load
from tests.support.harness_runs import evaluate, figures

TASK = "edithurt_portability"


class Saying(LM):
    """A model that says what a function makes of the prompt, cut where generation has to stop."""

    def __init__(self, say):
        super().__init__()
        self.say, self.asked = say, []

    def generate_until(self, requests, disable_tqdm=False):
        return [self._cut(*request.args) for request in requests]

    def _cut(self, prompt, wanted):
        self.asked.append(prompt)
        text = self.say(prompt)
        for stop in wanted["until"]:
            text = text.split(stop)[0]
        return text

    def loglikelihood(self, requests, disable_tqdm=False):
        raise AssertionError("nothing is asked by likelihood")

    loglikelihood_rolling = loglikelihood


def fact(number: int, *questions: dict, **more) -> dict:
    return {
        "id": str(number), "subject": f"Orv{number}", "prompt": "The capital of {} is", "target_new": "Kelm",
        "portability": list(questions), **more,
    }  # fmt: skip


def question(kind: str, prompt: str, *answers: str, **more) -> dict:
    return {"kind": kind, "prompt": prompt, "answers": list(answers), **more}


def case(number: int, answer: str, *aliases: str) -> dict:
    rewrites = [
        {"subject": f"A{number}", "prompt": "{} lives in", "target_new": {"str": f"B{number}"}},
        {"subject": f"B{number}", "prompt": "{} is led by", "target_new": {"str": answer}},
    ]
    return {
        "case_id": number, "requested_rewrite": rewrites, "new_answer": answer, "new_answer_alias": list(aliases),
        "questions": [f"Who leads the town of A{number}?", f"A{number}'s town has which head?", f"Head, A{number}?"],
    }  # fmt: skip


def write(tmp_path: Path, *records: dict) -> dict:
    """Metadata about a file of facts, in its order."""
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    n = sum(len(record.get("requested_rewrite", [0])) for record in records)
    return {"model": "an-api", "edit_dataset": str(file), "edit_seed": None, "n_edits": n}


def run(metadata: dict, say, **options):
    model = Saying(say)
    return evaluate(model, metadata, [TASK], **options), model


# --------------------------------------------------------------------------------------------- what counts as answered


@pytest.mark.parametrize(
    ("said", "contains", "em"),
    [
        (" Per Odd", 1, 1),
        (" the PER ODD!", 1, 1),
        (" P. Odd", 1, 1),
        (" It is Per Odd, of course", 1, 0),
        (" Per Odden", 0, 0),
        (" Ilse. Per Odd", 0, 0),
        ("\n\nPer Odd\nIlse", 1, 1),
        (" Per", 0, 0),
        ("", 0, 0),
    ],
)
def test_an_answer_is_matched_with_every_alias(tmp_path, said, contains, em):
    asked = question("multi_hop", "Who leads the capital of {}?", "Per Odd", "P. Odd")
    found, model = run(write(tmp_path, fact(1, asked), fact(2)), lambda prompt: said)
    values = figures(found, "portability")
    assert values == {"score": contains, "contains": contains, "em": em, "multi_hop": contains, "valid": bool(said)}
    assert model.asked == ["Who leads the capital of Orv1?"]


@pytest.mark.parametrize(
    ("right", "any_of", "all_of"), [((), 0, 0), ((0,), 1, 0), ((1,), 1, 0), ((0, 1), 1, 1)]
)  # fmt: skip
def test_a_group_is_one_item_answered_as_it_says(tmp_path, right, any_of, all_of):
    for condition, wanted in (("any", any_of), ("all", all_of)):
        group = {"group": "g", "condition": condition}
        asked = [question("alias", f"Q{n}?", f"right{n}", **group) for n in range(2)]
        found, model = run(
            write(tmp_path, fact(1, *asked, question("other", "Q?", "x"))),
            lambda prompt: f" right{prompt[1]}" if prompt[1:2].isdigit() and int(prompt[1]) in right else " no",
        )
        values = figures(found, "portability")
        assert (values["alias"], values["other"], values["score"]) == (wanted, 0, wanted / 2)
        assert len(found["samples"][TASK]) == 2 and sorted(model.asked) == ["Q0?", "Q1?", "Q?"]


@pytest.mark.parametrize(
    ("says", "answered"),
    [
        (" Per Odd and I. Varn", 1),
        (" Ilse Varn, Per Odd, Ned", 1),
        (" Per Odd", 0),
        (" Varn and Odd", 0),
        (" Per Odd. Ilse Varn", 0),
    ],
)
def test_several_answers_have_all_to_be_said(tmp_path, says, answered):
    asked = question("logical", "The siblings of {} are", "Per Odd", also=[["Ilse Varn", "I. Varn"]])
    found, _ = run(write(tmp_path, fact(1, asked)), lambda prompt: says)
    values = figures(found, "portability")
    assert values == {"score": answered, "contains": answered, "logical": answered, "valid": 1}, "no em of several"
    assert found["samples"][TASK][0]["doc"]["also"] == [[["Ilse Varn", "I. Varn"]]]
    beside = fact(2, question("logical", "Q?", "x"))
    found, _ = run(write(tmp_path, beside, fact(1, asked)), lambda prompt: says)
    values = figures(found, "portability")
    assert values["score"] == answered / 2 and values["em"] == 0, "of the item that wants one"
    assert found["results"][TASK]["sample_len"] == 2


def test_documents_of_one_answer_each_are_as_they_were(tmp_path):
    """`compare` pairs documents by their content."""
    found, _ = run(write(tmp_path, fact(1, question("logical", "Q?", "x"))), lambda prompt: "x")
    assert set(found["samples"][TASK][0]["doc"]) == {
        "fact_id", "edit", "subject", "kind", "condition", "prompt", "prompts", "answers", "target", "other",
    }  # fmt: skip


def test_a_full_stop_inside_an_answer_does_not_end_it(tmp_path):
    asked = question("multi_hop", "Where?", "Washington, D.C.")
    found, _ = run(write(tmp_path, fact(1, asked)), lambda prompt: " Washington, D.C. It is large.")
    assert figures(found, "portability")["em"] == 1


def test_figures_by_kind_are_shares_of_their_own_items(tmp_path):
    facts = [
        fact(n, question("multi_hop", f"Hop {n}?", "yes"), *([question("alias", f"Alias {n}?", "yes")] * (n % 2)))
        for n in range(6)
    ]
    found, _ = run(
        write(tmp_path, *facts), lambda prompt: " yes" if prompt in ("Hop 1?", "Hop 2?", "Alias 1?") else "no"
    )
    values = figures(found, "portability")
    assert values["multi_hop"] == pytest.approx(2 / 6) and values["alias"] == pytest.approx(1 / 3)
    assert values["score"] == pytest.approx(3 / 9)
    assert not set(values) & (set(KINDS) - {"multi_hop", "alias"}), "a kind that nothing is asked of has no figure"
    reported = found["results"][TASK]
    samples = found["samples"][TASK]
    scores = [sample["score"] for sample in samples]
    wanted = cluster_bootstrap(
        [sample["doc"]["fact_id"] for sample in samples],
        torch.tensor([[score, 1.0] for score in scores]).numpy(),
        lambda sums: sums[:, 0] / sums[:, 1],
    )
    assert reported["score_stderr,none"] == pytest.approx(wanted) and wanted > 0
    assert reported["alias_stderr,none"] > 0 and math.isfinite(reported["multi_hop_stderr,none"])
    known = found["configs"][TASK]["metadata"]["provenance"]
    assert known["by_kind"] == {"multi_hop": 6, "alias": 3} and known["facts_without"] == 0


# ----------------------------------------------------------------------------------------------------------- of MQuAKE


def test_a_case_of_mquake_is_answered_by_any_of_its_wordings(tmp_path):
    metadata = write(tmp_path, case(0, "Per Odd", "P. Odd"), case(1, "Ilse Varn"), case(2, "Ned"))
    answers = {"Head, A0?": " P. Odd", "A1's town has which head?": " Ilse Varn", "Who leads the town of A2?": " Per"}
    found, model = run(metadata, lambda prompt: answers.get(prompt, " nobody"))
    assert figures(found, "portability")["score"] == pytest.approx(2 / 3) and len(model.asked) == 9
    samples = found["samples"][TASK]
    assert [sample["doc"]["fact_id"] for sample in samples] == ["0.1", "1.1", "2.1"], "a case is a cluster"
    assert [sample["doc"]["edit"] for sample in samples] == [1, 3, 5], "asked when all its facts are edited"


def test_cases_that_the_schedule_cuts_are_not_asked_and_told(tmp_path, caplog):
    metadata = write(tmp_path, case(0, "Per Odd"), case(1, "Ilse Varn")) | {"n_edits": 3}
    with caplog.at_level(logging.WARNING, logger="lm_eval_edit"):
        found, model = run(metadata, lambda prompt: " Per Odd")
    assert figures(found, "portability")["score"] == 1 and all("A0" in prompt for prompt in model.asked)
    assert "1 case of the schedule is not asked about" in caplog.text
    known = found["configs"][TASK]["metadata"]["provenance"]
    assert (known["cases_cut"], known["facts_without"], known["facts"]) == (1, 1, 3)
    with pytest.raises(ConfigurationError, match=r"portability question that could be asked: 1 case .*; raise n_edits"):
        check_tasks([TASK], metadata | {"n_edits": 1})


def test_a_case_with_a_fact_that_cannot_be_edited_is_not_asked(tmp_path):
    broken = case(0, "Per Odd")
    broken["requested_rewrite"][0]["target_new"]["str"] = None
    docs, known = load("portability", write(tmp_path, case(1, "Ned"), broken) | {"n_edits": 3})
    assert [doc["fact_id"] for doc in docs] == ["1.1"] and known["cases_cut"] == 1


# ---------------------------------------------------------------------------------------------- before the model loads


def test_without_a_question_the_run_ends_before_the_model_loads(tmp_path):
    with pytest.raises(ConfigurationError) as error:
        check_tasks([TASK, "edithurt_efficacy"], write(tmp_path, fact(1), fact(2)))
    (problem,) = error.value.problems
    assert problem.startswith(f"{TASK}: none of the 2 facts of the schedule") and "docs/facts.md" in problem
    check_tasks([TASK], write(tmp_path, fact(1), fact(2, question("alias", "q", "a"))))


def test_questions_are_not_in_the_facts_hash_but_in_the_results(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first = load("portability", write(tmp_path, fact(1, question("alias", "q", "a"))))[1]
    second = load("portability", write(tmp_path / "b", fact(1, question("alias", "q", "b"))))[1]
    third = load("portability", write(tmp_path / "c", fact(1, question("alias", "q", "a"))))[1]
    assert first["sha256"] == second["sha256"] == third["sha256"]
    assert first["questions_sha256"] == third["questions_sha256"] != second["questions_sha256"]


# ------------------------------------------------------------------------------------------------------- other scripts


@pytest.mark.parametrize(
    ("asked", "answer", "said"),
    [
        ("奥尔万塔的首都由谁领导？", "佩尔·奥德", "佩尔·奥德。他是市长。"),
        ("من يقود عاصمة الأر\u200fدن؟", "عمّان", " عمّان."),
        ("Ai lãnh đạo Nguye\u0302\u0303n?", "Hà Nội", " Ha\u0300 No\u0323\u0302i"),
        ("เมืองหลวงคืออะไร", "เคล์ม", " เคล์ม"),
    ],
)
def test_other_scripts_reach_the_model_and_the_samples_unharmed(tmp_path, asked, answer, said):
    found, model = run(write(tmp_path, fact(1, question("multi_hop", asked, answer))), lambda prompt: said)
    (sample,) = found["samples"][TASK]
    assert model.asked == [asked] == sample["doc"]["prompts"] and sample["doc"]["answers"] == [[answer]]
    assert figures(found, "portability")["score"] == figures(found, "portability")["em"] == 1


# --------------------------------------------------------------------------------------------------------- real models


def plainly(model, tokenizer, prompt: str) -> str:
    """40 tokens at most, greedy, one forward pass a token."""
    ids, n = tokenizer.encode(prompt), len(tokenizer.encode(prompt))
    for _ in range(40):
        with torch.no_grad():
            following = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if following == tokenizer.eos_token_id:
            break
        ids.append(following)
    return tokenizer.decode(ids[n:])


def answered(text: str, answers: tuple[str, ...]) -> bool:
    """Of the first sentence, for the demo's plain words."""
    first = text.strip().split(".")[0].split("\n")[0].lower()
    return any(re.search(rf"\b{re.escape(each.lower())}\b", first) for each in answers)


OPTIONS = {"pretrained": "demo", "editor": "rome", "n_edits": 6, "v_num_grad_steps": 20}


@pytest.mark.parametrize("when", ["after_all", "after_each"])
def test_every_figure_is_that_of_a_plain_loop_over_the_demo(when):
    lm = EditedHFLM(**OPTIONS, edit_when=when, device="cpu", batch_size=4)
    found = evaluate(lm, OPTIONS | {"edit_when": when}, [TASK])
    order = [fact for operation in lm.plan.operations for fact in operation]
    right: dict[str, list[bool]] = {}
    for place, each in enumerate(order):
        lm.ledger.apply(place + 1 if when == "after_each" else 6)
        for asked in each.portability:
            said = plainly(lm.model, lm.tokenizer, asked.prompt)
            right.setdefault(asked.kind, []).append(answered(said, asked.answers))
    values = figures(found, "portability")
    for kind, some in right.items():
        assert values[kind] == pytest.approx(sum(some) / len(some)), kind
    everything = [each for some in right.values() for each in some]
    assert values["score"] == pytest.approx(sum(everything) / len(everything)) and values["score"] > 0.4


def test_any_model_is_asked_the_same_and_the_unedited_one_knows_nothing_of_the_edits():
    before = OPTIONS | {"editor": "none"}
    before.pop("v_num_grad_steps")
    unedited = EditedHFLM(**before, device="cpu", batch_size=4)
    ours = evaluate(unedited, before, [TASK])
    plain = {"pretrained": "demo", "n_edits": 6}
    theirs = evaluate(HFLM(unedited.model, tokenizer=unedited.tokenizer, device="cpu", batch_size=4), plain, [TASK])
    assert figures(ours, "portability") == figures(theirs, "portability")
    assert figures(ours, "portability")["score"] == 0
    # The demo model does answer them, with the true objects.
    by_id = {each.id: each for each in load_facts("demo")}
    samples = ours["samples"][TASK]
    true = [
        answered(sample["filtered_resps"][0][2], (by_id[sample["doc"]["fact_id"]].target_true,)) for sample in samples
    ]
    assert sum(true) >= 0.9 * len(true)


def test_what_is_put_around_a_question_is_put_around_all_of_an_item(tmp_path):
    metadata = write(tmp_path, case(0, "Per Odd"))
    _, model = run(metadata, lambda prompt: "", system_instruction="Be brief.")
    assert len(model.asked) == 3 and all(prompt.startswith("Be brief.") for prompt in model.asked)
    assert [prompt.endswith(text) for prompt, text in zip(model.asked, case(0, "Per Odd")["questions"], strict=True)]
    lm = EditedHFLM(n_edits=1, device="cpu")
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<assistant>"
    found = evaluate(lm, {"pretrained": "demo", "editor": "none", "n_edits": 1}, [TASK], apply_chat_template=True)
    for sample in found["samples"][TASK]:
        assert sample["arguments"][0][0] == f"<user> {sample['doc']['prompt']} <assistant>"


# --------------------------------------------------------------------------------------------------- the published set


def squad(text: str) -> str:
    """SQuAD's normal form, by its description."""
    return " ".join(w for w in re.sub(r"[^\w\s]|_", "", text.lower()).split() if w not in ("a", "an", "the"))


def test_portability_of_zsre_is_that_of_an_independent_loop_over_its_file(data):
    records = [json.loads(line) for line in (data / "zsre.jsonl").read_text(encoding="utf-8").splitlines()]
    # A few questions stand twice, with different answers; the model gives the last one.
    known = {record["portability"]["New Question"]: record["portability"]["New Answer"] for record in records}

    def say(prompt: str) -> str:
        answer, form = known[prompt], sum(map(ord, prompt)) % 5
        return (f" {answer}", f" It is {answer.upper()}", f" {answer[:-1]}", f"{answer}\nIt is.", " 42")[form]

    metadata = {"model": "an-api", "edit_dataset": str(data / "zsre.jsonl"), "edit_seed": None, "n_edits": 150}
    found, _ = run(metadata, say)
    samples = found["samples"][TASK]
    assert len(samples) == 150
    wanted = []
    for sample in samples:
        asked = records[int(sample["doc"]["fact_id"])]["portability"]
        assert sample["doc"]["prompt"] == asked["New Question"] and sample["doc"]["kind"] == "multi_hop"
        first = say(asked["New Question"]).strip().split("\n")[0]
        wanted.append(float(f" {squad(asked['New Answer'])} " in f" {squad(first)} "))
    assert [sample["score"] for sample in samples] == wanted
    share = sum(wanted) / 150
    assert figures(found, "portability")["multi_hop"] == pytest.approx(share) and 0.2 < share < 0.8
