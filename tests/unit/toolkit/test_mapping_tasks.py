# SPDX-License-Identifier: Apache-2.0
"""Files of the toolkit and of MindFormers: models, whole files, precedence, arguments, options."""

import itertools

import guides
import pytest
import yaml
from mapped import CONFIGS, FOUR, flat, parameters

from mindspeed_ms.config.build import assemble
from mindspeed_ms.toolkit import run
from mindspeed_ms.toolkit.mapping import arguments, auto_layout, options, parallel, training, tree
from mindspeed_ms.toolkit.mapping import model as models
from mindspeed_ms.toolkit.mapping.arguments import map_arguments
from mindspeed_ms.toolkit.mapping.parallel import ParallelMode, World
from mindspeed_ms.toolkit.mapping.precedence import resolve
from mindspeed_ms.toolkit.mapping.tree import Task, canonical, read_task
from mindspeed_ms.toolkit.yaml_config import load_layers, merge_trees, parse, tree_of

# ---- models ----


def model_only(config, **changes):
    mapped = models.map_model({"type": "GPT2Config", **config, **changes})
    return assemble(mapped.sections)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((768, 12, 12), 124_439_808),
        ((1024, 24, 16), 354_823_168),
        ((1280, 36, 20), 774_030_080),
        ((1600, 48, 25), 1_557_611_200),
        ((5120, 40, 40), 12_848_143_360),
        ((8192, 64, 32), 51_966_533_632),
    ],
)
def test_sizes_of_gpt2(sizes, count):
    names = ("hidden_size", "num_layers", "num_heads")
    assert parameters(model_only(dict(zip(names, sizes, strict=True)))) == count


def test_size_of_llama():
    assert parameters(assemble(models.map_model({"type": "LlamaConfig"}).sections)) == 6_738_415_616
    wide = models.map_model({"type": "LlamaConfig", "hidden_size": 8192, "ffn_dim_multiplier": 1.3})
    assert flat(wide)["model_config.ffn_hidden_size"] == 28672
    grouped = flat(models.map_model({"type": "LlamaConfig", "n_kv_heads": 8}))
    assert grouped["model_config.num_query_groups"] == 8


def test_older_names_of_a_model_are_todays():
    older = {
        "embedding_size": 1280,
        "dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.2,
        "layernorm_dtype": "float32",
        "softmax_dtype": "float16",
        "eos_token": 7,
    }
    renamed = canonical({"model": {"model_config": older}})["model"]["model_config"]
    fields = flat(models.map_model({"type": "GPT2Config", **renamed}))
    assert fields["model_config.hidden_size"] == 1280
    assert fields["model_config.ffn_hidden_size"] == 5120
    assert fields["model_config.hidden_dropout_rate"] == 0.0
    assert fields["model_config.attention_dropout_rate"] == 0.2
    assert fields["model_config.softmax_compute_dtype"] == "float16"
    assert fields["dataset_config.eos_token_id"] == 7
    with pytest.raises(ValueError, match="model.model_config gives hidden_size under two names"):
        canonical({"model": {"model_config": {"embedding_size": 8, "hidden_size": 16}}})


@pytest.mark.parametrize(
    ("dtype", "switch"),
    [("float16", "fp16"), ("mstype.float16", "fp16"), ("bfloat16", "bf16"), ("float32", None)],
)
def test_the_compute_type_switches_the_precision(dtype, switch):
    fields = flat(models.map_model({"type": "GPT2Config", "compute_dtype": dtype}))
    assert fields["model_config.compute_dtype"] == dtype.removeprefix("mstype.")
    switches = {name: fields.get(f"training_config.{name}") for name in ("fp16", "bf16")}
    assert [name for name, is_on in switches.items() if is_on] == ([switch] if switch else [])


