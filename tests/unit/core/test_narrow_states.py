# SPDX-License-Identifier: Apache-2.0
"""Adam's states in 16 bits."""

import json

import numpy as np
import pytest
from megatron_runs import DATA, replay

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.core.optimizer import optimizer as optimizer_module
from mindspeed_ms.core.optimizer.halves import LowerHalves
from mindspeed_ms.core.optimizer.narrow import BLOCK, NarrowState
from mindspeed_ms.core.optimizer.update_rules import AdamW, Hyper
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.planning.memory import stage_state
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.from_args import init_configs_from_args

RECORDED = json.loads((DATA / "megatron_core" / "optimizers.json").read_text(encoding="utf-8"))
LLAMA = RECORDED["cases"]["tokens_mtp"]["flags"].partition(" --mtp-num-layers")[0]
TYPES = {"bf16": memory.dtype_of("bfloat16"), "fp16": memory.dtype_of("float16")}
NARROW = "--use-precision-aware-optimizer --exp-avg-dtype {0} --exp-avg-sq-dtype {0}"


def tensor(values):
    return memory.from_numpy(np.array(values, np.float32))


def array(values):
    return np.array(memory.as_numpy(memory.contiguous(values)))


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_widened_and_narrowed_again_has_the_same_bits(kind):
    random = np.random.RandomState(5)
    values = random.randn(BLOCK + 1000) * 10.0 ** random.uniform(-14, -8, BLOCK + 1000)
    values[:BLOCK:7], values[BLOCK] = 0.0, 1.99999
    state = NarrowState(values.size, TYPES[kind])
    state.narrow(0, tensor(values))
    wide, bits = array(state.wide(0, values.size)), array(state.tensor)
    large = np.abs(values) > np.abs(values[:BLOCK]).max() * 2.0**-20
    large[BLOCK:] = np.arange(1000) == 0
    np.testing.assert_allclose(wide[large], values[large], rtol=2.0**-8)
    copy = state.view(0, values.size)
    if kind == "fp16":
        memory.copy_(copy, tensor(wide))
    state.settle()
    np.testing.assert_array_equal(array(state.tensor), bits)
    np.testing.assert_array_equal(array(state.wide(0, values.size)), wide)


def test_a_squared_gradient_survives_float16():
    state = NarrowState(4, TYPES["fp16"])
    state.narrow(0, tensor([1e-12, 3e-13, 0.0, 1e-15]))
    np.testing.assert_allclose(array(state.wide(0, 4)), [1e-12, 3e-13, 0.0, 1e-15], rtol=1e-3)


@pytest.fixture
def cache(tmp_path):
    return tmp_path


