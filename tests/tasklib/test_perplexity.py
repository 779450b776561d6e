"""`edithurt_perplexity`: its text, its figures, its standard errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lm_eval_edit.demo import CHECKPOINT
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.tasklib import perplexity
from tests.support.chat_models import save_chat
from tests.support.harness_runs import evaluate

pytestmark = pytest.mark.libraries

TEXT = " \n = Lobster = \n \n The lobster is blue . \n = = Description = = \n It boils red ; 100 @-@ 200 eggs . \n"


def test_rows_are_paragraphs_without_headings(tmp_path):
    (tmp_path / "corpus.txt").write_text(TEXT)
    rows, known = perplexity.rows_of({"pretrained": "some/model", "data_dir": str(tmp_path)})
    assert rows == ["The lobster is blue .", "It boils red ; 100 @-@ 200 eggs ."]
    assert known["source"] == "folder" and known["documents"] == 2 and known["file"].endswith("corpus.txt")
    (tmp_path / "wikitext.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ("", "鲸鱼 是 动物", "= A ="))
    )
    assert perplexity.rows_of({"data_dir": str(tmp_path)})[0] == ["鲸鱼 是 动物"], (
        "the file that is named for it comes first"
    )


def test_where_the_text_is():
    assert perplexity.resolve({}).name == perplexity.resolve({"pretrained": "demo"}).name == "demo"
    assert perplexity.resolve({"pretrained": "gpt2"}).name == "hub"
    assert perplexity.resolve({"pretrained": "gpt2", "data_dir": "demo"}).name == "demo"
    rows, known = perplexity.rows_of({})
    assert len(rows) == 100 and known["source"] == "demo"


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path):
    perplexity.check_tasks(["edithurt_rte"], {"data_dir": str(tmp_path)})
    with pytest.raises(ConfigurationError, match=r"holds no text for perplexity; looked for wikitext\.jsonl"):
        perplexity.check_tasks([perplexity.TASK], {"data_dir": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="no such folder"):
        perplexity.check_tasks([perplexity.TASK], {"data_dir": str(tmp_path / "x")})
    (tmp_path / "corpus.txt").write_text("= Title =\n")
    with pytest.raises(UserError, match="no text but headings"):
        perplexity.rows_of({"data_dir": str(tmp_path)})


def test_the_hub_offline_is_said_before_anything_is_loaded(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(UserError, match=r"could not be fetched from the hub .* data_dir=FOLDER"):
        perplexity.check_offline([perplexity.TASK], {"pretrained": "gpt2"})
    perplexity.check_offline([perplexity.TASK], {})


def test_figures_of_a_row_in_both_forms_of_the_harness():
    doc = {"row": 3, "text": "zwölf Eier"}
    found = perplexity.scored(doc, [-7.0])
    assert found == perplexity.scored(doc, [(-7.0, False)])
    assert (found["bits_per_byte"], found["word_perplexity"]) == ((-7.0, 11), (-7.0, 2))


def test_aggregates_and_their_standard_errors():
    rng = np.random.default_rng(0)
    items = [(-float(3 * n + rng.normal()), int(n)) for n in rng.integers(5, 50, 400)]
    logs, counts = (np.array(column, dtype=float) for column in zip(*items, strict=True))
    assert perplexity.bits_per_byte(items) == pytest.approx(-logs.sum() / counts.sum() / math.log(2))
    assert perplexity.weighted_perplexity(items) == pytest.approx(math.exp(-logs.sum() / counts.sum()))
    ratio = -logs.sum() / counts.sum()  # the delta method's error of a ratio of sums
    wanted = np.std(-logs - ratio * counts, ddof=1) * math.sqrt(len(items)) / counts.sum()
    rows = [(i, *item) for i, item in enumerate(items)]
    assert perplexity.bits_per_byte_stderr(rows) == pytest.approx(wanted / math.log(2), rel=0.1)
    assert perplexity.weighted_perplexity_stderr(rows) == pytest.approx(wanted * math.exp(ratio), rel=0.1)


def test_a_collapsed_models_perplexity_is_infinite_and_its_bits_are_not():
    items = [(-1e6, 10), (-2e6, 10)]
    assert math.isinf(perplexity.weighted_perplexity(items)) and perplexity.bits_per_byte(items) == pytest.approx(
        216404.3, rel=1e-5
    )
    assert math.isnan(perplexity.weighted_perplexity_stderr([(i, *item) for i, item in enumerate(items)]))


def test_the_figure_is_that_of_a_plain_loop():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_edit import EditedHFLM

    found = evaluate(EditedHFLM(pretrained="demo", editor="none", device="cpu"), {}, [perplexity.TASK], limit=6)
    figures = found["results"][perplexity.TASK]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval(),
        AutoTokenizer.from_pretrained(CHECKPOINT),
    )
    total = size = words = 0.0
    for text in perplexity.rows_of({})[0][:6]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text)]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].double().log_softmax(-1)
        total += float(logs[range(ids.shape[1] - 1), ids[0, 1:]].sum())
        size, words = size + len(text.encode()), words + len(text.split())
    assert figures["bits_per_byte,none"] == pytest.approx(-total / size / math.log(2), rel=1e-5)
    assert figures["word_perplexity,none"] == pytest.approx(math.exp(-total / words), rel=1e-4)
    assert figures["bits_per_byte_stderr,none"] > 0 and figures["word_perplexity_stderr,none"] > 0
    assert found["higher_is_better"][perplexity.TASK]["bits_per_byte"] is False
    assert found["configs"][perplexity.TASK]["metadata"]["provenance"]["documents"] == 100


def by_hand(model, ids: list[int], first: int, room: int) -> float:
    """log P of tokens: the first window behind `first`, each later one of what is left behind as many as there is room
    for, every token counted once."""
    total, done = 0.0, 0
    while done < len(ids):
        end = min(len(ids), done + room)
        given = [first, *ids][max(0, end - room) : end]
        with torch.no_grad():
            logs = model(torch.tensor([given])).logits[0].double().log_softmax(-1)
        total += sum(float(logs[place - end, ids[place]]) for place in range(done, end))
        done = end
    return total


@pytest.mark.parametrize("kind", ["hf", "edited_hf"])
@pytest.mark.parametrize("bos", [True, False])
def test_every_token_of_a_row_counts_once_and_no_other(tmp_path, kind, bos):
    """Of rows that repeat themselves over several windows too, whatever the batch; a BOS is no word of the text."""
    from lm_eval.models.huggingface import HFLM

    from lm_eval_edit import EditedHFLM

    folder = save_chat(tmp_path / "model", None, bos=bos, max_position_embeddings=64)
    rows = ["Short .", "The long row " * 17, "zwölf Eier 谁是 🏙️", "a", "Another " * 28 + "Another."]
    (tmp_path / "wikitext.txt").write_text("\n".join(rows), encoding="utf-8")
    wanted = []
    for batch_size in (1, 4):
        lm = (
            HFLM(str(folder), device="cpu", batch_size=batch_size, dtype="float32")
            if kind == "hf"
            else EditedHFLM(pretrained=str(folder), editor="none", device="cpu", batch_size=batch_size)
        )
        wanted = wanted or [
            by_hand(lm.model, lm.tokenizer.encode(row.strip(), add_special_tokens=False), 1, 64) for row in rows
        ]
        known = {"pretrained": str(folder), "data_dir": str(tmp_path)}
        found = evaluate(lm, known, [perplexity.TASK])
        said = [sample["filtered_resps"][0] for sample in found["samples"][perplexity.TASK]]
        said = [each[0] if isinstance(each, tuple | list) else each for each in said]
        assert said == pytest.approx(wanted, rel=1e-5)
        size = sum(len(row.strip().encode()) for row in rows)
        bits = found["results"][perplexity.TASK]["bits_per_byte,none"]
        assert bits == pytest.approx(-sum(wanted) / size / math.log(2), rel=1e-5)
        assert lm.logits_cache and "tok_encode" not in vars(lm), "as it was"
