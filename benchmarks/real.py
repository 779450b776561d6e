"""Editing a real model: ours, the arithmetic minimum, and EasyEdit, one after another in one run, results compared.

    python benchmarks/editing.py --model smollm2 --clock cpu --threads 1
    python benchmarks/editing.py --model smollm2 --clock cpu --threads 1 --easyedit ~/EasyEdit

Sizes are those of EasyEdit's files for LLaMA (KN's those for GPT-2 XL); context templates are sampled from the model
once and given to both sides; E[k kᵀ] is made up, as time does not depend on what it holds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks import minimum
from benchmarks.easyedit import EasyEdit
from lm_eval_edit import Fact, load_facts, load_source
from lm_eval_edit.cost.work import Shape
from lm_eval_edit.editors.base import EditContext, Editor, find_editor
from lm_eval_edit.editors.templates import sample_templates
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.delta import Delta

WANTED = {"rome": 4.5, "memit": 6.0, "ft": 2.0}  # times as fast as EasyEdit
FACTS = {"rome": 3, "r_rome": 2, "memit": 10, "kn": 1, "ft": 5, "ft_m": 5}
OURS = ("context_templates", "v_batch_size", "variant", "operation", "lambda1", "lambda2")  # no fields of EasyEdit's
ONLY_OURS = {"memit": (*OURS, "context_template_length_params")}
# How far results may be apart, relative. FT's: Adam divides each entry's gradient by its own size, so that round-off
# decides which way an entry goes that has next to none.
SAME = {"ft": 1e-2, "ft_m": 1e-2}
SAME_ELSE = 1e-5
_TARGET = {
    "v_num_grad_steps": 25, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0, "kl_factor": 0.0625,
}  # fmt: skip
_FT = {"weight_decay": 0, "norm_constraint": False, "max_length": 40}


@dataclass(frozen=True)
class Method:
    """What is compared.

    Attributes:
        editor: Our name.
        theirs: EasyEdit's name.
        options: Hyper-parameters that both sides know.
        more: EasyEdit's others.
        nested: Which context templates; None for none.
    """

    editor: str
    theirs: str
    options: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)
    nested: bool | None = None


def methods(layers: int) -> dict[str, Method]:
    """Every method at EasyEdit's sizes, the layers at LLaMA's relative depths."""
    low, last = max(1, round(layers * 5 / 32)), {"v_loss_layer": layers - 1}
    tuned = {"layers": [round(layers * 21 / 32)], "num_steps": 25, "lr": 5e-4, "batch_size": 1, "kl_factor": 0}
    knocked = {"steps": 20, "adaptive_threshold": 0.2, "p": 0.4}
    batch = {"layers": list(range(low - 1, min(low + 4, layers - 1))), "mom2_update_weight": 15000, **_TARGET}
    return {
        "rome": Method("rome", "ROME", {"layers": [low], **_TARGET}, last, nested=False),
        "r_rome": Method("r_rome", "R-ROME", {"layers": [low], **_TARGET}, last, nested=False),
        "memit": Method("memit", "MEMIT", batch, {"layer_selection": "all", **last}, nested=True),
        "kn": Method("kn", "KN", knocked, {"batch_size": 20, "lr_scale": 1.0, "n_toks": 10, "refine": False}),
        "ft": Method("ft", "FT", tuned | {"objective_optimization": "prompt_last"}, _FT),
        "ft_m": Method("ft", "FT", tuned | {"objective_optimization": "target_new"}, _FT),
    }


@dataclass
class Row:
    """What one method took, for all its facts."""

    what: str
    facts: int
    ours: float = 0.0
    theirs: float | None = None
    least: float = 0.0
    rate: float = 0.0
    error: float = 0.0

    def cells(self) -> list[str]:
        theirs = ["not run"] * 3
        if self.theirs is not None:
            theirs = [f"{self.theirs:.2f}", f"{self.theirs / self.ours:.2f}", f"{self.error:.0e}"]
        seconds = [f"{self.ours:.2f}", f"{self.least:.2f}", f"{self.ours / self.least:.2f}"]
        return [self.what, str(self.facts), *seconds, *theirs, f"{WANTED.get(self.what, '')}", f"{self.rate / 1e9:.0f}"]


HEAD = (
    "method", "facts", "ours s", "minimum s", "ours / minimum", "EasyEdit s", "EasyEdit / ours", "relative error",
    "wanted", "10⁹ op/s",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [HEAD, ("---",) * 2 + ("---:",) * (len(HEAD) - 2), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class RealBench:
    """The comparisons on one pretrained model.

    Args:
        model: `smollm2`, or a folder.
        easyedit: A clone; None where there is none.
        clock: Seconds.
    """

    def __init__(self, model: str, facts: Sequence[Fact], easyedit: str | None, clock: Callable[[], float]):
        self.model, self.tokenizer = load_source(model, device="cpu", dtype="float32")
        self.facts, self.easyedit, self.clock = facts, easyedit, clock
        self.architecture = Architecture.discover(self.model)
        self.shape = Shape.of(self.model.config)
        self.templates: dict[bool, Any] = {}

    def run(self, what: str, count: int) -> Row:
        """One method on the first `count` facts: in one batch for MEMIT, else one by one on the unedited model."""
        method = methods(self.shape.layers)[what]
        editor = _editor(method)
        context, facts = self._context(method, editor), [f for f in self.facts if not editor.fact_problem(f)][:count]
        groups = [facts] if what == "memit" else [[fact] for fact in facts]
        other = None
        if self.easyedit:
            unknown = ONLY_OURS.get(what, OURS)
            options = {name: value for name, value in editor.describe().items() if name not in unknown}
            options |= method.more
            other = EasyEdit(self.easyedit, method.theirs, options, self.clock)
        row, passes = Row(what, len(facts)), []
        rates = [minimum.matrix_rate(self.clock)]
        for group in groups:
            started = self.clock()
            result = editor.compute(context, group)
            row.ours += self.clock() - started
            steps = result.details.get("steps", [0])
            passes += steps if isinstance(steps, list) else [steps]
            if other is not None:
                row.error = max(row.error, apart(result.deltas, other.compute(context, group).deltas))
                row.theirs = other.seconds
            rates.append(minimum.matrix_rate(self.clock))
        row.rate = sum(rates) / len(rates)
        row.least = self._least(what, method, context, facts, passes, editor) / row.rate
        return row

    def _least(
        self, what: str, method: Method, context: EditContext, facts: Sequence[Fact], steps: Sequence[int], editor: Any
    ) -> float:
        layers = method.options.get("layers", [0])
        if what == "kn":
            return minimum.kn(self.shape, context, facts, editor)
        if what.startswith("ft"):
            return minimum.ft(self.shape, context, facts, layers[0], steps, what == "ft")
        passes = [step + 1 for step in steps]  # the last one has no step behind it
        if what == "memit":
            return minimum.memit(self.shape, context, facts, layers, passes)
        return minimum.rome(self.shape, context, facts, layers[0], passes)

    def _context(self, method: Method, editor: Editor) -> EditContext:
        names = self.architecture.down_projections
        moments = {names[layer]: self._moment(layer) for layer in editor.needs_second_moments()}
        templates: Any = []
        if method.nested is not None:
            plan = editor.template_plan()
            assert plan is not None, "a method with templates says which"
            if method.nested not in self.templates:
                self.templates[method.nested] = sample_templates(self.model, self.tokenizer, plan, 0)
            templates = self.templates[method.nested]
        return EditContext(self.model, self.tokenizer, self.architecture, templates, SecondMoments(moments))

    def _moment(self, layer: int) -> Tensor:
        """(f, f) a well-conditioned E[k kᵀ]."""
        f = self.architecture.key_size
        factor = torch.randn(f, f, generator=torch.Generator().manual_seed(layer)) / f**0.5
        return (factor @ factor.T + 0.1 * torch.eye(f)) * 0.01


def _editor(method: Method) -> Editor:
    found = find_editor(method.editor)
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in method.options.items()}
    return found(found.Options(**values))


def apart(ours: Mapping[str, Delta], theirs: Mapping[str, Delta]) -> float:
    """The largest ‖a − b‖ / ‖b‖ over the parameters that either side changes."""
    if set(ours) != set(theirs):
        return float("inf")
    pairs = [(ours[name].dense(torch.float64), theirs[name].dense(torch.float64)) for name in ours]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def main(args: argparse.Namespace, clock: Callable[[], float]) -> int:
    """Run the comparisons; the exit status is 1 when results differ."""
    facts = load_facts(args.facts)
    bench = RealBench(args.model, facts, args.easyedit, clock)
    about = {"date": datetime.date.today().isoformat(), "model": args.model, "facts": args.facts, "clock": args.clock}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(about | versions | {"threads": torch.get_num_threads()}), flush=True)
    rows = []
    for what in args.what or FACTS:
        rows.append(bench.run(what, args.requests if args.requests and what == "memit" else FACTS[what]))
        print(table(rows[-1:]).split("\n")[-1], flush=True)
    print("\n" + table(rows))
    differ = [row for row in rows if not row.error <= SAME.get(row.what, SAME_ELSE)]
    for row in differ:
        print(f"{row.what}: the two sides differ by {row.error:.1e}", file=sys.stderr)
    return 1 if differ else 0
