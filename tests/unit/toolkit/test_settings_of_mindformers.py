# SPDX-License-Identifier: Apache-2.0
"""Names that scripts for MindFormers use besides its trainer: files, contexts, the register."""

import argparse
import copy
import inspect
import json
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_compat import python
from tiny_models import TINY_GPT2

import mindspeed_ms
from mindspeed_ms import (
    AutoConfig,
    AutoModel,
    GPT2Config,
    MindFormerConfig,
    MindFormerModuleType,
    MindFormerRegister,
    Trainer,
    TrainingArguments,
    build_context,
    build_parallel_config,
    logger,
    str2bool,
)
from mindspeed_ms.toolkit import context
from mindspeed_ms.toolkit.compat import aliases
from mindspeed_ms.toolkit.mapping.parallel import World
from mindspeed_ms.toolkit.mapping.tree import read_task
from mindspeed_ms.toolkit.trainer import run_task

ROOT = Path(mindspeed_ms.__file__).parents[1]
SHIPPED = ROOT / "configs/gpt2/run_gpt2.yaml"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(context, "_ASKED", type(context._ASKED)())
    np.save("rows.npy", np.random.default_rng(0).integers(0, 64, (8, 17), dtype=np.int32))


def settings(**over):
    """The shipped file, as small as a test wants it."""
    config = MindFormerConfig(
        SHIPPED,
        {
            "model": {"model_config": {**TINY_GPT2, "compute_dtype": "float32"}},
            "runner_config": {"epochs": 1, "batch_size": 2},
            "context": {"device_target": "CPU"},
            "train_dataset": {"data_loader": {"dataset_dir": "rows.npy"}},
            "eval_dataset": {"data_loader": {"dataset_dir": "rows.npy"}},
            "lr_schedule": {"learning_rate": 1e-2},
            "seed": 5,
        },
    )
    config.merge_from_dict(over)
    return config


def losses(text):
    return [float(one) for one in re.findall(r"lm loss: (\S+)", text)]


# ---- the configuration ----


def test_keys_are_attributes_and_later_ones_win():
    config = settings()
    assert config.runner_config.epochs == 1 and config["seed"] == 5
    assert config.lr_schedule.type == "polynomial"  # of a file below the shipped one
    assert config.not_there is None and config.model.not_there is None
    config.runner_config.epochs = 3
    config.own = {"block": [{"type": "x"}]}
    assert config.to_dict()["runner_config"]["epochs"] == 3 and config.own.block[0].type == "x"
    config.merge_from_dict({"runner_config.batch_size": 4, "new.key": 1})
    assert (config.runner_config.batch_size, config.runner_config.epochs) == (4, 3)
    assert config.new.key == 1
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config and other.runner_config.epochs == 3
    assert yaml.safe_load(yaml.safe_dump(config.to_dict())) == json.loads(json.dumps(config))
    del config.own
    assert "own" not in config and not hasattr(config, "__deepcopy__")


def test_sources_that_cannot_be_read():
    with pytest.raises(ValueError, match="there is no file none.yaml"):
        MindFormerConfig("none.yaml")
    with pytest.raises(TypeError, match="must be values by name"):
        MindFormerConfig(3)


def test_the_context_of_a_file():
    assert build_context(settings()) == (0, 1)
    assert context.asked_parallel()["parallel_mode"] == "stand_alone"
    assert build_context(settings(use_parallel=True)) == (0, 1)
    assert context.asked_parallel()["parallel_mode"] == 0
    with pytest.raises(TypeError, match="no argument 'parallel_mod'; did you mean 'parallel_mode'"):
        build_context({"use_parallel": True, "parallel": {"parallel_mod": 1}})
    assert build_parallel_config(settings()) is None
    with pytest.raises(ValueError, match="model_parallel is 0, but must be"):
        build_parallel_config({"parallel_config": {"model_parallel": 0}})


def test_models_of_a_file():
    block = settings().model.model_config
    path = Path("tiny.yaml")
    path.write_text(yaml.safe_dump(settings().to_dict()))
    expected = GPT2Config(**{key: value for key, value in block.items() if key != "type"})
    for given in (settings(), settings().to_dict(), block):
        assert AutoModel.from_config(given).config == AutoConfig.from_dict(given) == expected
    block.parallel_config = settings().parallel_config  # as scripts hand it over
    assert GPT2Config(**{**block, "type": "GPT2Config"}).hidden_size == expected.hidden_size
    found = AutoModel.from_config(str(path)).config
    assert (found.hidden_size, found.num_layers) == (expected.hidden_size, expected.num_layers)


