# SPDX-License-Identifier: Apache-2.0
"""What ``from_pretrained`` is given: a name that is none, and values to change."""

import pytest

from mindspeed_ms import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, GPT2Config


@pytest.mark.parametrize("name", [None, 5, b"gpt2", [], object()])
@pytest.mark.parametrize("auto", [AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer])
def test_what_is_no_name_says_so(auto, name):
    with pytest.raises(TypeError, match="is neither a name nor a path; give the folder of a model"):
        auto.from_pretrained(name)


@pytest.mark.parametrize("read", [AutoConfig.from_pretrained, GPT2Config.from_pretrained])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hiden_size": 64}, TypeError, "takes no argument 'hiden_size'; did you mean"),
        ({"num_layers": 0}, ValueError, "config.json has n_layer 0, but it must be a whole"),
        ({"num_layers": "2"}, ValueError, "config.json has n_layer '2', but it must be a whole"),
        ({"hidden_size": 100}, ValueError, "n_embd 100 and n_head 12; the first must be a"),
        ({"compute_dtype": "float13"}, ValueError, "float13"),
    ],
)
def test_a_wrong_change_is_refused(read, changes, error, message):
    with pytest.raises(error) as caught:
        read("gpt2", **changes)
    assert message in str(caught.value)


def test_changes_of_either_vocabulary_hold():
    config = AutoConfig.from_pretrained(
        "gpt2", num_layers=2, n_embd=24, resid_pdrop=0.0, compute_dtype="bfloat16", revision="main"
    )
    model = config.all_config().model_config
    assert (model.num_layers, model.hidden_size, model.hidden_dropout_rate) == (2, 24, 0.0)
    assert model.compute_dtype == "bfloat16"
    assert "revision" not in config.to_dict() and "compute_dtype" not in config.to_dict()