def test_what_a_model_needs_beside_its_sizes():
    mapped = models.map_model(
        {
            "type": "GPT2Config",
            "hidden_act": "fast_gelu",
            "embedding_dropout_prob": 0.0,
            "top_k": 5,
            "checkpoint_name_or_path": "gpt2",
            "pet_config": {"pet_type": "lora", "lora_rank": 4, "target_modules": ".*q"},
        },
        tensor_parallel=4,
    )
    fields = flat(mapped)
    assert fields["model_config.vocab_size"] == 50260
    assert fields["dataset_config.vocab_size"] == 50257
    assert fields["lora_config.use_lora"] is True and fields["lora_config.lora_rank"] == 4
    assert mapped.joint == {"top_k": 5, "checkpoint_name_or_path": "gpt2"}
    assert mapped.notes() == [
        "hidden_act fast_gelu is computed in its tanh form",
        "embedding_dropout_prob 0.0 has no effect: the embedding drops as the layers do, "
        "hidden_dropout_rate 0.1",
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "GPT2Confg"}, "model_config.type 'GPT2Confg' is unknown; did you mean"),
        ({"type": "T5"}, "is unknown; there are GPT2Config, LlamaConfig"),
        ({}, "model_config.type None is unknown"),
        ({"type": "GPT2Config", "hidden": 3}, "unknown key 'hidden' in model_config"),
        ({"type": "GPT2Config", "hidden_act": "relu"}, "hidden_act is 'relu'; there are"),
        ({"type": "GPT2Config", "vocab_size": "big"}, "vocab_size is 'big', but must be"),
        ({"type": "GPT2Config", "num_layers": "many"}, "num_layers is 'many', but must be a whole"),
        ({"type": "GPT2Config", "compute_dtype": "int8"}, "compute_dtype is 'int8': 'int8' is not"),
        (
            {"type": "GPT2Config", "expand_ratio": 0},
            "expand_ratio is 0, but must be a number above",
        ),
        ({"type": "GPT2Config", "pet_config": {"rank": 3}}, "pet_config is .*has no key 'rank'"),
        ({"type": "LlamaConfig", "scaling_factor": 2.0}, "scaling_factor 2.0 is not supported"),
    ],
)
def test_models_that_do_not_exist(config, message):
    with pytest.raises(ValueError, match=message):
        models.map_model(config)


# ---- whole files ----


def task_of(name, world):
    base, run = load_layers(CONFIGS / name)
    return read_task(resolve(base_config=base, run_file=run), world)


@pytest.mark.parametrize(
    ("name", "world", "count", "batch", "lines"),
    [
        ("run_gpt2.yaml", World(1), 124_439_808, 8, 0),
        ("run_gpt2_13b.yaml", World(32, 4), 12_848_143_360, 192, 4),
        ("run_gpt2_52b.yaml", World(128, 16), 51_966_533_632, 1024, 2),
    ],
)
def test_the_shipped_tree(name, world, count, batch, lines):
    task = task_of(name, world)
    config = assemble(task.sections).validate(world.size)
    assert config.global_batch_size(world.size) == batch
    assert task.model_name == name.removeprefix("run_").removesuffix(".yaml")
    assert len(task.notes) == lines and task.generation["top_k"] == 5
    assert task.processor["type"] == "GPT2Processor"
    names = {f.name for f in (CONFIGS / "model_config").iterdir()}
    assert names == {"gpt2.yaml", "gpt2_13b.yaml", "gpt2_52b.yaml"}
    names = {f.name for f in (CONFIGS / "task_config").iterdir()}
    assert names == {"context.yaml", "gpt2_dataset.yaml", "runner.yaml"}
    alone = {**task.sections, "parallel_config": {}, "training_config": {}}
    alone["model_config"] = {**task.sections["model_config"], "vocab_size": 50257}
    assert parameters(assemble(alone)) == count