def moments_of(monkeypatch, cache, more):
    """(losses, memory of the optimizer) of a run in bf16."""
    made, real = [], optimizer_module.MegatronOptimizer.__init__

    def note(self, *args, **kwargs):
        real(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(optimizer_module.MegatronOptimizer, "__init__", note)
    words = f"{RECORDED['common']} {LLAMA} --bf16 --use-distributed-optimizer {more}"
    steps = replay(words, 8, cache)
    return np.array([step.losses["lm loss"] for step in steps]), made[-1].num_bytes()


@pytest.mark.parametrize(
    ("more", "bytes_of_an_element"),
    [
        (NARROW.format("bf16"), 4 + 2 + 2),
        (NARROW.format("fp16"), 4 + 2 + 2),
        (f"{NARROW.format('fp16')} --main-params-dtype fp16", 2 + 2 + 2),
        ("--use-precision-aware-optimizer --exp-avg-dtype bf16", 4 + 2 + 4),
    ],
)
def test_narrow_states_follow_fp32_in_less_memory(monkeypatch, cache, more, bytes_of_an_element):
    usual, whole = moments_of(monkeypatch, cache, "")
    losses, held = moments_of(monkeypatch, cache, more)
    assert held == stage_state(get_all_config(), 1, 0).optimizer
    # Parameters in fp32 have no copy: 8 bytes an element become the moments' alone.
    assert bytes_of_an_element / 12 - 0.05 < held / whole < bytes_of_an_element / 12 + 0.01
    assert not np.array_equal(losses, usual)
    np.testing.assert_allclose(losses, usual, atol=0.02)


def test_weights_are_half_of_their_fp32_copies(monkeypatch, cache):
    """The losses have the same bits, also of a run that goes on with what was saved."""
    usual, whole = moments_of(monkeypatch, cache, "")
    save = f"--save {cache / 'run'} --save-interval 4"
    losses, held = moments_of(monkeypatch, cache, f"--reuse-fp32-param {save}")
    planned = stage_state(get_all_config(), 1, 0)
    assert held == planned.optimizer
    of_copies = whole - 8 * planned.parameters  # the moments take 8 bytes of every parameter
    assert whole - held == pytest.approx(of_copies / 2, rel=0.02)
    assert np.array_equal(losses, usual)
    load = f"--load {cache / 'run'} --ckpt-step 4"
    for more in ("--reuse-fp32-param", ""):
        again, _ = moments_of(monkeypatch, cache, f"{load} {more}")
        assert np.array_equal(again, usual[4:])


def test_halves_are_put_together_to_the_bit():
    random = np.random.RandomState(5)
    bits = random.randint(0, 0x7F000000, BLOCK + 1000).astype(np.uint32)
    bits[::3] |= 0x80000000
    bits[::5] = (bits[::5] & 0xFFFF0000) | 0x8000  # ties, which go up and down
    values = bits.view(np.float32)
    weights = memory.empty(values.shape, TYPES["bf16"])
    ops.copy_cast_(weights, memory.from_numpy(values.copy()))
    halves = LowerHalves(weights)
    halves.narrow(0, memory.from_numpy(values.copy()))
    assert np.array_equal(array(halves.wide(0, len(values))).view(np.uint32), bits)
    assert np.array_equal(array(halves.wide(BLOCK, 1000)).view(np.uint32), bits[BLOCK:])
    memory.copy_(halves.view(0, len(values)), memory.from_numpy(-values))
    halves.settle()
    assert np.array_equal(array(halves.wide(0, len(values))), -values)


@pytest.mark.parametrize(
    ("words", "told"),
    [("", "params_dtype is float32"), ("--bf16 --optimizer muon", "rules of single elements")],
)
def test_what_cannot_share_its_memory_is_refused(words, told):
    sizes = "--num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8 --lr 1e-3"
    sizes += " --max-position-embeddings 8 --micro-batch-size 1 --padded-vocab-size 128"
    sizes += f" --train-iters 1 --mock-data --reuse-fp32-param {words}"
    with pytest.raises(ValueError, match=told):
        init_configs_from_args(validate_args(parse_args(sizes.split()), 1))


def test_the_moments_of_a_step_are_rounded_to_bf16():
    """Two steps of Adam by the rule in fp32, whose moments are rounded between them."""
    random = np.random.RandomState(2)
    rule = AdamW((0.9, 0.95), 1e-8)
    main, kept = random.randn(64).astype(np.float32), NarrowState(64, TYPES["bf16"])
    squares = NarrowState(64, TYPES["bf16"])
    expected, m, v = main.astype(np.float64), np.zeros(64), np.zeros(64)
    for step in (1, 2):
        grad = random.randn(64).astype(np.float32)
        state = {"exp_avg": kept.wide(0, 64), "exp_avg_sq": squares.wide(0, 64)}
        weights = tensor(main)
        rule.apply(weights, tensor(grad), state, Hyper(1e-2, 0.1, step, 1.0))
        kept.narrow(0, state["exp_avg"])
        squares.narrow(0, state["exp_avg_sq"])
        main = array(weights)
        m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad * grad
        root = np.sqrt(v / (1 - 0.95**step)) + 1e-8
        expected = expected * (1 - 1e-3) - 1e-2 * (m / (1 - 0.9**step)) / root
        m, v = array(kept.wide(0, 64)), array(squares.wide(0, 64))
    np.testing.assert_allclose(main, expected, rtol=1e-5, atol=1e-6)
