# SPDX-License-Identifier: Apache-2.0
"""Draw what the stages of a pipeline do: from a configuration, from numbers, or as measured.

    python -m tools.pipeline_timeline --yaml configs/llama2_7b.yaml --world-size 16 --output a.svg
    python -m tools.pipeline_timeline --stages 4 --microbatches 8 --chunks 2 --output step.png
    python -m tools.pipeline_timeline --measured timeline.json --output step.svg
    python -m tools.pipeline_timeline --measured timeline.json --with-prediction --output both.svg

The ending of ``--output`` chooses the form: ``.svg``, ``.png``, or ``.json`` for a Chrome trace.
The bubble ratio (idle time over work) and the most micro-batches in flight per stage are printed. A
training run writes the measured timeline of an iteration with ``--pipeline-timeline FILE.json``.
``--with-prediction`` draws above it what the schedule makes of the mean times of its passes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from mindspeed_ms.config import AllConfig
from mindspeed_ms.core.pipeline_parallel.timeline import (
    PASSES,
    Bar,
    Timeline,
    chrome_trace,
    from_chrome_trace,
    predicted,
    shape_of,
    simulate,
    theoretical_bubble_ratio,
)
from mindspeed_ms.files.regular_file import read_json
from mindspeed_ms.files.whole import appears_whole, write_text
from mindspeed_ms.plan.layer_placement import LayerPlacement, layer_placement
from mindspeed_ms.plan.schedule_plan import Forward, Pass, Shape
from mindspeed_ms.toolkit.launch.command import Parser, user_errors
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_yaml

WIDTH, ROW, LEFT, TOP, BOTTOM = 1600, 36, 80, 40, 56
"""Of the picture, in pixels: its width, a stage's height, space for names, for the title, and for
axis and legend."""
AXIS = "time since the first pass; lighter: further chunks of a stage; numbers: micro-batches"

MIN_LABEL_WIDTH = 14
"""Pixels a bar needs to carry the number of its micro-batch."""

IDLE = (235, 235, 235)
COLOURS = {
    "forward": (92, 141, 208),
    "backward": (97, 173, 112),
    "wait": IDLE,
    "exchange": IDLE,
}
INK = (40, 40, 40)


@dataclass(frozen=True, slots=True)
class Box:
    """A coloured rectangle with a text, in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    colour: tuple[int, int, int]
    text: str


def shade(bar: Bar) -> tuple[int, int, int]:
    """Colour of a bar: by kind, lighter with every further chunk."""
    lighter = min(0.7, 0.22 * bar.chunk)
    red, green, blue = (round(c + (255 - c) * lighter) for c in COLOURS[bar.kind])
    return red, green, blue


def boxes(timeline: Timeline) -> list[Box]:
    """The bars of a timeline as rectangles."""
    shown = timeline.bars
    first = min(bar.start for bar in shown)
    scale = (WIDTH - LEFT - 10) / (max(bar.end for bar in shown) - first)
    result = []
    for bar in shown:
        left, right = (LEFT + (moment - first) * scale for moment in (bar.start, bar.end))
        top = TOP + bar.stage * ROW
        is_labelled = bar.kind in PASSES and right - left >= MIN_LABEL_WIDTH
        text = str(bar.microbatch) if is_labelled else ""
        result.append(Box(left, top + 3, right, top + ROW - 3, shade(bar), text))
    return result


def beside(upper: Timeline, lower: Timeline) -> Timeline:
    """Two timelines of as many stages, one below the other, on one axis."""
    shifted = tuple(replace(bar, stage=bar.stage + upper.stages) for bar in lower.bars)
    return Timeline(
        upper.stages + lower.stages, (*upper.bars, *shifted), (*upper.peaks, *lower.peaks)
    )


def row_name(timeline: Timeline, row: int, is_double: bool) -> str:
    """Of a stage, and of which timeline."""
    if not is_double:
        return f"stage {row}"
    half = timeline.stages // 2
    return f"{'forecast' if row < half else 'measured'} {row % half}"


