"""Methods of an installed EasyEdit as editors of this package: `editor=easyeditor:METHOD`."""
