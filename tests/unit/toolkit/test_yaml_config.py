# SPDX-License-Identifier: Apache-2.0
"""Options of a run: a YAML file, words over it, and what the user adds."""

import subprocess
import sys

import guides
import pytest

from mindspeed_ms.toolkit import yaml_config
from mindspeed_ms.toolkit.yaml_config import cast, load_layers, merge_trees, parse, tree_of

FILE = """
epoch_size: 1
train_data_path: /data
optimizer: sgd
rate: 1.0e-4
is_tested: False
empty:
names: [a, b]
sizes: [1, 2]
model:
  hidden_size: 768
  seed: 1
recompute_config:
  recompute: False
data:
  seed: 2
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(FILE)
    return str(path)


def test_every_key_of_the_file_is_an_attribute(file):
    opt = parse(["--config", file])
    assert (opt.epoch_size, opt.train_data_path, opt.empty) == (1, "/data", None)
    assert opt.model.hidden_size == opt["model.hidden_size"] == opt.hidden_size == 768
    assert opt.recompute is False and opt.get("model.depth", 3) == 3
    assert "optimizer" in opt and "hidden_size" in opt and "depth" not in opt
    assert list(opt)[:2] == ["epoch_size", "train_data_path"]
    assert opt.to_dict()["data"] == {"seed": 2}
    assert "epoch_size" in repr(opt)


@pytest.mark.parametrize("form", ["one word", "two words"])
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("epoch_size", "5", 5),
        ("epoch_size", "1e3", 1000),
        ("epoch_size", "-1", -1),
        ("optimizer", "adam", "adam"),
        ("optimizer", "5", "5"),
        ("rate", "1e-5", 1e-5),
        ("rate", "2", 2.0),
        ("hidden_size", "64", 64),
        ("model.hidden_size", "64", 64),
        ("data.seed", "7", 7),
        *(("is_tested", word, True) for word in ("True", "true", "1", "yes", "YES")),
        *(("recompute", word, False) for word in ("False", "false", "0", "no")),
        ("names", "x,y,z", ["x", "y", "z"]),
        ("names", "[1, 2]", ["1", "2"]),
        ("sizes", "[3, 4]", [3, 4]),
        ("sizes", "3,4", [3, 4]),
        ("empty", "3", 3),
        ("empty", "some text", "some text"),
    ],
)
def test_words_overwrite_and_take_the_type_of_the_file(file, form, key, text, value):
    words = [f"--{key}={text}"] if form == "one word" else [f"--{key}", text]
    opt = parse(["--config", file, *words])
    path = {"hidden_size": "model.hidden_size", "recompute": "recompute_config.recompute"}
    path = path.get(key, key)
    assert opt[path] == value and type(opt[path]) is type(value)
    assert opt.origin.overwritten == {path: value} and not opt.origin.added
    assert parse(["--config", file])[path] != value or value is False


def test_unknown_keys_are_the_users_own(file):
    opt = parse(["--custom_args=test", "--config", file, "--my-number", "3"])
    assert opt.custom_args == "test" and opt.my_number == "3"  # no type to take
    assert opt.origin.added == {"custom_args": "test", "my_number": "3"}
    assert opt.hints() == []
    hints = parse(["--config", file, "--epoch_sise=3"]).hints()
    assert hints == [f"--epoch_sise is no key of {file}; did you mean 'epoch_size'?; it was kept"]


@pytest.mark.parametrize("name", ["hidden", "hiden_size", "depth"])
def test_what_is_not_there_is_an_attribute_error(file, name):
    opt = parse(["--config", file])
    with pytest.raises(AttributeError, match=f"the options have no {name}"):
        getattr(opt, name)
    with pytest.raises(AttributeError, match="have seed as model.seed and data.seed"):
        _ = opt.seed
    with pytest.raises(AttributeError, match="model have no depth"):
        _ = opt.model.depth


def test_the_three_blocks(file):
    opt = parse(["--config", file, "--epoch_size=5", "--hidden_size=64", "--custom_args=test"])
    report = opt.report()
    assert report[:5] == [
        "overwritten by the command line:",
        "  epoch_size: 5",
        "  model.hidden_size: 64",
        "added by the user:",
        "  custom_args: test",
    ]
    assert report[5] == f"from {file}:" and "  recompute_config.recompute: False" in report[6:]
    assert not any("epoch_size" in line or "custom_args" in line for line in report[6:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "3"], "--seed is ambiguous in .*: write --model.seed or --data.seed"),
        (["--epoch_size"], "--epoch_size needs a value"),
        (["--epoch_size", "--optimizer=adam"], "--epoch_size needs a value"),
        (
            ["--epoch_size=5.5"],
            "--epoch_size is '5.5', but must be a whole number: .* epoch_size: 1",
        ),
        (["--epoch_size=many"], "must be a whole number"),
        (["--rate=high"], "must be a number"),
        (["--recompute=maybe"], "must be true or false"),
        (["--model=gpt"], "--model is a section of .*; name one of its keys: --model.hidden_size="),
        (["epoch_size=5"], "'epoch_size=5' is no option; write --key=value"),
        (["-e", "5"], "'-e' is no option"),
        (["--config", "other.yaml"], "--config is given 2 times"),
    ],
)
def test_words_that_cannot_be_understood(file, words, message):
    with pytest.raises(ValueError, match=message):
        parse(["--config", file, *words])


def test_without_a_file_the_model_names_its_preset():
    opt = parse(["--auto_model=gpt"])
    assert opt.origin.file == "gpt_base.yaml" and opt.data_parallel == 1
    assert parse(["--config=gpt_base.yaml"]).to_dict() == opt.to_dict()
    assert parse(["--auto_model=mine"], "gpt_base.yaml").auto_model == "mine"
    with pytest.raises(ValueError, match="give --config FILE.yaml, or --auto_model=gpt"):
        parse(["--epoch_size=5"])
    with pytest.raises(ValueError, match="no file none.yaml; .* name a preset: gpt_base.yaml"):
        parse(["--config=none.yaml"])


def test_the_guides_command_overwrites_and_adds_what_it_says():
    block = guides.block("how_to_config", "bash", "transformer.trainer.trainer")
    words = block.replace("\\\n", " ").replace("\n", " ").replace('"', "").split()[3:]
    words = [word.replace("$EPOCH_SIZE", "2").replace("$DATA_DIR", "/d") for word in words]
    opt = parse(words)
    assert opt.origin.overwritten.keys() == {
        "auto_model",
        "epoch_size",
        "train_data_path",
        "optimizer",
    }
    assert opt.custom_args == "test" and opt.origin.added == {"custom_args": "test"}


# ---- files that build on others ----


def test_files_build_on_others_key_by_key(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/one.yaml").write_text("a: {x: 1, y: 1}\nb: 1\n")
    (tmp_path / "parts/two.yaml").write_text("base_config: one.yaml\na: {y: 2, z: 2}\n")
    (tmp_path / "run.yaml").write_text("base_config: [parts/two.yaml]\na: {z: 3, x: }\nc: [1]\n")
    base, run = load_layers(tmp_path / "run.yaml")
    assert base == {"a": {"x": 1, "y": 2, "z": 2}, "b": 1}
    assert merge_trees([base, run]) == {"a": {"x": 1, "y": 2, "z": 3}, "b": 1, "c": [1]}
    assert yaml_config.load_tree(tmp_path / "run.yaml") == merge_trees([base, run])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_config: [run.yaml]", "is its own base_config"),
        ("base_config: [other.yaml]", "is its own base_config"),
        ("base_config: {a: b}", "it must list files"),
        ("base_config: [none.yaml]", "cannot read .*none.yaml"),
    ],
)
def test_files_that_cannot_build_on_others(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(f"{text}\na: 1\n")
    (tmp_path / "other.yaml").write_text("base_config: run.yaml\nb: 1\n")
    with pytest.raises(ValueError, match=message):
        load_layers(tmp_path / "run.yaml")


def test_names_that_are_a_value_and_a_section():
    for values in ({"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}):
        with pytest.raises(ValueError, match="a"):
            tree_of(values)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("false", False),
        ("yes", "yes"),
        ("on", "on"),
        ("1", 1),
        ("1e-5", 1e-5),
        ("null", None),
        ("a:b", "a:b"),
        ("/a/b: c", "/a/b: c"),
        ("{a: 1}", {"a": 1}),
        ("[1,2]", [1, 2]),
        ("1,2", [1, 2]),
        ("hello, world", "hello, world"),
        ("[", "["),
        ("", None),
    ],
)
def test_values_of_unknown_type(text, value):
    assert yaml_config.parse_value(text) == value
    assert cast(text, None) == value


def test_it_runs_without_mindspore():
    script = "import sys; sys.modules['mindspore'] = None; import mindspeed_ms.toolkit.yaml_config"
    subprocess.run([sys.executable, "-c", script], check=True)