def test_the_guides_parameters_are_those_of_the_shipped_file():
    stated = yaml.safe_load(guides.block("gpt2_13b_distributed", "text", "data_parallel: 4"))
    base, run = load_layers(CONFIGS / "run_gpt2_13b.yaml")
    shipped = merge_trees([base, run])
    for section, values in stated.items():
        assert shipped[section].items() >= values.items()
    sections = task_of("run_gpt2_13b.yaml", World(32, 4)).sections
    assert sections["parallel_config"] == {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 4,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
    }
    assert sections["training_config"]["use_distributed_optimizer"] is True
    assert sections["training_config"]["ddp_num_buckets"] == 4
    assert sections["dataset_config"]["micro_batch_num"] == 24
    assert sections["model_config"]["recompute_granularity"] == "full"
    with pytest.raises(ValueError, match="= 32, but there are 8 ranks"):
        task_of("run_gpt2_13b.yaml", World(8))


TINY = {
    "model": {"model_config": {"type": "GPT2Config", "num_layers": 2}},
    "runner_config": {"epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 3},
}


def test_a_file_comes_to_a_task():
    given = {
        "seed": 3,
        "run_mode": "finetune",
        "load_checkpoint": "/weights",
        "max_steps": 7,
        "save_steps": 5,
        "logging_steps": 2,
        "do_eval": True,
        "eval_step_interval": 4,
        "input_data": "hello!",
        "context": {"mode": 0, "device_target": "Ascend", "max_call_depth": 99, "device_id": 1},
        "moe_config": {"expert_num": 4, "capacity_factor": 1.5, "aux_loss_factor": 0.05},
        "train_dataset": {"data_loader": {"dataset_dir": "/data", "num_samples": 6}},
        "profile": False,
        "micro_batch_interleave_num": 2,
        "parallel": {"parallel_mode": 1},
    }
    task = read_task(merge_trees([TINY, given]))
    assert (task.run_mode, task.checkpoint, task.epochs, task.max_steps) == (
        "finetune",
        "/weights",
        2,
        7,
    )
    assert (task.train_data, task.num_samples, task.predict_data) == ("/data", 6, ("hello!",))
    assert (task.mode, task.device_target, task.device_id) == (0, "Ascend", 1)
    training_config = task.sections["training_config"]
    assert training_config["finetune"] is True and training_config["seed"] == 3
    assert (training_config["save_interval"], training_config["eval_interval"]) == (5, 4)
    assert task.sections["dataset_config"]["micro_batch_num"] == 6
    assert task.sections["moe_config"] == {
        "num_experts": 4,
        "moe_expert_capacity_factor": 1.5,
        "moe_aux_loss_coeff": 0.05,
        "moe_router_load_balancing_type": "aux_loss",
    }
    assert task.notes == (
        "graph mode is not used: mindspeed_ms runs MindSpore's dynamic graph",
        "context.max_call_depth: no effect, there are no graphs to compile",
    )


@pytest.mark.parametrize(
    ("given", "checkpoint", "is_resumed"),
    [
        ({}, "", False),
        ({"load_checkpoint": "/w"}, "/w", False),
        ({"resume_training": True}, "./out", True),
        ({"resume_training": True, "load_checkpoint": "/w"}, "/w", True),
        ({"resume_training": "/run"}, "/run", True),
        ({"model": {"model_config": {"checkpoint_name_or_path": "gpt2"}}}, "gpt2", False),
    ],
)
def test_where_weights_come_from(given, checkpoint, is_resumed):
    task = read_task(merge_trees([TINY, {"output_dir": "./out"}, given]))
    assert task.checkpoint == checkpoint
    assert task.sections["training_config"]["resume_training"] is is_resumed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sead": 3}, "unknown key 'sead' in the file; did you mean 'seed'"),
        ({"seed": "x"}, "seed is 'x', but must be"),
        ({"contxt": {}}, "unknown key 'contxt' in the file; did you mean 'context'"),
        ({"context": {"device": 3}}, "unknown key 'device' in context"),
        ({"context": 3}, "context is 3, but must hold key: value pairs"),
        ({"parallel": 3}, "parallel is 3, but must hold key: value pairs"),
        ({"run_mode": "trian"}, "run_mode 'trian': use train, .*; did you mean 'train'"),
        ({"run_mode": "finetune"}, "finetune starts from weights; give load_checkpoint"),
        ({"runner_config": {"epochs": 0}}, "runner_config.epochs is 0, but must be a number above"),
        ({"metric": {"type": "Entity"}}, "metric 'Entity' is unknown; there is PerplexityMetric"),
        ({"layer_scale": True}, "layer_scale True is not supported: all layers learn at one rate"),
        ({"model": {"arch": {"type": "Bert"}}}, "model.arch.type 'Bert' is unknown; there are"),
        (
            {"model": {"arch": {"type": "LlamaForCausalLM"}}},
            "LlamaForCausalLM takes a LlamaConfig, but model.model_config.type is GPT2Config",
        ),
        ({"only_save_strategy": True}, "only_save_strategy True is not supported"),
    ],
)
def test_files_that_cannot_be_read(given, message):
    with pytest.raises(ValueError, match=message):
        read_task(merge_trees([TINY, given]))


