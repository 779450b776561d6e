"""Models as the installed transformers has them.

architecture  where a decoder keeps its blocks and down-projections, by structure
mixture       where a block keeps a mixture of experts, and what their keys are
naming        what the installed transformers calls things
dtypes        which dtype a model is loaded in
stopping      passes that end once what they are run for has been seen
devices       which device a command computes on
gguf          models from GGUF files, whose weights are ordinary once they are loaded
"""
