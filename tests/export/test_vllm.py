"""vLLM takes our exports and answers like transformers: the printed commands, run in a real vLLM (`make test-vllm`)."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lm_eval_edit import demo
from tests.conftest import ROOT
from tests.support.printed_commands import evaluate, in_the_card, make_exports
from tests.support.processes import python
from tests.support.real_vllm import ENVIRONMENT, MARKS
from tests.support.tiny import LEARNABLE, tiny_llama, tiny_tokenizer

pytestmark = MARKS


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A tiny LLaMA whose heads are 32 wide: vLLM's attention on a CPU refuses narrower ones."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 192}
    model = tiny_llama(vocab_size=len(tiny_tokenizer()), **sizes)
    return make_exports(tmp_path_factory.mktemp("exports"), model)


@pytest.fixture(scope="module")
def unedited(exports, tmp_path_factory):
    """log p of each fact's new object in the unedited model, by vLLM; and by transformers the same to 1e-3."""
    folder = tmp_path_factory.mktemp("unedited")
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(fact.record()) for fact in LEARNABLE))
    asked = "--tasks edithurt_efficacy --metadata edit_dataset=facts.jsonl,edit_seed=none,n_edits=2"
    found = {
        engine: evaluate(
            f"lm_eval --model {engine} --model_args pretrained={exports}/model,dtype=float32 {asked}", folder,
            folder / engine, **ENVIRONMENT,
        )
        for engine in ("hf", "vllm")
    }  # fmt: skip
    assert found["vllm"] == pytest.approx(found["hf"], abs=1e-3)
    return found["vllm"]


@pytest.mark.parametrize("form", ["peft", "hf"])
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_the_printed_command_gives_the_edited_models_log_probabilities(exports, unedited, tmp_path, method, form):
    folder = exports / f"{method}-{form}"
    stock, vllm = in_the_card(folder)
    wanted = evaluate(stock, folder, tmp_path / "hf", **ENVIRONMENT)
    found = evaluate(vllm, folder, tmp_path / "vllm", **ENVIRONMENT)
    off = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    effect = min(abs(a - b) for a, b in zip(found, unedited, strict=True))
    print(f"{method}, {form}: vLLM and transformers differ by {off:.2g}, the edits' effect is {effect:.3g} and more")
    assert off < 1e-3 and effect > 100 * off


def test_the_demo_checkpoint_answers_the_suite_as_in_transformers(tmp_path):
    """Its folder holds tensors that are no weights; vLLM reads every *.safetensors beside the model's."""
    said = {}
    for engine in ("hf", "vllm"):
        command = f"--model {engine} --model_args pretrained={demo.CHECKPOINT},dtype=float32 --tasks edithurt_suite"
        done = python(
            "-m", "lm_eval", *shlex.split(command), "--limit", 20, "--log_samples", "--output_path", tmp_path / engine,
            path=ROOT, LM_EVAL_EDIT_AUTOLOAD="1", **ENVIRONMENT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        said[engine] = answers(tmp_path / engine)
    assert len(said["hf"]) == 160 and said["vllm"] == said["hf"]


def answers(folder: Path) -> dict[tuple[str, str], str]:
    """(task, document) -> the generated text."""
    return {
        (path.name.rpartition("_")[0], line["doc_hash"]): line["resps"][0][0]
        for path in sorted(folder.rglob("samples_*.jsonl"))
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    }
