# SPDX-License-Identifier: Apache-2.0
"""Keys of the toolkit and of MindFormers: each is mapped, named as without effect, or refused."""

import re
import subprocess
import sys

import guides
import pytest
from mapped import FOUR, flat

from mindspeed_ms.toolkit.mapping import parallel, training
from mindspeed_ms.toolkit.mapping.parallel import ParallelMode, World, map_parallel, parallel_mode
from mindspeed_ms.toolkit.mapping.recompute import map_recompute


def test_the_mapping_runs_without_mindspore():
    modules = "arguments, auto_layout, model, options, parallel, precedence, recompute, training"
    script = (
        "import sys; sys.modules['mindspore'] = None\n"
        f"from mindspeed_ms.toolkit.mapping import {modules}, tree"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- parallel modes and sizes ----


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (0, "data_parallel"),
        (1, "semi_auto_parallel"),
        (2, "auto_parallel"),
        ("1", "semi_auto_parallel"),
        ("DATA_PARALLEL", "data_parallel"),
        ("SEMI_AUTO_PARALLEL", "semi_auto_parallel"),
        ("auto_parallel", "auto_parallel"),
        ("STAND_ALONE", "stand_alone"),
        (ParallelMode.STAND_ALONE, "stand_alone"),
    ],
)
def test_modes_by_name_and_number(value, mode):
    assert parallel_mode(value) == (ParallelMode(mode), [])


def test_the_spelling_of_the_guides_heading():
    heading = re.search(r"`(semi_auto_parall)`", guides.text("how_to_config"))[1]
    mode, lines = parallel_mode(heading)
    assert mode is ParallelMode.SEMI_AUTO_PARALLEL
    assert lines == ["parallel_mode semi_auto_parall means semi_auto_parallel"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "x",
            "parallel_mode 'x': use stand_alone, data_parallel, semi_auto_parallel or "
            "auto_parallel",
        ),
        ("data_paralel", "auto_parallel; did you mean 'data_parallel'?"),
        (3, "parallel_mode 3: hybrid_parallel leaves the cutting to the user's own cells"),
        ("HYBRID_PARALLEL", "use semi_auto_parallel with sizes"),
        (4, "parallel_mode 4: use stand_alone"),
    ],
)
def test_modes_that_do_not_exist(value, message):
    with pytest.raises(ValueError) as caught:
        parallel_mode(value)
    assert message in str(caught.value)


