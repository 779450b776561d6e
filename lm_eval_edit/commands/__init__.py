"""The sub-commands of `lm-eval-edit`, one module each; adding a file here adds a sub-command.

A module offers two functions:

- `add_parser(subparsers) -> argparse.ArgumentParser` calls `subparsers.add_parser` with the sub-command's name and help
  line, adds its arguments and returns the parser;
- `run(args) -> int` does the work and returns the exit status. A mistake of the user's is raised as a
  `lm_eval_edit.errors.UserError`.

It may offer a third, `kept(args) -> str`: what an interrupted run leaves and how to go on, as a clause. Without it
nothing is kept.

All modules are imported even for `lm-eval-edit --help`: import torch, transformers and lm_eval inside `run`. Modules
whose name starts with an underscore are helpers, not sub-commands.
"""
