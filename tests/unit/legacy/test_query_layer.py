# SPDX-License-Identifier: Apache-2.0
"""PanGu-alpha's last layer: queries from a table of positions, keys and values from the model."""

import hf_models
import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms import AutoModel, PanguAlphaConfig, PanguAlphaHeadModel
from mindspeed_ms.config.build import assemble
from mindspeed_ms.plan.layer_placement import layer_placement


def norm(x, weight, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def gelu(x):
    erf = np.vectorize(__import__("math").erf)
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def reference(tensors, ids, layers, heads):
    """Logits in NumPy, fp64, from the names of the hub."""

    def get(name):
        return tensors[f"transformer.{name}"].astype(np.float64)

    def linear(x, name):
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    def block(x, name, queries=None):
        normed = norm(x, get(f"{name}.ln_1.weight"), get(f"{name}.ln_1.bias"))
        source = normed if queries is None else queries
        q, k, v = (
            linear(part, f"{name}.attn.{word}_proj").reshape(len(x), heads, -1).swapaxes(0, 1)
            for part, word in ((source, "q"), (normed, "k"), (normed, "v"))
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        context = (weights @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = x + linear(context, f"{name}.attn.c_proj")
        normed = norm(x, get(f"{name}.ln_2.weight"), get(f"{name}.ln_2.bias"))
        return x + linear(gelu(linear(normed, f"{name}.mlp.c_fc")), f"{name}.mlp.c_proj")

    rows = []
    for row in ids:
        x = get("wte.weight")[row] + get("wpe.weight")[: len(row)]
        for number in range(layers - 1):
            x = block(x, f"h.{number}")
        x = norm(x, get("ln_f.weight"), get("ln_f.bias"))
        x = block(x, f"h.{layers - 1}", get("wqe.weight")[: len(row)])
        rows.append(x @ get("wte.weight").T)
    return np.stack(rows)


@pytest.fixture
def folder(tmp_path):
    hf_models.write(tmp_path / "pangu", "pangu")
    return tmp_path / "pangu"


@pytest.fixture(scope="module")
def expected():
    tensors = hf_models.tensors_of(hf_models.CONFIGS_OF_OURS["pangu"])
    return reference(tensors, hf_models.IDS, layers=4, heads=4)


def test_logits_are_those_of_the_formula(folder, expected):
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, PanguAlphaHeadModel)
    np.testing.assert_allclose(model(hf_models.IDS).asnumpy(), expected, atol=2e-5)


def test_generated_tokens_are_the_likeliest(folder):
    model = AutoModel.from_pretrained(folder)
    ids = hf_models.IDS[:, :4]
    model.generation_config.eos_token_id = None
    tokens = np.asarray(model.generate(ids, max_new_tokens=6, do_sample=False))
    for _ in range(6):
        chosen = model(ids).asnumpy()[:, -1].argmax(-1)
        ids = np.concatenate([ids, chosen[:, None]], axis=1)
    np.testing.assert_array_equal(tokens, ids)


@pytest.mark.parametrize("form", ["huggingface", "mindspeed_ms", "mindspore"])
def test_it_is_saved_and_loaded(form, folder, expected, tmp_path):
    model = AutoModel.from_pretrained(folder)
    again = AutoModel.from_pretrained(model.save_pretrained(tmp_path / "saved", format=form))
    np.testing.assert_array_equal(again(hf_models.IDS).asnumpy(), model(hf_models.IDS).asnumpy())


def test_megatron_has_no_such_layer(folder, tmp_path):
    with pytest.raises(ValueError, match="use_query_layer"):
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "m", format="megatron")


def test_sizes():
    config = PanguAlphaConfig.from_pretrained("pangualpha_2_6b")
    assert config.num_parameters() == 2_625_295_360
    assert PanguAlphaConfig().num_parameters() == 2_625_295_360
    small = PanguAlphaConfig(
        hidden_size=768,
        ffn_hidden_size=768 * 4,
        num_layers=12,
        num_heads=12,
        checkpoint_name_or_path="",
    )
    assert PanguAlphaHeadModel(small).num_parameters() == small.num_parameters()
    assert small.all_config().model_config.num_layers == 11


def test_the_table_and_the_layer_are_trained(folder):
    model = AutoModel.from_pretrained(folder)
    model.set_train()
    weights = model.trainable_params()
    table = next(w for w in weights if "query_embeddings" in w.name)
    _, gradients = ms.value_and_grad(lambda ids: model(ids, labels=ids), None, weights)(
        ms.Tensor(hf_models.IDS, ms.int32)
    )
    by_name = {w.name: g.asnumpy() for w, g in zip(weights, gradients, strict=True)}
    gradient, values = by_name[table.name], table.asnumpy().copy()
    assert np.abs(gradient[:11]).min(-1).max() > 0 and not gradient[12:].any()
    step, losses = 1e-2 * np.sign(gradient), []
    for sign in (1, -1):
        table.set_data(ms.Tensor(values + sign * step))
        losses.append(float(model(hf_models.IDS, labels=hf_models.IDS)))
    slope = (losses[0] - losses[1]) / 2e-2
    assert slope == pytest.approx(float(np.abs(gradient).sum()), rel=2e-2)


@pytest.mark.parametrize(
    ("stages", "layers", "chunks"),
    [(2, 11, 1), (4, 11, 1), (2, 11, 2), (3, 5, 1)],
)
def test_stages_share_out_the_layer_too(stages, layers, chunks):
    config = assemble(
        {
            "model_config": {
                "vocab_size": 8,
                "seq_length": 8,
                "hidden_size": 8,
                "num_layers": layers,
                "num_attention_heads": 2,
                "use_query_layer": True,
            },
            "parallel_config": {
                "pipeline_model_parallel_size": stages,
                "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
            },
        }
    )
    placement = layer_placement(config.model_config, config.parallel_config)
    counts = [len(placement.layers_of_stage(stage)) for stage in range(stages)]
    each = (layers + 1) // stages
    assert counts == [each] * (stages - 1) + [each - 1]


@pytest.mark.parametrize(
    ("other", "moe"),
    [({"mtp_num_layers": 1, "position_embedding_type": "rope"}, {}), ({}, {"num_experts": 2})],
)
def test_what_it_does_not_go_with(other, moe):
    sizes = {"vocab_size": 8, "seq_length": 8, "hidden_size": 8, "num_layers": 2}
    sizes["num_attention_heads"] = 2
    with pytest.raises(ValueError, match="use_query_layer"):
        assemble({"model_config": {**sizes, "use_query_layer": True, **other}, "moe_config": moe})
