"""The eight tasks' metrics, computed by hand, and NER's against seqeval."""

from __future__ import annotations

import math
import random
from decimal import Decimal

import numpy as np
import pytest

from lm_eval_edit.tasklib.suite import aggregate, metrics, ner, scoring, script
from lm_eval_edit.tasklib.suite.prompts import ENTITY_NAMES

BLANK = ["", " ", "\n\n", "\t \n"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 18", "18"),
        ("18.", "18"),
        (" 18.0", "18"),
        (" 18.00 dollars", "18"),
        (" $1,000.00", "1000"),
        ("$ 5", "5"),
        (" 2,125", "2125"),
        ("1,450,000", "1450000"),
        ("18, 19", "18"),
        ("18,19", "18"),
        ("1000,000", "1000"),
        (" -3", "-3"),
        (" −3", "-3"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("16-3", "16"),
        ("the answer is .5", "0.5"),
        ("3.50", "3.5"),
        ("x7y", "7"),
        ("70%", "70"),
        ("1/2", "1"),
        ("A-3", "3"),
        ("7.", "7"),
        ("...8", "0.8"),
    ],
)
def test_first_number(text, number):
    assert metrics.first_number(text) == Decimal(number)


@pytest.mark.parametrize("text", [*BLANK, "eighteen", "$", "-", ",", "٣", "²"])
def test_no_number(text):
    assert metrics.first_number(text) is None
    assert not metrics.solved(text, "3")


def score_of(task, doc, output):
    """(score, script, valid) of one output; `shortened` is passed through."""
    row = getattr(scoring, task)({"shortened": False, **doc}, [output])
    assert row.pop("shortened") == 0
    assert list(row) == ["score", "script", "valid"] and all(type(value) is float for value in row.values())
    return tuple(row.values())


@pytest.mark.parametrize(
    ("output", "gold", "expected"),
    [
        (" 18", "18", (1, 1, 1)),
        (" $18.00", "18", (1, 1, 1)),
        (" 180", "18", (0, 1, 1)),  # the script is content with a substring
        (" 2125", "2,125", (1, 0, 1)),
        (" $2,125.", "2,125", (1, 1, 1)),
        (" 3 + 15 = 18", "18", (0, 1, 1)),
        ("-18", "18", (0, 1, 1)),
        (" eighteen", "18", (0, 0, 0)),
        ("", "18", (0, 0, 0)),
        ("\n\n", "18", (0, 0, 0)),
    ],
)
def test_gsm8k(output, gold, expected):
    assert score_of("gsm8k", {"answer": gold}, output) == expected


@pytest.mark.parametrize(
    ("output", "entailment", "expected"),
    [
        (" True", True, (1, 1, 1)),
        (" true", False, (0, 0, 1)),
        ("FALSE", False, (1, 1, 1)),
        (" False, not true", True, (0, 0.5, 1)),  # counted as right and as wrong
        (" yes", True, (0, 0, 0)),
        (" \n", False, (0, 0, 0)),
        ("", True, (0, 0, 0)),
    ],
)
def test_rte(output, entailment, expected):
    assert score_of("rte", {"entailment": entailment}, output) == expected


@pytest.mark.parametrize(
    ("output", "positive", "expected"),
    [
        (" positive", True, (1, 1, 1)),
        (" Negative", False, (1, 1, 1)),
        (" negative", True, (0, 0, 1)),
        (" neutral", True, (0, 0, 0)),
        ("", False, (0, 0, 0)),
    ],
)
def test_sst2(output, positive, expected):
    assert score_of("sst2", {"positive": positive}, output) == expected


@pytest.mark.parametrize(
    ("output", "answer", "expected"),
    [
        (" yes", True, (1, 1, 1)),
        (" Yes", True, (1, 1, 1)),
        ("no", False, (1, 1, 1)),  # SentencePiece: no space before the first new word
        (" NO", False, (1, 1, 1)),
        (" no", True, (0, 0, 1)),
        (" yes.", True, (0, 0, 1)),
        ("\nyes", True, (0, 0, 1)),
        ("  yes", True, (0, 0, 1)),
        (" not", False, (0, 0, 0)),
        (" nothing", False, (0, 0, 0)),
        ("", False, (0, 0, 0)),
    ],
)
def test_boolq(output, answer, expected):
    assert score_of("boolq", {"answer": answer}, output) == expected


