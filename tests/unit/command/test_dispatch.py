# SPDX-License-Identifier: Apache-2.0
"""``mindspeed-ms``: sub-commands, their help, configurations, completion."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mindspeed_ms.command import completion, configs, dispatch
from mindspeed_ms.config.beside import located_from_checkpoint
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.command_line import table_parser
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_yaml

SHELLS = {
    "bash": "source {script}; COMP_WORDS=({words}); COMP_CWORD={last}; _mindspeed_ms; "
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": "source {script}; complete -C '{text}'",
}


def command(*words, folder=None):
    return subprocess.run(
        [sys.executable, "-m", "mindspeed_ms.command", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )


def test_help_names_every_command_and_loads_none_of_them():
    code = (
        "import sys; from mindspeed_ms.command.dispatch import main; assert main(['--help']) == 0; "
        "assert not {'mindspore', 'numpy', 'yaml'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in dispatch.COMMANDS)


def test_a_wrong_command_is_one_line(capsys):
    assert dispatch.main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "mindspeed-ms: error: there is no command 'trian'; did you mean train?\n"
    )
    assert dispatch.main([]) == 2 and "usage: mindspeed-ms" in capsys.readouterr().out


@pytest.mark.parametrize("name", dispatch.COMMANDS)
def test_every_command_tells_its_flags(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mindspeed-ms"])
    table_parser.cache_clear()  # it keeps the name of the program that asked first
    with pytest.raises(SystemExit) as end:
        dispatch.main([name, "--help"])
    told = capsys.readouterr().out
    assert end.value.code == 0 and told.startswith(f"usage: mindspeed-ms {name}")


MISTAKES = {
    "nothing": "there is no command 'nothing'",
    "help nothing": "there is no command 'nothing'",
    "configs": "required: {list,show,copy}",
    "configs copy tiny_gpt file/below": "file",
    "completion tcsh": "invalid choice: 'tcsh'",
    "doctor --wrong": "unrecognized arguments: --wrong",
    "plot": "required: RUN",
    "plot random": "random has no line",
    "report": "required: RUN_DIR",
    "report none": "none holds no record",
    "report random": "random",
    "tokenizer": "required: train",
    "tokenizer train --input file --output random/x --vocab-size 300": "random",
    "tokenizer train --input file --output x --vocab-size many": "invalid int value: 'many'",
    "preprocess": "required: --input",
    "preprocess --input random.txt --output-prefix x --tokenizer-type NullTokenizer "
    "--vocab-size 9": "random.txt is not UTF-8",
    "convert": "required: command",
    "convert random out": "random holds no checkpoint",
    "convert empty out --num-layer-list a,b": "'a,b' are no numbers of layers",
    "convert empty out --max-shard-size big": "'big' is not the size of a file",
    "evaluate": "required: --load",
    "evaluate --load empty": "empty holds no checkpoint",
    "generate --load empty --prompt-file random": "is not a text file in UTF-8",
    "generate --load empty --prompt-file none": "none: No such file",
    "serve": "required: --model",
    "serve --load empty": "nothing found for 'empty'",
    "parity": "give --log FILE, or --golden",
    "parity --log random": "random has no line",
    "parity --log none": "none: No such file",
    "parity --golden empty --case x": "empty has none",
    "parity --golden runs --case cut": "cut.json is not JSON",
    "parity --golden runs --case bare": "bare.json has no 'command_line'",
    "parity --golden runs --case whole --weights random": "random is no .npz",
    "parity --golden runs --case whole --weights none": "none: No such file",
    "compare-layouts --layouts xx=2": "contains 'xx=2'",
    "compare-layouts --yaml none": "there is no configuration file none",
    "compare-layouts --tolerance x": "invalid float value: 'x'",
}
"""Words -> what is told; none shows a traceback."""


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words, tmp_path, monkeypatch, refused):
    noise = bytes(range(256)) * 4
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("some words\n")
    for name in ("random", "random.txt"):
        (tmp_path / name).write_bytes(noise)
    (tmp_path / "runs" / "runs").mkdir(parents=True)
    whole = {"command_line": [], "lm_loss": [1], "grad_norm": [1], "world_size": 1}
    for name, text in {"cut": "[1", "bare": "{}", "whole": json.dumps(whole)}.items():
        (tmp_path / "runs" / "runs" / f"{name}.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mindspeed-ms"])
    told = refused(lambda: sys.exit(dispatch.main(words.split())))
    assert "error: " in told and MISTAKES[words] in told


def test_a_reader_may_leave(tmp_path):
    """As ``| head -1`` does."""
    for words in ("configs list", "configs show tiny_gpt", "completion bash", "train --help-all"):
        line = f"{sys.executable} -m mindspeed_ms.command {words} | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.stderr) in (("0\n", ""), ("141\n", "")), words


def test_configurations_are_listed_shown_and_copied(tmp_path, capsys, refused, monkeypatch):
    assert configs.main(["list"]) == 0
    assert "tiny_gpt  " in capsys.readouterr().out
    assert configs.main(["copy", "tiny_gpt", str(tmp_path / "my.yaml")]) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    stated = yaml.safe_load(Path("my.yaml").read_text(encoding="utf-8"))
    assert Path(stated["dataset_config"]["tokenizer_model"]).is_file()
    assert "my.yaml exists" in refused(configs.main, ["copy", "tiny_gpt", "my.yaml"])
    assert "there is no configuration nothing" in refused(configs.main, ["show", "nothing"])
    shown = init_configs_from_yaml("my.yaml")
    assert shown.model_config == init_configs_from_yaml("tiny_gpt").model_config


def test_files_of_a_configuration_are_found_beside_it(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "configs").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("text.bin", "text.idx", "configs/tok.model", "more.bin"):
        (project / name).touch()
    (project / "configs/run.yaml").write_text(
        "dataset_config:\n  data_path: 0.5 text 0.5 more\n  tokenizer_model: tok.model\n"
        "  train_data_path: nowhere\n"
        "training_config:\n  load_checkpoint: ./here\n  output_dir: out\n"
    )
    (project / "configs/megatron.yaml").write_text(
        "language_model:\n  num_layers: 2\ntokenizer_model: tok.model\ndata_path: [text]\n"
    )
    monkeypatch.chdir(elsewhere)
    args = parse_args(["--yaml", str(project / "configs/run.yaml")])
    assert args.tokenizer_model == str(project / "configs/tok.model")
    assert list(args.data_path) == ["0.5", str(project / "text"), "0.5", str(project / "more")]
    assert list(args.train_data_path) == ["nowhere"] and args.load == "./here"
    args = parse_args(["--yaml-cfg", str(project / "configs/megatron.yaml")])
    assert args.tokenizer_model == str(project / "configs/tok.model")
    assert args.data_path == [str(project / "text")]
    (elsewhere / "tok.model").touch()  # what is here wins
    assert parse_args(["--yaml", "../project/configs/run.yaml"]).tokenizer_model == "tok.model"


def test_files_of_a_run_are_found_above_its_checkpoint(tmp_path, monkeypatch):
    checkpoint, elsewhere = tmp_path / "project" / "out" / "run", tmp_path / "elsewhere"
    for folder in (checkpoint, elsewhere):
        folder.mkdir(parents=True)
    for name in ("tok.model", "text.bin", "text.idx"):
        (tmp_path / "project" / name).touch()
    stated = {
        "tokenizer_model": "tok.model",
        "data_path": ["1", "text"],
        "vocab_file": "of_nobody",
    }
    monkeypatch.chdir(elsewhere)
    project = tmp_path / "project"
    assert located_from_checkpoint({**stated, "split": "1"}, Path("../project/out/run")) == {
        "tokenizer_model": str(project / "tok.model"),
        "data_path": ["1", str(project / "text")],
        "vocab_file": "of_nobody",
    }
    (elsewhere / "tok.model").touch()  # what is here wins
    assert located_from_checkpoint(stated, checkpoint)["tokenizer_model"] == "tok.model"


def test_a_run_that_goes_on_with_itself_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "run.yaml").write_text(
        "training_config:\n  load_checkpoint: out\n  output_dir: out\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert parse_args(["--yaml", "../run.yaml"]).load == "out"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("comp", {"compare-layouts", "completion"}),
        ("train --tensor-model-para", {"--tensor-model-parallel-size"}),
        ("configs tiny_g", {"tiny_gpt"}),
    ],
)
def test_shells_complete(shell, text, expected, tmp_path, capsys):
    completion.main([shell])
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = f"mindspeed-ms {text}"
    code = SHELLS[shell].format(script=script, words=words, text=words, last=text.count(" ") + 1)
    done = subprocess.run([shell, "-c", code], capture_output=True, text=True, timeout=30)
    found = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert found == expected, done.stderr


def test_zsh_reads_its_script(tmp_path, capsys):
    completion.main(["zsh"])
    script = capsys.readouterr().out
    assert script.startswith("#compdef mindspeed-ms\n") and "--tensor-model-parallel-size" in script
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "script").write_text(script)
    code = "autoload -Uz compinit; compinit -u -D; source ./script; echo $_comps[mindspeed-ms]"
    done = subprocess.run(
        ["zsh", "-fc", code], capture_output=True, text=True, timeout=30, cwd=tmp_path
    )
    assert done.stdout == "_mindspeed_ms\n", done.stderr


def test_nobody_reads_on(tmp_path):
    words = [sys.executable, "-m", "mindspeed_ms.command", "plan", "--yaml", "tiny_gpt"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


def test_a_run_from_any_folder_and_its_evaluation(tmp_path):
    save = ["--save", "out", "--save-interval", "12", "--data-cache-path", "cache"]
    sizes = ["--tensor-model-parallel-size", "1", "--train-iters", "12"]
    done = command("train", "--yaml", "tiny_gpt", *sizes, *save, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (trained,) = [line for line in done.stdout.splitlines() if "validation set" in line]
    done = command("evaluate", "--load", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = [line for line in done.stdout.splitlines() if "validation set" in line]
    assert found.split("|")[1:] == trained.split("|")[1:]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["iter_0000012"]
    done = command("evaluate", "--load", "nothing", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
