# SPDX-License-Identifier: Apache-2.0
"""The planner: parameters, memory, traffic, time and suggestions from the configuration alone."""

import re
import time

import pytest

from mindspeed_ms.models.model import EMBEDDING, HEAD
from mindspeed_ms.plan.recompute_plan import LayerRecompute
from mindspeed_ms.plan.schedule_plan import Shape, peak_in_flight, plan
from mindspeed_ms.planning.activations import (
    chunk_bytes,
    head_bytes,
    layer_bytes,
    most_in_flight,
    representative_shape,
    stage_activations,
)
from mindspeed_ms.planning.communication import stage_traffic
from mindspeed_ms.planning.memory import stage_state
from mindspeed_ms.planning.operations import step_operations
from mindspeed_ms.planning.parameters import chunk_parameters, total_parameters
from mindspeed_ms.planning.plan import make_plan
from mindspeed_ms.planning.report import plan_lines
from mindspeed_ms.planning.suggest import suggest, with_memory
from mindspeed_ms.planning.timing import Device, PassSeconds, play, play_long
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.from_args import init_configs_from_args
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_yaml

SIZES = (
    "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 32 "
    "--max-position-embeddings 32 --micro-batch-size 2 --padded-vocab-size 512 --lr 1e-3 "
    "--global-batch-size 64 --train-iters 10"
)
LLAMA = (
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights"
)
TP2, PP2 = "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2"
GUIDE = {
    "dataset_config": {"batch_size": 2},
    "training_config": {"global_batch_size": 256},
    "parallel_config": {"virtual_pipeline_model_parallel_size": 4}
    | {"num_layer_list": "[[4,4,4,4],[4,4,4,4],[4,4,4,4],[4,4,4,2]]"},
}


def config_of(words="", world=8):
    args = validate_args(parse_args(f"{SIZES} {words}".split()), world)
    return init_configs_from_args(args).validate(world)


# --- parameters


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # 12 h² + 13 h per layer, two tables and the last norm
        ("", 8 * (12 * 64 * 64 + 13 * 64) + (512 + 32) * 64 + 128),
        (LLAMA, 8 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 2 * 512 * 64 + 64),
    ],
)
@pytest.mark.parametrize("layout", ["", TP2, PP2, f"{TP2} {PP2}", "--sequence-parallel " + TP2])
def test_parameters_of_the_model_do_not_depend_on_the_layout(words, expected, layout):
    assert total_parameters(config_of(f"{words} {layout}")) == expected


def test_experts_are_counted_once_over_all_ranks():
    moe = "--num-experts 4 --moe-ffn-hidden-size 32 --moe-layer-freq [0,1,0,1,0,1,0,1]"
    alone = total_parameters(config_of(f"{LLAMA} {moe}"))
    dense = 4 * (3 * 64 * 128) + 8 * (4 * 64 * 64 + 128) + 2 * 512 * 64 + 64
    assert alone == dense + 4 * (4 * 3 * 64 * 32 + 4 * 64)
    both = f"{TP2} --sequence-parallel --expert-model-parallel-size 2"
    for layout in ("--expert-model-parallel-size 4", both):
        assert total_parameters(config_of(f"{LLAMA} {moe} {layout}")) == alone


def test_a_tied_head_is_held_twice_and_counted_once():
    config = config_of(PP2)
    first, last = chunk_parameters(config, 0, 0), chunk_parameters(config, 1, 0)
    assert [spec.name for spec in first if spec.is_tied] == [EMBEDDING]
    assert [spec.name for spec in last if spec.is_tied] == [HEAD]


# --- memory


def test_state_of_an_unsharded_rank_is_16_bytes_for_fp32_and_18_for_bf16():
    state = stage_state(config_of(LLAMA), 1, 0)
    assert state.total == 16 * state.parameters
    state = stage_state(config_of(f"{LLAMA} --bf16"), 1, 0)
    embedding = 512 * 64  # stays fp32
    assert state.total == 18 * (state.parameters - embedding) + 16 * embedding


