"""Facts to edit: the record, the readers of every record form, where they come from, and their tokens."""

from lm_eval_edit.facts.fact import SLOT, Fact, Facts, Probe, SkippedFact, in_clear, parse_record, read_facts, with_slot

__all__ = [
    "SLOT",
    "Fact",
    "Facts",
    "Probe",
    "SkippedFact",
    "in_clear",
    "parse_record",
    "read_facts",
    "with_slot",
]