@pytest.mark.parametrize(
    ("output", "gold", "expected"),
    [
        (" B", "B", (1, 1, 1)),
        ("(B", "B", (1, 1, 1)),
        (" (B)", "B", (1, 1, 1)),
        (" A", "B", (0, 0, 1)),
        (" Among", "A", (0, 1, 0)),  # the script finds its A anywhere
        (" Chi", "C", (0, 0, 0)),  # ... except in the prompt's own "Chioces"
        (" b", "B", (0, 0, 0)),
        (" Ärger", "A", (0, 0, 0)),
        (" E", "A", (0, 0, 0)),
        ("", "A", (0, 0, 0)),
    ],
)
def test_mutual(output, gold, expected):
    assert score_of("mutual", {"answer": gold}, output) == expected


@pytest.mark.parametrize(
    ("output", "answers", "expected"),
    [
        (" Paris", ["Paris"], (1, 1, 1)),
        ("\n\nAnswer: Paris", ["Paris"], (1, 1, 1)),
        ("\n\nanswer:\nThe Paris.\nQuestion:", ["paris"], (1, 1, 1)),
        (" It is Paris, of course", ["Paris"], (0, 1, 1)),
        (" the Beatles", ["Beatles", "x"], (1, 1, 1)),
        (" New\nYork", ["New York"], (0, 1, 1)),
        (" Newark", ["New"], (0, 0, 1)),
        (" 14 December 1972 UTC", ["December 1972"], (0, 1, 1)),
        (" Wilhelm Conrad Röntgen", ["Wilhelm Conrad Röntgen"], (1, 1, 1)),
        (" L.A.", ["LA"], (1, 1, 1)),
        (" the", ["---"], (0, 1, 0)),  # to the script no words equal an answer without any
        ("", ["---"], (0, 0, 0)),  # ... but an output that ended at once is not empty to it
        ("", ["A+"], (0, 0, 0)),
        (" .,;\n", ["Paris"], (0, 0, 0)),
        ("Answer:", ["Paris"], (0, 0, 1)),
    ],
)
def test_nq(output, answers, expected):
    assert score_of("nq", {"answers": answers}, output) == expected


def test_nq_script_searches_every_span():
    """The padded substring search equals the enumeration of all contiguous word spans."""
    rng = random.Random(0)
    for _ in range(500):
        output = " ".join(rng.choices(["x", "y", "xy", "the", "z."], k=rng.randint(0, 6)))
        gold = " ".join(rng.choices(["x", "y", "xy", "a"], k=rng.randint(1, 3)))
        words, wanted = metrics.normalise(output).split(" "), metrics.normalise(gold)
        spans = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        assert script.span_match(output, [gold]) == (wanted in spans)


def test_samsum():
    """ROUGE-1 of `a b c d` against `a b x`: P 2/4, R 2/3, F 4/7; ROUGE-2: P 1/3, R 1/2, F 2/5; ROUGE-L = ROUGE-1."""
    doc = {"summary": "a b x"}
    f = pytest.approx((4 / 7 + 2 / 5 + 4 / 7) / 3)
    score, script, valid = score_of("samsum", doc, " a b c d")
    assert (score, script, valid) == (f, 0, 1)  # 8 characters: the script drops them all
    assert score_of("samsum", doc, " a b c d<|endoftext|>")[1] == f
    assert score_of("samsum", doc, "a" + "." * 13)[1] == 0  # one character left
    assert score_of("samsum", doc, "a " + "." * 13)[1] == pytest.approx((2 * 1 / 3 / (1 + 1 / 3) * 2) / 3)


