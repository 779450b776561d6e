"""`python -m lm_eval_edit`: the command `lm-eval-edit` where its script is not on the path."""

import sys

from lm_eval_edit.cli import main

if __name__ == "__main__":
    sys.exit(main())
