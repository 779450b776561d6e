"""The edit-quality tasks: the run's own facts as documents, what is asked about them, in which state of the weights.

documents  the facts of the run's own schedule -> documents
tasks      what is asked about a document, and of which state of the weights
metrics    answers -> the metrics of a document
figures    their means, CounterFact's score, and standard errors
agreement  whether the tasks ask about the facts that the model was edited with
"""