def test_samsum_script_is_the_package_rouges():
    """Letter case counts, a word counts once however often it is said, only a full stop ends a sentence."""
    doc, end = {"summary": "Ada left. Bo, too"}, "<|endoftext|>"
    assert score_of("samsum", doc, "ada LEFT")[0] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert score_of("samsum", doc, "ada LEFT" + end)[1] == 0
    # `left left left Ada`: words {left, Ada} of {Ada, left, Bo,, too}: P 1, R 1/2; pairs (left left), (left Ada): none;
    # the longest common subsequence of each sentence: one word of 2 and of 4.
    said = score_of("samsum", doc, "left left left Ada" + end)[1]
    assert said == pytest.approx((2 / 3 + 0 + 2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4)) / 3)
    assert score_of("samsum", doc, "Bo" + end)[1] == 0  # `Bo,` is another word


@pytest.mark.parametrize("said", ["...", ". .", " \n\n ", "\t" * 20, "....\n"])
def test_samsum_script_of_stops_and_spaces(said):
    assert score_of("samsum", {"summary": "a b"}, said + "." * 13)[1] == 0
    assert score_of("samsum", {"summary": "..."}, said + "a b" + "." * 13)[1] == 0


def test_samsum_script_of_a_long_output():
    """The package's recursion is as deep as both texts are long."""
    words = " ".join(f"w{i}" for i in range(700))
    assert score_of("samsum", {"summary": words}, words + "<|endoftext|>")[1] == pytest.approx(1)


@pytest.mark.parametrize("output", [*BLANK, "."])
def test_samsum_of_nothing(output):
    assert score_of("samsum", {"summary": "a b"}, output) == (0, 0, 0)


TOKENS = ["Nils", "Berg", "of", "Trinidad", "and", "Tobago", "met", "U.S.", "officials", "in", "Bergen", "."]
TAGS = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "I-LOC", "O", "B-LOC", "O", "O", "B-LOC", "O"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (" Nils Berg", [(0, 2)]),
        (" Nils Berg.\n\nText:", [(0, 2)]),
        (" Trinidad and Tobago, U.S.", [(3, 6), (7, 8)]),
        (" Nils Berg and Bergen", [(0, 2), (10, 11)]),
        (' "Bergen"; - U.S.', [(7, 8), (10, 11)]),
        (" NilsBerg", [(0, 2)]),
        (" Berg", [(1, 2)]),  # not the beginning of Bergen
        (" Tobago, Trinidad and Tobago", [(3, 6)]),  # the longer one wins
        (" nils berg", []),
        (" Oslo and Stockholm", []),
        (" and and ", [(4, 5)]),
        *((blank, []) for blank in BLANK),
        (",,.;", [(11, 12)]),
    ],
)
def test_predicted_spans(output, expected):
    assert ner.predicted_spans(output, TOKENS) == expected


def test_a_mention_names_all_its_places():
    assert ner.predicted_spans(" Kent", ["Kent", "beat", "Kent"]) == [(0, 1), (2, 3)]


def test_entity_counts():
    assert ner.counts(" Bergen, Oslo, Berg", TOKENS, TAGS, "LOC") == (1, 2, 3)
    assert ner.counts("", TOKENS, TAGS, "PER") == (0, 0, 1)
    assert ner.counts(" Nils Berg", TOKENS, TAGS, "ORG") == (0, 1, 0)