SEMI = {"parallel_mode": 1}
TABLE = [
    # context, parallel_config, world -> fields that it sets, lines
    ({"parallel_mode": "stand_alone"}, {}, World(1), {}, []),
    (
        {"parallel_mode": "stand_alone"},
        {"model_parallel": 2, "data_parallel": 1},
        World(1),
        {},
        ["parallel_config has no effect with parallel_mode stand_alone: model_parallel 2"],
    ),
    (
        {"parallel_mode": 0},
        {"data_parallel": 2},
        FOUR,
        {},
        ["parallel_config has no effect with parallel_mode data_parallel: data_parallel 2"],
    ),
    (
        {"parallel_mode": 0, "enable_parallel_optimizer": True, "gradients_mean": False},
        {},
        FOUR,
        {"training_config.use_distributed_optimizer": True},
        ["gradients_mean False has no effect: the gradient is that of the mean over the batch"],
    ),
    (
        {"parallel_mode": "auto_parallel"},  # the batch is that of these sizes
        {"data_parallel": 2, "model_parallel": 2},
        FOUR,
        {"parallel_config.tensor_model_parallel_size": 2},
        [],
    ),
    ({"parallel_mode": "auto_parallel"}, {"model_parallel": 2}, FOUR, {}, []),
    (
        SEMI,
        {"data_parallel": 2, "model_parallel": 2, "optimizer_shard": True},
        FOUR,
        {
            "training_config.use_distributed_optimizer": True,
            "parallel_config.tensor_model_parallel_size": 2,
        },
        [],
    ),
    (
        SEMI,
        {"model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 3},
        World(4, servers=2),
        {
            "parallel_config.tensor_model_parallel_size": 2,
            "parallel_config.pipeline_model_parallel_size": 2,
            "dataset_config.micro_batch_num": 3,
        },
        [],
    ),
    (
        SEMI,
        {"pipeline_stage": 4, "micro_batch_num": 4, "micro_batch_interleave_num": 2},
        FOUR,
        {
            "parallel_config.pipeline_model_parallel_size": 4,
            "dataset_config.micro_batch_num": 8,
        },
        [
            "pipeline_stage 4 is more than the number of servers (1): stages of one server share "
            "its memory bandwidth; a stage a server is the advice"
        ],
    ),
    (
        SEMI,
        {"data_parallel": 4, "micro_batch_num": 2, "micro_batch_interleaved_num": 2},
        FOUR,
        {"dataset_config.micro_batch_num": 4},
        [
            "micro_batch_num 2 with pipeline_stage 1: gradients of 2 micro-batches are added up "
            "before each step"
        ],
    ),
    (
        SEMI,
        {"model_parallel": 4, "use_seq_parallel": True},
        FOUR,
        {
            "parallel_config.tensor_model_parallel_size": 4,
            "parallel_config.sequence_parallel": True,
        },
        [],
    ),
    (
        SEMI,
        {"data_parallel": 4, "seq_parallel": True},
        FOUR,
        {},
        [
            "use_seq_parallel has no effect with model_parallel 1: it cuts what model-parallel "
            "ranks hold alike"
        ],
    ),
    (
        SEMI,
        {"data_parallel": 2, "model_parallel": 2, "vocab_emb_dp": True},
        FOUR,
        {"parallel_config.tensor_model_parallel_size": 2},
        [
            "vocab_emb_dp has no effect: the embedding is cut over the 2 model-parallel ranks; the "
            "numbers are the same, the memory is less"
        ],
    ),
    (
        SEMI,
        {"data_parallel": 4, "expert_parallel": 2, "gradient_aggregation_group": 3},
        FOUR,
        {
            "parallel_config.expert_model_parallel_size": 2,
            "training_config.ddp_num_buckets": 3,
            "training_config.overlap_grad_reduce": True,
        },
        [],
    ),
    (
        SEMI
        | {
            "enable_parallel_optimizer": True,
            "parallel_optimizer_config": {
                "gradient_accumulation_shard": True,
                "optimizer_weight_shard_size": 2,
            },
        },
        {"data_parallel": 4},
        FOUR,
        {
            "training_config.use_distributed_optimizer": True,
            "parallel_config.zero_level": "z2",
            "parallel_config.zero_shard_size": 2,
        },
        [],
    ),
    (
        SEMI | {"pipeline_stages": 2},
        {"data_parallel": 2, "micro_batch_num": 2},
        World(4, 4),
        {
            "parallel_config.pipeline_model_parallel_size": 2,
            "dataset_config.micro_batch_num": 2,
        },
        [],
    ),
    ({"parallel_mode": 2}, {"micro_batch_num": 2}, FOUR, {"dataset_config.micro_batch_num": 2}, []),
    (SEMI, {"context_parallel": 4}, FOUR, {"parallel_config.context_parallel_size": 4}, []),
]
ONE = {
    "parallel_config.tensor_model_parallel_size": 1,
    "parallel_config.pipeline_model_parallel_size": 1,
    "parallel_config.context_parallel_size": 1,
    "parallel_config.expert_model_parallel_size": 1,
    "dataset_config.micro_batch_num": 1,
    "training_config.wrap_with_ddp": True,
}


@pytest.mark.parametrize(("context", "config", "world", "fields", "lines"), TABLE)
def test_parallel_settings(context, config, world, fields, lines):
    mapped = map_parallel(config, context, world)
    given = {key: value for key, value in flat(mapped).items() if ONE.get(key) != value}
    assert given == fields
    assert mapped.notes() == lines


@pytest.mark.parametrize(
    ("context", "config", "world", "message"),
    [
        (
            {"parallel_mode": "stand_alone"},
            {},
            FOUR,
            "stand_alone is for one rank, but there are 4",
        ),
        ({"parallel_mode": 0, "full_batch": True}, {}, FOUR, "data_parallel .* full_batch is True"),
        (
            SEMI,
            {"data_parallel": 4, "model_parallel": 2, "pipeline_stage": 4, "micro_batch_num": 24},
            World(8),
            "data_parallel 4 x model_parallel 2 x pipeline_stage 4 = 32, but there are 8 ranks",
        ),
        (
            SEMI,
            {"context_parallel": 2},
            FOUR,
            "x pipeline_stage 1 x context_parallel 2 = 2, but there are 4 ranks",
        ),
        (SEMI, {"pipeline_stage": 4, "micro_batch_num": 2}, FOUR, "micro_batch_num 2 is below"),
        (SEMI, {"model_paralel": 4}, FOUR, "unknown key 'model_paralel' .*'model_parallel'"),
        (SEMI, {"model_parallel": 0}, FOUR, "parallel_config.model_parallel is 0, but must be"),
        (SEMI, {"model_parallel": "4"}, FOUR, "parallel_config.model_parallel is '4', but must be"),
        (SEMI, {"model_parallel": True}, FOUR, "must be a whole number of at least 1"),
        (SEMI, {"optimizer_shard": 1}, FOUR, "optimizer_shard is 1, but must be true or false"),
        (
            SEMI,
            {"seq_parallel": True, "use_seq_parallel": False},
            FOUR,
            "gives use_seq_parallel twice",
        ),
        (SEMI | {"full_batch": "False"}, {}, FOUR, "parallel.full_batch is 'False', but must be"),
        ({"parallel_mod": 1}, {}, FOUR, "unknown key 'parallel_mod' in parallel"),
        (SEMI | {"device_num": 8}, {"data_parallel": 4}, FOUR, "device_num is 8, but there are 4"),
    ],
)
def test_parallel_settings_that_do_not_fit(context, config, world, message):
    with pytest.raises(ValueError, match=message):
        map_parallel(config, context, world)


def test_without_a_mode_one_rank_is_alone_and_several_are_cut():
    assert map_parallel({}, {}).joint["parallel_mode"] is ParallelMode.STAND_ALONE
    mapped = map_parallel({"data_parallel": 4}, {}, FOUR)
    assert mapped.joint["parallel_mode"] is ParallelMode.SEMI_AUTO_PARALLEL


def test_a_batch_of_all_ranks_is_cut_into_micro_batches():
    sizes = parallel.read_sizes({"micro_batch_num": 2, "micro_batch_interleave_num": 2})
    assert parallel.sequences_per_micro_batch(48, sizes, 4) == 3
    with pytest.raises(ValueError) as caught:
        parallel.sequences_per_micro_batch(4, sizes, 4)
    assert str(caught.value) == (
        "a batch of 4 sequences does not divide into data_parallel 4 x micro_batch_num 2 x "
        "micro_batch_interleave_num 2 = 16 parts; use a batch of 16"
    )


# ---- recomputation ----

GRANULARITY = "model_config.recompute_granularity"
FULL = {
    GRANULARITY: "full",
    "model_config.recompute_method": "uniform",
    "model_config.recompute_num_layers": 1,
}


@pytest.mark.parametrize(
    ("config", "sp", "fields", "lines"),
    [
        ({}, False, {}, 0),
        ({"recompute": True}, False, FULL, 0),
        ({"recompute": False, "select_recompute": True}, False, {GRANULARITY: "selective"}, 0),
        ({"recompute": True, "select_recompute": True}, False, {GRANULARITY: "selective"}, 1),
        ({"recompute": [2, 1]}, False, {"parallel_config.recompute": (2, 1)}, 0),
        (
            {"recompute": 1, "select_recompute": [0, 2]},
            False,
            {"parallel_config.recompute": 1, "parallel_config.select_recompute": (0, 2)},
            0,
        ),
        ({"mp_comm_recompute": True}, True, {}, 0),
        (
            {"mp_comm_recompute": False},
            True,
            {"parallel_config.select_comm_recompute": False},
            0,
        ),
        ({"mp_comm_recompute": False}, False, {}, 1),
        ({"recompute_slice_activation": True}, True, {}, 0),
        ({"recompute_slice_activation": True}, False, {}, 1),
        ({"parallel_optimizer_comm_recompute": True}, True, {}, 1),
        ({"select_comm_recompute": [1]}, True, {"parallel_config.select_comm_recompute": (1,)}, 0),
    ],
)
def test_recomputation(config, sp, fields, lines):
    mapped = map_recompute(config, sequence_parallel=sp)
    assert flat(mapped) == fields and len(mapped.notes()) == lines


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"recomput": True}, "unknown key 'recomput' in recompute_config; did you mean"),
        ({"recompute": "yes"}, "recompute_config.recompute is 'yes', but must be"),
        ({"mp_comm_recompute": 1}, "mp_comm_recompute is 1, but must be true or false"),
    ],
)
def test_recomputation_that_cannot_be_read(config, message):
    with pytest.raises(ValueError, match=message):
        map_recompute(config)


