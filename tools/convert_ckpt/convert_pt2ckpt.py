# SPDX-License-Identifier: Apache-2.0
"""Megatron checkpoint -> MindSpore files of every rank, as MindSpeed-Core-MS r0.1.0 has it.

A thin front end: ``python tools/convert_ckpt convert`` does the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.toolkit.launch.command import Parser, user_errors
from mindspeed_ms.training.conversion import ConvertOptions, convert


def add_layout_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the layout, and those that have no effect here."""
    add = parser.add_argument
    for name in ("tp", "pp", "dp", "cp", "vpp"):
        add(f"--{name}-size", type=int, default=1)
    add("--num-layers", type=int, help="layers of the model, identity layers included")
    add("--stage-list", type=int, nargs="+", help="layers of each pipeline stage")
    add("--convert-param-only", action="store_true", help="weights without optimizer")
    add("--param-map-path", help="accepted: layouts of buffers are computed")
    add("--multiprocess-off", action="store_true", help="accepted: tensors are streamed")
    add("--process-limit", type=int, help="accepted: tensors are streamed")
    add("--process_timeout", type=int, help="accepted: tensors are streamed")
    add("--parallel-init-order", default="tp-cp-ep-dp-pp", help="only this order is written")
    add("--debug", action="store_true", help="accepted: errors name the tensor")


def layers_of(arguments: argparse.Namespace) -> tuple | None:
    """Layers per stage as ``num_layer_list``, from ``--stage-list``."""
    if arguments.stage_list is None:
        return None
    if arguments.vpp_size == 1:
        return tuple(arguments.stage_list)
    chunks = range(arguments.vpp_size)
    uneven = [count for count in arguments.stage_list if count % arguments.vpp_size]
    if uneven:
        raise ValueError(
            f"--stage-list has a stage of {uneven[0]} layers, which --vpp-size "
            f"{arguments.vpp_size} does not divide; use counts that it divides"
        )
    return tuple(
        tuple(count // arguments.vpp_size for count in arguments.stage_list) for _ in chunks
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; return the status."""
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("--megatron-path", type=Path, required=True)
    add("--ms-path", type=Path, required=True)
    add("--file-prefix", default="network")
    add("--format", choices=("ckpt", "safetensors"), default="ckpt")
    add("--generate-all-dp-cp", action="store_true", help="files of all data parallel ranks")
    add("--dist-opt-content", nargs="*", default=["param", "exp_avg", "exp_avg_sq"])
    add_layout_flags(parser)
    arguments = parser.parse_args(argv)
    with user_errors():
        if arguments.parallel_init_order != "tp-cp-ep-dp-pp":
            raise ValueError(
                f"--parallel-init-order {arguments.parallel_init_order} is not written; use "
                "tp-cp-ep-dp-pp"
            )
        moments = {"exp_avg", "exp_avg_sq"} & set(arguments.dist_opt_content)
        options = ConvertOptions(
            to="mindspore",
            tensor=arguments.tp_size,
            pipeline=arguments.pp_size,
            virtual_pipeline=arguments.vpp_size if arguments.vpp_size > 1 else None,
            num_layer_list=layers_of(arguments),
            data_parallel=arguments.dp_size * arguments.cp_size,
            all_copies=arguments.generate_all_dp_cp,
            with_optimizer=bool(moments) and not arguments.convert_param_only,
            prefix=arguments.file_prefix,
            container=arguments.format,
            dtype="F32",
        )
        report = convert(arguments.megatron_path, arguments.ms_path, options)
    sys.stdout.write(f"{report.num_tensors} weights -> {report.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
