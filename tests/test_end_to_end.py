"""The real console scripts in a subprocess: real data, mistakes, a kill in the middle, tasks that are not ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file

from tests.support.console_scripts import SCRIPTS, lm_eval, results_of, samples_of

pytestmark = pytest.mark.slow

FAST = "v_num_grad_steps: 3\ncontext_templates: ['{}', 'It is said that. {}']\n"


PROMPTS = {
    "gsm8k": lambda d: (
        f"Q: {d['question']} A:Let's think step by step. {d['hint']} Therefore, the answer (arabic numerals) is:"
    ),
    "rte": lambda d: f"{d['sentence1']} entails the {d['sentence2']}. True or False? answer:",
    "nq": lambda d: (
        "Refer to the passage below and answer the following question. "
        f"Passage: {d['passage']} Question: {d['question']}"
    ),
    "boolq": lambda d: (
        "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'. "
        f"passage: {d['passage']} question: {d['question']}. answer:"
    ),
    "mutual": lambda d: (
        f"Q: {d['article']} Which choice is correct? Answer Chioces: (A){d['options'][0]}(B){d['options'][1]}"
        f"(C){d['options'][2]}(D){d['options'][3]} A: Among A through D, the answer is"
    ),
    "samsum": lambda d: f"{d['dialogue']}\nTL;DR:",
    "sst2": lambda d: (
        "For each snippet of text,label the sentiment of the text as positive or negative.The answer should be exact "
        f"'positive' or 'negative'. text: {d['text']} answer:"
    ),
}


@pytest.mark.parametrize(
    ("model", "dataset", "layout"),
    [("gpt2-tiny", "zsre.jsonl", "."), ("llama-tiny", "counterfact.jsonl", "paper_layout")],
)
def test_real_data_in_both_layouts(reference, data, tmp_path, model, dataset, layout):
    lm_eval(
        "--model", "edited_hf", "--model_args",
        f"pretrained={reference / 'models' / model},editor=rome,n_edits=2,edit_layers=2,"
        f"edit_dataset={data / dataset},data_dir={data / layout}",
        "--tasks", "edithurt_suite", "--limit", 4, "--output_path", "out", "--log_samples", "--batch_size", 8,
        cwd=tmp_path,
    )  # fmt: skip
    results = results_of(tmp_path / "out")
    assert results["config"]["edit"]["n_edits"] == 2 and results["config"]["edit"]["guards"]["weights_changed"]
    assert len([key for key in results["results"] if key.startswith("edithurt_")]) == 9
    for values in results["results"].values():
        assert all(0 <= values[f"{metric},none"] <= 1 for metric in ("score", "script", "valid"))
        assert isinstance(values["score_stderr,none"], float)
    for task, prompt in PROMPTS.items():
        for sample in samples_of(tmp_path / "out", f"edithurt_{task}"):
            assert sample["arguments"]["gen_args_0"]["arg_0"] == prompt(sample["doc"]), task


def test_a_task_that_is_not_ours(reference, tmp_path):
    (tmp_path / "docs.jsonl").write_text('{"text": "The mother tongue of", "word": "a"}\n' * 3)
    (tmp_path / "local.yaml").write_text(
        f"task: local_lambada\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\n"
        'test_split: test\noutput_type: loglikelihood\ndoc_to_text: "{{text}}"\ndoc_to_target: " {{word}}"\n'
        "metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc}]\n"
    )
    model_args = f"pretrained={reference}/models/gpt2-tiny,editor=rome,n_edits=1,edit_layers=2"
    model_args += f",edit_dataset={reference}/facts.json"
    done = lm_eval(
        "--model", "edited_hf", "--model_args", model_args, "--include_path", tmp_path, "--tasks", "local_lambada",
        cwd=tmp_path,
    )  # fmt: skip
    assert "local_lambada" in done.stdout and "perplexity" in done.stdout


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ("editor=rmoe", "editor=rmoe: no such editor. Did you mean 'rome'?"),
        ("editor=rome,n_edits=-1,n_edit=2", "2 problems in the configuration"),
        ("editor=rome,n_edits=1.5", "n_edits=1.5: want a whole number"),
        ("editor=rome,edit_batch_size=2", "edit_batch_size=2: rome edits one fact at a time"),
        ("editor=rome,data_dir=absent", "data_dir=absent: no such folder"),
        ("editor=rome,data_dir=.", "data_dir=. holds no data for sst2; looked for"),
        ("editor=rome,pretrained=openai-community/gpt2", "no data for sst2 (nyu-mll/glue): the Hugging Face hub is"),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(tmp_path, model_args, message):
    done = lm_eval(
        "run", "--model", "edited_hf", "--model_args", model_args, "--tasks", "edithurt_sst2",
        cwd=tmp_path, program="lm-eval-edit", ok=False,
    )  # fmt: skip
    assert message in done.stderr and "Traceback" not in done.stderr
    assert "Loading weights" not in done.stderr


def test_killed_between_two_edits_and_run_again(reference, tmp_path):
    (tmp_path / "fast.yaml").write_text(FAST)
    command = [
        "run", "--model", "edited_hf", "--model_args",
        f"pretrained={reference}/models/gpt2-tiny,editor=rome,n_edits=8,edit_layers=2,edit_config=fast.yaml,"
        f"edit_dataset={reference}/facts.json,edit_ledger=LEDGER,data_dir={tmp_path}",
        "--tasks", "edithurt_sst2", "--limit", "1",
    ]  # fmt: skip
    (tmp_path / "sst2.jsonl").write_text('{"sentence": "fine", "label": 1, "idx": 0}\n')

    def with_ledger(name: str) -> list[str]:
        return [word.replace("LEDGER", name) for word in command]

    lm_eval(*with_ledger("whole"), cwd=tmp_path, program="lm-eval-edit")
    for stop_at in (2, 5):
        process = subprocess.Popen(
            [SCRIPTS / "lm-eval-edit", *with_ledger("killed")], cwd=tmp_path, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while not (tmp_path / "killed" / "ops" / f"{stop_at - 1:05d}.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "ops" / "00007.json").exists(), "it was killed in the middle"
    lm_eval(*with_ledger("killed"), cwd=tmp_path, program="lm-eval-edit")
    for index in range(8):
        whole, killed = (
            load_file(tmp_path / name / "ops" / f"{index:05d}.safetensors") for name in ("whole", "killed")
        )
        assert whole.keys() == killed.keys() and all(whole[key].equal(killed[key]) for key in whole)
    last = [json.loads((tmp_path / name / "ops" / "00007.json").read_text()) for name in ("whole", "killed")]
    assert last[0]["fingerprint"] == last[1]["fingerprint"]
