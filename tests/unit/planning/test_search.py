# SPDX-License-Identifier: Apache-2.0
"""The search for layouts: what it finds is the best there is, fits, and says why others lost."""

import re
import time
from dataclasses import replace

import pytest

from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.planning.parameters import model_spec
from mindspeed_ms.planning.plan import make_plan
from mindspeed_ms.planning.quick import QuickLook
from mindspeed_ms.planning.space import ZERO_LEVELS, applied, layouts, recomputes, spread
from mindspeed_ms.planning.suggest import search, suggestion_lines, with_memory
from mindspeed_ms.planning.timing import Device
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.dry_run import resolve
from mindspeed_ms.training.from_args import init_configs_from_args

SIZES = (
    "--num-layers 5 --hidden-size 256 --num-attention-heads 4 --seq-length 64 "
    "--max-position-embeddings 64 --micro-batch-size 1 --padded-vocab-size 8192 --lr 1e-3 "
    "--global-batch-size 8 --train-iters 10 --position-embedding-type rope --normalization RMSNorm "
    "--swiglu --disable-bias-linear --untie-embeddings-and-output-weights --bf16"
)
EXPERTS = "--num-experts 4 --moe-ffn-hidden-size 64 --moe-router-topk 2"


def config_of(words, world):
    args = validate_args(parse_args(f"{SIZES} {words}".split()), world)
    return init_configs_from_args(args).validate(world)


def every_plan(config, world, device):
    """Plans of the whole space, one by one."""
    sections, total = config.to_dict(), config.global_batch_size(world)
    for layout in layouts(config, world, device.ranks_per_node):
        probe = applied(config, sections, world, total, layout)
        if probe is None:
            continue
        counts = layer_placement(probe.model_config, probe.parallel_config).counts
        longest = max(count for row in counts for count in row)
        for zero in ZERO_LEVELS:
            for recompute in recomputes(model_spec(config), longest):
                one = replace(layout, zero=zero, recompute=recompute)
                changed = applied(config, sections, world, total, one)
                if changed is not None:
                    yield make_plan(changed, world, device)


@pytest.mark.parametrize(
    ("words", "world", "share"),
    [("", 4, 0.4), (f"{EXPERTS} --overlap-grad-reduce", 2, 2.0)],
)
def test_nothing_in_the_whole_space_is_better(words, world, share):
    config = config_of(words, world)
    roomy = make_plan(config, world).bytes_at_peak
    device = replace(Device(), memory_bytes=share * roomy)
    plans = list(every_plan(config, world, device))
    best = min(plan.step_seconds for plan in plans if plan.fits)
    found = search(config, world, device)
    assert len(plans) > 50
    assert found.candidates[0].plan.step_seconds <= best * 1.001
    assert all(one.plan.fits for one in found.candidates)


NARROW = (
    "--use-precision-aware-optimizer --main-params-dtype fp16 --exp-avg-dtype bf16 "
    "--exp-avg-sq-dtype bf16 --accumulate-allreduce-grads-in-fp32"
)


@pytest.mark.parametrize(
    "words",
    [
        f"{EXPERTS} {NARROW}",
        f"{EXPERTS} --mtp-num-layers 1 --overlap-grad-reduce",
        "--optimizer muon",
        "--optimizer soap",
        "--group-query-attention --num-query-groups 2",
        "--optimizer sgd",
        "--use-distributed-optimizer --num-distributed-optimizer-instances 2",
        "--use-lora --lora-r 8 --lora-target-modules linear_qkv linear_fc1",
    ],
)
def test_a_quick_look_holds_what_a_plan_holds(words):
    """Types of states, frozen weights, tied tables and copies of the optimizer included."""
    config, device = config_of(words, 4), Device()
    sections, total = config.to_dict(), config.global_batch_size(4)
    quick, shares = QuickLook(config, 4, device, sections), []
    for layout in layouts(config, 4, device.ranks_per_node):
        for zero in ZERO_LEVELS if layout.micro == 1 else ():
            one = replace(layout, zero=zero)
            changed, look = applied(config, sections, 4, total, one), quick.look(one)
            assert (changed is None) == (look is None), one
            if changed is not None:
                shares.append(look.memory / make_plan(changed, 4, device).bytes_at_peak)
    assert len(shares) >= 12 and min(shares) > 0.92 and max(shares) < 1.07


