# SPDX-License-Identifier: Apache-2.0
"""The predecessor's names, and what its scripts do with them on one rank."""

import importlib
import json

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
import tiny_models
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore.common.api import _pynative_executor
from mindspore.common.initializer import Normal, One, Zero, initializer

from mindspeed_ms import old_names
from mindspeed_ms.core.config import (
    DatasetConfig,
    ModelParallelConfig,
    OptimizerConfig,
    TrainingConfig,
    TransformerConfig,
)
from mindspeed_ms.core.dist_checkpointing import (
    get_checkpoint_name,
    get_last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mindspeed_ms.core.optimizer import (
    Float16OptimizerWithFloat16Params,
    MixedPrecisionOptimizer,
    get_optimizer,
    get_optimizer_param_scheduler,
)
from mindspeed_ms.core.optimizer.zero.adamw_zero import AdamW
from mindspeed_ms.core.tensor_parallel import (
    ColumnParallelLinear,
    LinearWithFrozenWeight,
    LinearWithGradAccumulationAndAsyncCommunication,
    VocabParallelCrossEntropy,
)
from mindspeed_ms.legacy.model import (
    CoreAttention,
    ParallelAttention,
    ParallelTransformer,
    ParallelTransformerLayer,
    get_attention_mask,
)
from mindspeed_ms.legacy.model.activation import get_act_func
from mindspeed_ms.legacy.model.language_model import get_language_model
from mindspeed_ms.legacy.model.transformer import _get_num_layers
from mindspeed_ms.training import TrainOneStepCell, get_loss_func, get_model, train
from mindspeed_ms.training.grad_handler import GradAccumulator
from mindspeed_ms.training.utils import set_weight_decay

SIZES = dict(tiny_models.SCRIPT)

NAMES = """
core.config AllConfig DatasetConfig LoraConfig MoEConfig ModelParallelConfig OptimizerConfig
core.config TrainingConfig TransformerConfig get_args init_configs_from_yaml set_global_args
core.context_parallel.flash_sp FlashSP
core.context_parallel.ring_attention RingAttention
core.context_parallel.ulysses_context_parallel UlyssesContextAttention
core.context_parallel.utils get_batch_on_this_cp_rank get_sp_chuncks
core.context_parallel.utils get_sp_chuncks_attn_mask_general get_sp_chuncks_general
core.dist_checkpointing load_checkpoint save_checkpoint get_checkpoint_name get_last_checkpoint
core.distributed DistributedDataParallel DistributedDataParallelConfig ParamAndGradBuffer
core.optimizer MixedPrecisionOptimizer Float16OptimizerWithFloat16Params DistributedOptimizer
core.optimizer get_optimizer get_optimizer_param_scheduler
core.optimizer.distrib_optimizer DistributedOptimizer
core.optimizer.zero.adamw_zero AdamW
core.parallel_state get_context_parallel_group get_context_parallel_group_for_hybrid_ulysses
core.parallel_state get_context_parallel_rank get_context_parallel_world_size
core.parallel_state get_data_parallel_group get_data_parallel_rank get_data_parallel_world_size
core.parallel_state get_expert_model_parallel_group get_expert_model_parallel_rank
core.parallel_state get_pipeline_model_parallel_group get_pipeline_model_parallel_rank
core.parallel_state get_pipeline_model_parallel_world_size get_tensor_model_parallel_group
core.parallel_state get_tensor_model_parallel_rank get_tensor_model_parallel_world_size
core.parallel_state initialize_model_parallel
core.tensor_parallel ColumnParallelLinear LinearWithGradAccumulationAndAsyncCommunication
core.tensor_parallel RowParallelLinear VocabParallelCrossEntropy VocabParallelEmbedding
core.tensor_parallel.cross_entropy VocabParallelCrossEntropy
core.tensor_parallel.layers LinearWithFrozenWeight VocabParallelEmbedding
core.tensor_parallel.random DATA_PARALLEL_GENERATOR RNGStateTracer TENSOR_PARALLEL_GENERATOR
core.tensor_parallel.random get_rng_tracer set_rng_seed
legacy.model ParallelAttention ParallelLMLogits ParallelMLP ParallelTransformer
legacy.model ParallelTransformerLayer RotaryEmbedding TransformerLanguageModel get_attention_mask
legacy.model.activation get_act_func
legacy.model.enums AttnMaskType
legacy.model.eos_mask EosMask
legacy.model.gpt_model GPTModel
legacy.model.language_model Embedding get_language_model
legacy.model.module Module
legacy.model.moe.experts SequentialMLP
legacy.model.moe.moe_layer MoELayer
legacy.model.moe.router TopKRouter
legacy.model.moe.token_dispatcher MoEAlltoAllTokenDispatcher
legacy.model.rotary_pos_embedding RotaryEmbedding
legacy.model.transformer CoreAttention ParallelLMLogits ParallelMLP _get_num_layers
training ParallelTrainingReducer TrainOneStepCell get_loss_func get_model train
training.grad_handler GradAccumulator
training.loss_func LossWithMask
training.training TrainOneStepCell pretrain train
training.utils set_weight_decay
"""


@pytest.fixture(autouse=True)
def tape_is_off(single_rank):
    """As in a script's own process."""
    _pynative_executor.set_grad_flag(False)


@pytest.mark.parametrize("line", NAMES.strip().splitlines())
def test_names_are_where_scripts_import_them(line):
    path, *names = line.split()
    module = importlib.import_module("mindspeed_ms." + path)
    for name in names:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("path", old_names.HOMES)
def test_the_table_of_names_holds(path):
    module = importlib.import_module("mindspeed_ms." + path)
    for name, home in old_names.HOMES[path].items():
        found = importlib.import_module("mindspeed_ms.predecessor." + home)
        assert getattr(module, name) is getattr(found, name)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense


# --- masks and layouts


def scores(q, k, v, mask, adds):
    """[S, B, N, D] and a mask [1 or B, 1, S, S] -> [S, B, N * D] in numpy."""
    q, k, v = (part.transpose(1, 2, 0, 3) for part in (q, k, v))
    values = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    values = values + mask if adds else np.where(mask != 0, -np.inf, values)
    weights = np.exp(values - values.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.transpose(2, 0, 1, 3).reshape(q.shape[2], q.shape[0], -1)


@pytest.mark.parametrize("kind", ["uint8", "int32", "float32", "bool"])
@pytest.mark.parametrize("function", ["attn_mask_add", "attn_mask_fill"])
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_masks_are_added_or_hide(kind, function, dims):
    config = TransformerConfig(**SIZES, mask_func_type=function)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(8, 2, 4, 4)).astype(np.float32) for _ in range(3))
    mask = np.triu(np.ones((8, 8)), 1).astype(kind)[(None,) * (dims - 2)]
    out = CoreAttention(1, config)(*(Tensor(part) for part in (q, k, v)), Tensor(mask))
    adds = function == "attn_mask_add" and kind != "bool"
    np.testing.assert_allclose(
        out.asnumpy(), scores(q, k, v, mask.astype(np.float32), adds), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("flash", [False, True])
def test_a_query_without_keys_gets_the_mean_of_the_values(flash):
    grouped = {"group_query_attention": True, "num_query_groups": 2}
    kinds = {"mask_func_type": "attn_mask_fill", "use_flash_attention": flash}
    core = CoreAttention(1, TransformerConfig(**SIZES, **kinds, **grouped))
    rng = np.random.default_rng(0)
    q = rng.normal(size=(8, 2, 4, 4)).astype(np.float32)
    k, v = (rng.normal(size=(8, 2, 2, 4)).astype(np.float32) for _ in range(2))
    mask = np.tril(np.ones((2, 1, 8, 8), np.uint8))  # 1 hides: the last query sees nothing
    mask[1] = 0
    factors = rng.normal(size=(8, 2, 16)).astype(np.float32)

    def forward(v):
        out = core(Tensor(q), Tensor(k), v, Tensor(mask))
        return (out * Tensor(factors)).sum(), out

    (_, out), grad = ops.value_and_grad(forward, 0, has_aux=True)(Tensor(v))
    queries, keys, values = (
        np.repeat(part, 4 // part.shape[2], axis=2).transpose(1, 2, 0, 3) for part in (q, k, v)
    )
    weights = np.where(mask, -10000.0, queries @ keys.swapaxes(2, 3) / 2.0)
    weights = np.exp(weights - weights.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = (weights @ values).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(out.asnumpy(), expected.reshape(8, 2, 16), rtol=1e-4, atol=1e-6)
    slopes = weights.swapaxes(2, 3) @ factors.reshape(8, 2, 4, 4).transpose(1, 2, 0, 3)
    slopes = slopes.reshape(2, 2, 2, 8, 4).sum(2).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(grad.asnumpy(), slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["BSH", "SBH"])
def test_heads_may_stand_before_the_sequence(layout):
    data = DatasetConfig(data_layout=layout)
    config = TransformerConfig(**SIZES, mask_func_type="attn_mask_fill", dataset_config=data)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(8, 2, 4, 4)).astype(np.float32) for _ in range(3))
    mask = np.triu(np.ones((8, 8)), 1).astype(np.uint8)
    core = CoreAttention(1, config)
    bnsd = (Tensor(part.transpose(1, 2, 0, 3).copy()) for part in (q, k, v))
    expected = scores(q, k, v, mask, adds=False)
    out = core(*bnsd, Tensor(mask)).asnumpy()
    out = out.transpose(1, 0, 2) if layout == "BSH" else out
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)
    three = Tensor(np.ones((8, 2, 3, 4), np.float32))
    with pytest.raises(ValueError, match="4 heads must stand in the third place"):
        core(three, three, three, None)


