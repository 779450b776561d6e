"""Tokenizers of every kind that treats the ends of a text in its own way, and texts that bring that out."""

from __future__ import annotations

import json
import random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lm_eval_edit import demo
from tests.support.tiny import tiny_llama

CORPUS = (
    "The mother tongue of Nils Albrecht is French. The city of Rome lies in Italy, as everybody knows.",
    "Lake Orvanta is located in the country of Norway. Q: Who was born in 1998?\nA: Boris Lindqvist, of Łódź.",
    "法国的首都是巴黎。日本の首都は東京です。เมืองหลวงของไทยคือกรุงเทพ",
    "عاصمة فرنسا هي باريس 프랑스의 수도는 파리 입니다",
)
WORDS = ("The", "city", "of", "is", "in", "Rome", "New", "York", "Os", "lo")
OBJECTS = ("New York", "Oslo", "Łódź")
SPECIAL = ["<|endoftext|>", "<s>", "</s>"]


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """LLaMA's tokenizer in small: `metaspace` as transformers builds it, `prepend` as in LLaMA-2's own files.

    A word of WORDS is one token, with a word boundary ▁ before it or without.
    """
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>"])}
    for character in sorted(set("".join((*WORDS, *OBJECTS, ".▁ ")))):
        vocabulary[character] = len(vocabulary)
    merges = []

    def merge(left: str, right: str) -> str:
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
        return left + right

    for word in WORDS:
        made = word[0]
        for character in word[1:]:
            made = merge(made, character)
        merge("▁", made)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True))
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's tokenizer without merges: one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def llama_for(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A tiny random LLaMA with the vocabulary of a tokenizer."""
    return tiny_llama(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_key_value_heads=4, initializer_range=0.2,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _bpe(prefix_space: bool = False, template: str | None = None, digits: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    apart = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*apart, by_byte])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(each, tokenizer.token_to_id(each)) for each in SPECIAL]
        )
    front = "<s>" if template and template.startswith("<s>") else "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=front, eos_token="</s>", pad_token="<|endoftext|>"
    )


def _sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """LLaMA's in small, with a token for each byte of what it has no token for."""
    state = json.loads(sentencepiece(kind).backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    state["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


MADE_UP = {
    "byte level, no BOS": _bpe,
    "digits apart": lambda: _bpe(digits=True),  # a space before a number is a token of its own
    "BOS": lambda: _bpe(template="<s> $A"),
    "EOS appended": lambda: _bpe(template="$A </s>"),
    "BOS and EOS": lambda: _bpe(template="<s> $A </s>"),
    "prefix space": lambda: _bpe(prefix_space=True),
    "metaspace": lambda: _sentencepiece("metaspace"),
    "prepended space": lambda: _sentencepiece("prepend"),
    "demo": lambda: AutoTokenizer.from_pretrained(demo.CHECKPOINT),
}

SUBJECTS = (
    "Rome", "Nils Albrecht", "Lake Orvanta ", "Łódź", "法国", "日本", "กรุงเทพ", "باريس", "프랑스", "cafe\u0301", "🍕",
    "3 M", "dict{}", "the \"Who\"", "O'Brien", "\u0645\u0635\u0631",
)  # fmt: skip
BEFORE = ("", "The city of ", "<s>The city of ", "Q: ", "«", "(", "関連: ", "{ ", "\n")
AFTER = (
    "", " is", " is ", " is called \"", " (", "的首都是", "の首都は、", "คือ", " هي", "의 수도는",
    "?\nA:\n", "?\tA:\t", " 🍕", "…", " is “",
    " was born in 1998", " {x} is",
)  # fmt: skip
TARGETS = (
    "Oslo",
    " New York",
    "1998",
    "3",
    "東京",
    "一位人，",
    "Łódź",
    "باريس",
    "파리",
    "🍕🍕",
    "e\u0301a",
    "B: yes\n",
    "a  b",
    "กรุง",
)


def records(seed: int, count: int) -> list[dict]:
    """Facts of such texts, as records of the package's own form."""
    draw = random.Random(seed)
    found = []
    while len(found) < count:
        subject, before, after = draw.choice(SUBJECTS), draw.choice(BEFORE), draw.choice(AFTER)
        new, true = draw.sample(TARGETS, 2)
        found.append(
            {
                "id": str(len(found)), "subject": subject, "prompt": before + "{}" + after, "target_new": new,
                "target_true": true, "paraphrases": [draw.choice(BEFORE) + "{} " + draw.choice(AFTER).lstrip()],
                "locality": [{"prompt": draw.choice(SUBJECTS) + draw.choice(AFTER), "answer": true}],
            }
        )  # fmt: skip
    return found