# ---- optimizer, learning rate, loss scale, data, callbacks ----

OPTIMIZER = "optimizer_config."


@pytest.mark.parametrize(
    ("function", "config", "fields", "line"),
    [
        (
            training.map_optimizer,
            {"type": "FP32StateAdamWeightDecay", "beta1": 0.8, "eps": 1e-6, "weight_decay": 0.1},
            {
                "optimizer_type": "AdamW",
                "betas": (0.8, 0.999),
                "eps": 1e-6,
                "weight_decay": 0.1,
            },
            "FP32StateAdamWeightDecay is computed as AdamW, which corrects the bias",
        ),
        (
            training.map_optimizer,
            {"type": "adam", "betas": [0.9, 0.95], "learning_rate": 0.1},
            {"optimizer_type": "AdamW", "betas": (0.9, 0.95), "learning_rate": 0.1},
            None,
        ),
        (
            training.map_optimizer,
            {"type": "sgd", "momentum": 0.5},
            {"optimizer_type": "SGD", "sgd_momentum": 0.5},
            None,
        ),
        (
            training.map_schedule,
            {"type": "polynomial", "learning_rate": 1e-3, "lr_end": 1e-5, "warmup_steps": 7},
            {
                "lr_decay_style": "linear",
                "learning_rate": 1e-3,
                "min_lr": 1e-5,
                "lr_warmup_iters": 7,
            },
            None,
        ),
        (
            training.map_schedule,
            {"type": "CosineWithWarmUpLR", "total_steps": 50, "warmup_ratio": 0.1, "power": 1.0},
            {"lr_decay_style": "cosine", "lr_decay_iters": 50, "lr_warmup_fraction": 0.1},
            None,
        ),
        (
            training.map_schedule,
            {"type": "ConstantWarmUpLR", "total_steps": -1, "warmup_ratio": 0.5, "warmup_steps": 3},
            {"lr_decay_style": "constant", "lr_warmup_fraction": 0.5},
            "the ratio wins",
        ),
        (training.map_wrapper, {"use_clip_grad": True}, {"clip_grad": 1.0}, None),
        (
            training.map_wrapper,
            {"use_clip_grad": False, "max_grad_norm": 2},
            {"clip_grad": 0},
            None,
        ),
        (training.map_wrapper, {"max_grad_norm": 2.0}, {"clip_grad": 2.0}, None),
        (training.map_wrapper, {}, {}, None),
    ],
)
def test_optimizer_settings(function, config, fields, line):
    mapped = function(config)
    assert flat(mapped) == {f"{OPTIMIZER}{name}": value for name, value in fields.items()}
    assert (line is None) == (mapped.notes() == [])
    assert line is None or line in mapped.notes()[0]


