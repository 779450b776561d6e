"""Named entities: from a generated line to BIO spans and counts.

A document asks for the entities of one type in one sentence. Its tags hold the four types; spans are half-open token
ranges `(start, end)`.
"""

from __future__ import annotations

import re

Span = tuple[int, int]

_SEPARATORS = re.compile(r"[\n\r,;]+")
_CONJUNCTION = re.compile(r"\s+and\s+")
_MARKS = " \t\"'`“”‘’()[]{}<>:!?*•-–—_"


def spans(tags: list[str], entity_type: str) -> list[Span]:
    """Entity spans of one type, as seqeval's default mode reads BIO: an `I-` after another tag begins a span too."""
    found: list[Span] = []
    start = None
    for i, tag in enumerate([*tags, "O"]):
        inside = tag == f"I-{entity_type}" and start is not None
        if start is not None and not inside:
            found.append((start, i))
            start = None
        if start is None and tag in (f"B-{entity_type}", f"I-{entity_type}"):
            start = i
    return found


def _occurrences(mention: str, tokens: list[str]) -> list[Span]:
    """Where the mention stands in the sentence, whole tokens only, white space and nothing else ignored."""
    wanted = "".join(mention.split())
    found = []
    for start in range(len(tokens) if wanted else 0):
        text = ""
        for end in range(start, len(tokens)):
            text += tokens[end]
            if text == wanted:
                found.append((start, end + 1))
            if not wanted.startswith(text) or text == wanted:
                break
    return found


def _locate(piece: str, tokens: list[str]) -> list[Span]:
    """The piece as it is, else without the marks around it, else its parts between " and "s.

    A full stop goes last: it may belong to the mention (`U.S.`).
    """
    for text in (piece, piece.strip(_MARKS), piece.strip(_MARKS + ".")):
        if found := _occurrences(text, tokens):
            return found
    parts = _CONJUNCTION.split(f" {piece} ")
    return [span for part in parts for span in _locate(part, tokens)] if len(parts) > 1 else []


def predicted_spans(output: str, tokens: list[str]) -> list[Span]:
    """Spans of the sentence that the output names, in sentence order, none overlapping another.

    The output is cut at line ends, commas and semicolons; a piece that is not in the sentence is tried again without
    the quotation marks, brackets, bullets or full stop around it, and then in its parts between " and "s (so that
    `Trinidad and Tobago` stays whole where it is one entity). A piece names *every* place where its tokens stand in
    the sentence, letter case included. Longer spans win over shorter ones that overlap them. Pieces that are nowhere
    in the sentence cannot be tagged and count for nothing, in the recall they are missing anyway.
    """
    named = {span for piece in _SEPARATORS.split(output) for span in _locate(piece.strip(), tokens)}
    taken: list[Span] = []
    for start, end in sorted(named, key=lambda span: (span[0] - span[1], span[0])):
        if all(end <= other_start or other_end <= start for other_start, other_end in taken):
            taken.append((start, end))
    return sorted(taken)


def bio(found: list[Span], entity_type: str, length: int) -> list[str]:
    """The tags of a sentence of `length` tokens whose entities are `found`."""
    tags = ["O"] * length
    for start, end in found:
        tags[start:end] = [f"B-{entity_type}"] + [f"I-{entity_type}"] * (end - start - 1)
    return tags


def counts(output: str, tokens: list[str], tags: list[str], entity_type: str) -> tuple[int, int, int]:
    """(true positives, predicted, gold) entities of one document.

    Summed over documents, 2 tp / (predicted + gold) is seqeval's micro F1 over the tagged sentences of all types.
    """
    predicted, gold = predicted_spans(output, tokens), spans(tags, entity_type)
    return len(set(predicted) & set(gold)), len(predicted), len(gold)


def script_mentions(tokens: list[str], tags: list[str], entity_type: str) -> list[str]:
    """Gold mentions as the paper's script reads them.

    A mention runs from a `B-` tag of its type to the next `O`, so neighbours merge, of whatever type. Where no `O`
    follows, it ends before the last token: a mention that ends the sentence loses its last word, and a single last
    word leaves an empty mention, which every output contains.
    """
    mentions = []
    i = 0
    while i < len(tags):
        if tags[i] == f"B-{entity_type}":
            end = tags.index("O", i) if "O" in tags[i:] else len(tags) - 1
            mentions.append(" ".join(tokens[i:end]))
            i = end
        i += 1
    return mentions


def script_counts(output: str, tokens: list[str], tags: list[str], entity_type: str) -> tuple[int, int]:
    """(hits, asked) of one document as the paper's script counts them.

    With gold mentions: how many of them are substrings of the output up to a repeated `Entity:`, and how many there
    are. Without: nothing for persons, locations and organizations, one miss for miscellaneous. The script has a reward
    for an empty output too, but to it no output is empty: one that ended at once is `<|endoftext|>`.

    Args:
        output: As the script decodes it (`outputs.decoded`).
        tokens, tags: Of the sentence.
        entity_type: The type asked for.
    """
    said = output.split("Entity:")[0]
    mentions = script_mentions(tokens, tags, entity_type)
    if mentions:
        return sum(mention in said for mention in mentions), len(mentions)
    return (0, 1) if entity_type == "MISC" else (0, 0)
