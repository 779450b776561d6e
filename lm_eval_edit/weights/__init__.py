"""An edit as a change of weights.

delta    the update of one parameter, in the smallest exact form
stacked  the update of some slices of a 3-D parameter: of some experts of a mixture
delta_files  updates in a file, and as named tensors
carried  which edits a model object carries
touched  what edits have reached of one parameter, and its original
edited   a model's parameters under deltas, put back bit for bit
fingerprint  what a model's weights are, as a hash
"""
