# SPDX-License-Identifier: Apache-2.0
"""A run that goes on: its data, its steps, its random numbers, its length. One rank."""

import re

import numpy as np
import pytest
from run_builder import configuration, datasets, open_run, provider

from mindspeed_ms.backend import memory
from mindspeed_ms.core.dist_checkpointing.live_state import live_tensors
from mindspeed_ms.data.loader import LoaderSettings
from mindspeed_ms.data.pretraining_loader import build_pretraining_data_loader
from mindspeed_ms.engine.run import Run, StepFunctions
from mindspeed_ms.training import pretrain
from mindspeed_ms.training.conversion import ConvertOptions, convert
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

DROPOUT = ("--attention-dropout", "0.1", "--hidden-dropout", "0.1")
LINE = re.compile(r"INFO - Epoch: (\d+), Step: (\d+), Loss: (\d+\.\d{16}), Time: \d+\.\d\d ms")


def saved(folder, *flags, until):
    run, steps = open_run("--save", str(folder), "--save-interval", "100", *flags)
    with run:
        run.train(until)
        run.save()
    return steps


def resumed(folder, *flags):
    run, steps = open_run("--load", str(folder), *flags)
    with run:
        run.train()
        return steps, run.state


@pytest.mark.parametrize(("first", "second", "last"), [("4", "8", 6), ("8", "4", 6)])
def test_another_batch_size_ends_with_the_samples(tmp_path, first, second, last):
    samples = ("--train-samples", "32")
    saved(tmp_path, *samples, "--global-batch-size", first, until=16 // int(first))
    steps, state = resumed(tmp_path, *samples, "--global-batch-size", second)
    assert (state.iteration, state.consumed_train_samples) == (last, 32)
    assert len(steps) == 16 // int(second)


def test_a_run_with_nothing_left_says_so(tmp_path, capsys):
    saved(tmp_path, until=3)
    steps, state = resumed(tmp_path, "--logging-level", "20")
    assert steps == [] and state.iteration == 3
    assert (
        "WARNING: nothing to train: the run stands at iteration 3 of 3" in capsys.readouterr().out
    )


# ---- loaders of the user's ----


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], []),
        (
            ["--num-attention-heads", "4", "--finetune"],
            ["kv_channels", "num_attention_heads", "num_query_groups", "softmax_scale"],
        ),
        (["--norm-epsilon", "0.1", "--rotary-base", "100"], ["norm_epsilon", "rotary_base"]),
        (["--no-load-optim", "--swiglu", "--recompute-granularity", "selective"], []),
    ],
)
def test_weights_that_go_on_in_another_model_are_told(tmp_path, capsys, flags, names):
    saved(tmp_path, until=1)
    capsys.readouterr()
    resumed(tmp_path, *flags)
    told = [line for line in capsys.readouterr().out.splitlines() if "computes something" in line]
    assert sorted(line.split()[1] for line in told) == names


@pytest.mark.parametrize("kind", ["own", "megatron"])
def test_weights_are_not_cut_into_other_heads(tmp_path, kind):
    saved(tmp_path / "own", until=1)
    if kind == "megatron":
        convert(tmp_path / "own", tmp_path / "megatron", ConvertOptions(to="megatron"))
    with pytest.raises(ValueError, match="of a model with 2 attention heads, .* is 4; set it to 2"):
        resumed(tmp_path / kind, "--num-attention-heads", "4")


def rows(count):
    return [{"input_ids": np.full((1, 17), number % 60)} for number in range(count)]


class Passes:
    """A loader that can only be iterated."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(rows(self.count))


class Numbers:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"input_ids": rows(self.count)[index]["input_ids"][0]}


def ours(count):
    settings = LoaderSettings(micro_batch_size=1, num_workers=2)
    return build_pretraining_data_loader(Numbers(count), 0, settings=settings)


def cyclic(count):
    settings = LoaderSettings(micro_batch_size=1, dataloader_type="cyclic", num_workers=0)
    return build_pretraining_data_loader(Numbers(count), 0, settings=settings)


LOADERS = {"list": rows, "passes": Passes, "ours": ours, "cyclic": cyclic}


def with_loader(loader, *flags, stop=None):
    """Losses; the guide's lines are printed meanwhile."""
    steps = []
    functions = StepFunctions(on_step=lambda step: steps.append(step.losses["lm loss"]))
    run = Run(
        configuration("--train-iters", "6", "--log-style", "guide", "--log-interval", "1", *flags),
        provider,
        train_data_loader=loader,
        functions=functions,
    )
    with run:
        run.train(stop)
        if stop:
            run.save()
    return steps


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("count", [100, 20], ids=["one pass", "several passes"])
def test_a_users_loader_goes_on_where_it_stopped(tmp_path, capsys, kind, count):
    make = LOADERS[kind]
    save = ("--save", str(tmp_path), "--save-interval", "100", *DROPOUT)
    load = ("--load", str(tmp_path), *DROPOUT)
    straight = with_loader(make(count), *DROPOUT)
    places = [match[:2] for match in LINE.findall(capsys.readouterr().out)]
    first = with_loader(make(count), *save, stop=3)
    second = with_loader(make(count), *load)
    assert first + second == straight
    assert [match[:2] for match in LINE.findall(capsys.readouterr().out)] == places
    assert len(places) == 6
    if count == 100:
        assert places == [("0", str(step)) for step in range(1, 7)]


