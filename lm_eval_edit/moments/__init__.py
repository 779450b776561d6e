"""Second moments E[k kᵀ] of an MLP's keys: the corpus, one pass over it, the files, the factorisations."""
