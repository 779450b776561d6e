"""The sub-commands of `lm-eval-edit`, one module each; adding a file here adds a sub-command.

A module offers two functions:

- `add_parser(subparsers) -> argparse.ArgumentParser` calls `subparsers.add_parser` with the sub-command's name and help
  line, adds its arguments and returns the parser;
- `run(args) -> int` does the work and returns the exit status. A mistake of the user's is raised as a
  `lm_eval_edit.errors.UserError`.

It may offer a third, `kept(args) -> str`: what an interrupted run leaves and how to go on, as a clause. Without it
nothing is kept.

    run        edit and evaluate, with the harness's own arguments
    validate   what a run would do, and every problem of its options
    sweep      curves: many rows, edited once, evaluated at each checkpoint
    plot       the pictures of a sweep
    report     a sweep as one HTML file
    compare    two runs held against each other
    check      the gate for continuous integration
    export     an edited model for other engines
    stats      second moments of a model's keys
    train      what a method needs before it can edit
    ls         what there is to choose from

    _engines      the engines of `sweep`
    _editors      `ls editors`
    _options      `ls options`
    _validation   what `validate` finds out
    _model_args   `--model_args`, parsed as the harness does
    _names        lists as they stand on a command line
    _layout       names in one column, what they are in the next

All modules are imported even for `lm-eval-edit --help`: import torch, transformers and lm_eval inside `run`. Modules
whose name starts with an underscore are helpers, not sub-commands.
"""
