"""The task class of `edithurt_suite`: outputs are scored with what is known of their end.

`edited_hf` hands on outputs that know how they ended (`outputs.Output`). Of any other model type the harness gives the
text alone; then the tokens are counted, where the run's arguments name a tokenizer. How it was known is in the results,
`configs.<task>.metadata.provenance.ended_known`, and the metric `ended` is in the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_edit.harness.outputs import Output, by_count
from lm_eval_edit.tasklib.arguments import is_edited
from lm_eval_edit.tasklib.fitted import FittedTask
from lm_eval_edit.tasklib.suite.catalogue import TASKS


class SuiteTask(FittedTask):
    """One of the eight tasks; see the module's description.

    Args:
        config: The task's YAML with the run's metadata.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        if (spec := TASKS.get((self.config.dataset_kwargs or {}).get("edithurt", ""))) is not None:
            self.shortenable, self.new_tokens = spec.shortenable, spec.new_tokens

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """The document's metrics, and `ended` (1 or 0) where it is known whether the model ended its output."""
        output = results[0] if isinstance(results[0], Output) else self._plain(results[0])
        self._note(output.known)
        row = super().process_results(doc, [output])
        return row if output.ended is None else row | {"ended": float(output.ended)}

    def _plain(self, text: str) -> Output:
        asked = self.config.generation_kwargs  # with what --gen_kwargs changed
        return by_count(
            text,
            self.named_tokenizer,
            None if asked.get("until") else asked.get("max_gen_toks"),
            is_edited(self.config.metadata) and str(self.config.metadata.get("n_edits")) != "0",
        )

    def _note(self, known: str) -> None:
        """Into the dictionary that the harness dumps with the task's configuration after the run."""
        provenance = self.config.metadata.get("provenance")
        if isinstance(provenance, dict):
            said = {*str(provenance.get("ended_known", known)).split(", "), known}
            provenance["ended_known"] = ", ".join(sorted(said))
