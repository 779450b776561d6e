"""The edit-quality tasks: the run's own facts as documents, what is asked about them, in which state of the weights.

schedule           the facts of the run's own schedule
documents          -> documents
tasks              what is asked about a document, and of which state of the weights
published          CounterFact and ZsRE as the field's scripts ask them
metrics            answers -> the metrics of a document
figures            their means, CounterFact's score, and standard errors
agreement          whether the tasks ask about the facts that the model was edited with
bare               the tasks whose prompts nothing may stand around
generation         what the model writes about the edited subjects
generation_inputs  what that needs beside the facts, and whether it is there
snippets           reference texts
texts              how varied a text is, and how near to reference texts

of `edithurt_portability`

portability          questions that follow from the facts: the documents
portability_tasks    what is asked about such a document
portability_metrics  answers -> the metrics of such a document

and of `edithurt_probing`

probing          is an edit known, or is it only said after one prompt: the texts and documents
probing_tasks    what is asked about such a document
probing_metrics  answers -> the metrics of such a document
"""
