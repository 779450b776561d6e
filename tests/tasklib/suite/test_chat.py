"""The eight tasks under a chat template: the prompt is the user's turn, and fits the model together with it."""

from __future__ import annotations

import pytest

from lm_eval_edit import EditedHFLM
from lm_eval_edit.facts.chat import chat_frame
from lm_eval_edit.tasklib.suite import prompts
from lm_eval_edit.tasklib.suite.catalogue import TASKS
from tests.support.chat_models import SHAPES, save_chat
from tests.support.harness_runs import evaluate

LONGEST = 210  # bytes, which are tokens here: most of the demo's prompts fit, with a template fewer


@pytest.fixture(scope="module", params=["default system", "BOS, trims"])
def world(request, tmp_path_factory):
    folder = save_chat(tmp_path_factory.mktemp("chat"), SHAPES[request.param][0])
    given = {"pretrained": str(folder), "max_length": LONGEST, "data_dir": "demo"}
    return given, EditedHFLM(**given, device="cpu", batch_size=8)


def read_by(lm, text):
    """The tokens that the model reads of a prompt to be continued."""
    return lm.tok_batch_encode([text])[0][0].tolist()


@pytest.mark.parametrize("options", [{}, {"system_instruction": "Be brief, and say nothing that was not asked for."}])
def test_prompts_fit_together_with_what_stands_around_them(world, options):
    given, lm = world
    found = evaluate(lm, given, ["edithurt_suite"], limit=6, apply_chat_template=True, **options)
    frame, cut = chat_frame(lm.tokenizer), 0
    for task, spec in TASKS.items():
        known = found["configs"][f"edithurt_{task}"]["metadata"]["provenance"]
        assert known["prompt_budget"] == LONGEST - spec.new_tokens
        for sample in found["samples"][f"edithurt_{task}"]:
            text, doc = sample["arguments"][0][0], sample["doc"]
            said = getattr(prompts, task)(doc)
            if not options:
                assert text == frame.text(said)
            assert (said in text or said.strip() in text) and text.endswith(frame.after)
            ids = read_by(lm, text)
            assert ids.count(1) == 1  # one <s>: the template's or the tokenizer's
            if not doc["overlong"]:
                assert len(ids) <= LONGEST - spec.new_tokens
            cut += doc["shortened"]
            assert sample["shortened"] == doc["shortened"]
    assert cut


@pytest.mark.parametrize(
    "task", ["edithurt_glue_dialogue", "edithurt_glue_nli", "edithurt_boolq_mc", "edithurt_samsum_mc"]
)
def test_tasks_with_likelihoods_fit_too(world, task):
    """Cut by as much as the template takes, and no more than that: the longest prompt fits without one."""
    given, lm = world
    generated = "glue" in task
    room = 5 * generated

    def texts(sample):  # what has to fit: the prompt alone where something is generated behind it
        said = [
            arguments[0] + ("" if generated else arguments[1])
            for arguments in sample["arguments"][: 1 if generated else 9]
        ]
        return [len(read_by(lm, text)) for text in said]

    bare = evaluate(lm, {**given, "max_length": 2000}, [task], limit=8)["samples"][task]
    given = {**given, "max_length": max(length for sample in bare for length in texts(sample)) + room}
    found = evaluate(lm, given, [task], limit=8, apply_chat_template=True)
    frame, samples = chat_frame(lm.tokenizer), found["samples"][task]
    assert any(sample["doc"]["shortened"] for sample in samples)
    for sample in samples:
        assert sample["shortened"] == sample["doc"]["shortened"]
        assert sample["doc"]["overlong"] or max(texts(sample)) <= given["max_length"] - room
        for text, *_ in sample["arguments"]:
            assert text.startswith(frame.before) and text.endswith(frame.after)
    assert found["configs"][task]["metadata"]["provenance"]["shortened"] >= 1


def test_a_template_costs_the_prompts_its_own_tokens_only(world):
    """As long as can be: one more token of the text would not fit. Without a template nothing more is cut."""
    given, lm = world
    plain = evaluate(lm, given, ["edithurt_boolq", "edithurt_nq"], limit=8)["samples"]
    found = evaluate(lm, given, ["edithurt_boolq", "edithurt_nq"], limit=8, apply_chat_template=True)["samples"]
    cut = 0
    for task in ("boolq", "nq"):
        (field,) = TASKS[task].shortenable
        room = LONGEST - TASKS[task].new_tokens
        for bare, sample in zip(plain[f"edithurt_{task}"], found[f"edithurt_{task}"], strict=True):
            text, whole = sample["doc"][field], bare["doc"][field]
            assert whole.startswith(text)
            if len(text) < len(whole):
                cut += 1
                more = len(whole[len(text)].encode())
                assert room - more < len(read_by(lm, sample["arguments"][0][0])) <= room
    assert cut


def test_more_new_tokens_take_room_too(world):
    given, lm = world
    found = evaluate(lm, given, ["edithurt_samsum"], limit=8, gen_kwargs={"max_gen_toks": 130})
    samples = found["samples"]["edithurt_samsum"]
    assert all(len(read_by(lm, sample["arguments"][0][0])) <= LONGEST - 130 for sample in samples)
    assert any(sample["shortened"] for sample in samples)


def test_requests_built_again_without_a_template_are_whole_again(world):
    from lm_eval.tasks import TaskManager

    from lm_eval_edit.harness.our_tasks import tasks_dir

    given, lm = world
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata=given)
    task = manager.load(["edithurt_boolq"])["tasks"]["edithurt_boolq"]
    texts = []
    for chat in (False, True, False):
        task.build_all_requests(limit=8, apply_chat_template=chat, chat_template=lm.apply_chat_template)
        texts.append([request.args[0] for request in task.instances])
    assert texts[0] == texts[2] != texts[1]
