# SPDX-License-Identifier: Apache-2.0
"""YAML files of other launchers and placeholders of published scripts, as they are parsed."""

import pytest

from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import resolve
from mindspeed_ms.training.placeholders import gathered

ZOO = """
ENV_VARS:
  NCCL_NVLS_ENABLE: 0
MODEL_ARGS:
  --tensor-model-parallel-size: ${TP}
  --micro-batch-size: ${MBS:-2}
  --num-layers: 4
  --hidden-size: 64
  --num-attention-heads: 4
  --seq-length: 32
  --max-position-embeddings: 32
  --lr: 1e-4
  --train-iters: 3
  --swiglu: true
  --finetune: false
  --recompute-granularity: selective
  --recompute-modules: [mlp layernorm]
  --data-path: 0.5 ${DATA}/a 0.5 ${DATA}/b
  --vocab-size: 100
  --wandb-exp-name: run-TP${TP}-${COMMENT}
  --bf16: true
METRICS: [lm loss]
"""
TRAIN = """
system:
  tensor_model_parallel_size: 2
  disable_bias_linear: True
  precision:
    bf16: true
    attention_softmax_in_fp32: true
  checkpoint:
    save_interval: ${experiment.save_steps}
model:
  num_layers: 4
  hidden_size: 96
  num_attention_heads: 4
  seq_length: 32
  max_position_embeddings: 32
  swiglu: true
  multiple_of: 48
  micro_batch_size: 1
  global_batch_size: 8
  train_samples: 64
  rampup_batch_size: [4, 4, 32]
  finetune: false
  optimizer:
    lr_scheduler:
      lr: 2.0e-5
data:
  data_path: ${data_path:??}
  split: 1
  tokenizer:
    tokenizer_type: AquilaTokenizerFS
    vocab_size: 100
"""
EXPERIMENT = """
defaults:
  - _self_
  - train: small
experiment:
  exp_dir: ./outputs
  save_steps: 7
  task: {type: train}
action: run
"""


def files(folder):
    (folder / "zoo.yaml").write_text(ZOO)
    (folder / "train").mkdir()
    (folder / "train/small.yaml").write_text(TRAIN)
    (folder / "experiment.yaml").write_text(EXPERIMENT)


def test_flags_as_keys_mean_what_they_mean_on_a_command_line(tmp_path, monkeypatch):
    files(tmp_path)
    monkeypatch.setenv("TP", "2")
    monkeypatch.setenv("DATA", "/d")
    for flag in ("--yaml", "--yaml-cfg"):
        words = [flag, str(tmp_path / "zoo.yaml"), "--num-layers", "6", "--wandb-exp-name", "x"]
        args = parse_args(words)
        assert (args.tensor_model_parallel_size, args.micro_batch_size, args.num_layers) == (
            2,
            2,
            6,
        )
        assert args.recompute_modules == ["mlp", "layernorm"] and not args.finetune
        assert args.data_path == ["0.5", "/d/a", "0.5", "/d/b"] and args.swiglu


def test_a_value_written_for_a_shell_loses_its_backslashes(tmp_path):
    layout = r"  --pipeline-model-parallel-layout: Et\\\\|\\\\(tt\\\\|\\\\)*1tL"
    (tmp_path / "zoo.yaml").write_text(ZOO.replace("METRICS", f"{layout}\nMETRICS"))
    args = parse_args(["--yaml", str(tmp_path / "zoo.yaml"), "--dry-run"])
    assert args.pipeline_model_parallel_layout == "Et|(tt|)*1tL"


def test_a_variable_without_a_value_is_named_and_a_plan_does_without(tmp_path, monkeypatch, capsys):
    files(tmp_path)
    monkeypatch.delenv("TP", raising=False)
    with pytest.raises(SystemExit):
        parse_args(["--yaml", str(tmp_path / "zoo.yaml")])
    line = capsys.readouterr().err
    assert "zoo.yaml: --tensor-model-parallel-size is ${TP}, and TP has no value; set" in line
    args = parse_args(["--yaml", str(tmp_path / "zoo.yaml"), "--dry-run"])
    assert args.tensor_model_parallel_size == 1
    assert resolve(args).config.model_config.hidden_act == "swiglu"


def test_blocks_of_arguments_are_flags_and_an_experiment_names_them(tmp_path):
    files(tmp_path)
    args = parse_args(["--yaml-cfg", str(tmp_path / "train/small.yaml"), "--dry-run"])
    assert args.save_interval is None and args.data_path is None and args.save is None
    args = parse_args(["--yaml", str(tmp_path / "experiment.yaml"), "--dry-run"])
    assert (args.save_interval, args.save) == (7, "./outputs/checkpoints")
    assert args.rampup_batch_size == [4, 4, 32] and args.bf16 and not args.add_bias_linear
    assert resolve(args).config.model_config.ffn_hidden_size == 288  # 256, rounded up to 48·6


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("MODEL_ARGS:\n  --num-layer: 3\n", "unknown flag --num-layer"),
        ("MODEL_ARGS:\n  --num-layers: many\n", "invalid int value: 'many'"),
        ("model: {num_layerz: 3}\nsystem: {bf16: true}\n", "unknown flag --num-layerz"),
        ("defaults: 3\nexperiment: {exp_dir: x}\n", "unknown key 'defaults'"),
        ("trainer: {devices: 8}\nmodel: {micro_batch_size: 4}\n", "unknown key 'trainer'"),
    ],
)
def test_what_such_a_file_says_wrong_is_one_line(tmp_path, capsys, text, line):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse_args(["--yaml", str(tmp_path / "a.yaml")])
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_prose_after_a_flag_of_one_text_is_one_value():
    words = "--load your model ckpt path --data-path your data path --bf16".split()
    assert gathered(words) == (
        ["--load", "your model ckpt path", "--data-path", "your", "data", "path", "--bf16"],
        ["--load takes one value, but is given the words 'your model ckpt path'"],
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "--load your ckpt path",
            "--load takes one value, but is given the words 'your ckpt path'",
        ),
        ("--load --bf16", "--load has no value; a variable of the script may be empty"),
        ("--load /a /b", "unexpected word '/b'"),
        ("--qk-layernorm True", "unexpected word 'True'; --qk-layernorm takes no value"),
        ("examples/a.yaml --bf16", "a configuration file is given with --yaml"),
    ],
)
def test_a_run_is_told_what_is_left_to_fill_in(capsys, words, line):
    with pytest.raises(SystemExit):
        parse_args(words.split())
    assert line in capsys.readouterr().err
