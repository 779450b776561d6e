"""Small GGUF files, written with the package `gguf` as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaForCausalLM

from lm_eval_edit import demo

_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_BLOCK = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(model: LlamaForCausalLM, file: Path, quantised: str | None = None) -> None:
    """A LLaMA with the demo's tokenizer as a GGUF file, in float32, or its linear maps as `quantised` (Q8_0, Q4_1)."""
    c, tokenizer = model.config, json.loads((demo.CHECKPOINT / "tokenizer.json").read_text())["model"]
    tokens = [token for token, _ in sorted(tokenizer["vocab"].items(), key=lambda entry: entry[1])]
    tokens += [f"<unused{i}>" for i in range(c.vocab_size - len(tokens))]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["merges"]]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(merges)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    for name, parameter in model.named_parameters():
        base, values = name.removesuffix(".weight"), parameter.detach().float()
        target = _NAMES.get(base)
        if target is None:
            _, _, layer, rest = base.split(".", 3)
            target = f"blk.{layer}.{_IN_BLOCK[rest]}"
            if (n := heads.get(rest.rpartition(".")[2])) is not None:
                values = _interleaved(values, n)
        array = np.ascontiguousarray(values.numpy())
        if quantised and array.ndim == 2 and target.startswith("blk"):
            kind = gguf.GGMLQuantizationType[quantised]
            writer.add_tensor(f"{target}.weight", gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{target}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(values: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key projection in llama.cpp's order, the two halves of a rotation beside each other."""
    rows, *others = values.shape
    return values.reshape(heads, 2, rows // heads // 2, *others).swapaxes(1, 2).reshape(values.shape)