def title(timeline: Timeline) -> str:
    """One line about a timeline."""
    peaks = ", ".join(map(str, timeline.peaks))
    return f"bubble ratio {timeline.bubble_ratio:.1%}, micro-batches in flight: {peaks}"


def height(timeline: Timeline) -> int:
    """Of the picture, in pixels."""
    return TOP + timeline.stages * ROW + BOTTOM


def marks(timeline: Timeline) -> list[tuple[float, str]]:
    """Marks of the time axis: pixels from the left, and the time since the first bar."""
    first = min(bar.start for bar in timeline.bars)
    length = max(bar.end for bar in timeline.bars) - first
    room = WIDTH - LEFT - 10
    return [(LEFT + room * part / 10, f"{length * part / 10:.4g}") for part in range(11)]


def legend(timeline: Timeline) -> list[tuple[int, str, tuple[int, int, int]]]:
    """Entries below the axis: pixels from the left, words, colour."""
    kinds = [kind for kind in COLOURS if any(bar.kind == kind for bar in timeline.bars)]
    return [(LEFT + 130 * place, kind, COLOURS[kind]) for place, kind in enumerate(kinds)]


def as_svg(timeline: Timeline, is_double: bool = False) -> str:
    """The picture as SVG; ``is_double``: of two timelines beside each other."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height(timeline)}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="22" font-size="14">{title(timeline)}</text>',
    ]
    for stage in range(timeline.stages):
        y = TOP + stage * ROW + ROW / 2 + 4
        parts.append(f'<text x="10" y="{y:.1f}">{row_name(timeline, stage, is_double)}</text>')
    for box in boxes(timeline):
        width, tall = box.right - box.left, box.bottom - box.top
        parts.append(
            f'<rect x="{box.left:.2f}" y="{box.top}" width="{width:.2f}" height="{tall}" '
            f'fill="rgb{box.colour}" stroke="white" stroke-width="0.5"/>'
        )
        if box.text:
            x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2 + 4
            parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{box.text}</text>')
    axis = TOP + timeline.stages * ROW
    for x, moment in marks(timeline):
        parts.append(f'<path d="M{x:.1f} {axis}v5" stroke="black"/>')
        parts.append(f'<text x="{x:.1f}" y="{axis + 18}" text-anchor="middle">{moment}</text>')
    for x, words, colour in legend(timeline):
        square = f'<tspan fill="rgb{colour}" stroke="gray" stroke-width="0.3">■</tspan>'
        parts.append(f'<text x="{x}" y="{axis + 42}">{square} {words}</text>')
    parts.append(f'<text x="{WIDTH - 10}" y="{axis + 42}" text-anchor="end">{AXIS}</text>')
    return "\n".join([*parts, "</svg>", ""])


def as_image(timeline: Timeline, is_double: bool = False) -> Image.Image:
    """The picture as pixels; ``is_double``: of two timelines beside each other."""
    image = Image.new("RGB", (WIDTH, height(timeline)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((10, 12), title(timeline), fill=INK)
    for stage in range(timeline.stages):
        draw.text(
            (10, TOP + stage * ROW + ROW / 2 - 6), row_name(timeline, stage, is_double), fill=INK
        )
    for box in boxes(timeline):
        area = (box.left, box.top, max(box.right, box.left + 1), box.bottom)
        draw.rectangle(area, fill=box.colour, outline="white")
        if box.text:
            middle = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
            draw.text(middle, box.text, fill=INK, anchor="mm")
    axis = TOP + timeline.stages * ROW
    for x, moment in marks(timeline):
        draw.line((x, axis, x, axis + 5), fill=INK)
        draw.text((x, axis + 14), moment, fill=INK, anchor="mm")
    for left, words, colour in legend(timeline):
        draw.rectangle((left, axis + 32, left + 10, axis + 42), fill=colour, outline="gray")
        draw.text((left + 16, axis + 37), words, fill=INK, anchor="lm")
    draw.text((WIDTH - 10, axis + 37), AXIS, fill=INK, anchor="rm")
    return image


def write(timeline: Timeline, output: Path, is_double: bool = False) -> None:
    """Write a picture or a trace, by the ending of the name.

    Raises:
        ValueError: an ending that stands for nothing.
    """
    if output.suffix == ".svg":
        write_text(output, as_svg(timeline, is_double))
    elif output.suffix == ".png":
        with appears_whole(output) as unfinished:
            as_image(timeline, is_double).save(unfinished)
    elif output.suffix == ".json":
        write_text(output, json.dumps(chrome_trace(timeline)))
    else:
        raise ValueError(f"--output is {output}; its name must end in .svg, .png or .json")


def of_config(config: AllConfig, world_size: int | None, backward: float) -> Timeline:
    """Simulated step of a configuration; a layer's forward takes one unit of time.

    Embedding and head take none, a backward ``backward`` times its forward, one forward more where
    layers are recomputed as a whole.
    """
    parallel = config.parallel_config
    placement = layer_placement(config.model_config, parallel)
    ranks = world_size or parallel.model_parallel_size
    shape = Shape(
        placement.num_stages,
        config.num_micro_batches(ranks),
        placement.num_chunks,
        parallel.microbatch_group_size_per_vp_stage,
    )
    again = 1.0 if config.model_config.recompute_granularity == "full" else 0.0
    return simulate(shape, lambda stage, step: _cost(placement, stage, step, backward + again))


def _cost(placement: LayerPlacement, stage: int, step: Pass, backward: float) -> float:
    layers = [
        layer
        for layer in placement.layers_of(stage, step.chunk)
        if layer not in placement.noop_layers
    ]
    return len(layers) * (1.0 if isinstance(step, Forward) else backward)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser.of(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--yaml", type=Path, help="configuration of a run")
    source.add_argument("--stages", type=int, help="pipeline stages, all alike")
    source.add_argument("--measured", type=Path, help="file of --pipeline-timeline")
    parser.add_argument(
        "--with-prediction", action="store_true", help="with --measured: the forecast above it"
    )
    parser.add_argument("--world-size", type=int, help="ranks of the run, for the micro-batches")
    parser.add_argument("--microbatches", type=int, default=8, help="with --stages")
    parser.add_argument("--chunks", type=int, default=1, help="model chunks, with --stages")
    parser.add_argument("--group-size", type=int, help="micro-batches of a chunk's turn")
    parser.add_argument("--backward", type=float, default=2.0, help="time over that of a forward")
    parser.add_argument("--output", type=Path, required=True, help="FILE.svg, .png or .json")
    return parser.parse_args()


MOST_BYTES = 1 << 30
"""Of a measured timeline."""


def main() -> None:
    """Draw one timeline."""
    arguments = parse()
    with user_errors():
        if arguments.measured is not None:
            timeline = from_chrome_trace(read_json(arguments.measured, MOST_BYTES))
        elif arguments.yaml is not None:
            config = init_configs_from_yaml(arguments.yaml)
            timeline = of_config(config, arguments.world_size, arguments.backward)
        else:
            shape = Shape(
                arguments.stages, arguments.microbatches, arguments.chunks, arguments.group_size
            )
            timeline = simulate(
                shape,
                lambda _, step: 1.0 if isinstance(step, Forward) else arguments.backward,
            )
            theory = theoretical_bubble_ratio(shape)
            print(f"bubble ratio in theory {theory:.1%}")  # noqa: T201 - the tool's answer
        is_double = arguments.with_prediction
        if is_double:
            if arguments.measured is None:
                raise ValueError("--with-prediction goes with --measured; add a measured timeline")
            forecast = predicted(timeline, shape_of(timeline, arguments.group_size))
            print(f"forecast: {title(forecast)}")  # noqa: T201 - the tool's answer
        shown = beside(forecast, timeline) if is_double else timeline
        write(shown, arguments.output, is_double)
    print(title(timeline))  # noqa: T201 - the tool's answer


if __name__ == "__main__":
    main()