# ---- the trainer ----


def test_a_trainer_of_a_file_trains_as_the_command_does(capsys):
    run_task(read_task(settings()))
    expected = losses(capsys.readouterr().out)
    assert len(expected) == 4
    Path("run.yaml").write_text(yaml.safe_dump(settings().to_dict()))
    for given in ({"args": settings()}, {"args": "run.yaml"}, {"args": settings().to_dict()}):
        assert Trainer(**given).train().global_step == 4
        assert losses(capsys.readouterr().out) == expected
    trainer = Trainer(settings(), model=dict(settings().model.model_config))
    assert trainer.args.learning_rate != 1e-2  # the file says it, not the arguments
    assert trainer.train().global_step == 4 and losses(capsys.readouterr().out) == expected


def test_what_the_trainer_itself_reads_of_a_file(capsys):
    callbacks = [
        {"type": "MFLossMonitor", "per_print_times": 2},
        {"type": "CheckpointMonitor", "save_checkpoint_steps": 2, "keep_checkpoint_max": 3},
    ]
    trainer = Trainer(args=settings(callbacks=callbacks, do_eval=True, output_dir="out"))
    found = trainer.args
    assert (found.logging_steps, found.save_steps, found.save_total_limit) == (2, 2, 3)
    assert found.do_eval and found.output_dir == "out" and found.batch_size == 2
    trainer.train()
    text = capsys.readouterr().out
    assert len(losses(text)) == 2 and text.count("validation loss at iteration") == 1
    assert sorted(path.name for path in Path("out").glob("iter_*")) == [
        "iter_0000002",
        "iter_0000004",
    ]
    trainer = Trainer(args=settings(load_checkpoint="out"))
    assert trainer.finetune().global_step == 4 and trainer.evaluate()["loss"] > 0
    assert "loading" in capsys.readouterr().out
    assert Trainer(args=settings(callbacks=[])).args.save_strategy == "no"
    with pytest.raises(ValueError, match="callback 'MFLossMonitr' is unknown; did you mean"):
        Trainer(args=settings(callbacks=[{"type": "MFLossMonitr"}]))
    with pytest.raises(ValueError, match="there is no file none.yaml"):
        Trainer(args="none.yaml")


def test_arguments_may_stand_first_as_in_mindformers():
    arguments = TrainingArguments(batch_size=2)
    assert Trainer(arguments, model="gpt2").args is arguments
    for trainer in (
        Trainer(arguments, task="text_generation", model="gpt2"),
        Trainer(arguments, "general", model="gpt2", train_dataset="rows.npy"),
    ):
        assert (trainer.args, trainer.model) == (arguments, "gpt2")
    assert Trainer(None, "text_generation", "gpt2").model == "gpt2"
    Path("run.yaml").write_text(yaml.safe_dump(settings().to_dict()))
    for trainer in (
        Trainer(settings(), task="text_generation"),
        Trainer("run.yaml", task="text_generation"),
        Trainer(Path("run.yaml"), "text_generation"),
    ):
        assert trainer.args.batch_size == 2 and trainer.train_dataset == "rows.npy"
    trainer = Trainer(arguments, "text_generation", "gpt2", "rows.npy")
    assert (trainer.args, trainer.task, trainer.model) == (arguments, "text_generation", "gpt2")
    assert trainer.train_dataset == "rows.npy"
    with pytest.raises(TypeError, match="Trainer has args twice: arguments without names are args"):
        Trainer(arguments, model="gpt2", args=arguments)


def test_a_model_may_stand_first_as_in_transformers():
    arguments = TrainingArguments(batch_size=2)
    config = GPT2Config(**TINY_GPT2)
    for model in (config, AutoModel.from_config(config), dict(TINY_GPT2)):
        trainer = Trainer(model, arguments, None, "rows.npy", eval_dataset="rows.npy")
        assert (trainer.model, trainer.args, trainer.task) == (model, arguments, "text_generation")
        assert trainer.train_dataset == trainer.eval_dataset == "rows.npy"
        assert Trainer(model, args=arguments).args is arguments
    with pytest.raises(ValueError, match="data_collator: give rows, texts or conversations"):
        Trainer(config, arguments, len)
    with pytest.raises(TypeError, match="Trainer has model twice"):
        Trainer(config, model="gpt2")
    with pytest.raises(TypeError, match="Trainer takes 11 arguments without names"):
        Trainer(config, arguments, *[None] * 10)
    assert list(inspect.signature(Trainer).parameters)[:3] == ["task", "model", "args"]