def test_more_ranks_than_key_value_groups_are_tried():
    groups = "--group-query-attention --num-query-groups 2"
    config = config_of(f"{groups} --optimizer sgd", 4)
    assert {layout.tensor for layout in layouts(config, 4, 8)} == {1, 2, 4}
    plan = make_plan(config_of(f"{groups} --tensor-model-parallel-size 4", 4), 4)
    tight = replace(Device(), memory_bytes=1.02 * plan.bytes_at_peak)
    found = search(config_of(groups, 4), 4, tight, count=20).candidates
    assert any("--tensor-model-parallel-size 4" in one.flags for one in found)


@pytest.mark.parametrize("optimizer", ["soap", "muon"])
def test_products_of_an_optimizer_take_time_and_every_owner_does_all_of_its_matrices(optimizer):
    words = "--use-distributed-optimizer --optimizer"
    device = replace(Device(), host_tflops=1e-3, tflops=1e-2)
    adam, own = (
        make_plan(config_of(f"{words} {one}", 4), 4, device) for one in ("adam", optimizer)
    )
    alone = make_plan(config_of(f"{words} {optimizer}", 1), 1, device)
    assert own.step_seconds > 1.2 * adam.step_seconds
    shared, whole = (max(one.matrix_operations for one in plan.stages) for plan in (own, alone))
    assert whole / 4 < shared < whole
    sections = config_of(f"{words} {optimizer}", 4).to_dict()
    quick = QuickLook(config_of(f"{words} {optimizer}", 4), 4, device, sections)
    for layout in layouts(config_of(f"{words} {optimizer}", 4), 4, 8):
        changed = applied(quick.config, sections, 4, 8, layout)
        if changed is not None:
            plan = make_plan(changed, 4, device)
            assert 0.7 < quick.look(layout).seconds / plan.step_seconds < 1.4, layout


@pytest.mark.parametrize("words", ["", EXPERTS, "--recompute-granularity selective"])
def test_the_flags_of_a_candidate_make_its_plan(words):
    config = config_of(words, 4)
    tight = replace(Device(), memory_bytes=0.5 * make_plan(config, 4).bytes_at_peak)
    for candidate in search(config, 4, tight, count=4).candidates:
        kept = "" if "recompute" in words else words
        flags = candidate.flags.replace('"', "").split()
        args = parse_args([*SIZES.split(), *kept.split(), *flags])
        made = init_configs_from_args(validate_args(args, 4)).validate(4)
        again = make_plan(made, 4, tight)
        assert again.bytes_at_peak == candidate.plan.bytes_at_peak
        assert again.step_seconds == candidate.plan.step_seconds


def test_lines_say_why_a_layout_lost_and_what_does_not_fit():
    words = "--recompute-granularity selective --sequence-parallel --tensor-model-parallel-size 2"
    config = config_of(words, 4)
    limit = 0.5 * make_plan(config, 4).bytes_at_peak
    found = search(config, 4, replace(Device(), memory_bytes=limit), count=5)
    lines = "\n".join(suggestion_lines(found, config))
    assert re.search(r"looked at \d+ layouts", lines)
    assert len(re.findall(r"slower than 1: \S", lines)) == len(found.candidates) - 1
    assert found.beyond is None or "faster, but does not fit: about" in lines


def test_parts_of_a_step_add_up():
    plan = make_plan(config_of(f"{EXPERTS} --expert-model-parallel-size 2", 4), 4)
    assert sum(plan.parts.values()) == pytest.approx(plan.step_seconds)
    assert min(plan.parts.values()) >= 0


def test_layers_go_where_there_is_least_to_do():
    assert spread([1.0] * 8, 0.0, 4, 1) == ((2, 2, 2, 2),)
    assert spread([1.0] * 61, 3.0, 16, 1) == ((4,) * 15 + (1,),)
    assert spread([1.0] * 10, 0.0, 4, 2) == ((1, 1, 2, 2), (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("file", "world"), [("deepseek_v3.yaml", 2048), ("38BV3/model_38BV3.yaml", 128)]
)
def test_shipped_models_are_answered_in_seconds(file, world):
    config = resolve(
        parse_args(["--yaml", f"configs/{file}", "--dry-run", "--world-size", str(world)])
    ).config
    start = time.process_time()
    found = search(config, world)
    assert time.process_time() - start < 10
    assert found.candidates[0].plan.fits and found.looked_at > 900


def test_what_fits_nowhere_is_said():
    with pytest.raises(ValueError, match="no layout on 2 ranks fits into 0 GiB; the smallest"):
        search(config_of("", 2), 2, with_memory(Device(), 1e-3, None))
