"""Second moments from ordinary text: one pass over a corpus for all layers, resumable, kept for the next time.

C = (1/N) Σ k kᵀ over the first N tokens of the corpus, k being the input of a layer's MLP down-projection. The pass
ends at the last layer's key: neither its MLP output, nor the blocks above, nor the language-model head is computed.

Where a mixture's experts are edited, k is the stacked key, and of C the block of each expert is kept,
(1/N) Σ (g k)(g k)ᵀ over the tokens that picked it, g being its gate. How many they were is counted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit._support.files import cache_folder, hash_json, load_tensors, save_tensors
from lm_eval_edit._support.versions import versions
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.models.mixture import Mixture, eager_experts
from lm_eval_edit.models.stopping import Reached, until_reached
from lm_eval_edit.moments.corpus import Corpus
from lm_eval_edit.moments.files import COUNT, FILLED, MOMENT, PICKS, Estimate, Reader, read_moments
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import wide_dtype
from lm_eval_edit.weights.fingerprint import parameter_sums

logger = logging.getLogger("lm_eval_edit")

TEXTS_AT_ONCE = 256  # tokenised and sorted by length together
BATCH_TOKENS = 8192  # padded tokens of one forward pass
LONGEST = 4096  # tokens of one text, where the model's context is longer still
SAVE_SECONDS = 120.0  # between two writes of the partial state
FEW = 10  # tokens per dimension below which an estimate is called rough


def collect_second_moments(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    corpus: Corpus,
    tokens: int,
    *,
    max_length: int | None = None,
    folder: Path | None = None,
    progress: bool = True,
    architecture: Architecture | None = None,
) -> SecondMoments:
    """E[k kᵀ] of some layers over the first `tokens` tokens of a corpus.

    Layers that were collected before (same weights below, corpus, tokens, length) are read from the cache. An
    interrupted pass goes on where it was last saved, with the same result to the last bit.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        layers: The layers whose down-projections' inputs are wanted.
        corpus: The text.
        tokens: How many tokens are used; all of the corpus if it has fewer.
        max_length: Texts are cut to so many tokens; the model's context (4096 at most) by default.
        folder: Cache folder; `cache_folder()` by default.
        progress: Show a progress bar.
        architecture: The model's parts, `Architecture.discover` of it by default; `routed()` for experts' moments where
            a layer has a shared expert too.

    Returns:
        The moments: float32, summed in float32 (float64 for a float64 model).

    Raises:
        UserError: layers the model has not, keys that are not finite, or a corpus without tokens.
    """
    architecture = architecture or Architecture.discover(model)
    if problems := architecture.check_layers(list(layers)):
        raise ConfigurationError(problems)
    folder = (folder or cache_folder()) / "second_moments"
    max_length = max_length or _context(model)
    sums = parameter_sums(model)
    tokenizer_hash = hash_json(sorted(tokenizer.get_vocab().items()))
    paths = {}
    for layer in sorted(set(layers)):
        identity = [_below(architecture, sums, layer), architecture.down_projections[layer], corpus.sha256, tokens]
        paths[layer] = folder / f"{hash_json([*identity, max_length, tokenizer_hash])[:40]}.safetensors"
    missing = [layer for layer, path in paths.items() if not path.is_file()]
    if missing:
        partial = folder / f"partial-{hash_json([str(paths[layer]) for layer in missing])[:40]}.safetensors"
        run = _Pass(model, architecture, missing, partial)
        batches = _batches(corpus, tokenizer, tokens, max_length)
        with eager_experts(model):
            count = run.over(batches, tokens, progress)
        if count < tokens:
            logger.warning("%s holds %d tokens, not %d: all of them were used", corpus.source, count, tokens)
        about = {"corpus": corpus.source, "corpus_sha256": corpus.sha256, "max_length": str(max_length)} | versions()
        for layer in missing:
            module = architecture.down_projections[layer]
            estimate = Estimate(run.sums[layer] / count, count, run.picks.get(layer))
            save_tensors(paths[layer], _named(module, estimate), about)
        partial.unlink(missing_ok=True)
    readers: dict[str, Reader] = {}
    for path in paths.values():
        readers |= read_moments(path)
    moments = SecondMoments(readers, f"{corpus.source}, {tokens} tokens")
    for layer in (min(paths), *(layer for layer in paths if architecture.is_routed(layer) and layer != min(paths))):
        _tell_if_few(moments, architecture, layer)
    return moments


def save_second_moments(path: Path, moments: SecondMoments, modules: Sequence[str], about: dict[str, str]) -> None:
    """Write the moments of some modules into one safetensors file, for edit_second_moments=FILE."""
    tensors: dict[str, Tensor] = {}
    for module in modules:
        tensors |= _named(module, moments.estimate(module))
    save_tensors(path, tensors, about)


def _named(module: str, estimate: Estimate) -> dict[str, Tensor]:
    counted = {} if estimate.count is None else {module + COUNT: torch.tensor([estimate.count])}
    picked = {} if estimate.picks is None else {module + PICKS: estimate.picks}
    filled = {module + FILLED: torch.tensor([1])} if estimate.filled else {}
    return {module + MOMENT: estimate.moment} | counted | picked | filled


def _context(model: PreTrainedModel) -> int:
    config = model.config.get_text_config(decoder=True)
    return min(getattr(config, "max_position_embeddings", None) or LONGEST, LONGEST)


def _below(architecture: Architecture, sums: dict[str, list[Any]], layer: int) -> str:
    """A hash of the weights that a layer's keys depend on: not those of the blocks above, nor the edited matrix."""
    above = tuple(f"{block}." for block in architecture.blocks[layer + 1 :])
    # Of experts the name of a parameter, that of their bias if it begins with it; neither do keys depend on.
    edited = architecture.down_projections[layer] + ("" if architecture.is_routed(layer) else ".")
    return hash_json(sorted(entry for name, entry in sums.items() if not name.startswith((*above, edited))))


