# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a reader to type exists and parses."""

import re
import shlex
from pathlib import Path

import pytest
from shipped import own_configs

from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

TRANSLATIONS = {
    ROOT / "README.zh.md": ROOT / "README.md",
    ROOT / "docs/zh/getting_started.md": ROOT / "docs/getting_started.md",
}
"""Translation -> original."""


def _commands(path):
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()


COMMANDS = [(path.name, command) for path in DOCUMENTS for command in _commands(path)]


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_commands_name_files_and_flags_that_exist(document, command):
    for part in re.split(r"&&|;|\|", command):
        words = shlex.split(part)
        scripts = [word for word in words if word.endswith((".py", ".sh"))]
        for script in scripts:
            assert (ROOT / script).is_file(), f"{document}: {script} does not exist"
        if "pretrain_gpt.py" in words:
            parse_args(words[words.index("pretrain_gpt.py") + 1 :])


@pytest.mark.parametrize("translated", TRANSLATIONS, ids=lambda path: path.name)
def test_a_translation_shows_commands_of_the_original(translated):
    commands, original = (list(_commands(path)) for path in (translated, TRANSLATIONS[translated]))
    assert commands and commands == original


@pytest.mark.parametrize("translated", TRANSLATIONS, ids=lambda path: path.name)
def test_a_translation_leads_where_the_original_leads(translated):
    def targets(path):
        found = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
        return {(path.parent / target).resolve() for target in found}

    original = TRANSLATIONS[translated]
    itself = {path.resolve() for path in (*TRANSLATIONS, *TRANSLATIONS.values())}
    missing = targets(original) - targets(translated) - itself
    assert not {path for path in missing if path.suffix == ".md"}


def test_there_are_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- train-command -->" in text and "<!-- test-command -->" in text


@pytest.mark.parametrize("path", own_configs(), ids=lambda p: p.name)
def test_every_shipped_configuration_is_valid(path):
    parts = ("_4K.yaml", "_accelerate.yaml", "_train.yaml")
    if path.parent.name == "38BV3" and path.name.endswith(parts):
        path = path.with_name("model_38BV3.yaml")  # the three are parts of one
    assert init_configs_from_yaml(str(path)).validate().model_config.num_layers > 0


def test_links_of_the_documents_lead_somewhere():
    for path in [*DOCUMENTS, *TRANSLATIONS, ROOT / "examples/README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
