"""Train the demo world's tokenizer and model: `python -m lm_eval_edit.demo.train`.

About ten minutes on two CPU cores. The run is a function of its arguments: every step draws its rows from a stream
of its own, the weights come from a generator of their own, and deterministic kernels are demanded. (Another number of
threads or another CPU may round differently.) A run that was stopped continues from its last state when started again.

What a step is, and how its loss makes a model look facts up in its MLPs, is in `steps`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lm_eval_edit._support import extras
from lm_eval_edit.demo import CHECKPOINT, corpus, evaluate
from lm_eval_edit.demo.corpus import END
from lm_eval_edit.demo.steps import learning_rate, make_step, new_optimizer, parameter_draws, step_batches
from lm_eval_edit.demo.world import write_jsonl

SEED = 0
VOCABULARY = 2048


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
    parameter_draws(model, lambda name: name.endswith("c_proj.weight"), seed)
    width = config.n_embd
    with torch.no_grad():
        position = torch.arange(config.n_positions)[:, None]
        angle = position * torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))  # (positions, width / 2)
        model.transformer.wpe.weight.copy_(0.05 * torch.cat([angle.sin(), angle.cos()], dim=1))
    return model


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
        rate = learning_rate(step, args.steps, args.lr)
        losses.append(make_step(model, optimizer, batches, generator, rate))
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
    parser.add_argument(
        "--moment-layers", type=int, nargs="+", default=[0, 1], help="layers of the second moments kept"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number rounds differently")
    parser.add_argument("--seed", type=int, default=SEED)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