def _tell_if_few(moments: SecondMoments, architecture: Architecture, layer: int) -> None:
    count, f = moments.count(architecture.down_projections[layer]), architecture.key_sizes[layer]
    picks = moments.picks(architecture.down_projections[layer])
    if picks is not None and int(picks.min()) < FEW * f:
        rare = int((picks < FEW * f).sum())
        logger.warning(
            "%d of the %d experts of layer %d were picked by fewer than %d of the %d tokens (%d for each dimension of "
            "their keys), one by %d: their second moments are shrunk towards the mean of all; more tokens are better",
            rare, len(picks), layer, FEW * f, count, FEW, int(picks.min()),
        )  # fmt: skip
    elif count is not None and count < FEW * f:
        logger.warning(
            "second moments from %d tokens, %.1f for each of the %d dimensions: directions that text uses rarely are "
            "estimated too small, so edits go there too freely and disturb rare knowledge more; %d tokens are better",
            count,
            count / f,
            f,
            FEW * f,
        )


def _batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tokens: int, max_length: int
) -> Iterator[list[list[int]]]:
    """The corpus' first `tokens` tokens, texts of like length together."""
    for texts in corpus.chunks(TEXTS_AT_ONCE):
        kept = []
        for ids in tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []:
            kept.append(ids[:tokens])
            tokens -= len(kept[-1])
        kept.sort(key=len, reverse=True)
        batch: list[list[int]] = []
        for ids in filter(None, kept):
            if batch and len(batch[0]) * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch
        if not tokens:
            return


