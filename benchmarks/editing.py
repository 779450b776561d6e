"""How much faster and smaller editing is here than done straightforwardly: both sides in one run, results compared.

    python benchmarks/editing.py                      # 12 layers, d = 768, both families; many minutes on a CPU
    python benchmarks/editing.py --device cuda
    python benchmarks/editing.py --tiny               # seconds, to see that it runs
    python benchmarks/editing.py --easyedit ~/EasyEdit --what rome memit kn
    python benchmarks/editing.py --what memory        # ledger size and peak memory at the shapes of a 7B model
    python benchmarks/editing.py --model smollm2 --clock cpu --threads 1 --easyedit ~/EasyEdit    # a real model

The other side is benchmarks/plain.py, which has the cost structure of the published implementations, or EasyEdit
itself. Weights are random and the tokenizer is made on the spot: time does not depend on what a model knows. A real
model (`--model`, benchmarks/real.py) says how far above the arithmetic minimum ours is. Method and figures:
docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import counting, memory, plain, real  # noqa: E402
from benchmarks.easyedit import EasyEdit  # noqa: E402
from lm_eval_edit import Fact  # noqa: E402
from lm_eval_edit._support.files import hash_json  # noqa: E402
from lm_eval_edit.editors.base import EditContext, Editor  # noqa: E402
from lm_eval_edit.editors.kn import Kn, KnOptions  # noqa: E402
from lm_eval_edit.editors.memit import Memit, MemitOptions  # noqa: E402
from lm_eval_edit.editors.rome import Rome, RomeOptions  # noqa: E402
from lm_eval_edit.models.architecture import Architecture  # noqa: E402
from lm_eval_edit.moments.collect import collect_second_moments  # noqa: E402
from lm_eval_edit.moments.corpus import Corpus  # noqa: E402
from lm_eval_edit.moments.second_moments import SecondMoments  # noqa: E402

WANTED = {"rome": 4.0, "memit": 6.0, "kn": 15.0, "stats": 4.0}
WORDS = [f"w{i}" for i in range(400)]
OPERATIONS = counting.Operations()
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time, "flops": lambda: OPERATIONS.total / 1e9}
START = ("The", "Therefore", "Because", "I", "You")


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        layers, width, inner, vocabulary: Of the model; LLaMA's inner size keeps the number of weights.
        steps: Forward passes of ROME's and MEMIT's optimisation.
        requests: Facts of MEMIT's batch.
        points: Points of KN's integral.
        texts: Texts for the second moments, of 10 to 200 tokens.
        repeats: Runs of each side; the shortest counts.
    """

    layers: int = 12
    width: int = 768
    inner: int = 3072
    vocabulary: int = 50257
    steps: int = 20
    requests: int = 32
    points: int = 20
    texts: int = 300
    repeats: int = 1


TINY = Size(4, 32, 96, 512, 4, 3, 4, 20)
#: Options that say nothing of a real model; of the sizes it takes `requests` alone.
OF_RANDOM_MODELS = ("tiny", "device", "dtype", "families", "tolerance", *(n for n in asdict(TINY) if n != "requests"))


