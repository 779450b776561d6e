"""Train the demo world's tokenizer and model: `python -m lm_eval_edit.demo.train`.

About ten minutes on two CPU cores. The run is a function of its arguments: every step draws its rows from a stream
of its own, the weights come from a generator of their own, and deterministic kernels are demanded. (Another number of
threads or another CPU may round differently.) A run that was stopped continues from its last state when started again.

Loss: the negative log-likelihood of task answers and fact objects, plus a small weight on a sample of the other tokens.
The rest of the text is mostly drawn at random, and a model of this size would spend its capacity on that.

A model this small recalls a fact by the shortest way: the last word of the prompt looks at the name itself, before any
MLP has seen it, and an edit of an MLP weight changes nothing. In large models attributes are looked up by early MLPs at
the last token of the subject (ROME, section 2). Most fact rows are therefore trained with the subject hidden from all
later tokens in the first layer, which leaves that way alone; see `hide_subjects`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lm_eval_edit._support import extras
from lm_eval_edit.demo import CHECKPOINT, corpus, evaluate
from lm_eval_edit.demo.corpus import END, Row
from lm_eval_edit.demo.world import write_jsonl

SEED = 0
VOCABULARY = 2048
TASK_MICRO_BATCHES = 2
HIDDEN_LAYERS, HIDDEN_SHARE = 1, 0.9
BACKGROUND_SHARE, BACKGROUND_WEIGHT = 0.15, 0.1
EASY_UNTIL = 0.4
"""Share of the run after which no dialogue row is easy any more."""


def train_tokenizer(seed: int = SEED) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the demo text; it adds no special token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.tokenizer_texts(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int = SEED) -> GPT2LMHeadModel:
    """A small GPT-2 with weights drawn from a generator of its own.

    Position embeddings start as sinusoids, so that attention to "the token before" need not be learnt for each position
    anew; this brings the copying skills forward by many steps.
    """
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=128,
        n_layer=4,
        n_head=4,
        n_inner=512,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):  # the library draws from the global generator; its draws are replaced below
        model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    width = config.n_embd
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                std = width**-0.5 * (0.5 if "wte" in name else 1.0)
                std /= math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
                parameter.normal_(0.0, std, generator=generator)
        position = torch.arange(config.n_positions)[:, None]
        angle = position * torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))  # (positions, width / 2)
        model.transformer.wpe.weight.copy_(0.05 * torch.cat([angle.sin(), angle.cos()], dim=1))
    return model


class EncodedRow(NamedTuple):
    """Token ids of a row; the loss weight of each token; for each token the number of the subject it is in, or 0."""

    ids: list[int]
    weights: list[float]
    subjects: list[int]


def encode_rows(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[EncodedRow]:
    """Tokenise rows segment by segment."""
    segments = [segment.text for row in rows for segment in row]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch(segments, add_special_tokens=False))
    result = []
    for row in rows:
        result.append(EncodedRow([], [], []))
        for number, segment in enumerate(row, start=1):
            piece = next(encoded).ids
            result[-1].ids.extend(piece)
            result[-1].weights.extend([segment.weight] * len(piece))
            result[-1].subjects.extend([number if segment.subject else 0] * len(piece))
    return result


@contextmanager
def hide_subjects(model: GPT2LMHeadModel, subjects: torch.Tensor, hidden_rows: torch.Tensor) -> Iterator[None]:
    """Within the context no token after a subject attends to it in the first `HIDDEN_LAYERS` layers.

    Args:
        model: The model.
        subjects: (rows, length), the number of the subject each token is in, 0 for none.
        hidden_rows: (rows,) bool, the rows this is done to; the others attend as always.
    """
    causal = torch.ones(subjects.shape[1], subjects.shape[1], dtype=torch.bool).tril()
    same = subjects[:, None, :] == subjects[:, :, None]  # (rows, query, key)
    seen = (subjects[:, None, :] == 0) | same | ~hidden_rows[:, None, None]
    mask = (seen & causal)[:, None]  # (rows, 1, query, key)

    def hook(_module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    attentions = [
        model.get_submodule(f"transformer.h.{layer}.attn") for layer in range(min(HIDDEN_LAYERS, model.config.n_layer))
    ]
    handles = [attention.register_forward_pre_hook(hook, with_kwargs=True) for attention in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loss_of(model: GPT2LMHeadModel, rows: list[EncodedRow], generator: torch.Generator) -> torch.Tensor:
    """Weighted sum of the negative log-likelihood over rows; the head runs only where there is a loss.

    Rows are padded on the right without an attention mask: attention is causal, and no loss stands on padding.
    """
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    subjects = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        end = len(row.ids)
        ids[i, :end] = torch.tensor(row.ids)
        weights[i, :end] = torch.tensor(row.weights)
        subjects[i, :end] = torch.tensor(row.subjects)
        real[i, :end] = True
    background = (torch.rand(ids.shape, generator=generator) < BACKGROUND_SHARE) & real & (weights == 0)
    weights = torch.where(background, BACKGROUND_WEIGHT, weights)[:, 1:]  # (rows, length - 1), of the next token
    hidden_rows = torch.rand(len(rows), generator=generator) < HIDDEN_SHARE
    with hide_subjects(model, subjects, hidden_rows) if subjects.any() else nullcontext():
        hidden = model.transformer(ids, use_cache=False).last_hidden_state[:, :-1]  # (rows, length - 1, width)
    chosen = weights > 0
    logits = model.lm_head(hidden[chosen])  # (chosen, vocabulary)
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][chosen], reduction="none")
    return (losses * weights[chosen]).sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to 2 % of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100))))


@torch.no_grad()
def second_moments(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], layers: list[int]
) -> dict[str, torch.Tensor]:
    """E[k k^T], uncentred, of the keys of MLP down-projections over all tokens of `texts`.

    Returns:
        For each layer `transformer.h.<l>.mlp.c_proj.second_moment` (f, f) float32, summed in float64, and
        `....count` (1,) float32, the number of tokens.
    """
    width = model.config.n_inner
    assert width is not None, "the demo model's configuration says it"
    sums = {layer: torch.zeros(width, width, dtype=torch.float64) for layer in layers}
    count = 0

    def hook_for(layer: int):
        def hook(_module, inputs):
            keys = inputs[0].reshape(-1, width).double()
            sums[layer] += keys.T @ keys

        return hook

    projections = {layer: model.get_submodule(f"transformer.h.{layer}.mlp.c_proj") for layer in layers}
    handles = [module.register_forward_pre_hook(hook_for(layer)) for layer, module in projections.items()]
    try:
        by_length: dict[int, list[list[int]]] = {}
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            by_length.setdefault(len(ids), []).append(ids)
        for length in sorted(by_length):  # rows of one length need no padding, which would be counted
            model.transformer(torch.tensor(by_length[length]), use_cache=False)
            count += length * len(by_length[length])
    finally:
        for handle in handles:
            handle.remove()
    result = {}
    for layer, total in sums.items():
        name = f"transformer.h.{layer}.mlp.c_proj"
        result[f"{name}.second_moment"] = (total / count).float()
        result[f"{name}.count"] = torch.tensor([float(count)])
    return result


def save(model, tokenizer, log: list[dict], output: Path, layers: list[int], seed: int) -> None:
    """Write the checkpoint folder: weights, tokenizer, second moments and log (the model card is kept).

    The second moments are those of 3,000 rows of steps that training does not reach.
    """
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    texts = [corpus.text(row) for step in range(30) for row in corpus.step_rows(seed, 1_000_000 + step)][:3000]
    (output / extras.FOLDER).mkdir(parents=True, exist_ok=True)
    save_file(second_moments(model, tokenizer, texts, layers), output / extras.FOLDER / "second_moments.safetensors")
    write_jsonl(partial / "training_log.jsonl", log)
    output.mkdir(parents=True, exist_ok=True)
    for path in partial.iterdir():
        os.replace(path, output / path.name)
    partial.rmdir()


def new_optimizer(model: GPT2LMHeadModel, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices alone; position embeddings, biases and norms are left out."""
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "wpe" in n]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def step_batches(tokenizer: PreTrainedTokenizerFast, seed: int, step: int, steps: int) -> list[list[EncodedRow]]:
    """The rows of one step in batches: the facts, then the tasks in batches of like length, to pad little."""
    easy = max(0.0, 0.7 * (1 - step / (EASY_UNTIL * steps)))
    rows = encode_rows(tokenizer, corpus.step_rows(seed, step, easy))
    count = corpus.ROWS_PER_STEP["facts"]
    tasks = sorted(rows[count:], key=lambda row: len(row.ids))
    size = math.ceil(len(tasks) / TASK_MICRO_BATCHES)
    return [rows[:count], *(tasks[first : first + size] for first in range(0, len(tasks), size))]


