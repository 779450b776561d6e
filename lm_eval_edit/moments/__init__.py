"""Second moments E[k kᵀ] of an MLP's keys.

corpus          ordinary text
collect         one pass over it for all layers, resumable
files           second moments on disk, ours and the published ones
second_moments  the values, and their factorisations
blocks          block-diagonal ones, a block for each expert of a mixture
"""
