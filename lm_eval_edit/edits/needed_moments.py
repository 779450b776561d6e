"""The second moments that an editor needs: there, this model's, of tokens enough; computed where there is a corpus."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors.base import Editor
from lm_eval_edit.errors import UserError
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.collect import collect_second_moments
from lm_eval_edit.moments.corpus import load_corpus
from lm_eval_edit.moments.second_moments import SecondMoments


def no_second_moments(editor: Editor, lacking: str, second_moments: SecondMoments) -> str:
    """The error for an editor without the second moments it needs.

    Args:
        lacking: The modules or layers, in words.
        second_moments: What there is.
    """
    found = "no second moments were given" if second_moments.source == "none" else f"{second_moments.source} has not"
    otherwise = f", or {editor.without_second_moments}" if editor.without_second_moments else ""
    return (
        f"{editor.name} with these options needs the second moments of {lacking}; {found}. Give "
        f"edit_second_moments=FILE (tensors named <module>.second_moment; `lm-eval-edit stats` makes one), or "
        f"edit_corpus=wikitext or a text file to compute them from{otherwise}"
    )


def check_second_moments(editor: Editor, architecture: Architecture, second_moments: SecondMoments) -> list[str]:
    """The modules whose second moments an editor needs, all of them there and fit for the model.

    Args:
        editor: With its options.
        architecture: The model's parts, as they were found.
        second_moments: What there is.

    Raises:
        UserError: they are missing, another model's, or from too few tokens.
    """
    layers, edited = editor.needs_second_moments(), editor.edited(architecture)
    needed = [edited.down_projections[layer] for layer in layers]
    missing = [module for module in needed if module not in second_moments]
    if missing:
        raise UserError(no_second_moments(editor, ", ".join(missing), second_moments))
    for layer, module in zip(layers, needed, strict=True):
        f, mixture = edited.key_sizes[layer], edited.mixtures[layer]
        experts = (mixture.n_experts,) if mixture is not None and edited.is_routed(layer) else ()
        if second_moments[module].shape != (*experts, f, f):
            of = f"{experts[0]} experts' keys" if experts else "keys"
            raise UserError(
                f"the second moment of {module} ({second_moments.source}) has shape "
                f"{tuple(second_moments[module].shape)}, this model's {of} have {f} dimensions: it is another "
                f"model's"
            )
        if not bool(torch.isfinite(second_moments[module]).all()):
            raise UserError(
                f"the second moment of {module} ({second_moments.source}) holds values that are not finite, as sums "
                f"kept in float16 do; accumulate it in float32"
            )
        second_moments.check_count(module)
    return needed


def collected_where_missing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    moments: SecondMoments,
    corpus: str | None,
    corpus_tokens: int,
) -> SecondMoments:
    """The second moments given; where some that the editor needs are missing and there is a corpus, all from it.

    Args:
        moments: As given; may lack layers.
        corpus: A name or a text file, as in `edit_corpus`; None computes nothing.
        corpus_tokens: How many of its tokens.
    """
    layers = editor.needs_second_moments()
    if not layers or not corpus:
        return moments
    architecture = editor.edited(Architecture.discover(model))
    if all(architecture.down_projections[layer] in moments for layer in layers):
        return moments
    return collect_second_moments(
        model, tokenizer, layers, load_corpus(corpus), corpus_tokens, architecture=architecture
    )  # fmt: skip