@dataclass
class _Pass:
    """One pass over the batches, with its state on disk.

    Attributes:
        sums: {layer: (f, f) Σ k kᵀ so far, or (E, f, f) of experts}, on the layer's device.
        picks: {layer: (E,) tokens that picked each expert so far}, of layers with experts.
        count: Tokens so far.
        batches: Batches so far.
    """

    model: PreTrainedModel
    architecture: Architecture
    layers: list[int]
    file: Path
    sums: dict[int, Tensor] = field(default_factory=dict)
    picks: dict[int, Tensor] = field(default_factory=dict)
    count: int = 0
    batches: int = 0

    def __post_init__(self) -> None:
        for layer in self.layers:
            weight = self.model.get_parameter(self.architecture.weight(layer))
            f, wide = self.architecture.key_sizes[layer], wide_dtype(weight.dtype)
            if self.architecture.is_routed(layer):
                self.sums[layer] = torch.zeros(len(weight), f, f, dtype=wide, device=weight.device)
                self.picks[layer] = torch.zeros(len(weight), dtype=torch.int64)
            else:
                self.sums[layer] = torch.zeros(f, f, dtype=wide, device=weight.device)
        if self.file.is_file():
            self._read()

    def _read(self) -> None:
        with safetensors.safe_open(self.file, "pt") as file:
            state = file.metadata()
        for name, total in load_tensors(self.file).items():
            layer = int(name.removesuffix(PICKS))
            (self.picks if name.endswith(PICKS) else self.sums)[layer].copy_(total)
        self.count, self.batches = int(state["count"]), int(state["batches"])

    def _write(self) -> None:
        state = {"count": str(self.count), "batches": str(self.batches)}
        picks = {f"{layer}{PICKS}": total for layer, total in self.picks.items()}
        save_tensors(self.file, {str(layer): total for layer, total in self.sums.items()} | picks, state)

    @torch.no_grad()
    def over(self, batches: Iterator[list[list[int]]], tokens: int, progress: bool) -> int:
        """Add all batches that are not in yet; returns the number of tokens in all."""
        began_with, started = self.count, time.monotonic()
        saved = started
        bar = tqdm(total=tokens, initial=self.count, desc="second moments", unit="tok", disable=not progress)
        with self._watched() as mask_of, bar:
            for number, batch in enumerate(batches):
                if number < self.batches:
                    continue
                self._add(batch, mask_of)
                bar.update(sum(map(len, batch)))
                now = time.monotonic()
                if number == 2 and tokens > 2 * self.count:  # the first passes also warm the machine up
                    rest = (tokens - self.count) * (now - started) / max(self.count - began_with, 1)
                    logger.warning(
                        "second moments of %s from %d tokens: about %s to go, measured on the first %d tokens",
                        ", ".join(self.architecture.down_projections[layer] for layer in self.layers),
                        tokens,
                        f"{rest / 60:.0f} minutes" if rest > 120 else f"{rest:.0f} seconds",
                        self.count,
                    )
                if now - saved > SAVE_SECONDS:
                    self._write()
                    saved = time.monotonic()
        if not self.count:
            raise UserError("the corpus has no tokens")
        for layer, total in self.sums.items():
            if not bool(torch.isfinite(total).all()):
                raise UserError(
                    f"the keys of layer {layer} are not finite in {self.model.dtype}: load the model with "
                    f"dtype=bfloat16 or float32"
                )
        return self.count

    def _add(self, batch: list[list[int]], mask_of: list[Tensor]) -> None:
        device = input_device(self.model)
        ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, text in enumerate(batch):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = True
        mask_of[:] = [mask.flatten()]
        # Padding stands on the right, where no token looks: without a mask the attention can take its fastest path.
        with until_reached():
            self.model(input_ids=ids.to(device), use_cache=False)
        self.count += int(mask.sum())
        self.batches += 1

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        """Within the block, forward passes add to the sums; the list holds the mask of the pass that is running."""
        mask_of: list[Tensor] = []

        def add(layer: int, expert: int | None, keys: Tensor) -> None:
            total = self.sums[layer] if expert is None else self.sums[layer][expert]
            keys = keys.to(total.dtype)
            total.addmm_(keys.T, keys)

        def on(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                add(layer, None, args[0].flatten(0, -2)[mask_of[0].to(args[0].device)])
                if layer == max(self.layers):
                    raise Reached

            return hook

        def on_experts(layer: int, mixture: Mixture) -> Callable[[Tensor, Tensor, Tensor], None]:
            def told(*given: Tensor) -> None:
                hidden, index, gates = (each[mask_of[0].to(each.device)] for each in given)
                for expert, tokens, keys in mixture.each_picked(self.model, hidden, index, gates):
                    add(layer, expert, keys)
                    self.picks[layer][expert] += len(tokens)
                if layer == max(self.layers):
                    raise Reached

            return told

        handles = []
        for layer in self.layers:
            mixture = self.architecture.routed_mixture(layer)
            if mixture is not None:
                handles.append(mixture.watch(self.model, on_experts(layer, mixture)))
            else:
                projection = self.model.get_submodule(self.architecture.down_projections[layer])
                handles.append(projection.register_forward_pre_hook(on(layer)))
        try:
            yield mask_of
        finally:
            for handle in handles:
                handle.remove()
