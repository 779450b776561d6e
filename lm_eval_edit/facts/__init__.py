"""Facts to edit.

fact            the record of one fact, and a list of them
sources         where facts come from: the package, named data sets, files
exported        the facts that an export of an edited model carries
files           a file of facts as parsed records
fields          the fields of a record, read one by one
probes          locality probes in every shape they come in
portability     portability questions, their kinds, and every shape they come in
readers         which form a record has, and what is wrong with it
forms           the forms in which the field's data files write a fact, a module a family
slots           where a subject stands in a prompt, by the place of characters
subject_span    the same in whichever Unicode form the two are written
separators      what stands between a prompt and its object
tokens          the tokens of prompt, subject and target: one rule for all who ask
chat            where a chat user meets a fact: inside the model's chat template
contradictions  facts of one schedule that cannot all hold
skipped         which facts are passed over, and why
"""

from lm_eval_edit.facts.fact import (
    SLOT,
    Fact,
    Facts,
    Probe,
    Question,
    SkippedFact,
    in_clear,
    parse_record,
    read_facts,
    with_slot,
)

__all__ = [
    "SLOT",
    "Fact",
    "Facts",
    "Probe",
    "Question",
    "SkippedFact",
    "in_clear",
    "parse_record",
    "read_facts",
    "with_slot",
]
