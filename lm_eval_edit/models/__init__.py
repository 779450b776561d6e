"""Models as the installed transformers has them.

architecture  where a decoder keeps its blocks and down-projections, by structure
mixture       where a block keeps a mixture of experts, and what their keys are
bridging      a pass without the lowest blocks, of which all is known
tried_above   whether such passes are the model's own, to the bit
lower_blocks  the blocks below an edit, run once for every state of those above
naming        what the installed transformers calls things
dtypes        which dtype a model is loaded in
stopping      passes that end once what they are run for has been seen
devices       which device a command computes on
quantised     weights that are no floating-point numbers in memory
gguf          models from GGUF files, whose weights are ordinary once they are loaded
"""
