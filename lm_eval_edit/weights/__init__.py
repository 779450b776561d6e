"""An edit as a change of weights.

delta    the update of one parameter, in the smallest exact form
carried  which edits a model object carries
edited   a model's parameters under deltas, put back bit for bit
fingerprint  what a model's weights are, as a hash
"""
