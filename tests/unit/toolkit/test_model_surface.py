# SPDX-License-Identifier: Apache-2.0
"""What models of transformers answer beside logits: caches, states, tables, types.

The oracle of states and cached calls are the model's own logits, which ``test_auto_classes`` holds
against transformers; both were compared with transformers 5.24 for ten families.
"""

import hf_models
import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig
from mindspeed_ms.toolkit.models.calls import CausalLMOutput

FAMILIES = ("llama", "gpt2")
IDS = np.asarray(hf_models.IDS)[:, :7]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("surface")
    for kind in FAMILIES:
        hf_models.write(root / kind, kind)
    return lambda kind: root / kind


@pytest.fixture(params=FAMILIES)
def model(request, folder_of):
    return AutoModelForCausalLM.from_pretrained(folder_of(request.param))


def test_calls_go_on_from_a_cache(model):
    whole = model(IDS).asnumpy()
    first = model(IDS[:, :4], use_cache=True)
    np.testing.assert_allclose(first.logits.asnumpy(), whole[:, :4], atol=2e-5)
    cache = first.past_key_values
    assert first.cache is cache and cache.get_seq_length() == 4
    second = model(IDS[:, 4:], past_key_values=cache, attention_mask=np.ones_like(IDS))
    np.testing.assert_allclose(second.logits.asnumpy(), whole[:, 4:], atol=2e-5)
    cache.crop(6)
    again = model(IDS[:, 6:], cache=cache, logits_to_keep=1)
    np.testing.assert_allclose(again.logits.asnumpy(), whole[:, 6:], atol=2e-5)
    cache.reorder_cache(np.array([1, 0]))
    swapped = model(IDS[::-1, 6:], past_key_values=_cropped(cache, 6))
    np.testing.assert_allclose(swapped.logits.asnumpy(), whole[::-1, 6:], atol=2e-5)


def _cropped(cache, length):
    cache.crop(length)
    return cache


def test_padding_in_front_is_no_part_of_a_cache(model):
    mask = np.ones_like(IDS)
    mask[1, :3] = 0
    found = model(IDS, attention_mask=mask, use_cache=True)
    alone = model(IDS[1:, 3:]).asnumpy()
    np.testing.assert_allclose(found.logits.asnumpy()[1:, 3:], alone, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"past_key_values": ()}, "past_key_values is a tuple"),
        ({"use_cache": True, "labels": IDS}, "give no labels"),
        ({"output_attentions": True}, "attention never holds its probabilities"),
        ({"logits_to_keep": -1}, "must be a number of last tokens"),
        ({"inputs_embeds": IDS}, "a model here reads ids"),
    ],
)
def test_what_a_call_cannot_answer_is_said(folder_of, options, said):
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama"))
    with pytest.raises(ValueError, match=said):
        model(IDS, **options)


def test_rows_of_another_batch_do_not_go_on(folder_of):
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama"))
    cache = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="hold 2 rows, input_ids 1"):
        model(IDS[:1, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="row 1 has no new token"):
        model(IDS[:, :1], past_key_values=cache, attention_mask=np.array([[1], [0]]))


def test_states_between_layers_lead_to_the_logits(model):
    output = model(IDS, output_hidden_states=True, labels=IDS)
    assert isinstance(output, CausalLMOutput) and output.keys() == [
        "loss",
        "logits",
        "hidden_states",
    ]
    assert output[0] is output.loss and output["logits"] is output.logits and len(output) == 3
    layers = model.engine_config.model_config.num_layers
    assert len(output.hidden_states) == layers + 1
    head = model.get_output_embeddings().weight.asnumpy()
    logits = output.hidden_states[-1].asnumpy() @ head.T
    np.testing.assert_allclose(logits, output.logits.asnumpy(), atol=2e-5)
    table = model.get_input_embeddings().weight.asnumpy()
    entering = output.hidden_states[0].asnumpy()
    if model.config.model_type == "llama":
        np.testing.assert_array_equal(entering, table[IDS])
    np.testing.assert_array_equal(model(IDS, logits_to_keep=2).asnumpy(), output.logits[:, -2:])


def test_rows_are_added_for_new_tokens_and_taken_away(model, tmp_path):
    before, rows = model(IDS).asnumpy(), model.config.vocab_size
    counted = model.num_parameters()
    table = model.resize_token_embeddings(rows + 3, pad_to_multiple_of=8)
    more = model.config.vocab_size
    assert more % 8 == 0 and rows + 3 <= more < rows + 11 and table.weight.shape[0] == more
    weights = table.weight.asnumpy()
    np.testing.assert_allclose(weights[rows], weights[:rows].mean(0), atol=1e-6)
    np.testing.assert_array_equal(model(IDS).asnumpy()[:, :, :rows], before)
    tables = 1 if model.config.tie_word_embeddings else 2
    added = (more - rows) * tables * model.config.hidden_size
    assert model.num_parameters() == counted + added
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).vocab_size == more
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened(IDS).asnumpy(), model(IDS).asnumpy())
    model.resize_token_embeddings(rows)
    np.testing.assert_array_equal(model(IDS).asnumpy(), before)
    with pytest.raises(ValueError, match="whole number above 0"):
        model.resize_token_embeddings(0)


