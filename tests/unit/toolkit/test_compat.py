# SPDX-License-Identifier: Apache-2.0
"""``mindformers`` and ``transformer`` by the opt-in path: who gets them, and what they hold."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mindspeed_ms
from mindspeed_ms import toolkit
from mindspeed_ms.toolkit.compat import __main__ as command
from mindspeed_ms.toolkit.compat import aliases, guard

ROOT = Path(mindspeed_ms.__file__).parents[1]
LINE = f"mindformers: provided by mindspeed_ms {mindspeed_ms.__version__} ({guard.PATH})\n"


def python(*words, path=(guard.PATH,), cwd=None, **variables):
    """Run Python with folders on its path, and the environment of a user without a launcher."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MS_", "RANK", "MINDSPEED"))}
    paths = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, *words],
        env={**kept, "PYTHONPATH": paths, **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def package(folder, says, name="mindformers"):
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"print({says!r})\n")
    return folder


SHOW = "import mindformers; print(mindformers.__version__)"
OURS = f"{mindspeed_ms.__version__}+mindspeed_ms\n"


def test_without_the_path_there_is_nothing():
    done = python("-c", SHOW, path=())
    assert done.returncode == 1 and "No module named 'mindformers'" in done.stderr


def test_with_the_path_it_is_ours_and_says_so_once():
    script = f"{SHOW}; import mindformers.trainer, mindformers"
    done = python("-c", script)
    assert (done.stdout, done.stderr) == (OURS, LINE)
    assert python("-c", SHOW, RANK="1").stderr == ""  # rank 0 says it


def test_a_real_installation_behind_ours_is_an_error(tmp_path):
    real = package(tmp_path / "site", "real")
    done = python("-c", SHOW, path=(guard.PATH, real))
    assert done.returncode == 1 and done.stdout == ""
    origin = real / "mindformers" / "__init__.py"
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: mindformers is installed at {origin}, and {guard.PATH} on PYTHONPATH stands "
        "before it; take one of the two away, or set MINDSPEED_MS_COMPAT=override to use "
        "mindspeed_ms"
    )


def test_a_real_installation_before_ours_is_used(tmp_path):
    real = package(tmp_path / "site", "real")
    done = python("-c", "import mindformers", path=(real, guard.PATH))
    assert (done.stdout, done.stderr) == ("real\n", "")


def test_override_uses_ours(tmp_path):
    real = package(tmp_path / "site", "real")
    done = python("-c", SHOW, path=(guard.PATH, real), MINDSPEED_MS_COMPAT="override")
    assert (done.stdout, done.stderr) == (OURS, LINE)
    done = python("-c", SHOW, MINDSPEED_MS_COMPAT="yes")
    assert "MINDSPEED_MS_COMPAT is 'yes'; it may be override, or unset" in done.stderr


def test_a_folder_beside_the_script_wins(tmp_path):
    package(tmp_path, "beside")
    (tmp_path / "script.py").write_text("import mindformers\n")
    done = python(str(tmp_path / "script.py"))
    assert (done.stdout, done.stderr) == ("beside\n", "")


def test_an_installation_in_place_is_a_real_one(tmp_path):
    real = package(tmp_path / "source", "real")
    origin = str(real / "mindformers" / "__init__.py")
    script = f"""
import importlib.util, sys
class Editable:
    def find_spec(self, name, path=None, target=None):
        if name == "mindformers":
            return importlib.util.spec_from_file_location(name, {origin!r})
sys.meta_path.append(Editable())
{SHOW}
"""
    done = python("-c", script)
    assert done.returncode == 1 and f"installed at {real}" in done.stderr


def test_what_is_no_real_installation(tmp_path):
    (tmp_path / "mindformers").mkdir()  # a folder of data, or of a user's modules
    for path in ((guard.PATH, tmp_path), (guard.PATH, f"{guard.PATH}/../path")):
        assert python("-c", SHOW, path=path).stdout == OURS


def test_the_folder_is_no_part_of_the_package():
    with pytest.raises(ImportError, match="put .*/compat/path on PYTHONPATH"):
        import mindspeed_ms.toolkit.compat.path.mindformers  # noqa: F401


# ---- what it holds ----


def test_every_name_of_ours_is_there():
    script = """
import mindformers, mindspeed_ms
for name in dir(mindformers):
    assert getattr(mindformers, name) is getattr(mindspeed_ms, name)
print(*dir(mindformers))
"""
    assert python("-c", script).stdout.split() == sorted(toolkit.__all__)


