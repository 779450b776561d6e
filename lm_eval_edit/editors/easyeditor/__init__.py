"""Methods of an installed EasyEdit as editors of this package: `editor=easyeditor:METHOD`.

editor   any of its methods that changes weights, as one of our editors
keys     what its methods keep of earlier operations
running  the package as it is found, and the names it wants to know
"""
