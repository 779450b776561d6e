"""What can be edited is decided by what a model does, not by what its arguments are called."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GPT2Config
from transformers.modeling_outputs import ModelOutput

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.forward import PartialForward
from lm_eval_edit.editors._shared.rows import align, fact_rows
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from tests.support.tiny import FACTS, TEMPLATES, grid, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.libraries


class Output(dict):
    """A model's output; that of transformers gives the cache's old name the new one."""

    logits = property(lambda self: self["logits"])


class Renamed(nn.Module):
    """A model whose forward and whose outputs have another name for the cache."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.inner, self.config, self._name = model, model.config, name
        self._theirs = naming.kept(model).name
        self.passes = 0

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, use_cache=None, position_ids=None, **others):
        self.passes += 1
        if self._name in others:
            others[self._theirs] = others.pop(self._name)
        out = self.inner(
            input_ids, attention_mask=attention_mask, use_cache=use_cache, position_ids=position_ids, **others
        )
        return Output({"logits": out.logits, self._name: out[self._theirs]})


@pytest.mark.parametrize("name", ["memory_of_the_past", "past_key_values", "cache"])
def test_a_cache_is_found_whatever_it_is_called(name):
    model = tiny_model().eval()
    renamed = Renamed(model, name).eval()
    assert naming.kept(renamed) == naming.Kept(name, model.config.num_hidden_layers, 0)
    assert Architecture.discover(renamed).n_layers == Architecture.discover(model).n_layers
    rows = align([row for fact in FACTS for row in fact_rows(tiny_tokenizer(), fact, TEMPLATES)], torch.device("cpu"))
    columns = torch.arange(rows.column, rows.input_ids.shape[1])
    with torch.no_grad():
        ours, theirs = (
            grid(PartialForward(each, Architecture.discover(each), rows, 1), columns) for each in (renamed, model)
        )
    assert torch.equal(ours, theirs)


class OldCode(Renamed):
    """A model whose own code is older than the library, which renames its outputs."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, position_ids=None):
        given = {} if past_key_values is None else {"called_thus": past_key_values}
        out = super().forward(input_ids, attention_mask, True, position_ids, **given)
        return Output({"logits": out.logits, "cache": out["called_thus"]})


def test_code_older_than_its_library_is_handed_its_cache():
    old = OldCode(tiny_model(), "called_thus").eval()
    assert naming.kept(old).name == "past_key_values"
    cache = naming.cache_with()
    with torch.no_grad():
        old(torch.tensor([[1, 2, 3]]), **naming.with_cache(old, cache))
    assert [keys.shape[-2] for keys, _ in naming.keys_and_values(cache)] == [3, 3, 3]


def test_a_model_is_looked_at_once():
    renamed = Renamed(tiny_model().eval(), "cache").eval()
    for _ in range(3):
        Architecture.discover(renamed)
    assert renamed.passes == 1


class Recurrent(nn.Module):
    """Blocks with MLPs and a recurrent state of their own, and an argument called like a transformer's."""

    def __init__(self, keeps: str):
        super().__init__()
        self.keeps, self.config = keeps, GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=8)
        self.embed = nn.Embedding(8, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(2))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids, past_key_values=None, cache=None, use_cache=True, **kwargs):
        hidden = self.embed(input_ids).cumsum(1)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        kept = DynamicCache()
        if self.keeps != "nothing":
            heads = hidden[:, None]
            kept = DynamicCache([(heads, heads)] * 2)
        if self.keeps == "a state too":
            kept.layers[1].state = {"recurrent": [hidden[:, -1]]}
        fields = {"logits": hidden, "past_key_values": kept, "cache": kept}
        return ModelOutput(fields) if self.keeps != "no cache" else ModelOutput(logits=hidden, state=[hidden])


@pytest.mark.parametrize(
    ("keeps", "reason"),
    [
        ("nothing", "Recurrent keeps no keys and values from token to token. Editors need dense transformer blocks"),
        ("no cache", "Recurrent keeps no keys and values from token to token. Editors need dense transformer blocks"),
    ],
)
def test_recurrent_models_are_refused_whatever_their_arguments_are_called(keeps, reason):
    with pytest.raises(UserError, match=reason):
        Architecture.discover(Recurrent(keeps))


def test_a_state_beside_keys_and_values_is_a_hybrids():
    model = Recurrent("a state too")
    assert Architecture.discover(model).n_layers == 2 and naming.is_hybrid(model)
    assert not naming.is_hybrid(Recurrent("keys and values"))


def test_keys_and_values_alone_are_enough():
    assert Architecture.discover(Recurrent("keys and values")).down_projections == ("blocks.0.2", "blocks.1.2")


def test_a_cache_that_cannot_be_handed_over_is_refused():
    with pytest.raises(UserError, match="Recurrent keeps no keys and values from token to token"):
        naming.with_cache(Recurrent("no cache"), naming.cache_with())


def test_a_model_in_training_is_looked_at_in_evaluation_and_left_as_it_was():
    model = tiny_model()
    model.config.use_cache = False  # as fine-tuning scripts leave it
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    frozen.eval()
    state = torch.get_rng_state()
    assert naming.kept(model).layers == model.config.num_hidden_layers
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not frozen.training


def test_a_model_without_weights_is_judged_by_its_structure_where_it_cannot_be_run():
    model = tiny_model().eval()
    assert Architecture.discover(model.to("meta")).n_layers == model.config.num_hidden_layers


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError, IndexError])
def test_a_model_that_stumbles_over_having_no_weights_is_judged_when_it_has_them(error):
    def stumbles(module, args, output):
        raise error("no weights")

    model = Recurrent("nothing").to("meta")
    handle = model.embed.register_forward_hook(stumbles)
    assert Architecture.discover(model).n_layers == 2
    handle.remove()
    with pytest.raises(UserError, match="keeps no keys and values"):
        Architecture.discover(model)


def test_a_model_that_cannot_be_run_says_why():
    model = Recurrent("keys and values")
    model.blocks[0][0] = nn.Linear(9, 32)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Architecture.discover(model)


def test_layers_that_keep_nothing_are_told_from_those_that_do():
    keys = torch.zeros(1, 1, 2, 4)
    cache = SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=keys), SimpleNamespace(keys=None, values=None)])
    first, second = naming.keys_and_values(cache)
    assert first[0] is keys and second is None
    assert naming.keys_and_values(None) == []


def test_editing_warns_of_nothing_deprecated():
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        for editor in ("rome", "kn"):
            ledger = edit_model(
                model, tokenizer, [FACTS[0]], editor, context_templates=TEMPLATES if editor == "rome" else None,
                progress=False,
            )  # fmt: skip
            ledger.restore()


def test_looking_at_a_model_whose_padding_is_a_token_like_others_warns_of_nothing(caplog):
    """The demo's own: "We strongly recommend passing in an `attention_mask`" was the first line of the first run."""
    model = tiny_model()
    model.config.pad_token_id, model.config.bos_token_id = 0, 5
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    try:
        naming.kept(model)
    finally:
        logger.propagate = propagate
    assert caplog.text == ""