# ---- the register, and the rest ----


def test_the_register():
    class Config:
        pass

    @MindFormerRegister.register(MindFormerModuleType.MODELS)
    class ModelOfATest:
        config_class = Config

        def __init__(self, size=1):
            self.size = size

    kind = MindFormerModuleType.MODELS
    assert MindFormerRegister.get_cls(kind, "ModelOfATest") is ModelOfATest
    assert mindspeed_ms.toolkit.registry.MODELS.get("ModelOfATest").Config is Config
    assert MindFormerRegister.get_instance(kind, "ModelOfATest", size=2).size == 2
    made = MindFormerRegister.get_instance_from_cfg({"type": "ModelOfATest", "size": 3}, kind)
    assert made.size == 3 and MindFormerRegister.is_exist(kind, "ModelOfATest")
    assert not MindFormerRegister.is_exist(kind, "Other")
    assert not MindFormerRegister.is_exist("callback")
    MindFormerRegister.register_cls(Config, MindFormerModuleType.CONFIG, alias="mine")
    assert MindFormerRegister.get_cls("config", "mine") is Config
    with pytest.raises(ValueError, match="models 'ModelOfATst' is unknown; did you mean"):
        MindFormerRegister.get_cls(kind, "ModelOfATst")
    with pytest.raises(ValueError, match="module_type 'dataset' is unknown.*register_dataset"):
        MindFormerRegister.register("dataset")
    with pytest.raises(ValueError, match="has no type"):
        MindFormerRegister.get_instance_from_cfg({"size": 1}, kind)


def test_switches_and_the_log_of_a_script(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--on", type=str2bool, default=False)
    assert parser.parse_args(["--on", "true"]).on is True
    assert parser.parse_args(["--on", "0"]).on is False and str2bool(True) is True
    with pytest.raises(SystemExit):
        parser.parse_args(["--on", "maybe"])
    assert "--on: invalid str2bool value: 'maybe'" in capsys.readouterr().err
    logger.info("said by %s", "a script")
    assert capsys.readouterr().out == "[rank 0] INFO: said by a script\n"
    assert isinstance(logger, logging.Logger)


def test_every_name_of_every_module_is_there():
    script = "import importlib\nfrom mindspeed_ms.toolkit.compat import aliases\n"
    script += "for module in aliases.MODULES:\n    loaded = importlib.import_module(module)\n"
    script += "    for name in aliases.names_of(module):\n        getattr(loaded, name)\n"
    script += "    assert len(aliases.names_of(module)) == len(aliases.MODULES[module]), module\n"
    script += "from mindformers import *\nfrom mindformers.pet import *\nTrainer, get_pet_model\n"
    script += "from mindformers.tools import MindFormerConfig\nprint(MindFormerConfig(a=1).a)"
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize("name", ["MFLossMonitor", "build_optim", "PreTrainedTokenizer"])
def test_what_does_the_work_of_a_name_that_is_not_provided(name):
    done = python("-c", f"from mindformers.core.callback import {name}")
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: mindformers.core.callback.{name} is not provided by mindspeed_ms; "
        f"{aliases.INSTEAD[name]}"
    )
    assert name not in mindspeed_ms.toolkit.EXPORTS


def test_ranks_share_the_batch_where_no_sizes_are_given():
    """As the guide's blocks do that set no sizes, in the guide's semi-automatic context."""
    context._ASKED.parallel = {"parallel_mode": "semi_auto_parallel", "full_batch": True}
    trainer = Trainer(model=dict(TINY_GPT2), args={"batch_size": 2}, train_dataset="rows.npy")
    line = "set_parallel_config was not called: data_parallel is 2, as there are 2 ranks"
    assert line in trainer._task("train", None, World(2)).notes
    assert trainer.plan(world_size=2).config.parallel_config.data_parallel_size(2) == 2
    trainer.set_parallel_config(model_parallel=2)
    assert trainer.plan(world_size=2).config.parallel_config.data_parallel_size(2) == 1
    trainer.set_parallel_config(data_parallel=1)
    with pytest.raises(ValueError, match="= 1, but there are 2 ranks"):
        trainer.plan(world_size=2)