def test_cells_of_a_script_have_the_batch_first():
    sizes = {key: value for key, value in SIZES.items()}
    first = TransformerConfig(**sizes)
    last = TransformerConfig(**sizes, dataset_config=DatasetConfig(data_layout="SBH"))
    states = np.random.default_rng(0).normal(size=(8, 2, 16)).astype(np.float32)
    for kind in (ParallelAttention, ParallelTransformerLayer):
        here, there = kind(first, 1), kind(last, 1)
        ms.load_param_into_net(here, there.parameters_dict())
        expected = there(Tensor(states))
        out = here(Tensor(states.transpose(1, 0, 2).copy()))
        out, expected = (one[0] if isinstance(one, tuple) else one for one in (out, expected))
        np.testing.assert_array_equal(out.asnumpy().transpose(1, 0, 2), expected.asnumpy())


def language_model(layout):
    config = TransformerConfig(**SIZES, dataset_config=DatasetConfig(data_layout=layout))
    model, key = get_language_model(
        config, num_tokentypes=0, add_pooler=False, encoder_attn_mask_type=None
    )
    assert key == "language_model"
    return model


def test_the_attention_mask_says_what_may_be_looked_at():
    tokens = Tensor(np.array([[1, 1, 1], [1, 1, 0]], np.float32))
    mask = get_attention_mask(tokens)
    assert mask.shape == (2, 3, 3) and mask.dtype == ms.float32
    np.testing.assert_array_equal(mask[0].asnumpy(), np.tril(np.ones((3, 3))))
    np.testing.assert_array_equal(mask[1].asnumpy(), [[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(
        get_attention_mask(tokens.swapaxes(0, 1), "SBH").asnumpy(), mask.asnumpy()
    )
    with pytest.raises(ValueError, match="give BSH or SBH"):
        get_attention_mask(tokens, "BHS")


def test_a_stack_that_stands_alone_takes_its_argument():
    config = TransformerConfig(8, 2, 2, 16, 32, seq_length=4, compute_dtype="float32")
    stack = ParallelTransformer(config=config, model_type=None, post_norm=False)
    x = Tensor(np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32))
    assert stack(x, None).shape == (3, 4, 16)


INITIALIZERS = {
    "a class": (Normal, 0.0, 0.01),
    "another class": (Zero, 0.0, 0.0),
    "an object": (Normal(0.5), 0.0, 0.5),
    "a name": ("xavier_uniform", 0.0, (2.0 / 96) ** 0.5),
    "values": (np.full((64, 32), 2.0), 2.0, 0.0),
    "a tensor": (Tensor(np.full((64, 32), 2.0, np.float32)), 2.0, 0.0),
    "a tensor that is not filled yet": (initializer("normal", (64, 32)), 0.0, 0.01),
}


@pytest.mark.parametrize("kind", INITIALIZERS)
def test_weights_start_as_an_initializer_says(kind):
    given, mean, deviation = INITIALIZERS[kind]
    layer = ColumnParallelLinear(
        32, 64, config=ModelParallelConfig(), init_method=given, bias_init=One
    )
    values = layer.weight.asnumpy()
    assert values.std() == pytest.approx(deviation, rel=0.1, abs=1e-7)
    assert values.mean() == pytest.approx(
        2.0 if deviation == 0 and given is not Zero else 0, abs=0.05
    )
    assert (layer.bias.asnumpy() == 1.0).all()


@pytest.mark.parametrize("given", [None, {}, np.zeros((32, 64))])
def test_what_gives_no_weights_is_named(given):
    with pytest.raises(ValueError, match="init_method (is|has values of shape)"):
        ColumnParallelLinear(32, 64, config=ModelParallelConfig(), init_method=given)


def test_a_star_brings_the_names_of_the_training_loop():
    module = importlib.import_module("mindspeed_ms.training")
    names = {"TrainOneStepCell", "get_model", "train", "pretrain", "ParallelTrainingReducer"}
    assert names <= set(module.__all__)


def test_the_cross_entropy_takes_any_arguments():
    logits = Tensor(np.zeros((3, 8), np.float32))
    losses = VocabParallelCrossEntropy(SIZES, reduction="none")(logits, Tensor([1, 2, 3], ms.int32))
    np.testing.assert_allclose(losses.asnumpy(), np.log(8.0), rtol=1e-6)


def test_a_number_fills_a_weight():
    config = ModelParallelConfig()
    layer = ColumnParallelLinear(4, 3, config=config, init_method=0.5, bias_init="zeros")
    np.testing.assert_array_equal(layer.weight.asnumpy(), np.full((3, 4), 0.5))


def test_the_model_is_a_list_that_can_be_called():
    training = TrainingConfig(ModelParallelConfig(), wrap_with_ddp=True)
    model = get_model(lambda **_: nn.Dense(4, 2), training)
    assert isinstance(model, nn.CellList) and len(model) == 1 and model[0].buffers
    assert [param.name for param in model.trainable_params()] == ["weight", "bias"]
    assert model(Tensor(np.ones((3, 4), np.float32))).shape == (3, 2)


def test_the_language_model_returns_the_layout():
    first, last = language_model("BSH"), language_model("SBH")
    ms.load_param_into_net(first, last.parameters_dict())
    ids = Tensor(np.arange(16, dtype=np.int32).reshape(2, 8))
    mask = Tensor(np.triu(np.ones((1, 1, 8, 8), np.bool_), k=1))
    out, expected = first(ids, None, mask), last(ids, None, mask)
    assert out.shape == (2, 8, 16) and expected.shape == (8, 2, 16)
    np.testing.assert_array_equal(out.asnumpy().swapaxes(0, 1), expected.asnumpy())


# --- a whole script


class Net(nn.Cell):
    """A language model and a loss of the script's own."""

    def __init__(self, config):
        super().__init__()
        self.model, _ = get_language_model(
            config, num_tokentypes=0, add_pooler=False, encoder_attn_mask_type=None
        )

    def construct(self, input_ids, labels, attention_mask):
        return ops.abs(self.model(input_ids, None, attention_mask) - labels).mean()


def dataset(count=4):
    rng = np.random.default_rng(2)
    rows = [
        (
            rng.integers(0, 32, 8).astype(np.int32),
            rng.normal(size=(8, 16)).astype(np.float32),
            np.triu(np.ones((1, 8, 8)), 1).astype(np.uint8),
        )
        for _ in range(count)
    ]
    columns = ["input_ids", "labels", "attention_mask"]
    return ds.GeneratorDataset(rows, columns, shuffle=False).batch(2)


def script(folder, optimizer="AdamW", **training):
    parallel = ModelParallelConfig()
    training = TrainingConfig(
        parallel, DatasetConfig(batch_size=2), output_dir=str(folder), **training
    )
    net = Net(TransformerConfig(**SIZES, parallel_config=parallel, training_config=training))
    config = OptimizerConfig(
        parallel, optimizer_type="AdamW", learning_rate=1e-2, lr_decay_style="linear"
    )
    if optimizer == "nn.Adam":
        made, scheduler = nn.Adam(net.trainable_params(), learning_rate=1e-2), None
    else:
        groups = set_weight_decay(net.trainable_params(), 0.1)
        made = get_optimizer(config, training, groups, net)
        scheduler = get_optimizer_param_scheduler(made, config, DatasetConfig(), training)
    return TrainOneStepCell(net, made, scheduler, training, None), training


@pytest.mark.parametrize("optimizer", ["AdamW", "nn.Adam"])
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_training_goes_on_where_a_checkpoint_was_written(tmp_path, capsys, optimizer, form):
    given = {
        "training_iters": 6,
        "save_interval": 3,
        "ckpt_format": "safetensors" if form == "safetensors" else "ckpt",
    }
    cell, training = script(tmp_path, optimizer, **given)
    whole = train(cell, dataset(), training)
    assert len(whole) == 6 and whole[-1] < whole[0]
    lines = [line for line in capsys.readouterr().out.splitlines() if "Epoch" in line]
    assert lines[2].startswith(f"INFO - Epoch: 2, Step: 1, Loss: {whole[2]:.16f}, Finite_grads: T")
    names = sorted(path.name for path in (tmp_path / "rank_0").iterdir())
    assert names == [f"network_rank_0-1_1.{form}", f"network_rank_0-2_2.{form}"]
    assert get_last_checkpoint(tmp_path / "rank_0", form).endswith(names[1])
    other, training = script(tmp_path, optimizer, **given)
    path = get_checkpoint_name(tmp_path, form, prefix="network", epoch_num=1, step_num=1)
    resume = load_checkpoint(
        training,
        other.network_with_loss,
        other.optimizer,
        other.opt_param_scheduler,
        path,
        format=form,
    )
    assert resume == {"epoch_num": 1, "step_num": 1}
    later = train(other, dataset(), training, resume_dict=resume)
    assert later == pytest.approx(whole[3:], rel=1e-6)


def test_old_checkpoints_are_forgotten_after_the_new_one(tmp_path):
    cell, training = script(tmp_path, training_iters=1)
    for step in range(4):
        where = {"ckpt_path": tmp_path, "step_num": step, "keep_checkpoint_max": 2}
        save_checkpoint(training, cell.network_with_loss, None, None, **where)
    assert sorted(path.name for path in (tmp_path / "rank_0").iterdir()) == [
        "network_rank_0-0_2.ckpt",
        "network_rank_0-0_3.ckpt",
    ]


# --- optimizers and schedules


def weights():
    return [
        Parameter(Tensor(np.ones((2, 3), np.float32)), name="a.weight"),
        Parameter(Tensor(np.ones(3, np.float32)), name="a.bias"),
    ]


def test_groups_of_weight_decay():
    params = weights()
    decayed, plain, order = set_weight_decay(params, 0.3)
    assert decayed == {"params": params[:1], "weight_decay": 0.3}
    assert plain == {"params": params[1:], "weight_decay": 0.0}
    assert order == {"order_params": params}


@pytest.mark.parametrize("kind", ["get_optimizer", "AdamW", "mixed", "float16"])
def test_a_step_of_adamw(kind):
    params = weights()
    config = OptimizerConfig(optimizer_type="mint.AdamW", learning_rate=0.1, weight_decay=0.5)
    if kind == "get_optimizer":
        optimizer = get_optimizer(config, TrainingConfig(), params)
    elif kind == "AdamW":
        optimizer = AdamW(None, params, learning_rate=0.1, weight_decay=0.5)
    else:
        made = mint.optim.AdamW(params, lr=0.1, weight_decay=0.5)
        classes = {"mixed": MixedPrecisionOptimizer, "float16": Float16OptimizerWithFloat16Params}
        optimizer = classes[kind](made, config, None, None)
    assert optimizer.lrs == [pytest.approx(0.1)]
    grads = [Tensor(np.full(param.shape, 2.0, np.float32)) for param in params]
    assert optimizer(grads)
    for param in params:
        np.testing.assert_allclose(param.asnumpy(), 1 - 0.1 * 0.5 - 0.1, rtol=1e-5)


class Sum(nn.Cell):
    """The sum of a dense layer's results."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(2, 1)

    def construct(self, x):
        return self.dense(x).sum()


@pytest.mark.parametrize("made", ["get_optimizer", "nn.SGD"])
def test_gradients_are_clipped_as_the_training_section_says(made):
    training = TrainingConfig(grad_clip_kwargs={"clip_value": 0.01}, epochs=1)
    net = Sum()
    before = [param.asnumpy().copy().ravel() for param in net.trainable_params()]
    config = OptimizerConfig(optimizer_type="SGD", learning_rate=1.0, sgd_momentum=0.0)
    optimizer = (
        nn.SGD(net.trainable_params(), learning_rate=1.0)
        if made == "nn.SGD"
        else get_optimizer(config, training, net.trainable_params(), net)
    )
    cell = TrainOneStepCell(net, optimizer, None, training)
    _, is_finite, scale, rate, norm = cell(Tensor(np.array([[3.0, 4.0]], np.float32)))
    after = [param.asnumpy().ravel() for param in net.trainable_params()]
    moved = np.concatenate(before) - np.concatenate(after)
    assert np.linalg.norm(moved) == pytest.approx(0.01, rel=1e-3)
    assert norm == pytest.approx(np.sqrt(26), rel=1e-5) and is_finite and scale == rate == 1.0


def test_a_network_of_which_a_part_is_trained_is_named():
    net = nn.Dense(2, 2)
    get_optimizer(OptimizerConfig(), TrainingConfig(), net.trainable_params(), net)
    with pytest.raises(ValueError, match="the optimizer was not given it"):
        get_optimizer(OptimizerConfig(), TrainingConfig(), [net.weight])
    with pytest.raises(ValueError, match="neither params nor network"):
        get_optimizer(OptimizerConfig(), TrainingConfig())


@pytest.mark.parametrize("made", ["mint", "ours"])
def test_the_schedule_sets_the_groups(made, tmp_path):
    config = OptimizerConfig(
        learning_rate=1e-5, lr_warmup_iters=10, lr_decay_iters=100, lr_decay_style="linear"
    )
    params = weights()
    optimizer = mint.optim.AdamW(params, lr=1.0)
    if made == "ours":
        optimizer = MixedPrecisionOptimizer(optimizer, config)
    scheduler = get_optimizer_param_scheduler(
        optimizer, config, DatasetConfig(batch_size=2), TrainingConfig(training_iters=100)
    )

    def rate():
        value = optimizer.param_groups[0]["lr"]
        return float(value.asnumpy()) if isinstance(value, Tensor) else value

    assert rate() == 0.0
    for _ in range(3):
        scheduler.step(2)
    assert rate() == pytest.approx(3e-6, rel=1e-6)
    assert scheduler.get_lr() == 1e-5 * 6 / 20
    again = get_optimizer_param_scheduler(
        optimizer, config, DatasetConfig(batch_size=2), TrainingConfig(training_iters=100)
    )
    again.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert rate() == pytest.approx(3e-6, rel=1e-6)


# --- small parts


def test_gradients_are_accumulated():
    one = [Tensor(np.array([1.0, 2.0], np.float32))]
    accumulate = GradAccumulator(3)
    assert accumulate(one) is None and accumulate(one) is None
    assert accumulate([Tensor(np.array([4.0, 2.0], np.float32))])[0].asnumpy().tolist() == [2, 2]
    assert accumulate(one) is None
    with pytest.raises(ValueError, match="op is 'max'"):
        GradAccumulator(2, "max")


def test_the_loss_takes_flat_logits_and_no_mask():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32), np.array([0, 1, 2, 3, 4, 0])
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
    loss = get_loss_func(TrainingConfig())
    labels = Tensor(labels.astype(np.int32))
    assert float(loss(Tensor(logits), labels).asnumpy()) == pytest.approx(expected.mean())
    mask = Tensor(np.array([1, 0, 0, 1, 0, 0], np.float32))
    assert float(loss(Tensor(logits), labels, mask).asnumpy()) == pytest.approx(
        expected[[0, 3]].mean()
    )
    made = get_loss_func(TrainingConfig(), return_instance=False)()
    assert type(made) is type(loss)


def test_activations_by_name():
    x = np.linspace(-2, 2, 8).astype(np.float32)
    np.testing.assert_allclose(
        get_act_func("silu")(Tensor(x)).asnumpy(), x / (1 + np.exp(-x)), rtol=1e-5
    )
    with pytest.raises(ValueError, match="hidden_act is 'nonsense'"):
        get_act_func("nonsense")


def test_layers_of_a_stage_are_a_number_and_a_pair():
    layers = _get_num_layers(TransformerConfig(**SIZES), None)
    count, first = layers
    assert (layers, count, first) == (2, 2, 0)


@pytest.mark.parametrize("transpose_b", [True, False])
def test_a_linear_whose_weight_the_caller_holds(transpose_b):
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 2, 4), (5, 4), (5,)))
    weight = Parameter(Tensor(w if transpose_b else w.T.copy()), name="w")
    layer = LinearWithGradAccumulationAndAsyncCommunication(transpose_b=transpose_b)
    np.testing.assert_allclose(
        layer(Tensor(x), weight, Tensor(b)).asnumpy(), x @ w.T + b, rtol=1e-4, atol=1e-5
    )
    frozen = LinearWithFrozenWeight(bias=False, transpose_b=transpose_b)
    with pytest.raises(ValueError, match="w is trainable"):
        frozen(Tensor(x), weight)
    weight.requires_grad = False
    np.testing.assert_allclose(frozen(Tensor(x), weight).asnumpy(), x @ w.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"), [(0, "the training data is empty"), (3, "a batch has 3 rows")]
)
def test_mistakes_in_the_data_are_named(rows, message):
    batches = [{"x": Tensor(np.ones((rows, 2), np.float32))}] if rows else []
    training = TrainingConfig(dataset_config=DatasetConfig(micro_batch_num=2), epochs=1)
    net = nn.Dense(2, 1)
    cell = TrainOneStepCell(net, nn.SGD(net.trainable_params()), None, training)
    with pytest.raises(ValueError, match=message):
        train(cell, batches, training)
