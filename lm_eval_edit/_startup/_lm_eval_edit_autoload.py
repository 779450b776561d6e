"""Adds lm-eval-edit to the LM Evaluation Harness when, and only when, a program imports the harness.

Python runs `install()` at start-up, because `lm_eval_edit_autoload.pth` (to Python 3.17) or
`lm_eval_edit_autoload.start` (PEP 829, from 3.15) in site-packages asks for it. Every Python program in the
environment pays for this file, so it imports nothing that the interpreter has not loaded already, and lives outside the
package: importing `lm_eval_edit` itself would cost milliseconds. `docs/discovery.md` tells the whole story.

Set the environment variable LM_EVAL_EDIT_AUTOLOAD=0 to switch it off.
"""

import os
import sys

# Module of the harness -> function of `lm_eval_edit._startup.hooks` to call as soon as that module has run.
_HOOKS = {
    "lm_eval.models": "register_model",
    "lm_eval.tasks.manager": "add_tasks",
    "lm_eval.evaluator": "look_at_chat_templates",
}


def install():
    """Watch for the harness. Does nothing when switched off or already watching."""
    if os.environ.get("LM_EVAL_EDIT_AUTOLOAD") == "0" or any(isinstance(f, _Watcher) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _Watcher())
    if _is_ours():
        _end_at_once_when_interrupted()


def _is_ours():
    """Whether this program is `lm-eval-edit`, or the harness's command with our model: all that the command line says.

    The harness needs seconds to import its libraries and to index its tasks before it asks for a model.
    """
    words = list(getattr(sys, "argv", ()))
    if not words:
        return False
    if words[0] == "-m":
        given = sys.orig_argv[1:]
        words[0] = given[given.index("-m") + 1] if "-m" in given[:-1] else ""
    program = os.path.basename(words[0]).removesuffix(".exe").removesuffix("-script.py").replace("-", "_")
    if program == "lm_eval_edit":
        return True
    return program == "lm_eval" and any(word.rpartition("=")[2] == "edited_hf" for word in words[1:])


def _end_at_once_when_interrupted():
    """Let Ctrl-C end this process by one line while it imports and looks around, which leaves nothing to put in order.

    Not by an exception: libraries turn one that is raised while they are imported into another, or pass over it.
    `lm_eval_edit._support.interrupts` takes over before anything is begun.
    """
    import signal  # in our own programs, which need it anyway

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    process = os.getpid()

    def end(number, frame):
        if os.getpid() == process and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\ninterrupted: nothing was begun; the same command starts it\n")
        os._exit(128 + number)

    setattr(end, "before_work", True)  # noqa: B010  a function takes any attribute, whatever type checkers think
    signal.signal(signal.SIGINT, end)


class _Watcher:
    """A finder that finds nothing itself: it notes when the modules of `_HOOKS` are loaded, then leaves."""

    def __init__(self):
        self._waiting = dict(_HOOKS)
        self._asking = set()
        self._warned = False

    def find_spec(self, name, path=None, target=None):
        if name not in self._waiting or name in self._asking:
            return None
        # Another finder may ask all finders in its turn, this one among them: hence `_asking`.
        self._asking.add(name)
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find and finder is not self else None
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader, self)
                    return spec
            return None
        finally:
            self._asking.discard(name)

    def loaded(self, name):
        """Run the hook for `name`, once; a failure is a warning, never an error of the program's import."""
        hook = self._waiting.pop(name, None)
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        if hook is None:
            return
        try:
            hooks = __import__("lm_eval_edit._startup.hooks", fromlist=[hook])
            getattr(hooks, hook)()
        except Exception as error:
            # A checkout that was moved away after `pip install -e` is no reason to bother other programs.
            gone = isinstance(error, ModuleNotFoundError) and str(error.name).startswith("lm_eval_edit")
            if not gone and not self._warned:
                self._warned = True
                _warn(name, error)


class _Loader:
    """Stands in for a module's loader for the length of one import."""

    def __init__(self, loader, watcher):
        self._loader = loader
        self._watcher = watcher

    def __getattr__(self, name):
        # Somebody may look at the spec without importing; whatever they ask for, the true loader answers.
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module):
        # From here on the module looks as if nobody had watched: `inspect`, `importlib.resources` and reload work.
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._watcher.loaded(module.__spec__.name)


def _warn(name, error):
    import warnings

    warnings.warn(
        f"lm-eval-edit could not add itself to {name} ({type(error).__name__}: {error}). The harness works as without "
        "it; `lm-eval-edit run` shows the whole error, LM_EVAL_EDIT_AUTOLOAD=0 silences this warning.",
        RuntimeWarning,
        stacklevel=2,
    )
