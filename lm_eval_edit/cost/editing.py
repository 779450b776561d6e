"""What an editing operation costs, method by method: the passes that this package's editors make.

Counted are the passes and matrix products of the code in `lm_eval_edit.editors`; their lengths come from ZsRE (mean
characters of 1,037 records). Methods that may stop early (ROME's and MEMIT's loss below 0.05, FT's below 0.01) are
counted to the last step, so their estimates are upper bounds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_edit.cost.work import Pass, Shape, Work
from lm_eval_edit.errors import UserError, nearest

ANCHOR_FACTS = 50  # the default of `norm_anchor_facts`, which a class that needs torch has

MOMENT_BATCH = 8192  # tokens of one pass of `collect`
ANSWERED_AT_ONCE = 32  # prompts of one pass of `answers`
ROWS_AT_ONCE = 512  # rows of one pass of `editors._shared.keys`
LAST_MLP = 2 / 3  # the MLP's share of a block's matrices: GPT-2's exactly, LLaMA's 67 to 80 %


@dataclass(frozen=True)
class FactLength:
    """Tokens of an edit.

    Attributes:
        prompt: Of the whole prompt.
        tail: Of what follows the subject in it.
        target: Of the new object.
    """

    prompt: float
    tail: float
    target: float

    @classmethod
    def of_zsre(cls, characters_per_token: float) -> FactLength:
        """ZsRE's mean fact: 44.8 characters, 7.9 of them after the subject, and an object of 12.9 and a space."""
        return cls(44.8 / characters_per_token, 7.9 / characters_per_token, 13.9 / characters_per_token)


def editing(
    shape: Shape, editor: str, options: Mapping[str, Any], operations: Sequence[int], characters_per_token: float
) -> Work:
    """The work of some operations and of what is done once before them; see `cost.estimate` for the arguments.

    Raises:
        UserError: there is no estimate of this editor.
    """
    if editor == "none" or not operations:
        return Work()
    method = innermost(editor, options)
    fact = FactLength.of_zsre(characters_per_token)
    work = _once(shape, method, options)
    if isinstance(options.get("norm_anchor"), str):  # measured on the unedited model, unless an earlier run has
        work += _goals(shape, options, fact, options.get("norm_anchor_facts", ANCHOR_FACTS))
    for facts in sorted(set(operations)):
        one = operation(shape, method, options, fact, facts) + _answers(shape, fact, facts).times(2)
        work += one.times(operations.count(facts))
    return work


