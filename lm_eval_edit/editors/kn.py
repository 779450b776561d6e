"""Knowledge neurons: find the few MLP neurons that express a fact, and write the new answer into their value vectors.

Dai et al., *Knowledge Neurons in Pretrained Transformers*, ACL 2022 (arXiv 2104.08696). A neuron is one component of an
MLP's inner activation; its value vector is the row of the down-projection that it multiplies.

Two variants:
- `easyedit` (default): what EasyEdit and the studies made with it compute. It departs from the paper: one prompt; the
  neuron's *pre*-activation; the factors of the integral from 0 to 1, both included; answers tokenised without their
  space; in GPT-2 and GPT-J all tokens of the answer attributed at the prompt's end, in other models each after one more
  token of the model's own greedy answer; all rows get the same sum of embeddings.
- `paper`: activations, the factors 1/m ... 1, the answer's own tokens as context, the fact's paraphrases, erasing too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.forward import without_parameter_gradients
from lm_eval_edit.editors._shared.last_token import LastTokenForward
from lm_eval_edit.editors._shared.progress import steps as shown_steps
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, option
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact, in_clear
from lm_eval_edit.facts.separators import continuing
from lm_eval_edit.facts.tokens import check_fits, context_size, continuation, encode
from lm_eval_edit.models.architecture import Architecture, is_transposed
from lm_eval_edit.models.devices import input_device, weight_of
from lm_eval_edit.weights.delta import SparseDelta
from lm_eval_edit.weights.edited import wide_dtype

VARIANTS = ("easyedit", "paper")
OPERATIONS = ("update", "erase", "enhance")
_SAME_POSITION = ("gpt2", "gptj")  # model types whose answer tokens EasyEdit attributes all at the prompt's end


@dataclass(frozen=True)
class KnOptions:
    """Hyper-parameters of KN, under EasyEdit's names where it has them."""

    variant: str = option("easyedit (as EasyEdit computes it) or paper (Dai et al.)", default="easyedit")
    steps: int = option("points of the integral along which a neuron's activation grows", default=20)
    adaptive_threshold: float = option("a neuron counts above this share of the largest attribution", default=0.2)
    p: float = option("paper: share of the prompts that must find a neuron", default=0.7, tuned=False)
    operation: str = option("paper: update, erase or enhance the fact", default="update")
    lambda1: float = option("paper: how much of the old answer's embedding is taken away", default=1.0, tuned=False)
    lambda2: float = option("paper: how much of the new answer's embedding takes its place", default=8.0, tuned=False)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}: want one of {', '.join(VARIANTS)}")
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation={self.operation!r}: want one of {', '.join(OPERATIONS)}")
        if self.operation != "update" and self.variant == "easyedit":
            raise ValueError(f"operation={self.operation!r}: variant=easyedit only updates; give variant=paper")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: want a whole number of at least 1")
        for name in ("adaptive_threshold", "p"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: want a share of at least 0 and less than 1")


class Kn(Editor):
    """W ← W + Σ_n e_n ⊗ (new − old) over the knowledge neurons n of a fact, in all layers."""

    name = "kn"
    summary = "rewrites the value vectors of the neurons that express a fact"
    source = "Dai et al. 2022, arXiv 2104.08696"
    Options = KnOptions
    options: KnOptions
    not_routed = (
        "it scores the neurons of one MLP per layer, and a token passes through those of the picked experts alone"
    )
    # EasyEdit declares these and reads none of them on the way to an edit from a single prompt.
    unused_fields = frozenset(("lr_scale", "n_toks", "refine"))

    def architecture_problems(self, architecture: Architecture) -> list[str]:
        problems, widths = super().architecture_problems(architecture), sorted(set(architecture.key_sizes))
        if len(widths) > 1 and not problems:
            problems.append(f"kn ranks the neurons of all layers, which must be as many in each; here {widths}")
        return problems

    def fact_problem(self, fact: Fact) -> str | None:
        if reason := super().fact_problem(fact):
            return reason
        if not _answer(fact):
            return "KN needs the present answer: a prediction (ZsRE's pred) or the true target"
        return None

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        (fact,) = facts
        # (L, f), true at the knowledge neurons
        chosen = self._easyedit_neurons(context, fact) if self._is_easyedit else self._paper_neurons(context, fact)
        update = self._value_update(context, fact)
        deltas = {}
        for layer in range(context.architecture.n_layers):
            index = chosen[layer].nonzero()[:, 0]
            if len(index):
                deltas[context.architecture.weight(layer)] = self._delta(context, layer, index, update)
        if not deltas:
            raise UserError(
                f"KN found no knowledge neuron of fact {fact.id}: no attribution is positive, or none is shared by the "
                f"prompts; a lower adaptive_threshold or p may help"
            )
        return EditResult(deltas, {"neurons": chosen.sum(dim=1).tolist()})

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str]:
        """Every layer's down-projection: where the neurons are, a fact decides."""
        return [architecture.weight(layer) for layer in range(architecture.n_layers)]

    @property
    def _is_easyedit(self) -> bool:
        return self.options.variant == "easyedit"

    # ------------------------------------------------------------------------------------------- which neurons (sec. 3)

    def _easyedit_neurons(self, context: EditContext, fact: Fact) -> Tensor:
        scores = self.attributions(context, fact.text, _answer(fact))
        return scores > self.options.adaptive_threshold * scores.max()

    def _paper_neurons(self, context: EditContext, fact: Fact) -> Tensor:
        prompts = [fact.text, *(in_clear(paraphrase, fact.subject) for paraphrase in fact.paraphrases)]
        found = []
        for prompt in prompts:
            scores = self.attributions(context, prompt, _answer(fact), fact.separator)
            found.append(scores > self.options.adaptive_threshold * scores.max().clamp(min=0))
        return torch.stack(found).sum(dim=0) > self.options.p * len(prompts)

    def attributions(self, context: EditContext, prompt: str, answer: str, separator: str | None = None) -> Tensor:
        """Attr(w) = w · ∫₀¹ ∂P(αw)/∂w dα of every neuron (eq. 4 and 5), P the probability of the answer's tokens.

        Args:
            prompt: In clear.
            answer: The text whose probability is attributed; the mean over its tokens is.
            separator: Between the two, as the fact states it.

        Returns:
            (L, f) in float32 or wider, on the CPU.
        """
        steps, architecture, model = self.options.steps, context.architecture, context.model
        if self._is_easyedit:
            sites = tuple(architecture.gate_projection(model, layer) for layer in range(architecture.n_layers))
            factors = torch.linspace(0, 1, steps, dtype=torch.float64)
        else:
            sites = architecture.down_projections
            factors = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        points = self._points(context, prompt, answer, separator)
        layers = [torch.zeros(())] * architecture.n_layers
        total = len(points) * architecture.n_layers
        with shown_steps(None, "attributing the answer", "layer", show=context.progress, total=total) as bar:
            for ids, wanted in points:
                forward = LastTokenForward(model, architecture, ids, sites, outputs=self._is_easyedit)
                step = forward.layers_at_once(steps)
                for first in range(0, architecture.n_layers, step):
                    together = range(first, min(first + step, architecture.n_layers))
                    for layer, scores in zip(together, _integrated(forward, together, factors, wanted), strict=True):
                        layers[layer] = layers[layer] + scores.cpu()
                    bar.update(len(together))
        return torch.stack(layers) / sum(len(wanted) for _, wanted in points)

    def _points(
        self, context: EditContext, prompt: str, answer: str, separator: str | None
    ) -> list[tuple[list[int], list[int]]]:
        """(text, tokens attributed at its end) pairs. Tokens at one place share a pass: the score is linear in P."""
        tokenizer = context.tokenizer
        if not self._is_easyedit:
            text, wanted = continuation(tokenizer, prompt, continuing(prompt, answer, separator))
            return [(text + wanted[:i], [token]) for i, token in enumerate(wanted)]
        wanted = _encode(context, answer)
        if context.model.config.model_type in _SAME_POSITION:
            return [(encode(tokenizer, prompt), wanted)]
        texts, _ = _greedy(context, prompt, len(wanted))
        return [(encode(tokenizer, text), [token]) for text, token in zip(texts, wanted, strict=True)]

    # ---------------------------------------------------------------------------------- what is written (sec. 5.1, 5.2)

    def _value_update(self, context: EditContext, fact: Fact) -> Tensor | None:
        """(d,) what an update adds to every chosen value vector; None for the operations that scale them."""
        if self.options.operation != "update":
            return None
        tokenizer, embedding = context.tokenizer, weight_of(context.model.get_input_embeddings())
        width = context.architecture.hidden_size
        if embedding.shape[1] != width:
            raise UserError(
                f"KN writes word embeddings into value vectors; this model's have {embedding.shape[1]} dimensions, "
                f"its value vectors {width}"
            )

        def rows(ids: Sequence[int]) -> Tensor:
            vectors = embedding.detach()[torch.tensor(ids, device=embedding.device)]
            return vectors.to(wide_dtype(embedding.dtype))

        if self._is_easyedit:
            new = _encode(context, fact.target_new)
            _, old = _greedy(context, fact.text, len(new))
            # Published slip, kept: of a one-token answer the old embedding is taken away twice, the new added once.
            return rows(new).sum(dim=0) - rows(old).sum(dim=0) * (2 if len(old) == 1 else 1)
        # v ← v − λ₁ t + λ₂ t'; of an answer of several tokens the mean, so that its length does not scale the update.
        objects = (fact.continuing(fact.text, o) for o in (_answer(fact), fact.target_new))
        old, new = (continuation(tokenizer, fact.text, o)[1] for o in objects)
        return self.options.lambda2 * rows(new).mean(dim=0) - self.options.lambda1 * rows(old).mean(dim=0)

    def _delta(self, context: EditContext, layer: int, index: Tensor, update: Tensor | None) -> SparseDelta:
        projection = context.model.get_submodule(context.architecture.down_projections[layer])
        weight = weight_of(projection).detach()
        dim = 0 if is_transposed(projection) else 1
        index = index.to(weight.device)
        if update is not None:
            values = update.to(weight.device).repeat(len(index), 1)
        else:  # zero value vectors erase the fact; doubled ones act like doubled activations
            present = weight.index_select(dim, index).to(wide_dtype(weight.dtype))
            present = present if dim == 0 else present.T
            values = (present if self.options.operation == "enhance" else -present).contiguous()
        return SparseDelta(index, values, torch.tensor([*weight.shape, dim]))