def test_loss_scales():
    dynamic = {"type": "DynamicLossScaleUpdateCell", "loss_scale_value": 8, "scale_window": 5}
    fields = flat(training.map_wrapper({"scale_sense": dynamic}))
    assert fields["training_config.loss_scale_value"] == 8
    assert fields["training_config.loss_scale_window"] == 5
    fixed = {"type": "FixedLossScaleUpdateCell", "loss_scale_value": 4}
    for sense in (fixed, 4.0, 4):
        fields = flat(training.map_wrapper({"scale_sense": sense}))
        assert fields["training_config.loss_scale"] == 4.0


def test_data_and_callbacks():
    data = {
        "data_loader": {"type": "MindDataset", "dataset_dir": "/d", "num_samples": 9},
        "input_columns": ["input_ids", "attention_mask"],
        "num_parallel_workers": 3,
        "numa_enable": False,
        "batch_size": 8,
        "drop_remainder": True,
    }
    mapped = training.map_dataset(data, "train_dataset")
    assert mapped.joint == {"path": "/d", "num_samples": 9, "batch_size": 8}
    assert flat(mapped) == {
        "dataset_config.num_workers": 3,
        "dataset_config.drop_remainder": True,
    }
    assert mapped.notes() == [
        "train_dataset.input_columns: no effect, rows are read from the column input_ids"
    ]
    for value, order in ((True, ["cyclic", False]), (False, [])):
        mapped = training.map_dataset({"data_loader": {"shuffle": value}}, "train_dataset")
        assert list(flat(mapped).values()) == order
    mapped = training.map_callbacks(
        [
            {"type": "MFLossMonitor", "per_print_times": 5},
            {"type": "CheckpointMointor", "save_checkpoint_steps": 7, "integrated_save": False},
            {"type": "ObsMonitor"},
        ]
    )
    assert flat(mapped) == {
        "training_config.log_interval": 5,
        "training_config.save_interval": 7,
    }