def test_one_rank_alone_and_several():
    with pytest.raises(ValueError, match="use_parallel is False, but there are 4 ranks"):
        read_task(merge_trees([TINY, {"use_parallel": False}]), FOUR)
    ignored = {"use_parallel": False, "parallel": {"parallel_mode": 1}}
    task = read_task(merge_trees([TINY, ignored]))
    assert task.parallel_mode is ParallelMode.STAND_ALONE


def test_every_row_of_every_table_has_a_kind():
    rows = [training.RUNNER, training.DATASET, models.GPT2, models.LLAMA, parallel.CONTEXT]
    kinds = (tree.To, tree.Means, tree.Inert, tree.Refused, tree.Joint)
    count = 0
    for table in (*rows, tree.TABLE, tree.CONTEXT, parallel.CONFIG):
        for row in table.values():
            assert isinstance(row, (*kinds, dict))
            count += 1
            if isinstance(row, tree.Inert):
                assert row.reason and not row.reason.endswith(".")
            if isinstance(row, tree.To):
                section, name = row.target.split(".")
                assert name in assemble_names(section)
    assert count > 200


def assemble_names(section):
    return assemble(models.map_model({"type": "GPT2Config"}).sections).to_dict()[section]


def test_alias_names_are_keys_of_their_tables():
    tables = {
        "model.model_config": {**models.GPT2, **models.LLAMA},
        "parallel_config": parallel.CONFIG,
        "lr_schedule": training.SCHEDULE,
    }
    for section, names in tree.ALIASES.items():
        assert set(names.values()) <= tables[section].keys()


# ---- precedence ----

ORDER = (
    "class_defaults",
    "base_config",
    "run_file",
    "arguments",
    "options",
    "flags",
    "set_configs",
)


@pytest.mark.parametrize(("weaker", "stronger"), list(itertools.combinations(range(len(ORDER)), 2)))
def test_the_stronger_layer_wins(weaker, stronger):
    def layer(name, value):
        if name == "arguments":
            return {"batch_size": value}
        return {"runner_config": {"batch_size": value}}

    layers = {ORDER[index]: layer(ORDER[index], index) for index in (weaker, stronger)}
    assert resolve(**layers)["runner_config"]["batch_size"] == stronger


def test_a_layer_keeps_what_it_does_not_name():
    merged = resolve(
        base_config={"parallel_config": {"model_parallel": 2, "seq_parallel": True}},
        run_file={"parallel_config": {"data_parallel": 4}},
        set_configs={"parallel_config": {"use_seq_parallel": False}},
    )
    assert merged["parallel_config"] == {
        "model_parallel": 2,
        "use_seq_parallel": False,
        "data_parallel": 4,
    }


