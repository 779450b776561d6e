"""A model of the harness that says what a function of the prompt tells it: no weights, no tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.api_models import JsonChatStr

LIKELY, UNLIKELY = -0.5, -9.0


class SpokenLM(LM):
    """Says `says(prompt)`; an object that begins so is likely, any other is not.

    Args:
        says: Prompt -> its continuation; None where all continuations are alike.
    """

    def __init__(self, says: Callable[[str], str | None]):
        super().__init__()
        self.says = says
        self.asked: list[str] = []

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [self._likelihood(*request.args[:2]) for request in requests]

    def _likelihood(self, prompt: str, text: str) -> tuple[float, bool]:
        self.asked.append(prompt)
        said = self.says(prompt)
        if said is None:
            return UNLIKELY, False
        return (LIKELY, True) if said.startswith(text) else (UNLIKELY, False)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        found = []
        for prompt, wanted in (request.args[:2] for request in requests):
            self.asked.append(prompt)
            said = self.says(prompt) or ""
            for stop in wanted["until"]:
                said = said.split(stop)[0]
            found.append(said)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


class ServedChatLM(SpokenLM):
    """A chat behind an API, as the harness's `local-chat-completions`: it is sent turns, no text."""

    tokenizer_name = "served"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> JsonChatStr:
        return JsonChatStr(json.dumps(chat_history))

    def chat_template(self, chat_template: bool | str = False) -> str:
        return ""

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        assert all(isinstance(request.args[0], JsonChatStr) for request in requests)
        turns = [json.loads(request.args[0].prompt) for request in requests]
        self.asked += [turn[-1]["content"] for turn in turns]
        return [self.says(turn[-1]["content"]) or "" for turn in turns]


class ChattingLM(SpokenLM):
    """The same with a chat template."""

    tokenizer_name = "chatting"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turns = "".join(f"<{turn['role']}>{turn['content'].strip()}</{turn['role']}>" for turn in chat_history)
        return turns + "<assistant>" * add_generation_prompt

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "ours"
