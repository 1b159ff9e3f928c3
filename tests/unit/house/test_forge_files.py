# SPDX-License-Identifier: Apache-2.0
"""What a public forge runs and asks is valid, and runs the commands of the documents."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def _read(path):
    return yaml.safe_load(path.read_text("utf-8"))


def _runs(workflow):
    for job in workflow["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def _marked(name):
    text = (ROOT / "README.md").read_text("utf-8")
    return re.search(rf"<!-- {name} -->\n```bash\n(.*)\n```", text).group(1)


def test_workflows_run_the_commands_of_the_readme():
    everything = [run for path in WORKFLOWS for run in _runs(_read(path))]
    assert _marked("train-command") in everything and "bash .ci/run" in everything
    assert f"{_marked('test-command')} -m slow" in everything
    assert any(run.endswith("mkdocs build --strict") for run in everything)


def test_the_tests_run_on_every_python_that_is_declared():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    low, high = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', text).groups())
    matrix = _read(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(low, high)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_ask_in_fields_that_a_forge_knows(path):
    template = _read(path)
    assert {"name", "description", "body"} <= set(template)
    for field in template["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "markdown")
        assert field["attributes"]["label"]
        for command in re.findall(r"python (\S+\.py)", field["attributes"].get("description", "")):
            assert (ROOT / command).is_file()


def test_hooks_before_a_commit_are_programs_of_the_environment():
    (local,) = _read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        assert hook["language"] == "system" and hook["entry"].split()[0] in ("ruff", "python")
        for word in hook["entry"].split():
            assert not word.endswith(".py") or (ROOT / word).is_file()