def save_state(path: Path, state: dict) -> None:
    """Write the resumable state and replace the one before at once."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(args: argparse.Namespace) -> None:
    """Train, or go on training, and write the checkpoint.

    Raises:
        SystemExit: the state in `args.work` belongs to a run with other arguments.
    """
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(args.seed)
    model = new_model(tokenizer, args.seed)
    optimizer = new_optimizer(model, args.weight_decay)
    arguments = repr((args.steps, args.lr, args.weight_decay, args.seed))
    start, log = 0, []
    args.work.mkdir(parents=True, exist_ok=True)
    state_file = args.work / "state.pt"
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        if state["arguments"] != arguments:
            raise SystemExit(f"{state_file} belongs to a run with other arguments; give another --work or delete it")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, log = state["step"], json.loads(state["log"])
    began, losses = time.monotonic(), []
    progress = tqdm(range(start, args.stop_after), initial=start, total=args.stop_after, unit="step")
    for step in progress:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        batches = step_batches(tokenizer, args.seed, step, args.steps)
        total = sum(sum(row.weights[1:]) for batch in batches for row in batch)
        losses.append(0.0)
        for batch in batches:
            loss = loss_of(model, batch, generator) / total
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
        if (step + 1) % args.evaluate_every == 0 or step + 1 == args.stop_after:
            entry = {
                "step": step + 1,
                "loss": round(sum(losses) / len(losses), 4),
                **{k: round(v, 3) for k, v in evaluate.teacher_forced(model, tokenizer).items()},
                "seconds": round(time.monotonic() - began, 1),
            }
            losses = []
            log.append(entry)
            tqdm.write(json.dumps(entry))
            state = {"arguments": arguments, "step": step + 1, "log": json.dumps(log)}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(state_file, state)
    save(model.eval(), tokenizer, log, args.output, args.moment_layers, args.seed)


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description="Train the demo world's tokenizer and model.")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument("--work", type=Path, default=Path("out/demo-train"), help="folder of the resumable state")
    parser.add_argument("--steps", type=int, default=1800, help="length of the learning rate's schedule")
    parser.add_argument("--stop-after", type=int, default=1200, help="steps really made; all tasks are learnt by then")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--moment-layers", type=int, nargs="+", default=[0], help="layers of the second moments kept")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number rounds differently")
    parser.add_argument("--seed", type=int, default=SEED)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
