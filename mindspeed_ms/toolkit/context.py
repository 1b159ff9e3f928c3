# SPDX-License-Identifier: Apache-2.0
"""``init_context``: where a script computes, and how its ranks share the work.

Source: MindFormers r0.3 and r1.0 ``init_context``, ``ContextConfig`` and ``ParallelContextConfig``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mindspeed_ms.backend import comm, launch, rank_table, script_context
from mindspeed_ms.engine.output import print_rank_0, set_up_output
from mindspeed_ms.toolkit.given import mapping, shown, switch
from mindspeed_ms.toolkit.mapping import tree
from mindspeed_ms.toolkit.mapping.parallel import CONTEXT as PARALLEL
from mindspeed_ms.toolkit.mapping.parallel import ParallelMode, World, check_context, read_sizes
from mindspeed_ms.toolkit.mapping.rows import Table, apply
from mindspeed_ms.toolkit.messages import unknown_argument

_DEVICE = ("mode", "device_target", "device_id", "max_device_memory")


class _Given:
    """Keywords of a table, kept as they were given."""

    TABLE: ClassVar[Table]
    FIRST: ClassVar[tuple[str, ...]] = ()
    """Names of positional arguments."""

    def __init__(self, *positional: Any, **given: Any) -> None:
        if len(positional) > len(self.FIRST):
            most = ", ".join(self.FIRST) or "none"
            raise TypeError(
                f"{type(self).__name__} has {len(positional)} values without a name; {most} may be"
            )
        given = {**dict(zip(self.FIRST, positional, strict=False)), **given}
        for name in given:
            if name not in self.TABLE:
                raise TypeError(unknown_argument(type(self).__name__, name, self.TABLE))
        self.given = given

    def __getattr__(self, name: str) -> Any:
        if name in self.TABLE:
            return self.__dict__.get("given", {}).get(name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.given.items())})"


class ContextConfig(_Given):
    """Where a script computes.

    Args:
        positional: ``mode``, ``device_target``, ``device_id``, in this order.
        given: keywords of ``mindspore.set_context``: ``mode`` (0 is answered by a line, as the
            dynamic graph is used), ``device_target``, ``device_id``, ``max_device_memory``, ...

    Raises:
        TypeError: a keyword that does not exist; names the near one.
    """

    TABLE = tree.CONTEXT
    FIRST = ("mode", "device_target", "device_id")


class ParallelContextConfig(_Given):
    """How ranks share the work.

    Args:
        positional: ``parallel_mode``.
        given: keywords of ``mindspore.set_auto_parallel_context``: ``parallel_mode``
            (STAND_ALONE, DATA_PARALLEL, SEMI_AUTO_PARALLEL, AUTO_PARALLEL, in any case, or
            MindFormers' number), ``full_batch``, ``enable_parallel_optimizer``, ...

    Raises:
        TypeError: a keyword that does not exist; names the near one.
    """

    TABLE = PARALLEL
    FIRST = ("parallel_mode",)


class _Asked:
    """What the script has asked for; the context of MindSpore is one of the process, too."""

    def __init__(self) -> None:
        self.parallel: Mapping[str, Any] | None = None
        self.device: Mapping[str, Any] = {}


_ASKED = _Asked()


def init_context(
    use_parallel: bool = False,
    context_config: ContextConfig | Mapping[str, Any] | None = None,
    parallel_config: ParallelContextConfig | Mapping[str, Any] | None = None,
) -> tuple[int, int]:
    """Start computing on this rank's device, and join the other ranks.

    Args:
        use_parallel: several ranks share the work. False: this one is alone.
        context_config: where it computes.
        parallel_config: how ranks share the work; None: each has a part of the batch.

    Returns:
        This rank, and how many there are.

    Raises:
        RuntimeError: the device is not there.
        ValueError: settings that contradict each other or the number of ranks.

    Parallelism: called by every rank; collective.
    """
    use_parallel = switch("use_parallel", use_parallel)
    device = dict(_values(context_config, ContextConfig))
    parallel = dict(_values(parallel_config, ParallelContextConfig))
    told = launch.told_by_launcher()
    size = 1 if told is None else told[1]
    if not use_parallel:
        if size > 1:
            raise ValueError(
                f"use_parallel is False, but there are {size} ranks; set it to True, or start one"
            )
        parallel["parallel_mode"] = ParallelMode.STAND_ALONE.value
    parallel.setdefault("parallel_mode", ParallelMode.DATA_PARALLEL.value)
    lines = check_context(parallel, World(size, rank_table.num_servers()))
    notes = apply(device, tree.CONTEXT, "context").notes()
    lines += script_context.apply({name: device.get(name) for name in _DEVICE})
    comm.init_process_group()
    set_up_output()
    for line in (*notes, *lines):
        print_rank_0(line)
    _ASKED.parallel = parallel
    _ASKED.device = {key: value for key, value in device.items() if key not in _DEVICE}
    return comm.get_rank(), comm.get_world_size()


def asked_parallel() -> Mapping[str, Any] | None:
    """Keys of ``parallel`` that ``init_context`` was given last; None: it was not called."""
    return _ASKED.parallel


def asked_device() -> Mapping[str, Any]:
    """Keys of ``context`` that a run's configuration reads."""
    return _ASKED.device


def _values(config: Any, kind: type[_Given]) -> Mapping[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return kind(**mapping("the configuration", config)).given
    if not isinstance(config, kind):
        raise TypeError(f"{shown(config)} is no {kind.__name__}")
    return config.given


def build_context(config: Mapping[str, Any]) -> tuple[int, int]:
    """``init_context`` as a file says: its keys ``use_parallel``, ``context`` and ``parallel``.

    Args:
        config: ``MindFormerConfig``, or a mapping of the same keys.

    Returns:
        This rank, and how many there are.

    Raises:
        RuntimeError: the device is not there.
        TypeError: a key that does not exist; names the near one.
        ValueError: settings that contradict each other or the number of ranks.

    Parallelism: called by every rank; collective.
    """
    given = mapping("config", config)
    use_parallel = bool(given.get("use_parallel"))
    parallel = dict(given.get("parallel") or {}) if use_parallel else {}
    return init_context(use_parallel, given.get("context"), parallel)


def build_parallel_config(config: Mapping[str, Any]) -> None:
    """Check a file's ``parallel_config``; it stays a mapping, which models and trainers take.

    Raises:
        ValueError: an unknown key, or a size that none can be.
    """
    read_sizes(mapping("config", config).get("parallel_config") or {})
