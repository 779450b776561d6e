"""Make this folder's figures with a real clone of EasyEdit: `python -m tests.oracle.make CLONE [--standins MODULE]`.

Every method edits one or two facts of the demo model (SPHERE: of a tiny LLaMA) in float64, by EasyEdit's own code:
`editor=easyeditor:...` calls it and takes the difference of the weights. What is written is small enough for the
repository, so that every clone can check that our editors compute what the published ones compute; README.md says with
which versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import __version__

from lm_eval_edit import demo, edit_model
from lm_eval_edit.editors.mend.archive import load_archive
from lm_eval_edit.weights.delta import Delta
from tests.oracle.worlds import world_of

HERE = Path(__file__).parent
MODULES = {
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj", "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp", "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f", "lm_head_module": "transformer.wte",
}  # fmt: skip
TARGET = {
    "fact_token": "subject_last", "v_num_grad_steps": 20, "v_lr": 0.5, "v_loss_layer": 3, "v_weight_decay": 0.001,
    "clamp_norm_factor": 4, "kl_factor": 0.0625, "mom2_dataset": "wikipedia", "mom2_n_samples": 200,
    "mom2_dtype": "float32",
}  # fmt: skip
ROME = MODULES | TARGET | {
    "layers": [1], "mom2_adjustment": False, "context_template_length_params": [[5, 10], [10, 10]], "fp16": False
}  # fmt: skip
MEMIT = MODULES | TARGET | {
    "layers": [0, 1], "layer_selection": "all", "mom2_adjustment": True, "mom2_update_weight": 100, "batch_size": 1
}  # fmt: skip
MEND = {
    "model_class": "GPT2LMHeadModel", "tokenizer_class": "GPT2Tokenizer", "lr": 1e-06, "edit_lr": 0.0001,
    "lr_lr": 0.0001, "lr_scale": 1.0, "seed": 42, "debug": False, "cedit": 0.1, "cloc": 1.0, "cbase": 1.0,
    "dropout": 0.0, "train_base": False, "no_grad_layers": None, "one_sided": False, "n_hidden": 1, "hidden_dim": None,
    "init": "id", "norm": True, "combine": True, "x_only": False, "delta_only": False, "act": "relu",
    "mlp_class": "IDMLP", "shared": True, "model_save_pt": 5000, "silent": False, "log_interval": 1000,
    "eval_log_interval": 1000, "final_eval": True, "val_interval": 1000, "early_stop_patience": 20000,
    "early_stop_key": "loss/total_edit_val", "eval_only": True, "half": False, "save": False, "verbose": True,
    "val_batch_size": 5, "accumulate_bs": 10, "val_steps": 500, "opt": "Adam", "grad_clip": 100.0, "batch_size": 1,
    "max_output_length": None, "max_epochs": None, "max_iters": 100000,
}  # fmt: skip

#: Run -> (EasyEdit's method, its hyper-parameters, facts of one operation, whether operations build on one another).
RUNS: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "ROME": ("ROME", ROME, 1, False),
    "ROMEcov": ("ROME", ROME | {"mom2_adjustment": True}, 1, False),
    "ROMEseq": ("ROME", ROME, 1, True),
    "R-ROME": (
        "R-ROME",
        ROME | {"enable_prompt_keys": False, "enable_random_prefix_keys": True, "original_implementation": False},
        1,
        False,
    ),
    "MEMIT": ("MEMIT", MEMIT, 2, True),
    "MEMITbs1": ("MEMIT", MEMIT, 1, True),
    "EMMET": ("EMMET", MEMIT | {"layers": [1], "update_norm_lambda": 0, "emmet_lambda": 0.1}, 2, True),
    "AlphaEdit": (
        "AlphaEdit",
        MEMIT | {"nullspace_threshold": 1.15, "L2": 10, "P_loc": "null_space_project.pt", "lm_head_module": "lm_head"},
        1,
        True,
    ),
    "SPHERE": (
        "SPHERE",
        {name: value for name, value in MEMIT.items() if name not in MODULES}
        | {"v_loss_layer": 2, "nullspace_threshold": 0.5, "L2": 10, "P_loc": "null_space_project.pt",
           "lm_head_module": "lm_head", "cumulative_ratio": 0.5, "suppression_strength": 0.5},
        1,
        True,
    ),
    "KN": (
        "KN",
        {"lr_scale": 1.0, "n_toks": 10, "refine": False, "batch_size": 20, "steps": 20, "adaptive_threshold": 0.2,
         "p": 0.4},
        1,
        False,
    ),
    "FT": (
        "FT",
        MODULES
        | {"layers": [1], "num_steps": 25, "lr": 0.0005, "weight_decay": 0, "kl_factor": 0, "norm_constraint": 0.0005,
           "objective_optimization": "prompt_last", "batch_size": 1},
        1,
        False,
    ),
    "MEND": ("MEND", MEND, 1, False),
}  # fmt: skip
ROUND_OFF = 1e-5
FEWER = {"FT": 1}  # a dense delta takes half a megabyte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("easyedit", type=Path, help="a clone of zjunlp/EasyEdit")
    parser.add_argument("--standins", help="a module to import first, with stand-ins for packages the clone wants")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    options = parser.parse_args()
    if options.standins:
        importlib.import_module(options.standins)
    logging.getLogger("lm_eval_edit").setLevel(logging.ERROR)
    folder = tempfile.TemporaryDirectory()
    for run, (method, hparams, batch, sequential) in RUNS.items():
        if run not in options.runs:
            continue
        world = world_of(run, torch.float32 if method == "MEND" else torch.float64)  # MEND's as it was trained
        if method == "MEND":
            hparams = hparams | _archive(Path(folder.name))
        chosen, templates = world.facts[: FEWER.get(run, 2)], _templates(hparams, world.templates)
        sequences = [chosen] if sequential else [[fact] for fact in chosen]
        figures, calls = {}, []
        for sequence in sequences:
            ledger = edit_model(
                world.model, world.tokenizer, sequence, f"easyeditor:{method}",
                edit_batch_size=batch, options=hparams | {"easyedit_path": str(options.easyedit.resolve())},
                context_templates=templates, second_moments=world.moments, progress=False,
            )  # fmt: skip
            for operation in ledger.operations:
                figures |= _tensors(operation.deltas, len(calls))
                calls.append({"fact_ids": [fact.id for fact in operation.facts]})
            ledger.restore()
        save_file(figures, HERE / "deltas" / f"{run}_{world.name}.safetensors")
        info = {
            "alg": method,
            "mode": "independent" if not sequential else "sequential" if batch == 1 else "batch",
            "dtype": str(world.model.dtype).removeprefix("torch."),
            "facts": [fact.record() for fact in chosen],
            "context_templates": templates,
            "hparams": {name: value for name, value in hparams.items() if name != "archive"},
            "calls": calls,
            "produced_by": {"torch": torch.__version__, "transformers": __version__},
        }
        (HERE / "deltas" / f"{run}_{world.name}.json").write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
        print(f"{run}: {len(calls)} calls, {sum(t.numel() * t.element_size() for t in figures.values()) / 1e3:.0f} kB")


def _archive(folder: Path) -> dict[str, Any]:
    """The demo's hypernetwork as EasyEdit's archive, and what its hyper-parameters say about it."""
    archive = load_archive(demo.MEND_ARCHIVE)
    tensors = archive.tensors | {"model_config": None}
    torch.save({"model": tensors, "opt": None, "lr_opt": None, "val_stats": {}, "step": 1}, folder / "mend")
    rank = next(tensor.shape[1] for name, tensor in archive.tensors.items() if name.endswith("layers.0.u"))
    return {"archive": str(folder / "mend"), "inner_params": list(archive.inner_params), "rank": rank}


def _templates(hparams: dict[str, Any], flat: list[str]) -> list[Any] | None:
    if "context_template_length_params" in hparams:
        return flat
    return [flat[:1], flat[1:]] if "v_lr" in hparams else None


def _tensors(deltas: dict[str, Delta], call: int) -> dict[str, torch.Tensor]:
    """Deltas as small as they go: a dense one of low rank (AlphaEdit solves in float32) as its factors."""
    figures = {}
    for parameter, delta in deltas.items():
        kind, tensors = delta.kind, delta.tensors()
        if kind == "dense" and tensors["value"].ndim == 2:
            u, s, vh = torch.linalg.svd(tensors["value"].double(), full_matrices=False)
            rank = int((s > ROUND_OFF * s[0]).sum())
            if rank < 10:
                kind, tensors = "low_rank", {"left": u[:, :rank] * s[:rank], "right": vh[:rank]}
        figures |= {f"call{call}/{kind}/{name}/{parameter}": t.contiguous() for name, t in tensors.items()}
    return figures


if __name__ == "__main__":
    (HERE / "deltas").mkdir(exist_ok=True)
    main()