@pytest.mark.parametrize(
    ("function", "config", "message"),
    [
        (training.map_optimizer, {"type": "Adagrad"}, "there are AdamW, SGD"),
        (training.map_optimizer, {"type": "AdamWW"}, "did you mean 'AdamW'"),
        (training.map_optimizer, {"betas": 0.9}, "must be two numbers"),
        (
            training.map_optimizer,
            {"beta_1": 0.9},
            "unknown key 'beta_1' in optimizer; did you mean",
        ),
        (training.map_optimizer, {"eps": "small"}, "eps is 'small', but must be a number"),
        (
            training.map_schedule,
            {"type": "reduce_lr_on_plateau"},
            "there are constant, linear, cosine, inverse-square-root, WSD",
        ),
        (training.map_schedule, {"power": 2.0}, "a polynomial of power 1"),
        (training.map_schedule, {"num_cycles": 2}, "the cosine falls once"),
        (
            training.map_schedule,
            {"type": "cosine_with_restarts", "num_cycles": 2},
            "the cosine falls once",
        ),
        (training.map_wrapper, {"scale_sense": "high"}, "scale_sense is 'high': must be a number"),
        (training.map_wrapper, {"scale_sense": {"typ": 1}}, "unknown key 'typ' in scale_sense"),
        (
            training.map_wrapper,
            {"scale_sense": {"type": "x"}},
            "must be DynamicLossScaleUpdateCell",
        ),
        (training.map_callbacks, [{"type": "LossMonitr"}], "callback 'LossMonitr' is unknown; did"),
        (training.map_callbacks, {"type": "MFLossMonitor"}, "must list blocks"),
        (
            training.map_callbacks,
            [{"type": "MFLossMonitor", "x": 1}],
            "unknown key 'x' in callback",
        ),
    ],
)
def test_training_settings_that_do_not_exist(function, config, message):
    with pytest.raises(ValueError, match=message):
        function(config)