def test_the_table_names_modules_of_ours_only():
    for module, names in aliases.MODULES.items():
        assert module.startswith("mindformers.") and len(set(names)) == len(names)
        assert set(aliases.names_of(module)) == set(names) & set(toolkit.EXPORTS)


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        (
            "from mindformers import register_modle",
            "ImportError: mindformers.register_modle is not provided by mindspeed_ms; did you mean "
            "'register_model'?; available: ",
        ),
        (
            "import mindformers; mindformers.Xyz",
            "ImportError: mindformers.Xyz is not provided by mindspeed_ms; available: ",
        ),
        (
            "from mindformers.core.context import build_contexts",
            "ImportError: mindformers.core.context.build_contexts is not provided by mindspeed_ms",
        ),
        (
            "import mindformers.trainer.trainr",
            "ModuleNotFoundError: mindformers.trainer.trainr is not provided by mindspeed_ms; did "
            "you mean 'mindformers.trainer.trainer'?",
        ),
        (
            "from transformer import Xyz",
            "ImportError: transformer.Xyz is not provided by mindspeed_ms",
        ),
    ],
)
def test_a_name_that_is_not_provided_says_so(statement, text):
    done = python("-c", statement)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(text)


def test_modules_are_there_under_their_names():
    statement = (
        "import mindformers.models.gpt2.gpt2_config as config, mindformers\n"
        "from mindformers import trainer, tools\n"
        "from mindformers.tools import hccl_tools, merge_hccl\n"
        "assert mindformers.models.gpt2.gpt2_config is config and not hasattr(config, '__x__')\n"
        "from transformer.models.build_model import register_model\n"
        "from transformer.data.build_dataset import register_dataset\n"
        "import mindspeed_ms\n"
        "assert register_model is mindspeed_ms.register_model\n"
    )
    done = python("-c", statement)
    assert done.returncode == 0, done.stderr


def test_models_of_ones_own_lie_in_transformer_models(tmp_path):
    own = tmp_path / "transformer" / "models" / "mine"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text("print('mine', __name__)\n")
    done = python("-c", "import transformer.models.mine", cwd=tmp_path)
    assert done.stdout == "mine transformer.models.mine\n", done.stderr


# ---- the command ----


def test_path_and_run(tmp_path, capsys):
    assert command.main(["path"]) == 0
    assert capsys.readouterr().out == f"{guard.PATH}\n"
    (tmp_path / "script.py").write_text(
        f"import sys, subprocess; {SHOW}; print(sys.argv[1:], __name__)\n"
        f"print(subprocess.run([sys.executable, '-c', {SHOW!r}], capture_output=True).stdout)\n"
    )
    words = ("-m", "mindspeed_ms.toolkit.compat", "run", str(tmp_path / "script.py"), "--a", "b")
    done = python(*words, path=())
    assert done.stdout.splitlines() == [
        OURS.strip(),
        "['--a', 'b'] __main__",
        repr(OURS.encode()),
    ]
    words = ("-m", "mindspeed_ms.toolkit.compat", "run", "-m", "mindformers.tools.hccl_tools")
    done = python(*words, cwd=tmp_path)
    help_words = ("run", "-m", "mindformers.models.gpt2.convert_weight", "--help")
    shown = python("-m", "mindspeed_ms.toolkit.compat", *help_words)
    assert shown.stdout.startswith("usage: convert_weight"), shown.stderr
    assert done.returncode == 0 and list(tmp_path.glob("hccl_8p_*.json")), done.stderr


@pytest.mark.parametrize("words", [[], ["run"], ["run", "-m"], ["walk"], ["path", "x"]])
def test_other_words_show_the_usage(words, capsys):
    assert command.main(words) == 2
    assert capsys.readouterr().err.startswith("usage: python -m mindspeed_ms.toolkit.compat path")
    assert command.main(["run", "none.py"]) == 2
    assert "there is no script none.py" in capsys.readouterr().err


@pytest.mark.slow
def test_the_wheel_carries_the_path(tmp_path):
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT]
    subprocess.run([sys.executable, *words], check=True, timeout=900)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = guard.PATH.relative_to(ROOT)
    for path in guard.PATH.rglob("*.py"):
        assert str(folder / path.relative_to(guard.PATH)) in names
    assert "mindspeed_ms/toolkit/presets/gpt_base.yaml" in names
    assert not any(name.startswith(("mindformers/", "transformer/")) for name in names)