def test_the_same_loader_object_serves_the_resumed_run(tmp_path):
    loader = ours(30)
    save = ("--save", str(tmp_path), "--save-interval", "100")
    straight = with_loader(loader)
    assert with_loader(loader, *save, stop=2) == straight[:2]
    assert with_loader(loader, "--load", str(tmp_path)) == straight[2:]


def test_a_position_of_the_users_own_is_kept(tmp_path):
    with_loader(ours(100), "--save", str(tmp_path), "--save-interval", "100", stop=2)
    settings = LoaderSettings(micro_batch_size=1, num_workers=0)
    loader = build_pretraining_data_loader(Numbers(100), 48, settings=settings)
    expected = with_loader(ours(100), "--load", str(tmp_path))
    assert with_loader(loader, "--load", str(tmp_path)) != expected
    assert loader.consumed_samples == 48 + 4 * 8


def test_new_data_starts_at_its_beginning_and_goes_on_there(tmp_path):
    with_loader(rows(100), "--save", str(tmp_path), "--save-interval", "100", stop=2)
    other = [{"input_ids": np.full((1, 17), 59 - number % 60)} for number in range(100)]
    flags = ("--load", str(tmp_path), "--new-dataset")
    straight = with_loader(other, *flags)
    save = ("--save", str(tmp_path), "--save-interval", "100")
    assert with_loader(other, *flags, *save, stop=2) == straight[:2]
    assert with_loader(other, "--load", str(tmp_path)) == straight[2:]


def test_a_loader_of_another_layout_is_refused():
    settings = LoaderSettings(micro_batch_size=1, data_parallel_size=2)
    loader = build_pretraining_data_loader(Numbers(100), 0, settings=settings)
    with pytest.raises(ValueError, match="rank 0 of 2 data-parallel ranks, but .* rank 0 of 1"):
        with_loader(loader)


# ---- the front door of YAML files ----


def yaml_config(**training):
    return init_configs_from_dict(
        {
            "model_config": {
                **{"vocab_size": 64, "num_layers": 2, "hidden_size": 16, "seq_length": 16},
                **{"num_attention_heads": 2, "ffn_hidden_size": 32, "compute_dtype": "float32"},
                **{"attention_dropout_rate": 0.1, "hidden_dropout_rate": 0.1},
            },
            "training_config": {"training_iters": 4, "global_batch_size": 4, **training},
            "dataset_config": {"batch_size": 1, "num_workers": 0},
            "optimizer_config": {"learning_rate": 0.01},
        }
    )


def test_yaml_resumes_bit_for_bit_by_default(tmp_path):
    def run(**training):
        config = yaml_config(eval_iters=0, output_dir=str(tmp_path), **training)
        steps = []
        pretrain(
            datasets,
            provider,
            all_config=config,
            on_step=lambda step: steps.append(step.losses["lm loss"]),
        )
        return steps

    straight = run(save_checkpoints=False)
    first = run(exit_interval=2)
    again = {"load_checkpoint": str(tmp_path), "resume_training": True, "save_checkpoints": False}
    assert first + run(**again) == straight
    assert run(**again, no_load_rng=True) != straight[2:]


def test_the_guides_line_is_the_default_of_its_front_door(capsys):
    for style, lines in ((None, 4), ("guide", 4), ("megatron", 0)):
        given = {} if style is None else {"log_style": style}
        config = yaml_config(eval_iters=0, save_checkpoints=False, **given)
        pretrain(datasets, provider, all_config=config)
        found = LINE.findall(capsys.readouterr().out)
        assert len(found) == lines, style
        assert [match[:2] for match in found] == [("0", str(step)) for step in (1, 2, 3, 4)][:lines]


def test_skipped_steps_print_their_true_loss(capsys):
    """With this scale every step overflows."""
    flags = ("--fp16", "--initial-loss-scale", "4294967296", "--log-interval", "1")
    run, steps = open_run(*flags, "--log-style", "guide", "--logging-level", "40")
    with run:
        run.train()
    printed = [float(match[2]) for match in LINE.findall(capsys.readouterr().out)]
    assert [norm for _, norm in steps] == [None] * 3
    np.testing.assert_allclose(printed, [loss for loss, _ in steps], rtol=0, atol=1e-15)
    assert all(3.0 < loss < 6.0 for loss in printed)


def test_second_moments_below_zero_are_refused(tmp_path):
    """Files that were exchanged put other numbers there; nothing else may tell."""
    run, _ = open_run("--save", str(tmp_path), "--save-interval", "100")
    with run:
        run.train(1)
        for tensor in live_tensors(run._opened.model, run._opened.optimizer):
            if tensor.kind == "exp_avg_sq":
                memory.flat_view(tensor.tensor)[:] *= -1
        run.save()
    with pytest.raises(ValueError, match=r"^exp_avg_sq\.\S+ holds \d+ numbers below zero, but"):
        resumed(tmp_path)
