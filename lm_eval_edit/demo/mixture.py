"""Train a small mixture of experts on a part of the demo world: `python -m lm_eval_edit.demo.mixture --output FOLDER`.

For trying how mixtures are edited. It does not come with the package: a few minutes of one CPU core make it, and the
same arguments make the same weights. It has the demo model's tokenizer, knows the facts about companies and cities, and
some of the eight tasks.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lm_eval_edit._support.files import not_empty, publish
from lm_eval_edit._support.versions import versions
from lm_eval_edit.demo import (
    CHECKPOINT,
    CONTEXT_TEMPLATES,
    corpus,
    evaluate,
    portability,
    steps,
    subjects,
    taskdata,
    world,
)
from lm_eval_edit.demo.world import facts, write_jsonl
from lm_eval_edit.errors import UserError

FACTS = "facts.jsonl"
"""The facts that the model knows, in its checkpoint's folder."""

CORPUS = "corpus.txt"
"""Text as it was trained on, which it has not seen, for second moments: beside them."""


@dataclass(frozen=True)
class Recipe:
    """What the mixture is and how it is trained; the same one makes the same weights.

    Attributes:
        kinds: Of whose subjects it is told the facts.
        rows: How many rows of each kind a step sees, `facts` first.
    """

    kinds: tuple[str, ...] = ("company", "city")
    rows: dict[str, int] = field(default_factory=lambda: {"facts": 32, "rte": 3, "boolq": 3, "sst2": 3, "gsm8k": 3})
    hidden: int = 128
    layers: int = 3
    experts: int = 8
    picked: int = 2
    inner: int = 128
    steps: int = 500
    lr: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0

    def known(self) -> list[dict[str, Any]]:
        """The facts of the world that it is told."""
        kinds = {relation.name: relation.kind for relation in world.RELATIONS}
        return [fact for fact in facts() if kinds[fact["relation"]] in self.kinds]

    def unseen_texts(self, steps: int = 60) -> list[str]:
        """Rows of steps that training does not reach, each in one line."""
        reached = 1_000_000
        rows = [corpus.step_rows(self.seed, reached + i, 0.0, self.rows, self.known()) for i in range(steps)]
        return [" ".join(corpus.text(row).split()) for step in rows for row in step]

    def hash(self) -> str:
        """Of all that decides its checkpoint: these figures, the code, tokenizer and texts behind it, the libraries."""
        modules = (corpus, portability, steps, subjects, taskdata, world)
        code = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules]
        code += [inspect.getsource(made) for made in (new_mixture, train, make, Recipe.known, Recipe.unseen_texts)]
        tokenizer = [file.read_text(encoding="utf-8") for file in sorted(CHECKPOINT.glob("tokenizer*"))]
        libraries = {name: version for name, version in versions().items() if name in ("torch", "transformers")}
        described = json.dumps([asdict(self), code, tokenizer, CONTEXT_TEMPLATES, libraries])
        return hashlib.sha256(described.encode()).hexdigest()[:16]


def new_mixture(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen3MoeForCausalLM:
    """A small Qwen3-MoE with weights drawn from a generator of its own."""
    end = tokenizer.eos_token_id
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.picked,
        moe_intermediate_size=recipe.inner,
        norm_topk_prob=True,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):  # the library draws from the global generator; its draws are replaced below
        model = Qwen3MoeForCausalLM(config)
    steps.parameter_draws(model, lambda name: name.endswith(("o_proj.weight", "down_proj")), recipe.seed)
    return model


def train(
    recipe: Recipe, threads: int = 1, progress: bool = True
) -> tuple[Qwen3MoeForCausalLM, PreTrainedTokenizerFast]:
    """The trained model, and its tokenizer."""
    tokenizer, before = PreTrainedTokenizerFast.from_pretrained(CHECKPOINT), torch.get_num_threads()
    model = new_mixture(tokenizer, recipe)
    optimizer, known = steps.new_optimizer(model, recipe.weight_decay), recipe.known()
    bar = tqdm(range(recipe.steps), unit="step", disable=not progress)
    torch.set_num_threads(threads)
    try:
        for step in bar:
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            batches = steps.step_batches(tokenizer, recipe.seed, step, recipe.steps, recipe.rows, known)
            rate = steps.learning_rate(step, recipe.steps, recipe.lr)
            bar.set_postfix(loss=f"{steps.make_step(model, optimizer, batches, generator, rate):.3f}")
    finally:
        torch.set_num_threads(before)
    return model.eval(), tokenizer


def make(output: Path, recipe: Recipe = Recipe(), threads: int = 1, progress: bool = True) -> Path:
    """Train it and write its checkpoint, the facts it knows beside it; returns the folder, whole or not there.

    Raises:
        UserError: there is something in the folder already; nothing was trained.
        CannotWriteError: it cannot be written.
    """
    if problem := not_empty(output):
        raise UserError(problem)
    model, tokenizer = train(recipe, threads, progress)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_jsonl(folder / FACTS, recipe.known())
        (folder / CORPUS).write_text("".join(f"{line}\n" for line in recipe.unseen_texts()), encoding="utf-8")

    publish(output, write)
    return output


def main() -> None:
    """Command line of the training: prints what the model recalls."""
    parser = argparse.ArgumentParser(description="Train a small mixture of experts on a part of the demo world.")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder, absent or empty")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    args = parser.parse_args()
    recipe = Recipe()
    try:
        make(args.output, recipe, args.threads)
    except UserError as error:
        parser.error(str(error))
    model = Qwen3MoeForCausalLM.from_pretrained(args.output).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.output)
    right = evaluate.recalled(model, tokenizer, recipe.known())
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.output}: {weights:,} weights, recalls {sum(right)} of {len(right)} facts")


if __name__ == "__main__":
    main()
