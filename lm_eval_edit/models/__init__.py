"""Models as the installed transformers has them.

architecture  where a decoder keeps its blocks and down-projections, by structure
naming        what the installed transformers calls things
devices       which device a command computes on
"""