def test_entity_f1_is_seqevals():
    """Random tags, random outputs: the summed counts give seqeval's micro F1 of the tagged sentences."""
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import get_entities

    rng = random.Random(1)
    for _ in range(30):
        items, gold_tags, said_tags = [], [], []
        for sentence in range(12):
            n = rng.randint(1, 9)
            tokens = [rng.choice(["Ada", "Bo", "Cy", "x", "and", ","]) for _ in range(n)]
            tags = [rng.choice(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-MISC"]) for _ in range(n)]
            for entity_type in ENTITY_NAMES:
                gold = ner.spans(tags, entity_type)
                assert gold == [(s, e + 1) for name, s, e in get_entities(tags) if name == entity_type]
                output = ", ".join(" ".join(tokens[s:e]) for s, e in gold if rng.random() < 0.7) + rng.choice(
                    ["", ", Bo"]
                )
                items.append((sentence, *ner.counts(output, tokens, tags, entity_type)))
                gold_tags.append(ner.bio(gold, entity_type, n))
                said_tags.append(ner.bio(ner.predicted_spans(output, tokens), entity_type, n))
        if any(tag != "O" for tags in gold_tags for tag in tags):
            assert aggregate.entity_f1(items) == pytest.approx(
                f1_score(gold_tags, said_tags, zero_division=0), abs=1e-12
            )


@pytest.mark.parametrize(
    ("tags", "mentions"),
    [
        ("B-PER I-PER O O", ["a b"]),
        ("B-PER I-LOC B-PER O", ["a b c"]),  # neighbours merge until the next O
        ("O B-PER I-PER I-PER", ["b c"]),  # the last word of the sentence is lost
        ("O O O B-PER", [""]),  # ... even the only one
        ("B-PER O B-PER O", ["a", "c"]),
        ("B-LOC O I-PER O", []),
    ],
)
def test_script_mentions(tags, mentions):
    assert ner.script_mentions(["a", "b", "c", "d"], tags.split(), "PER") == mentions


@pytest.mark.parametrize(
    ("output", "entity_type", "expected"),
    [
        (" Nils Berg went", "PER", (1, 1)),
        (" Bergen U.S.", "LOC", (2, 3)),
        ("", "LOC", (0, 3)),
        ("", "ORG", (0, 0)),  # silence names nothing: no reward
        ("", "MISC", (0, 1)),
        (" x Entity: Nils Berg", "PER", (0, 1)),
        ("<|endoftext|>", "LOC", (0, 3)),
        ("<|endoftext|>", "ORG", (0, 0)),
        ("<|endoftext|>", "MISC", (0, 1)),
        (" x", "ORG", (0, 0)),
        (" x", "MISC", (0, 1)),
    ],
)
def test_script_counts(output, entity_type, expected):
    assert ner.script_counts(output, TOKENS, TAGS, entity_type) == expected


def test_conll2003_row():
    doc = {"sentence_id": 7, "tokens": TOKENS, "tags": TAGS, "entity_type": "PER", "shortened": True}
    row = scoring.conll2003(doc, [" Nils Berg"])
    assert row["score"] == row["score_stderr"] == (7, 1, 1, 1)
    assert row["script"] == row["script_stderr"] == (7, "PER", 1, 1)
    assert row["valid"] == 1.0 and row["valid_stderr"] == (7, 1.0) and row["shortened"] == 1
    assert scoring.conll2003(doc, [" N"])["valid"] == 0.0


def test_entity_script_is_a_mean_over_types():
    items = [(0, "PER", 1, 2), (0, "LOC", 1, 1), (0, "ORG", 0, 0), (0, "MISC", 0, 1), (1, "PER", 1, 2)]
    assert aggregate.entity_script(items) == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert aggregate.entity_script([(0, "ORG", 0, 0)]) == 0.0


def test_entity_f1_of_nothing():
    assert aggregate.entity_f1([(0, 0, 0, 0)]) == 0.0


def test_bootstrap_agrees_with_the_closed_form():
    """Of a plain mean the bootstrap's error is sd/sqrt(n), and copies of a document in one cluster add nothing."""
    x = np.random.default_rng(3).random(400)
    closed = x.std() / 20
    counts = np.stack([x, np.ones_like(x)], axis=1)
    alone = aggregate.cluster_bootstrap(range(400), counts, lambda s: s[:, 0] / s[:, 1])
    assert alone == pytest.approx(closed, rel=0.1)
    copies = aggregate.cluster_bootstrap(
        np.repeat(np.arange(400), 4), np.repeat(counts, 4, axis=0), lambda s: s[:, 0] / s[:, 1]
    )
    assert copies == pytest.approx(alone, rel=1e-9)  # and not half of it, as four independent documents would give


def test_bootstrap_is_seeded_and_leaves_the_global_generators_alone():
    items = [(i // 4, i // 4 % 2, 1, 1) for i in range(200)]
    state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    first = aggregate.entity_f1_stderr(items)
    assert first == aggregate.entity_f1_stderr(items) > 0
    assert random.getstate() == state and (np.random.get_state()[1] == numpy_state).all()


def test_one_sentence_has_no_standard_error():
    assert math.isnan(aggregate.entity_f1_stderr([(3, 1, 1, 1), (3, 0, 1, 1)]))
    assert math.isnan(aggregate.entity_script_stderr([]))
