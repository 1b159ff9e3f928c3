# SPDX-License-Identifier: Apache-2.0
"""The high-level room: names at the package root, where files are looked for, registries."""

import subprocess
import sys
from pathlib import Path

import pytest

import mindspeed_ms
from mindspeed_ms import toolkit
from mindspeed_ms.toolkit import hub, messages, registry


def run(script):
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    return subprocess.run(
        [sys.executable, "-c", here + script], check=True, capture_output=True, text=True
    ).stdout


def test_importing_the_package_loads_neither_mindspore_nor_the_tokenizer_libraries():
    run(
        "import sys, mindspeed_ms\n"
        "heavy = {'mindspore', 'numpy', 'tokenizers', 'sentencepiece', 'jinja2', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )


def test_pure_modules_of_the_room_load_without_mindspore():
    run(
        "import sys; sys.modules['mindspore'] = None\n"
        "from mindspeed_ms.toolkit import hub, messages, registry"
    )


def test_tokenizers_need_no_mindspore(tmp_path):
    run(
        "import sys; sys.modules['mindspore'] = None\n"
        "import tokenizer_cases as cases, pathlib\n"
        "from mindspeed_ms import AutoProcessor, AutoTokenizer, LlamaTokenizer\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "cases.llama(folder)\n"
        "rows = AutoTokenizer.from_pretrained(folder)(['a', 'b c'], padding=True)\n"
        "assert len(AutoTokenizer.from_pretrained(folder).batch_decode(rows['input_ids'])) == 2\n"
        "assert AutoProcessor.from_pretrained(folder, return_tensors='np')('a')['text'].shape\n"
    )


def test_every_exported_name_is_there_and_listed():
    for name in toolkit.EXPORTS:
        assert getattr(mindspeed_ms, name) is getattr(toolkit, name)
        assert name in mindspeed_ms.__all__ and name in dir(mindspeed_ms) and name in dir(toolkit)
    assert mindspeed_ms.__version__ in run("import mindspeed_ms; print(mindspeed_ms.__version__)")


@pytest.mark.parametrize("module", [mindspeed_ms, toolkit])
def test_a_name_that_is_not_exported_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="has no attribute 'AutoNothing'"):
        _ = module.AutoNothing
    with pytest.raises(ImportError, match="AutoNothing"):
        exec(f"from {module.__name__} import AutoNothing")


# ---- where files are looked for ----


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(hub.HOME_VARIABLE, raising=False)
    return tmp_path


def put(folder, name="vocab.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")


def test_places_in_order(here, monkeypatch):
    wanted = ["vocab.json"]
    expected = [
        here / "checkpoint_download" / "gpt2",
        here / "checkpoint_download" / "gpt2" / "gpt2_13b",
        here / "home" / "gpt2_13b",
        here / "gpt2_13b",
    ]
    monkeypatch.setenv(hub.HOME_VARIABLE, str(here / "home"))
    assert hub.find("gpt2_13b", wanted) is None
    for place in expected:  # each later one goes before those already there
        put(place)
        assert hub.folder_of("gpt2_13b", wanted).resolve() == place


def test_a_folder_without_the_files_is_passed_over(here):
    (here / "gpt2").mkdir()
    put(here / "checkpoint_download" / "gpt2", "weights.safetensors")
    found = hub.folder_of("gpt2", ["config.json", "*.safetensors"])
    assert found.resolve() == here / "checkpoint_download" / "gpt2"


def test_the_error_names_places_files_and_the_way_out(here):
    (here / "gpt2").mkdir()
    with pytest.raises(OSError, match="nothing found for 'gpt2'") as caught:
        hub.folder_of("gpt2", ["config.json", "*.safetensors"], "use from_config")
    text = str(caught.value)
    assert "gpt2 (has none of the files)" in text
    assert "checkpoint_download/gpt2/gpt2 (no folder)" in text
    assert "files wanted: config.json, *.safetensors" in text
    assert f"{hub.HOME_VARIABLE} is not set" in text
    assert text.endswith("nothing is downloaded: use from_config")
    assert "\n" not in text


# ---- registries ----


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setattr(registry, "MODELS", registry.Registry("model"))
    monkeypatch.setattr(registry, "DATASETS", registry.Registry("dataset"))


def test_own_models_and_datasets_are_registered(models):
    @mindspeed_ms.register_model("my_model")
    class Model:
        class Config:
            pass

    @mindspeed_ms.register_dataset("my_data")
    def data(options, split):
        return [options, split]

    assert registry.MODELS.get("my_model") is Model and "my_model" in registry.MODELS
    assert registry.DATASETS.get("my_data")(1, 2) == [1, 2]
    assert list(registry.MODELS) == ["my_model"]


def test_a_taken_name_is_refused_but_a_module_may_load_anew(models):
    def one(options, split): ...

    def other(options, split): ...

    registry.register_dataset("x")(one)
    registry.register_dataset("x")(one)
    with pytest.raises(ValueError, match="dataset 'x' is registered already by .*one; choose"):
        registry.register_dataset("x")(other)
    with pytest.raises(TypeError, match="has no class attribute Config"):
        registry.register_model("y")(type("Model", (), {}))


def test_an_unknown_name_lists_the_near_one_or_all(models):
    with pytest.raises(ValueError, match="model 'x' is unknown; no model is registered"):
        registry.MODELS.get("x")
    for name in ("gpt2", "llama"):
        registry.MODELS.add(name, type(name, (), {}))
    with pytest.raises(ValueError, match="'gtp2' is unknown; did you mean 'gpt2'"):
        registry.MODELS.get("gtp2")
    with pytest.raises(ValueError, match="'x' is unknown; there are: gpt2, llama"):
        registry.MODELS.get("x")


def test_a_line_is_said_once(caplog):
    logger = messages.logging.getLogger("said")
    for _ in range(3):
        messages.say_once(logger, "only this once, in this test")
    assert caplog.text.count("only this once") == 1
    assert "takes no argument 'padd'; did you mean 'pad'" in messages.unknown_argument(
        "f", "padd", ["pad", "length"]
    )
