"""Seeds of what an editor draws: each operation has its own, so a resumed or shortened schedule draws the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lm_eval_edit._support.files import hash_json
from lm_eval_edit.facts.fact import Fact


def seed_for(seed: int, facts: Sequence[Fact], purpose: str) -> int:
    """A seed that depends on nothing but the edit seed, the facts' ids (or contents) and what it is for."""
    names = [fact.identity() if fact.id is None else fact.id for fact in facts]
    return int(hash_json([seed, names, purpose])[:15], 16)


def generator_for(seed: int, facts: Sequence[Fact], purpose: str) -> torch.Generator:
    """A CPU generator so seeded. What is drawn from it on the CPU is the same for every device."""
    return torch.Generator().manual_seed(seed_for(seed, facts, purpose))
