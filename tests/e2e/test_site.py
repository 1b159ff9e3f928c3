# SPDX-License-Identifier: Apache-2.0
"""The documents as a site: it builds with every link checked, in both languages."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_API = (
    "INHERIT: {root}/mkdocs.yml\ndocs_dir: {docs}\nextra: {{api: false}}\nhooks: [{hooks}]\n"
)


def _build(config, output):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", output],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


def _config(folder, docs=ROOT / "docs"):
    """The site without the reference of the API, which takes most of the time."""
    path = folder / "mkdocs.yml"
    hooks = ROOT / "tools" / "site_hooks.py"
    text = WITHOUT_API.format(root=ROOT, docs=docs, hooks=hooks)
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1]
    path.write_text(text + "nav:\n" + nav.replace("  - API: api/\n", ""), encoding="utf-8")
    return path


def test_pages_link_to_pages_in_both_languages(tmp_path):
    done = _build(_config(tmp_path), tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    home = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert 'href="watching/"' in home and 'href="zh/"' in home
    chinese = (tmp_path / "site" / "zh" / "index.html").read_text("utf-8")
    assert 'href="getting_started/"' in chinese and 'href=".."' in chinese
    assert (tmp_path / "site" / "pictures" / "report_light.png").is_file()
    assert "Unreleased" in (tmp_path / "site" / "changelog" / "index.html").read_text("utf-8")


GONE = ("absent.md", "data.md#no-such-part", "pictures/absent.png", "../tools/absent.py")


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    with (docs / "watching.md").open("a", encoding="utf-8") as page:
        page.write("".join(f"\n[gone]({target})\n" for target in GONE))
    done = _build(_config(tmp_path, docs), tmp_path / "site")
    assert done.returncode != 0
    for target in GONE:
        assert target.rpartition("#")[2] in done.stderr, done.stderr


@pytest.mark.slow
def test_the_whole_site_with_the_reference_of_the_api(tmp_path):
    done = _build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    page = tmp_path / "site" / "api" / "core" / "tensor_parallel" / "index.html"
    text = page.read_text("utf-8")
    assert "ColumnParallelLinear" in text and "Raises" in text
    pages = {page.parent.name for page in (tmp_path / "site" / "api").glob("*/index.html")}
    rooms = {file.parent.name for file in (ROOT / "mindspeed_ms").glob("*/[a-z]*.py")}
    assert pages == rooms - {"predecessor"} | {"package"}