def test_sharding_divides_what_it_says():
    whole = stage_state(config_of(LLAMA), 8, 0)
    sharded = stage_state(config_of(f"{LLAMA} --use-distributed-optimizer"), 8, 0)
    assert sharded.weights == pytest.approx(whole.weights, rel=0.01)
    assert sharded.optimizer == pytest.approx(whole.optimizer / 8, rel=0.01)
    least = stage_state(config_of(f"{LLAMA} --zero-level z3"), 8, 0)
    assert least.gradients < whole.gradients / 2 and least.weights < whole.weights / 2


def test_recomputation_keeps_less():
    config = config_of(LLAMA)
    kinds = [{"layernorm"}, {"core_attn"}, {"mlp_act"}, {"mlp"}]
    whole = layer_bytes(config, 0)
    for kind in kinds:
        assert layer_bytes(config, 0, LayerRecompute(frozenset(kind))) < whole
    full = config_of(
        f"{LLAMA} --recompute-granularity full --recompute-method uniform --recompute-num-layers 2"
    )
    stream = 2 * 32 * 64 * 4
    assert chunk_bytes(full, 0, 0) == 4 * stream + head_bytes(full)


def test_sequence_and_tensor_parallelism_cut_activations():
    whole = layer_bytes(config_of(LLAMA), 0)
    cut = layer_bytes(config_of(f"{LLAMA} {TP2} --sequence-parallel"), 0)
    assert cut == whole // 2
    assert whole // 2 < layer_bytes(config_of(f"{LLAMA} {TP2}"), 0) < whole


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("chunks", [1, 2])
def test_forwards_in_flight_are_those_of_the_schedule(stages, chunks):
    if stages == 1 and chunks == 2:
        return
    shape = Shape(stages, 8, chunks)
    for stage in range(stages):
        assert most_in_flight(shape, stage, [1] * chunks) == peak_in_flight(plan(shape, stage))


def test_long_steps_have_the_peak_of_their_beginning():
    config = config_of(f"{LLAMA} {PP2} --num-layers-per-virtual-pipeline-stage 2")
    short = representative_shape(config, 400)
    long = Shape(2, 400, 2)
    for stage in range(2):
        assert most_in_flight(short, stage, [3, 5]) == most_in_flight(long, stage, [3, 5])
    assert stage_activations(config, 0, 400).in_flight > stage_activations(config, 1, 400).in_flight


def test_an_evaluation_with_more_sequences_fills_the_memory():
    # Measured: 16 sequences more in an evaluation's micro-batch let the process grow so much (MiB).
    sizes = (
        "--num-layers 2 --hidden-size 256 --num-attention-heads 4 --seq-length 256 --lr 1e-3 "
        "--max-position-embeddings 256 --micro-batch-size 1 --global-batch-size 32 "
        "--padded-vocab-size 32000 --train-iters 2 --eval-iters 1 --eval-interval 1"
    )

    def planned(words):
        return config_of(f"{sizes} {words}", world=1)

    assert not stage_activations(planned(""), 0, 32).is_evaluation_fuller
    for kind, measured in (("", 523), ("--bf16", 271)):
        peaks = [
            stage_activations(planned(f"{kind} --eval-micro-batch-size {rows}"), 0, 32).peak / 2**20
            for rows in (16, 32)
        ]
        assert peaks[1] - peaks[0] == pytest.approx(measured, rel=0.1)
    none = stage_activations(planned("--eval-micro-batch-size 16 --eval-iters 0"), 0, 32)
    assert none.peak == stage_activations(planned(""), 0, 32).peak


# --- traffic and time


def test_traffic_by_hand():
    config = config_of(f"{LLAMA} {TP2} {PP2} --use-distributed-optimizer")
    sent = stage_traffic(config, 8, 0, 16)
    unit = 2 * 32 * 64 * 4 / 2  # s b h in fp32, times (n - 1) / n
    assert sent.tensor == 16 * unit * (4 * 8 + 2)  # four all-reduces in each of four layers
    assert sent.pipeline == 16 * 2 * 32 * 64 * 4
    elements = sum(spec.size for spec in chunk_parameters(config, 0, 0))
    assert sent.data == elements * (4 + 4) / 2 and sent.expert == sent.context == 0


def test_the_bubble_of_1f1b():
    shape = Shape(4, 8)
    timeline = play(shape, [[PassSeconds(1.0, 2.0)]] * 4)
    assert timeline.seconds == 3.0 * (8 + 3)
    assert timeline.bubble == pytest.approx(3 / 11)


