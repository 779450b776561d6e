"""lm-eval-edit: what did editing this language model's knowledge do to everything else it could do?"""

__version__ = "0.1.0"
