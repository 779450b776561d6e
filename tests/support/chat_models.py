"""Chat templates of every shape, and tiny models whose tokenizers have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny import tiny_llama

_REFUSE_SYSTEM = "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
_USER_FIRST = (
    "{% if messages[0].role not in ('user', 'system') %}{{ raise_exception('roles must alternate') }}{% endif %}"
)

#: Shape -> (template, what stands before the user's turn, behind it).
SHAPES: dict[str, tuple[str, str, str]] = {
    # SmolLM2, Qwen: a default system prompt where none is given
    "default system": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|start|>system\nYou help.<|end|>\n"
        "{% endif %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
        "<|start|>system\nYou help.<|end|>\n<|start|>user\n",
        "<|end|>\n<|start|>assistant\n",
    ),
    # LLaMA-3: BOS of its own, content trimmed
    "BOS, trims": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|mid|>\n\n{{ m.content | trim }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|mid|>\n\n{% endif %}",
        "<s><|start|>user<|mid|>\n\n",
        "<|end|><|start|>assistant<|mid|>\n\n",
    ),
    # Gemma: BOS, no system role
    "BOS, no system": (
        "{{ bos_token }}" + _REFUSE_SYSTEM.replace("m.role", "messages[0].role")
        + "{% for m in messages %}<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>model\n{% endif %}",
        "<s><|start|>user\n",
        "<|end|>\n<|start|>model\n",
    ),
    # Mistral, LLaMA-2: brackets, no header for the assistant
    "brackets": (
        _USER_FIRST + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "<s>[INST] ",
        " [/INST]",
    ),
    # Vicuna, Zephyr-like words with a space behind the header
    "trailing space": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
        "USER: ",
        "\nASSISTANT: ",
    ),
    "trims the start": (
        "{% for m in messages %}<|start|>{{ m.content.lstrip() }}<|end|>{% endfor %}",
        "<|start|>",
        "<|end|>",
    ),
    "braces": (
        "{% for m in messages %}{{ '{}' }} {{ m.role }} {{ '{x}' }} {{ m.content }}{% endfor %}{{ ' {}:' }}",
        "{} user {x} ",
        " {}:",
    ),
}  # fmt: skip

#: Templates that nobody can edit in, and what is said.
UNUSABLE: dict[str, tuple[str, str]] = {
    "no user alone": ("{{ raise_exception('a system turn must come first') }}", "cannot render .*must come first"),
    "shown twice": ("{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}", "2 times, not once"),
    "not shown": ("<|start|>", "0 times, not once"),
    "lower case": ("{% for m in messages %}<|start|>{{ m.content | lower }}{% endfor %}", "0 times, not once"),
    "escapes": ("{% for m in messages %}<|start|>{{ m.content | e }}{% endfor %}", "0 times, not once"),
    "inner spaces": (
        "{% for m in messages %}{{ m.content.split() | join('_') }}_{% endfor %}",
        "0 times, not once",
    ),
}

_MARKS = ["<|pad|>", "<s>", "</s>", "<|start|>", "<|mid|>", "<|end|>"]


def chat_tokenizer(template: str | None, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token for each byte, and for each mark of the templates above.

    Args:
        bos: Whether the tokenizer puts `<s>` before a text itself.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_MARKS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in _MARKS])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<|pad|>")
    made.chat_template = template
    return made


def chat_model(**changes: Any) -> LlamaForCausalLM:
    """A tiny random LLaMA with that vocabulary and room for templates."""
    sizes = {
        "vocab_size": len(_MARKS) + 256, "max_position_embeddings": 768, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_size": 64, "intermediate_size": 192, "num_key_value_heads": 4, "initializer_range": 0.2,
    }  # fmt: skip
    return tiny_llama(**sizes | changes)


def save_chat(folder: Path, template: str | None, bos: bool = True, **changes: Any) -> Path:
    """A checkpoint of both; returns its folder."""
    chat_model(**changes).save_pretrained(folder)
    chat_tokenizer(template, bos).save_pretrained(folder)
    return folder