def test_interleaving_divides_the_bubble():
    one = play(Shape(4, 8), [[PassSeconds(1.0, 2.0)]] * 4)
    two = play(Shape(4, 8, 2), [[PassSeconds(0.5, 1.0)] * 2] * 4)
    assert two.seconds - 24 == pytest.approx((one.seconds - 24) / 2)


@pytest.mark.parametrize("shape", [Shape(4, 64), Shape(4, 64, 2), Shape(3, 50), Shape(2, 63, 1)])
def test_a_long_step_is_played_short(shape):
    passes = [
        [PassSeconds(1.0 + stage / 7, 2.0 + chunk / 5) for chunk in range(shape.chunks)]
        for stage in range(shape.stages)
    ]
    full, fast = play(shape, passes, 0.1), play_long(shape, passes, 0.1)
    assert fast.seconds == pytest.approx(full.seconds, rel=0.02)
    assert fast.busy == pytest.approx(full.busy)


def test_operations_are_those_megatron_counts():
    config = config_of(f"{LLAMA} --group-query-attention --num-query-groups 2")
    hidden, ffn, layers, length, vocabulary = 64, 128, 8, 32, 512
    inner = 1 + 2 / 4 + length / hidden + ffn / hidden * 1.5 + vocabulary / (2 * layers * hidden)
    assert step_operations(config.model_config, 64) == pytest.approx(
        12.0 * 64 * length * layers * hidden**2 * inner
    )


# --- plans


def test_the_guides_model_is_planned_near_its_reported_figures():
    plan_of_guide = make_plan(init_configs_from_yaml("model_38BV3.yaml", **GUIDE), 128)
    assert plan_of_guide.parameters == pytest.approx(39.1e9, rel=0.01)
    assert plan_of_guide.placement.counts[-1] == (4, 4, 4, 2)
    assert plan_of_guide.fits
    # Reported: 11.5 s and 45 %. The estimate knows no kernels; it must be of that size.
    assert 9.0 < plan_of_guide.step_seconds < 14.5
    assert plan_of_guide.utilization == pytest.approx(
        plan_of_guide.operations / plan_of_guide.step_seconds / 128 / 376e12
    )


def test_thousands_of_ranks_take_seconds():
    changes = {"training_config": {"global_batch_size": 8192}}
    start = time.perf_counter()
    big = make_plan(init_configs_from_yaml("model_38BV3.yaml", **changes), 8192)
    assert len(plan_lines(big)) > 20
    assert time.perf_counter() - start < 10


def test_the_report_names_what_matters():
    lines = "\n".join(plan_lines(make_plan(config_of(f"{LLAMA} {TP2} {PP2}"), 8)))
    for part in (
        "8 ranks = tensor 2 × context 1 × data 2 × pipeline 2",
        "layers per stage, stage 0 first: 4 4",
        "tensor groups: 4 of 2 ranks, first [0 1]",
        "pipeline groups: 4 of 2 ranks, first [0 4]",
        "fits into 64 GiB",
        "pipeline bubble: ",
    ):
        assert part in lines, part
    assert re.search(r"step: \S+ s, of which", lines)


def test_a_device_that_is_too_small_is_named():
    small = with_memory(Device(), 0.001, 100.0)
    lines = "\n".join(plan_lines(make_plan(config_of(LLAMA), 8, small)))
    assert "DOES NOT FIT into 0 GiB" in lines and "100 TFLOP/s peak" in lines


def test_less_memory_asks_for_more_recomputation_or_ranks():
    config, mib = config_of(LLAMA, world=2), 1 / 1024
    roomy = suggest(config, 2, with_memory(Device(), 1.0, None), count=1)[0]
    limit = roomy.plan.bytes_at_peak / 2**30 * 0.9
    tight = suggest(config, 2, with_memory(Device(), limit, None), count=1)[0]
    assert tight.plan.bytes_at_peak <= limit * 2**30 < roomy.plan.bytes_at_peak
    assert tight.plan.step_seconds >= roomy.plan.step_seconds
    with pytest.raises(ValueError, match="no layout on 2 ranks fits into 0 GiB; the smallest"):
        suggest(config, 2, with_memory(Device(), mib, None))