def operation(shape: Shape, method: str, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """The work of one `Editor.compute` on so many facts.

    Args:
        method: As `innermost` gives it.
        options: As `Editor.describe` gives them.
    """
    return _METHODS[method](shape, options, fact, facts)


def innermost(editor: str, options: Mapping[str, Any]) -> str:
    """The method whose passes are made: that of an editor that changes another's updates is the other's.

    Raises:
        UserError: there is no estimate of it.
    """
    chooser, default = _WRAPPERS.get(editor, ("", ""))
    method = str(options.get(chooser, default)) if chooser else editor
    if method in _WRAPPERS and method != editor:
        return innermost(method, options)
    if method not in _METHODS:
        known = [*_METHODS, *_WRAPPERS]
        raise UserError(
            f"editor={editor}: there is no estimate of what {method} costs.{nearest(method, known)} There is one of "
            f"{', '.join(known)}"
        )
    return method


def second_moments(shape: Shape, editor: str, options: Mapping[str, Any], tokens: int) -> Work:
    """The work of collecting E[k kᵀ] for the editor's layers; nothing for an editor that needs none."""
    layers = moment_layers(innermost(editor, options), options)
    if not layers:
        return Work()
    blocks = max(layers) + 1
    # Texts of the length of a context would cost more attention, shorter ones less: those of Wikipedia are short of it.
    one = Pass(tokens / MOMENT_BATCH, shape.blocks(MOMENT_BATCH, MOMENT_BATCH * 512, blocks), blocks)
    seen = shape.picked if shape.routed else 1  # a token counts for each expert that it picks
    return Work((one,), single=2.0 * shape.inner**2 * tokens * len(layers) * seen)


# ------------------------------------------------------------------------------------------------------------- methods


def _rome(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """Rows: the prompt behind every context template, and "{subject} is a"; δ enters within the edited block."""
    longest, count = _templates(options, ((5, 10), (10, 10)))
    work = Work()
    for layer in options.get("layers", ()):
        steps = options.get("v_num_grad_steps", 20)
        work += _target(shape, fact, 1, count + 1, longest, steps, shape.layers - layer, shape.layers - layer - 1)
        if options.get("mom2_adjustment"):
            work += Work(double=2.0 * shape.inner**2)
    return work.times(facts)


def _memit(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """Targets some facts at a time, then for each layer a pass up to the last one and a solve in float64."""
    return _goals_and_passes(shape, options, fact, facts) + Work(double=_solve(shape, facts)).times(
        len(edited_layers(options))
    )


def _keeping_keys(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """MEMIT's passes and one more for the keys on the edited weights, which a running square root (f, f) takes up.

    Counted as it is when many keys have come: the keys whitened, through the root and back, and again to absorb them.
    """
    layers = edited_layers(options)
    blocks = shape.edited(facts)
    solve = blocks * (13.0 * shape.inner**2 * facts + 4.0 * shape.inner * facts**2) + 2.0 * facts**3
    work = _goals_and_passes(shape, options, fact, facts) + Work(double=solve).times(len(layers))
    return work + _key_pass(shape, options, fact, facts, max(layers) + 1)


def _goals_and_passes(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """The targets, and for each layer a pass up to its target's."""
    layers, own = edited_layers(options), options.get("own_targets")
    work = _goals(shape, options, fact, facts)
    for goal, group in [(layer, [layer]) for layer in layers] if own else [(layers[-1], layers)]:
        work += _key_pass(shape, options, fact, facts, goal + 1)
        # On the weights edited so far, from the layer that was edited last; the last pass to see what is left.
        for layer in group:
            work += _key_pass(shape, options, fact, facts, goal - layer + 1)
    return work


def _goals(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """The targets of the last layer, or of each (`own_targets`), some facts at a time."""
    layers = edited_layers(options)
    longest, count = _templates(options, ((10, 5),))
    steps, chunk = options.get("v_num_grad_steps", 20), options.get("v_batch_size", 16)
    work = Work()
    for goal in layers if options.get("own_targets") else layers[-1:]:
        above = shape.layers - goal - 1
        for size, chunks in ((chunk, facts // chunk), (facts % chunk, 1)):
            if size and chunks:
                work += _target(shape, fact, size, count + 1, longest, steps, above, above).times(chunks)
    return work


def _key_pass(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int, depth: int) -> Work:
    """The keys at some layers, and the output of the block above which nothing is computed, through `depth` blocks."""
    longest, count = _templates(options, ((10, 5),))
    rows, prompt = facts * count, fact.prompt - fact.tail
    passes = math.ceil(rows / ROWS_AT_ONCE)
    return Work((Pass(passes, _first(shape, rows, facts, longest, prompt, depth) / passes, depth),))


def _first(shape: Shape, rows: float, facts: int, longest: float, prompt: float, blocks: int) -> float:
    """A pass over whole rows: a template's tokens once for all facts, the prompt's in every row."""
    width = longest + prompt
    left = rows / facts * longest
    return shape.blocks(rows * prompt, rows * prompt * width, blocks) + shape.blocks(left, left * longest, blocks)


def _solve(shape: Shape, facts: int) -> float:
    """Of one layer; a mixture's C has a block for each expert, and those that no fact picks are left out."""
    f, blocks = shape.inner, shape.edited(facts)
    solve = blocks * (2.0 * f**2 * facts + 2.0 * f * facts**2) + facts**3 / 3
    if 3 * facts > f and not shape.routed:  # the whole system is factored anew
        solve += f**3 / 3 + 2.0 * f**2 * facts
    return solve


def edited_layers(options: Mapping[str, Any]) -> list[int]:
    """The layers of the MEMIT family: with `own_targets` the first and the last."""
    layers = list(options.get("layers") or ())
    return [layers[0], layers[-1]] if options.get("own_targets") and len(layers) > 2 else layers


def _target(
    shape: Shape, fact: FactLength, facts: int, each: int, longest: float, steps: int, forward: int, backward: int
) -> Work:
    """The optimisation of δ: one full pass, then `forward` and `backward` blocks from the subject's last token on.

    Only activations have gradients, so a block costs backward what it costs forward. The head and the last block's MLP,
    most of its matrices, run where they are read: at a row's target tokens.

    Args:
        each: Rows of a fact.
    """
    rows, prompt = facts * each, fact.prompt + fact.target - 1
    width, columns = longest + prompt, fact.tail + fact.target
    first = Pass(1, _first(shape, rows, facts, longest, prompt, shape.layers), shape.layers)
    unread = max(0.0, columns - fact.target) * rows * 2 * shape.block_weights * LAST_MLP
    head = rows * fact.target * shape.head
    up, down = (
        shape.blocks(rows * columns, rows * columns * width, blocks) + head - (unread if blocks else 0.0)
        for blocks in (forward, backward)
    )
    return Work((first, Pass(steps, up, forward), Pass(steps - 1, down, backward)))


def _kn(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """One token through the blocks above the varied layers, forward and backward, four layers at a time."""
    steps = options.get("steps", 20)
    together = max(1, min(4, int(4096 // (steps * fact.prompt))))
    whole = Pass(1, shape.blocks(fact.prompt, fact.prompt**2) + shape.head, shape.layers)
    # GPT-2's and GPT-J's answer tokens are attributed together, others' each behind a text of its own.
    texts = 1 if shape.model_type in ("gpt2", "gptj") else fact.target
    passes = [Pass(texts + fact.target, whole.flop, whole.blocks)]  # of the text, and of the greedy answer
    for first in range(0, shape.layers, together):
        rows, blocks = min(together, shape.layers - first) * steps, shape.layers - first
        passes.append(Pass(2 * texts, shape.blocks(rows, rows * fact.prompt, blocks) + rows * shape.head, blocks))
    return Work(tuple(passes)).times(facts)


def _mend(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """One pass, one backward to the lowest edited block, the hypernetwork (rank 1920, two layers) on every token.

    The last block's outputs have a gradient only where a target is predicted.
    """
    names = options.get("inner_params") or [f".{layer}." for layer in range(max(0, shape.layers - 3), shape.layers)]
    edited = [int(number) for name in names for number in re.findall(r"\.(\d+)\.", name)]
    blocks = shape.layers - min(edited, default=0)
    length, width = fact.prompt + fact.target, shape.hidden + shape.inner
    tokens, last = facts * length, edited.count(shape.layers - 1)
    seen, head = tokens * length, tokens * shape.head
    rows = tokens * (len(names) - last) + facts * fact.target * last
    return Work(
        (
            Pass(1, shape.blocks(tokens, seen) + head, shape.layers),
            Pass(1, shape.blocks(tokens, seen, blocks) + head, blocks),
        ),
        single=8.0 * min(1920, width) * width * rows,
    )


def _ft(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """A pass through the whole model for each fact, then passes from the lowest edited matrix on.

    Every step takes the gradients down to that matrix, and its own. The head, and the last block's MLP where it is not
    edited, run at the targets' tokens; what the lowest edited block computes before its matrix is kept.
    """
    layers = options.get("layers") or (0,)
    steps, size = options.get("num_steps") or 25, min(facts, options.get("minibatch") or options.get("batch_size", 1))
    above, length = shape.layers - min(layers) - 1, fact.prompt + fact.target - 1
    tokens, batches = size * length, math.ceil(facts / size)
    read = size * fact.target
    head = read * shape.head
    unread = 0.0 if max(layers) == shape.layers - 1 else (tokens - read) * 2 * shape.block_weights * LAST_MLP
    matrices = shape.picked if shape.routed else 1  # that a token has a part in
    matrix = 2.0 * shape.hidden * shape.inner * tokens * matrices
    upper = shape.blocks(tokens, tokens * length, above) + head - unread
    passes = (
        Pass(batches, shape.blocks(tokens, tokens * length) + head, shape.layers),
        Pass(batches * (steps - 1), upper + matrix, above),
        Pass(batches * steps, upper, above),
    )
    return Work(passes, single=matrix * len(layers) * batches * steps)


def _lora(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """Every step: a pass, and the gradients of all activations; the adapter itself is small."""
    steps, size = options.get("num_steps") or 70, min(facts, options.get("batch_size", 1))
    length = fact.prompt + fact.target - 1
    tokens, count = size * length, steps * math.ceil(facts / size)
    one = shape.blocks(tokens, tokens * length) + tokens * shape.head
    return Work((Pass(count, one, shape.layers), Pass(count, one, shape.layers)))


def _ultraedit(shape: Shape, options: Mapping[str, Any], fact: FactLength, facts: int) -> Work:
    """A pass over some facts at a time, the gradients down to the lowest edited matrix, and a solve for each."""
    names = options.get("inner_params") or [f".{layer}." for layer in options.get("layers") or (0,)]
    lowest = min((int(number) for name in names for number in re.findall(r"\.(\d+)\.", name)), default=0)
    blocks = shape.layers - lowest
    size = min(facts, options.get("batch_size_once", 10))
    length = fact.prompt + fact.target
    tokens, count, width = size * length, math.ceil(facts / size), shape.hidden + shape.inner
    head = tokens * shape.head
    whole = facts * length
    unknowns = min(whole, shape.inner)
    solve = 2.0 * whole * unknowns * width + unknowns**3 / 3
    return Work(
        (
            Pass(count, shape.blocks(tokens, tokens * length) + head, shape.layers),
            Pass(count, shape.blocks(tokens, tokens * length, blocks) + head, blocks),
        ),
        double=solve * len(names),
    )


_METHODS: dict[str, Callable[[Shape, Mapping[str, Any], FactLength, int], Work]] = {
    "rome": _rome, "r_rome": _rome, "memit": _memit, "emmet": _memit, "alphaedit": _keeping_keys,
    "memit_seq": _keeping_keys, "encore": _keeping_keys, "betaedit": _keeping_keys,
    "kn": _kn, "mend": _mend, "ft": _ft, "lora": _lora, "ultraedit": _ultraedit,
}  # fmt: skip
#: Editors that change what another computes: the option that names it, and its default.
_WRAPPERS = {
    "rect": ("over", "rome"), "prune": ("over", "memit"), "sphere": ("over", "alphaedit"), "random": ("like", "rome"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------- before and after the edits


def _answers(shape: Shape, fact: FactLength, facts: int) -> Work:
    """The edited prompts answered, teacher-forced."""
    length = fact.prompt + fact.target
    passes = math.ceil(facts / ANSWERED_AT_ONCE)
    rows = facts / passes
    flop = shape.blocks(rows * length, rows * length**2) + rows * fact.target * shape.head
    return Work((Pass(passes, flop, shape.layers),))


def _once(shape: Shape, method: str, options: Mapping[str, Any]) -> Work:
    """Sampling the context templates and factoring the second moments."""
    plan = {"rome": ((5, 10), (10, 10)), "r_rome": ((5, 10), (10, 10))}.get(method, ((10, 5),))
    work = Work()
    if method not in ("kn", "mend", "ft", "lora", "ultraedit") and not options.get("context_templates"):
        for tokens, count in options.get("context_template_length_params", plan):
            rows = count / 5  # a fifth of the samples for each start word
            flop = rows * sum(shape.blocks(n, n**2) + n * shape.head for n in range(1, tokens)) / max(1, tokens - 1)
            work += Work((Pass(5 * (tokens - 1), flop, shape.layers),))
    share = 9.0 if method in ("alphaedit", "betaedit") else 1 / 3  # eigenvectors, or a Cholesky factor
    blocks = shape.experts if shape.routed else 1
    return work + Work(double=share * blocks * shape.inner**3 * len(moment_layers(method, options)))


def moment_layers(method: str, options: Mapping[str, Any]) -> list[int]:
    """The layers whose second moments a method needs."""
    if method in ("memit", "emmet", "alphaedit", "memit_seq", "encore", "betaedit"):
        return edited_layers(options)
    wanted = method in ("rome", "r_rome") and options.get("mom2_adjustment")
    return list(options.get("layers", ())) if wanted else []


def _templates(options: Mapping[str, Any], plan: Sequence[tuple[int, int]]) -> tuple[float, int]:
    """(tokens of the longest context template, number of templates, the bare one included)."""
    plan = options.get("context_template_length_params", plan)
    return max((tokens for tokens, _ in plan), default=0) + 2.0, 1 + sum(count for _, count in plan)