def test_a_resized_model_trains_new_rows(folder_of):
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama"))
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 1)
    ids = IDS.copy()
    ids[:, -1] = rows
    assert float(model(ids, labels=ids)) > 0


def test_types_and_places(model):
    single = model(IDS).asnumpy()
    exact = model.get_memory_footprint()
    assert model.device == "cpu" and model.can_generate() and model.to("cpu") is model
    assert model.bfloat16() is model and model.dtype == ms.bfloat16
    assert model.get_memory_footprint() == exact // 2
    assert np.abs(model(IDS).asnumpy() - single).max() < 0.1
    assert model.to(ms.float16).dtype == ms.float16 and model.half().dtype == ms.float16
    assert model.to(dtype="float32").dtype == ms.float32
    with pytest.raises(ValueError, match="cannot be moved to 'cuda:0'"):
        model.to("cuda:0")


def test_layers_are_computed_again_when_asked(folder_of):
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama"))
    before = model(IDS).asnumpy()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing
    assert model.engine_config.model_config.recompute_granularity == "full"
    np.testing.assert_array_equal(model(IDS).asnumpy(), before)
    model.gradient_checkpointing_disable()
    assert model.engine_config.model_config.recompute_granularity is None
    with pytest.raises(ValueError, match="has 'early_stop'"):
        model.gradient_checkpointing_enable({"early_stop": True})


def test_words_of_loading(folder_of):
    place = folder_of("llama")
    opened = AutoModelForCausalLM.from_pretrained(
        place.parent, subfolder=place.name, dtype=ms.float16, load_in_8bit=False
    )
    assert opened.dtype == ms.float16
    assert AutoConfig.from_pretrained(place.parent, subfolder="llama") == opened.config
    assert '"hidden_size"' in opened.config.to_json_string()
    with pytest.raises(ValueError, match="load_in_8bit is given, but weights stay as they are"):
        AutoModelForCausalLM.from_pretrained(place, load_in_8bit=True)
    without = opened.num_parameters(exclude_embeddings=True)
    table = opened.config.vocab_size * opened.config.hidden_size
    assert without == opened.num_parameters() - table


@pytest.mark.parametrize(
    "given",
    [
        {"hidden_size": None},
        {"hidden_size": [64]},
        {"hidden_size": "64"},
        {"hidden_size": 64.0},
        {"hidden_size": 64, "multiple_of": 0},
        {"hidden_size": 64, "ffn_dim_multiplier": "1.3"},
    ],
)
def test_sizes_that_cannot_be_computed_with_are_named(given):
    with pytest.raises(
        ValueError, match=rf"{list(given)[-1]} is .*, but must be a .*number above 0"
    ):
        LlamaConfig(**given)


def test_no_argument_is_suggested_in_its_own_place():
    with pytest.raises(TypeError, match="takes no argument 'rope_theta'; it takes"):
        GPT2Config(rope_theta=1e4)