def _answer(fact: Fact) -> str:
    """What the model answers as it is: the data set's record of that, or the true object; empty if neither is known."""
    return next((text for text in (fact.prediction, fact.target_true) if text is not None and text.strip()), "")


def _encode(context: EditContext, text: str) -> list[int]:
    """An answer's tokens as EasyEdit takes them: as written, a beginning-of-sequence token included."""
    ids = encode(context.tokenizer, text)
    if not ids:
        raise UserError(f"the answer {text!r} has no tokens in this model's vocabulary")
    return ids


@torch.no_grad()
def _greedy(context: EditContext, prompt: str, count: int) -> tuple[list[str], list[int]]:
    """The model's own likeliest tokens, and the text before each: decoded and tokenised anew, as EasyEdit does."""
    device, texts, ids = input_device(context.model), list[str](), list[int]()
    for _ in range(count):
        text = f"{texts[-1]}{context.tokenizer.decode(ids[-1:])}" if texts else prompt
        tokens = encode(context.tokenizer, text)
        check_fits(tokens, context_size(context.model.config), text)
        logits = context.model(input_ids=torch.tensor([tokens], device=device)).logits
        texts.append(text)
        ids.append(int(logits[0, -1].argmax()))
    return texts, ids


def _integrated(forward: LastTokenForward, layers: Sequence[int], factors: Tensor, wanted: list[int]) -> Tensor:
    """(len(layers), f) w · mean over the factors α of ∂ Σ P(wanted) / ∂(αw)."""
    vectors = torch.stack([forward.vectors[layer].to(forward.vectors[layers[0]].device) for layer in layers])
    wide = wide_dtype(vectors.dtype)
    scale = 4096.0 if vectors.dtype == torch.float16 else 1.0  # small gradients would vanish in float16
    factors = factors.to(device=vectors.device, dtype=wide)
    grown = factors[:, None] * vectors.to(wide)[:, None]  # (len(layers), steps, f)
    grown = grown.to(vectors.dtype).requires_grad_()
    with without_parameter_gradients(forward.model), torch.enable_grad():
        probabilities = forward.varied(layers, grown).to(wide).softmax(dim=-1)
        total = probabilities[..., torch.tensor(wanted, device=probabilities.device)].sum() * scale
        (gradient,) = torch.autograd.grad(total, grown)
    return vectors.to(wide) * gradient.to(wide).sum(dim=1) / (len(factors) * scale)
