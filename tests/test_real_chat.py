"""The script behind docs/chat.md: the two by two table on a tiny chat model, resumed, and the page's own."""

from __future__ import annotations

import importlib
import json

import pytest

from lm_eval_edit import Fact
from tests.conftest import ROOT
from tests.support.chat_models import SHAPES, save_chat
from tests.support.tiny import write_facts

FACTS = [
    Fact(name, "The mother tongue of {}", "S", "F", id=name, paraphrases=("{} speaks",)) for name in ("Nils", "Rosa")
]
FT = {"layers": [1], "num_steps": 40, "lr": 5e-3, "objective_optimization": "target_new"}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "examples")
        yield importlib.import_module("real_chat")


def test_the_direction_of_the_table_and_going_on(script, tmp_path, monkeypatch):
    """An edit is where it was made and hardly in the other place; what has been measured is not measured again."""
    model = save_chat(tmp_path / "model", SHAPES["default system"][0], bos=False)
    facts, kept = write_facts(tmp_path / "facts.jsonl", FACTS), tmp_path / "kept.json"

    def bench(n):
        return script.Bench(str(model), facts, n, kept, editor="ft", options=FT)

    bench(1).run()
    first = script.read(kept)["facts"]
    bench(2).run()
    found = script.read(kept)["facts"]
    assert len(first) == 1 and len(found) == 2 and first.items() <= found.items()
    for fact in found.values():
        gain = {
            (edited, asked): fact[edited][asked]["log_prob"] - fact["none"][asked]["log_prob"]
            for edited in ("text", "chat")
            for asked in ("text", "chat")
        }
        assert gain["text", "text"] > gain["chat", "text"] + 1
        assert gain["chat", "chat"] > gain["text", "chat"] + 1
    assert script.table(script.read(kept)).count("\n| ") == 6
    monkeypatch.setattr(script.Bench, "_measure", lambda *_: pytest.fail("measured again"))
    bench(2).run()


def test_the_page_holds_what_was_measured(script):
    page = script.DOCS.read_text(encoding="utf-8")
    table = page.split(script.BEGIN)[1].split(script.END)[0].strip()
    measured = json.loads(script.DOCS.with_suffix(".json").read_text())
    assert table == script.table(measured)


def test_the_measured_direction_on_the_real_model(script):
    """What docs/chat.md tells of its table is so."""
    facts = json.loads(script.DOCS.with_suffix(".json").read_text())["facts"].values()

    def mean(edited, asked, figure="log_prob"):
        return sum(fact[edited][asked][figure] for fact in facts) / len(facts)

    for figure in ("em", "prob_success", "log_prob"):
        assert mean("text", "text", figure) > mean("chat", "text", figure) > mean("none", "text", figure)
        assert mean("chat", "chat", figure) > mean("text", "chat", figure) > mean("none", "chat", figure)
