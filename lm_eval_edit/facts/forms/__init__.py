"""The forms in which the field's data files write a fact, a module a family; `readers` tells which one a record has.

form       what a form is, and which of its fields a record lacks
own        the package's own fields, and EasyEdit's flat ones (KnowEdit, QAEdit)
asked      forms whose edit is a question (ZsRE, WikiBigEdit, UltraEditBench, UnKE)
rewrites   forms with `requested_rewrite` (CounterFact, MQuAKE)
ripple     RippleEdits: an edit and six axes of tests around it
"""
