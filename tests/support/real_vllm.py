"""A real vLLM, where `make test-vllm` has installed one."""

from __future__ import annotations

import importlib.util

import pytest

MARKS = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: `make test-vllm`"),
]

# What a CPU build of vLLM wants besides; nothing that changes what is computed.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
