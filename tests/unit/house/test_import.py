# SPDX-License-Identifier: Apache-2.0
"""Importing the package changes nothing for others, and others may train beside it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

DOCUMENTED_VARIABLES = {"GLOG_v", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"}
"""Defaults of ``backend.env.prepare_import``, named in docs/launching.md."""

IMPORT_ALL = """
import importlib, pathlib
import mindspeed_ms

def import_all():
    root = pathlib.Path(mindspeed_ms.__file__).parent
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if parts[:4] == ("mindspeed_ms", "toolkit", "compat", "path"):
            continue  # packages for another place: see toolkit/compat/guard
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
"""

STATE = """
import atexit, gc, locale, logging, os, random, signal, sys, threading, warnings
import numpy as np
import mindspore as ms
from mindspore import context
from mindspore._c_expression import RuntimeConf
from mindspore.common.api import _pynative_executor

CONTEXT = (
    "mode device_target device_id pynative_synchronize runtime_num_threads deterministic "
    "max_call_depth jit_level enable_graph_kernel save_graphs memory_optimize_level"
).split()

def handlers():
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    loggers[""] = logging.getLogger()
    return {name: (logger.level, list(logger.handlers)) for name, logger in loggers.items()}

def state():
    runtime = RuntimeConf.get_instance()
    numbers = np.random.get_state()
    return {
        "MindSpore context": [context.get_context(name) for name in CONTEXT],
        "MindSpore runtime": {
            name: getattr(runtime, name)() for name in dir(runtime) if name.startswith("is_")
        },
        "MindSpore tape": (_pynative_executor.grad_flag(), _pynative_executor.enable_grad()),
        "MindSpore seed": ms.get_seed(),
        "signal handlers": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "log handlers": handlers(),
        "numpy random": (numbers[0], numbers[1].tolist(), *numbers[2:]),
        "numpy errors": (np.geterr(), np.geterrcall()),
        "numpy printing": np.get_printoptions(),
        "python random": random.getstate(),
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook, sys.unraisablehook),
        "warning filters": list(warnings.filters),
        "exit functions": atexit._ncallbacks(),
        "threads": threading.active_count(),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), sys.path, sys.gettrace()),
        "process": (os.getcwd(), locale.setlocale(locale.LC_ALL), os.sched_getaffinity(0)),
    }
"""


def run(*parts: str) -> str:
    """What a script prints that runs in a process of its own."""
    script = "\n".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_every_module_changes_nothing_that_others_can_see():
    run(
        "import os; variables = dict(os.environ)",
        STATE,
        "import mindspore.ops, mindspore.nn, mindspore.mint",
        # Libraries that modules import, which may change what they like.
        "import multiprocessing.pool, psutil, sentencepiece, yaml",
        "before = state()",
        IMPORT_ALL,
        """
        import_all()
        after = state()
        for name, logger in list(after["log handlers"].items()):
            if name.startswith("mindspeed_ms") and logger == (logging.NOTSET, []):
                del after["log handlers"][name]
        for what, value in before.items():
            assert after[what] == value, f"{what}: {value} became {after[what]}"
        """,
        f"""
        allowed = {DOCUMENTED_VARIABLES!r}
        changed = {{name for name in os.environ.keys() | variables.keys()
                   if os.environ.get(name) != variables.get(name)}}
        assert changed <= allowed, changed - allowed
        """,
    )


PLAIN = """
import numpy as np
import mindspore as ms
from mindspore import nn, ops

class Plain:
    '''A user's own training: a Cell with its loss, value_and_grad, an optimizer.'''

    def __init__(self):
        self.net = nn.SequentialCell(nn.Dense(3, 8), nn.ReLU(), nn.Dense(8, 1))
        numbers = np.random.RandomState(0)
        for parameter in self.net.trainable_params():
            values = numbers.standard_normal(parameter.shape).astype(np.float32)
            parameter.set_data(ms.Tensor(values * 0.3))
        self.optimizer = nn.SGD(self.net.trainable_params(), 0.05)
        self.x = ms.Tensor(numbers.standard_normal((16, 3)).astype(np.float32))
        self.y = ms.Tensor(self.x.asnumpy().sum(axis=1, keepdims=True))
        cell = nn.WithLossCell(self.net, nn.MSELoss())
        self.value_and_grad = ops.value_and_grad(cell, None, self.optimizer.parameters)

    def step(self):
        loss, grads = self.value_and_grad(self.x, self.y)
        self.optimizer(grads)
        return float(loss.asnumpy()).hex()
"""

OURS = """
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.training import initialize_megatron, pretrain

FLAGS = (
    "--num-layers 2 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 4 --swiglu "
    "--seq-length 16 --max-position-embeddings 16 --padded-vocab-size 128 --micro-batch-size 2 "
    "--global-batch-size 4 --normalization RMSNorm --position-embedding-type rope --mock-data "
    "--disable-bias-linear --untie-embeddings-and-output-weights --attention-dropout 0.1 "
    "--tokenizer-type NullTokenizer --vocab-size 100 --lr 1e-2 --eval-iters 0 "
    "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
).split()

def train(steps, after_step=lambda: None):
    losses = []

    def provider(pre_process, post_process):
        config = get_all_config().model_config
        return GPTModel(config, pre_process=pre_process, post_process=post_process)

    def on_step(step):
        losses.append(step.losses["lm loss"].hex())
        after_step()

    initialize_megatron(argv=[*FLAGS, "--train-iters", str(steps)])
    pretrain(None, provider, all_config=get_all_config(), on_step=on_step)
    return losses
"""


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """Losses of eight steps of a plain MindSpore script."""
    return run(PLAIN, "plain = Plain()", "print([plain.step() for _ in range(8)])")


def test_a_plain_mindspore_loop_trains_after_the_import(undisturbed):
    script = "import_all()\nplain = Plain()\nprint([plain.step() for _ in range(8)])"
    assert run(IMPORT_ALL, PLAIN, script) == undisturbed


def test_plain_steps_and_ours_take_turns_in_one_process(undisturbed):
    alone = run(OURS, "print('losses', train(8))").splitlines()[-1]
    for plain_first in (True, False):
        both = run(
            OURS,
            PLAIN,
            f"plain, losses = Plain(), []\nif {plain_first}: losses.append(plain.step())",
            "ours = train(8, lambda: losses.append(plain.step()))",
            "print('losses', ours)\nprint(losses[:8])",
        ).splitlines()
        assert both[-2] == alone
        assert both[-1] + "\n" == undisturbed