@dataclass(frozen=True)
class Outcome:
    """One comparison: seconds of both sides, and how far their results are apart (relative, largest parameter)."""

    model: str
    what: str
    other: str
    ours: float
    theirs: float
    error: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    words = ["<|endoftext|>", *START, "mother", "tongue", "of", "is", "a", ".", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_model(family: str, size: Size, dtype: torch.dtype, device: str) -> Any:
    """A random model, in evaluation mode. Weights are larger than a fresh model's, so that positions differ."""
    torch.manual_seed(0)
    common = {"vocab_size": size.vocabulary, "initializer_range": 0.05, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = GPT2Config(
            n_embd=size.width, n_layer=size.layers, n_head=max(2, size.width // 64), n_inner=size.inner,
            n_positions=1024, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **common,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    else:
        heads = max(2, size.width // 64)
        config = LlamaConfig(
            hidden_size=size.width, num_hidden_layers=size.layers, num_attention_heads=heads,
            num_key_value_heads=heads, intermediate_size=size.inner * 2 // 3, max_position_embeddings=1024, **common,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.config._name_or_path = family
    return model.to(device=device, dtype=dtype).eval()


def make_facts(count: int) -> list[Fact]:
    """Facts with subjects of two or three words, prompts with a tail, answers of one to three words."""
    draw = random.Random(0)
    facts = []
    for i in range(count):
        subject = " ".join(draw.sample(WORDS, draw.choice((2, 3))))
        new, old = (" ".join(draw.sample(WORDS, draw.choice((1, 2, 3)))) for _ in range(2))
        facts.append(Fact(subject, "The mother tongue of {} is a", new, old, id=str(i)))
    return facts


def make_templates(plan: Sequence[tuple[int, int]]) -> list[str]:
    """`{}` and random context templates with the published numbers and lengths."""
    draw = random.Random(1)
    samples = [
        " ".join([START[i % 5], *draw.sample(WORDS, tokens - 1)]) + " . {}"
        for tokens, count in plan
        for i in range(count)
    ]
    return ["{}", *samples]


def make_context(model: Any, moments: SecondMoments | None = None, nested: bool = False) -> EditContext:
    templates: list = make_templates([(10, 5)] if nested else [(5, 10), (10, 10)])
    templates = [templates[:1], templates[1:]] if nested else templates
    return EditContext(model, make_tokenizer(), Architecture.discover(model), templates, moments or SecondMoments())


def clock_of(device: str, clock: Callable[[], float]) -> Callable[[], float]:
    """The clock, read when a device has done what it was given."""

    def read() -> float:
        torch.cuda.synchronize()
        return clock()

    return clock if device == "cpu" else read


def timed(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> tuple[Any, float]:
    """(result, seconds of the fastest run)."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = clock()
        result = call()
        best = min(best, clock() - started)
    return result, best


def relative_error(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest ‖a − b‖ / ‖b‖ over the parameters."""
    if set(ours) != set(theirs):
        return float("inf")
    ours = {name: tensor.double().cpu() for name, tensor in ours.items()}
    return max(
        float((ours[name] - tensor.double().cpu()).norm() / tensor.double().norm()) for name, tensor in theirs.items()
    )


class Bench:
    """The comparisons on one model.

    Args:
        easyedit: A clone of EasyEdit, to compare with that; None for benchmarks/plain.py.
    """

    def __init__(self, family: str, size: Size, dtype: torch.dtype, device: str, easyedit: str | None, clock: Any):
        self.family, self.size, self.device, self.easyedit = family, size, device, easyedit
        self.clock = clock_of(device, clock)
        self.model = make_model(family, size, dtype, device)
        with torch.no_grad():
            self.model(torch.zeros(8, 16, dtype=torch.long, device=device))  # the first pass pays for much else
        self.architecture = Architecture.discover(self.model)
        # GPT-2 XL's 17 (ROME) and 13 to 17 (MEMIT) of 48 stand at a third of the depth; five layers, as published.
        self.layer = round(size.layers * 17 / 48)
        # Not the last layer: a shift there cannot reach the answer's tokens, and Adam would follow round-off.
        first = max(0, self.layer - 2)
        self.layers = tuple(range(first, min(first + 5, size.layers - 1)))

    def rome(self) -> Outcome:
        """One fact."""
        context, fact = make_context(self.model), make_facts(1)[0]
        options = RomeOptions(layers=(self.layer,), v_num_grad_steps=self.size.steps)
        return self._compare(
            "rome", context, Rome(options), [fact], lambda: plain.rome(context, fact, options), _TARGET
        )

    def memit(self) -> Outcome:
        """A batch of facts on five layers, the factorisation of C included."""
        moments = {self.architecture.down_projections[layer]: self._moment(layer) for layer in self.layers}
        context = make_context(self.model, SecondMoments(moments), nested=True)
        facts = make_facts(self.size.requests)
        options = MemitOptions(layers=self.layers, v_num_grad_steps=self.size.steps, mom2_update_weight=15000)
        return self._compare(
            "memit", context, Memit(options), facts, lambda: plain.memit(context, facts, options), _TARGET
        )

    def kn(self) -> Outcome:
        """The attribution of one fact's neurons, in EasyEdit's variant."""
        context, fact = make_context(self.model), _QUESTION
        editor = Kn(KnOptions(steps=self.size.points))
        if self.easyedit:
            return self._compare("kn", context, editor, [fact], None, {"batch_size": self.size.points, **_KN})
        extend = self.family != "gpt2"
        return self._outcome(
            "kn",
            lambda: {"scores": editor.attributions(context, fact.text, fact.target_true)},
            lambda: {"scores": plain.kn_scores(context, fact.text, fact.target_true, self.size.points, extend)},
        )

    def stats(self) -> Outcome:
        """Second moments of five layers. EasyEdit's own reads its corpus from the hub, so plain.py stands for it."""
        draw = random.Random(2)
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(10, 200))) for _ in range(self.size.texts)]
        context = make_context(self.model)
        tokens = sum(len(text.split()) for text in texts)
        names = [self.architecture.down_projections[layer] for layer in self.layers]

        def ours() -> dict[str, Tensor]:
            with tempfile.TemporaryDirectory() as folder:
                corpus = Corpus(texts, "random words", hash_json([texts, time.time()]))
                found = collect_second_moments(
                    self.model, context.tokenizer, self.layers, corpus, tokens, folder=Path(folder), progress=False
                )
                return {name: found[name] for name in names}

        return self._outcome(
            "stats",
            ours,
            lambda: dict(zip(names, plain.second_moments(context, texts, self.layers, 1024), strict=True)),
        )

    def _moment(self, layer: int) -> Tensor:
        """(f, f) a well-conditioned E[k kᵀ] without a corpus, so that both sides can solve with it."""
        f = self.architecture.key_size
        factor = torch.randn(f, f, generator=torch.Generator().manual_seed(layer)) / f**0.5
        return (factor @ factor.T + 0.1 * torch.eye(f)) * 0.01

    def _compare(
        self,
        what: str,
        context: EditContext,
        editor: Editor,
        facts: Sequence[Fact],
        straightforward: Callable[[], dict[str, Tensor]] | None,
        more: dict[str, Any],
    ) -> Outcome:
        def ours() -> dict[str, Tensor]:
            deltas = editor.compute(context, facts).deltas
            return {name: delta.dense(self.model.dtype, self.device) for name, delta in deltas.items()}

        if not self.easyedit:
            return self._outcome(what, ours, straightforward)
        unknown = real.ONLY_OURS.get(what, real.OURS)
        options = {name: value for name, value in editor.describe().items() if name not in unknown}
        options |= {"v_loss_layer": self.size.layers - 1} | more
        other = EasyEdit(self.easyedit, what.upper(), options, self.clock)

        def theirs() -> dict[str, Tensor]:
            return {n: delta.dense(self.model.dtype) for n, delta in other.compute(context, facts).deltas.items()}

        return self._outcome(what, ours, theirs, other)

    def _outcome(
        self, what: str, ours: Callable[[], Any], theirs: Callable[[], Any], other: EasyEdit | None = None
    ) -> Outcome:
        """Both sides' seconds and their results' distance; `other` keeps the time of what it does itself."""
        repeats = self.size.repeats
        own, seconds = timed(ours, repeats, self.clock)
        found, other_seconds = timed(theirs, repeats, self.clock if other is None else lambda: other.seconds)
        name = "plain" if other is None else "EasyEdit"
        return Outcome(self.family, what, name, seconds, other_seconds, relative_error(own, found))


# As long as a ZsRE question and the model's answer to it are in tokens.
_QUESTION = Fact("w1 w2 w3", "w4 w5 mother tongue of {} is a w6 w7 w8", "w9 w10", "w11 w12 w13", id="0")
_TARGET = {"layer_selection": "all"}
_KN = {"lr_scale": 1.0, "n_toks": 10, "refine": False}


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [
        "| model | what | other side | ours s | other s | ratio | wanted | relative error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {o.model} | {o.what} | {o.other} | {o.ours:.2f} | {o.theirs:.2f} | {o.ratio:.1f} | {WANTED[o.what]:.0f} | "
        f"{o.error:.1e} |"
        for o in outcomes
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons; the exit status is 1 when results differ by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a model that takes seconds; its ratios mean nothing")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"), help="of the models")
    parser.add_argument("--families", nargs="+", default=["gpt2", "llama"], choices=("gpt2", "llama"))
    parser.add_argument("--what", nargs="+", choices=sorted({*WANTED, *real.FACTS, "memory"}), help="default: all")
    parser.add_argument("--easyedit", metavar="DIR", help="compare with the EasyEdit of this clone, not with plain.py")
    parser.add_argument("--model", help="a real model instead of random ones: smollm2, or the folder of another")
    parser.add_argument("--facts", default="known_facts", help="--model: its facts, a file or a known set")
    parser.add_argument("--tolerance", type=float, default=1e-2, help="largest relative error (default: 1e-2, float32)")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=CLOCKS,
        help="cpu: the process's own time; flops: no time, but 10^9 operations",
    )
    parser.add_argument("--threads", type=int, help="torch's CPU threads")
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, help=f"default: {value}")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    known = real.FACTS if args.model else (*WANTED, "memory")
    if unknown := set(args.what or ()) - set(known):
        parser.error(
            f"--what {' '.join(sorted(unknown))}: {'a real model' if args.model else 'here'} knows {', '.join(known)}"
        )
    if args.model:
        if args.clock == "flops":
            parser.error("--clock flops: a real model is measured in seconds, --clock cpu or wall")
        if given := [f"--{name}" for name in OF_RANDOM_MODELS if getattr(args, name) != parser.get_default(name)]:
            parser.error(f"{', '.join(given)}: of random models; a real one is run in float32 on the CPU: leave it out")
        return real.main(args, CLOCKS[args.clock])
    if args.facts != parser.get_default("facts"):
        parser.error(f"--facts {args.facts}: of a real model; random ones have facts of their own: give --model too")
    args.what = args.what or [*known]
    base = asdict(TINY if args.tiny else Size())
    size = Size(**{name: value if getattr(args, name) is None else getattr(args, name) for name, value in base.items()})
    print(
        json.dumps(
            {"torch": torch.__version__, "device": args.device, "threads": torch.get_num_threads(), **asdict(size)}
        )
    )
    outcomes = []
    counted = OPERATIONS if args.clock == "flops" else contextlib.nullcontext()
    for family in args.families:
        bench = Bench(family, size, getattr(torch, args.dtype), args.device, args.easyedit, CLOCKS[args.clock])
        for what in (what for what in args.what if what != "memory"):
            with counted:
                outcomes.append(getattr(bench, what)())
            print(table(outcomes[-1:]).split("\n")[-1], flush=True)
    if outcomes:
        print("\n" + table(outcomes))
    if "memory" in args.what:
        print("\n" + memory.report(lambda model: (make_context(model), make_facts(1)), args.tiny))
    apart = [outcome for outcome in outcomes if not outcome.error <= args.tolerance]
    for outcome in apart:
        print(f"{outcome.model} {outcome.what}: the two sides differ by {outcome.error:.1e}", file=sys.stderr)
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