# ---- training arguments ----


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (
            {"num_train_epochs": 3, "batch_size": 2, "learning_rate": 0.001, "warmup_steps": 1000},
            {
                "runner_config.epochs": 3,
                "runner_config.batch_size": 2,
                "lr_schedule.learning_rate": 0.001,
                "lr_schedule.warmup_steps": 1000,
            },
        ),
        ({"per_device_train_batch_size": 2, "batch_size": 2}, {"runner_config.batch_size": 2}),
        ({"bf16": True, "fp16": False}, {"model.model_config.compute_dtype": "bfloat16"}),
        (
            {"max_grad_norm": 0.5},
            {"runner_wrapper.use_clip_grad": True, "runner_wrapper.max_grad_norm": 0.5},
        ),
        ({"resume_from_checkpoint": True}, {"resume_training": True}),
        (
            {"resume_from_checkpoint": "/w"},
            {"resume_training": True, "load_checkpoint": "/w"},
        ),
        ({"gradient_checkpointing": True}, {"recompute_config.recompute": True}),
        (
            {"max_steps": 5, "save_steps": 2, "weight_decay": None},
            {"max_steps": 5, "save_steps": 2},
        ),
    ],
)
def test_training_arguments_are_keys_of_the_file(given, keys):
    mapped = map_arguments(given)
    assert mapped.keys == keys and not mapped.own
    read_task(merge_trees([TINY, tree_of(mapped.keys)]))


def test_arguments_the_trainer_reads_and_those_without_effect():
    mapped = map_arguments(
        {"report_to": "none", "sink_mode": True, "initial_epoch": 2, "tf32": True}
    )
    assert mapped.own == {"report_to": "none"}
    assert mapped.keys == {"runner_config.sink_mode": True}
    assert mapped.notes == (
        "initial_epoch: no effect, where training goes on stands in the checkpoint",
        "tf32: no effect, it is a mode of another device",
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": 1}, "TrainingArguments has no 'learning_rat'; did you mean"),
        ({"fsdp": "full_shard"}, "fsdp='full_shard': set_parallel_config shards"),
        ({"lr_scheduler_kwargs": {"min_rl": 1e-5}}, "lr_scheduler_kwargs has 'min_rl'; there are"),
        ({"batch_size": 2, "per_device_train_batch_size": 4}, "which are one setting; keep one"),
    ],
)
def test_training_arguments_that_do_not_exist(given, message):
    with pytest.raises(ValueError, match=message):
        map_arguments(given)


def test_every_argument_names_a_key_that_exists():
    for name, row in arguments.ROWS.items():
        if isinstance(row, arguments.Path):
            node = tree.TABLE
            for part in row.name.split("."):
                node = {
                    "eval_dataset": training.DATASET,
                    "train_dataset": training.DATASET,
                    "lr_schedule": training.SCHEDULE,
                    "optimizer": training.OPTIMIZER,
                    "recompute_config": {"recompute": tree.Joint()},
                }.get(part) or node[part]
            assert node is not None, name


# ---- the toolkit's options ----


def toolkit_task(*words, world=parallel.ALONE):
    read = options.read_options(parse(["--auto_model=gpt", *words]), world)
    return read_task(canonical(read), world)


def test_a_misspelt_model_is_named_with_the_presets():
    with pytest.raises(ValueError, match="model 'gppt' is unknown; did you mean 'gpt'"):
        run.run_train(parse(["--auto_model=gppt"], run.DEFAULT_FILE))


def test_the_toolkits_preset():
    task = toolkit_task("--train_data_path=/d", "--epoch_size=5", "--optimizer=adam")
    assert (task.model_name, task.epochs, task.train_data) == ("gpt", 5, "/d")
    assert task.notes == () and task.device_target is None
    config = assemble(task.sections).validate(1)
    assert parameters(config) == 124_439_808 and config.global_batch_size(1) == 8
    assert config.optimizer_config.clip_grad == 1.0 and config.model_config.hidden_dropout_rate == 0


