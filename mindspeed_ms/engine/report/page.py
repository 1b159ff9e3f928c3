# SPDX-License-Identifier: Apache-2.0
"""The page: stories of runs in ``page.html``, with plotly's library inside."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.engine.report.story import Story, differing_settings, tell
from mindspeed_ms.files.whole import write_text

FILE_NAME = "report.html"
TEMPLATE = Path(__file__).parent / "page.html"
_PACKAGES = ("plotly", "jinja2")


def missing_packages() -> str | None:
    """What a report cannot be made without, and how to get it; None if all is there."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"a report needs {' and '.join(missing)}, which cannot be imported here; "
        'pip install "mindspeed_ms[report]"'
    )


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write the report of some runs.

    Args:
        folders: of the runs; their curves share axes.
        output: the HTML file.

    Raises:
        ValueError: a folder holds no record, or a package is missing.
        OSError: the file cannot be written.
    """
    problem = missing_packages()
    if problem is not None:
        raise ValueError(problem)
    text = page([tell(folder) for folder in folders])
    write_text(output, text)


def page(stories: Sequence[Story]) -> str:
    """The HTML text; names of runs that are alike are told apart by their folders."""
    names = [story["name"] for story in stories]
    for story in stories:
        if names.count(story["name"]) > 1:
            story["name"] = story["folder"]
    jinja2 = importlib.import_module("jinja2")
    library = importlib.import_module("plotly.offline").get_plotlyjs()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    data = [
        {name: story[name] for name in ("name", "curves", "timeline", "memory")}
        for story in stories
    ]
    return template.render(
        stories=stories,
        differences=differing_settings(stories) if len(stories) > 1 else {},
        library=library.replace("</script", "<\\/script"),
        data=json.dumps(data).replace("<", "\\u003c"),
    )
