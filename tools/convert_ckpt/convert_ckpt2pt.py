# SPDX-License-Identifier: Apache-2.0
"""MindSpore files of every rank -> Megatron checkpoint, as MindSpeed-Core-MS r0.1.0 has it.

A thin front end: ``python tools/convert_ckpt convert`` does the work. Data parallel shards of an
optimizer must have been joined with ``combine_ckpt_dp_zero.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.toolkit.launch.command import Parser, user_errors
from mindspeed_ms.training.conversion import ConvertOptions, convert


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; return the status."""
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("--ms-path", type=Path, required=True)
    add("--megatron-path", type=Path, required=True)
    for name in ("tp", "pp", "dp", "cp", "vpp"):
        add(f"--{name}-size", type=int, default=1)
    add("--num-layers", type=int, help="layers of the model, identity layers included")
    add("--noop", type=int, nargs="*", default=[], help="numbers of the identity layers")
    add("--src-model-format", choices=("ckpt", "safetensors"), default="ckpt")
    add("--convert-param-only", action="store_true", help="weights without optimizer")
    add("--model-config", type=Path, help="YAML or config.json, if ms-path does not describe it")
    add("--use-distributed-optimizer", action="store_true", help="write distrib_optim.pt")
    add("--param-map-path", help="accepted: layouts of buffers are computed")
    add("--multiprocess-off", action="store_true", help="accepted: tensors are streamed")
    add("--process-limit", type=int, help="accepted: tensors are streamed")
    add("--process_timeout", type=int, help="accepted: tensors are streamed")
    arguments = parser.parse_args(argv)
    with user_errors():
        options = ConvertOptions(
            to="megatron",
            tensor=arguments.tp_size,
            pipeline=arguments.pp_size,
            virtual_pipeline=arguments.vpp_size if arguments.vpp_size > 1 else None,
            data_parallel=arguments.dp_size * arguments.cp_size,
            with_optimizer=not arguments.convert_param_only,
            source_tensor=arguments.tp_size,
            model_config=arguments.model_config,
            noop_layers=tuple(arguments.noop),
            num_layers=arguments.num_layers,
            distributed_optimizer=(
                bool(arguments.param_map_path) or arguments.use_distributed_optimizer
            ),
        )
        report = convert(arguments.ms_path, arguments.megatron_path, options)
    sys.stdout.write(f"{report.num_tensors} weights -> {report.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