@pytest.mark.parametrize(
    ("words", "world", "batch", "micro"),
    [
        ("--parallel_mode=stand_alone", 1, 8, 8),
        ("--parallel_mode=data_parallel", 4, 8, 2),
        ("--parallel_mode=semi_auto_parallel --data_parallel=4 --model_parallel=2", 8, 8, 2),
        ("--parallel_mode=semi_auto_parallel --data_parallel=2 --optimizer_shard=True", 2, 8, 4),
        ("--model_parallel=2 --micro_batch_interleaved_num=2 --acc_step=2", 2, 8, 2),
        ("--parallel_mode=auto_parallel", 2, 8, 4),
        ("--parallel_mode=semi_auto_parall --data_parallel=2 --batch_size=16", 2, 16, 8),
        ("--global_batch_size=16", 1, 16, 16),
    ],
)
def test_the_toolkits_batch_is_that_of_all_ranks(words, world, batch, micro):
    task = toolkit_task(*words.split(), world=World(world))
    config = assemble(task.sections).validate(world)
    assert config.global_batch_size(world) == batch
    assert config.dataset_config.batch_size == micro


def test_keys_the_toolkit_knows_count_without_being_in_the_file():
    task = toolkit_task("--data_url=/d", "--custom_args=test", "--learning_rate=1e-3")
    assert task.train_data == "/d"
    assert task.sections["optimizer_config"]["learning_rate"] == 1e-3


def test_an_older_file_of_the_toolkit(tmp_path):
    (tmp_path / "old.yaml").write_text(
        """
arch: gpt
data_url: /d
epoch_size: 3
acc_step: 2
model: {micro_batch_size: 4, global_batch_size: 16, embedding_size: 64, num_layers: 2,
  num_heads: 4, seq_length: 32, vocab_size: 100, dropout_rate: 0.2,
  compute_dtype: mstype.float16}
context: {device_target: GPU, save_graphs: False}
speed_up: {micro_batch_num: 2, flatten_weights: False}
parallel_config: {data_parallel: 1, micro_batch_num: 1}
moe_config: {expert_num: 1}
optimizer: adam
start_lr: 1e-4
init_loss_scale_value: 65536
ckpt_save_dir: ./ckpt
"""
    )
    opt = parse(["--config", str(tmp_path / "old.yaml")])
    task = read_task(canonical(options.read_options(opt)))
    config = assemble(task.sections).validate(1)
    assert config.global_batch_size(1) == 16 and config.dataset_config.batch_size == 8
    assert (
        "runner_config.micro_batch_size: no effect, the batch of all ranks is cut" in task.notes[1]
    )
    assert config.training_config.fp16 and config.training_config.loss_scale_value == 65536
    assert config.model_config.attention_dropout_rate == 0.2
    assert config.training_config.output_dir == "./ckpt" and task.train_data == "/d"
    (tmp_path / "wrong.yaml").write_text("epoch_sise: 3\n")
    with pytest.raises(ValueError, match="unknown key 'epoch_sise' in .*; did you mean"):
        options.read_options(parse(["--config", str(tmp_path / "wrong.yaml")]))
    with pytest.raises(ValueError, match="--speed_up.micro_batch_num or --parallel_config.micro"):
        parse(["--config", str(tmp_path / "old.yaml"), "--micro_batch_num=2"])


def test_a_batch_that_does_not_divide_names_the_next():
    with pytest.raises(ValueError, match="data_parallel 16 x micro_batch_num 1 = 16 parts; use a"):
        toolkit_task("--data_parallel=16", world=World(16))


def test_auto_parallel_takes_the_planners_fastest_layout():
    task = toolkit_task("--parallel_mode=auto_parallel", "--num_layers=2", world=FOUR)
    config = assemble(task.sections).validate(4)
    chosen, line = auto_layout.choose_layout(config, 4)
    assert chosen.validate(4).global_batch_size(4) == 8
    assert line.startswith("auto_parallel on 4 ranks: --tensor-model-parallel-size")
    assert auto_layout.choose_layout(config, 1) == (
        config,
        "auto_parallel on 1 rank: there is nothing to choose",
    )


def test_a_task_is_nothing_but_data():
    assert Task() == Task() and Task().run_mode == "train"
