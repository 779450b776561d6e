"""The edit-quality tasks: the run's own facts as documents, what is asked about them, in which state of the weights."""
