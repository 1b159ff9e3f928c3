"""``Trainer``: train, finetune, evaluate and predict, in a script, under a launcher, in a notebook.

Source: MindFormers r0.3 and r1.0 ``Trainer`` (names), transformers 5 ``Trainer`` (names).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mindspeed_ms.backend import comm, launch, rank_table, script_context
from mindspeed_ms.config import without_effect
from mindspeed_ms.config.section import suggestion
from mindspeed_ms.engine.output import print_rank_0, set_up_output
from mindspeed_ms.engine.run import Run, StepFunctions
from mindspeed_ms.planning.plan import Plan, make_plan
from mindspeed_ms.planning.report import plan_lines
from mindspeed_ms.planning.suggest import suggest as suggest_layouts
from mindspeed_ms.planning.suggest import suggestion_lines, with_memory
from mindspeed_ms.planning.timing import Device
from mindspeed_ms.toolkit import context
from mindspeed_ms.toolkit.data.conversations import Writer
from mindspeed_ms.toolkit.data.sources import Source
from mindspeed_ms.toolkit.mapping import parallel
from mindspeed_ms.toolkit.mapping.parallel import ParallelMode, World
from mindspeed_ms.toolkit.mapping.recompute import map_recompute
from mindspeed_ms.toolkit.mapping.tree import Task, canonical, read_task
from mindspeed_ms.toolkit.paths import localize
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer
from mindspeed_ms.toolkit.trainer.arguments import TrainingArguments
from mindspeed_ms.toolkit.trainer.build import Built, Wanted, build, filled
from mindspeed_ms.toolkit.trainer.callbacks import CallbackHandler, ProgressCallback, TrainerState
from mindspeed_ms.toolkit.trainer.events import Events, metrics_of
from mindspeed_ms.toolkit.trainer.inputs import (
    arguments,
    has_terminal,
    listed,
    lora_fields,
    refuse,
    resume_from,
)
from mindspeed_ms.toolkit.trainer.model_source import source_of
from mindspeed_ms.toolkit.yaml_config import Tree, merge_trees, tree_of

logger = logging.getLogger(__name__)

TASKS = ("text_generation", "general")
PET_METHODS = ("", "lora")
_HELD = "_run_of_trainer"
"""Attribute of a model: the open run that trains it."""
_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
_DTYPE_KEY = "model.model_config.compute_dtype"


class TrainOutput(NamedTuple):
    """What ``train`` returns."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer:
    """Trains a model, and evaluates and uses it.

    One loop does the work, that of the engine: settings become its configuration. Methods raise
    exceptions and may be called in any order; what was trained stays in memory for ``evaluate`` and
    ``predict``.

    Args:
        task: ``text_generation``.
        model: name of a size (weights drawn at random, unless they are needed and are here), a
            folder with weights, a configuration, a model of this package, or a Cell of one's own
            that returns its loss.
        args: how to train; None: the defaults.
        train_dataset: a path (rows in MindRecord or ``.npy``, ``.bin/.idx``, texts, JSON lines), a
            MindSpore dataset, a dataset of Hugging Face, a list of records, batches.
        eval_dataset: the same, for evaluation.
        pet_method: ``lora`` to train adapters alone.
        model_name: name of a size, where ``model`` is None.
        tokenizer: turns texts into ids; None: the model's own.
        callbacks: ``TrainerCallback`` or ``mindspore.Callback``, or a list of them.
        lora_config: of the adapters, with ``pet_method='lora'``.
        chat_template: Jinja text, or the name of one of the tokenizer's templates.
        others: ``processing_class`` for ``tokenizer``, ``eval_callbacks``; arguments of other
            trainers that ask for what is not there are refused.

    Raises:
        TypeError: an argument that does not exist.
        ValueError: settings that cannot be used.

    Parallelism: every rank makes the same trainer and calls the same methods in the same order.
    """

    def __init__(  # noqa: PLR0913  (the arguments of MindFormers)
        self,
        task: str = "text_generation",
        model: Any = None,
        args: TrainingArguments | Mapping[str, Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        pet_method: str = "",
        model_name: str | None = None,
        tokenizer: Any = None,
        callbacks: Any = None,
        lora_config: Any = None,
        chat_template: str | None = None,
        **others: Any,
    ) -> None:
        if task not in TASKS:
            near = suggestion(task, TASKS) if isinstance(task, str) else ""
            raise ValueError(f"task {task!r} is not available{near}; use text_generation")
        if pet_method not in PET_METHODS:
            raise ValueError(f"pet_method {pet_method!r}: use '' or 'lora'")
        tokenizer = others.pop("processing_class", None) or tokenizer
        more = others.pop("eval_callbacks", None)
        refuse(others)
        self.task, self.pet_method, self.lora_config = task, pet_method, lora_config
        self.args = arguments(args)
        self.model, self.model_name = model, model_name
        self.tokenizer, self.chat_template = tokenizer, chat_template
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.state = TrainerState()
        self._source = source_of(model, model_name)
        self._parallel: dict[str, Any] = {}
        self._recompute: dict[str, Any] = {}
        self._run: Run | None = None
        self._said: set[str] = set()
        self._sources: dict[int, tuple[Any, Source]] = {}
        self.callback_handler = CallbackHandler([*listed(callbacks), *listed(more)])
        if not self.args.disable_tqdm and has_terminal(self.args.disable_tqdm):
            bar = importlib.import_module("tqdm.auto").tqdm
            self.callback_handler.add(ProgressCallback(bar))
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if isinstance(dataset, str | os.PathLike):
                Source.of(dataset, name)  # a path without data is said at once
        events = Events(self.args, self.callback_handler, self.state, None, False)
        events.tell("on_init_end")

    # --- settings ---------------------------------------------------------------------------------

    def set_parallel_config(self, **sizes: Any) -> None:
        """Say how ranks share the model and the batch.

        Args:
            sizes: ``data_parallel``, ``model_parallel``, ``pipeline_stage``, ``expert_parallel``,
                ``context_parallel``, ``micro_batch_num``, ``micro_batch_interleave_num``,
                ``use_seq_parallel``, ``optimizer_shard``, ``vocab_emb_dp``,
                ``gradient_aggregation_group``; 1 and False where nothing is given.

        Raises:
            ValueError: an unknown key, or a size that none can be.
        """
        parallel.read_sizes(sizes)
        self._parallel = dict(sizes)

    def set_recompute_config(
        self,
        recompute: Any = False,
        select_recompute: Any = False,
        parallel_optimizer_comm_recompute: bool = False,
        mp_comm_recompute: bool = True,
        recompute_slice_activation: bool = False,
    ) -> None:
        """Say what backward computes again instead of keeping it.

        Args:
            recompute: whole layers; a list gives layers for each stage.
            select_recompute: attention alone; wins over ``recompute``.
            parallel_optimizer_comm_recompute: without effect, weights are not gathered.
            mp_comm_recompute: False keeps what sequence parallelism has gathered.
            recompute_slice_activation: what ``use_seq_parallel`` does.

        Raises:
            ValueError: a value that none can be.
        """
        given = {
            "recompute": recompute,
            "select_recompute": select_recompute,
            "parallel_optimizer_comm_recompute": parallel_optimizer_comm_recompute,
            "mp_comm_recompute": mp_comm_recompute,
            "recompute_slice_activation": recompute_slice_activation,
        }
        map_recompute(given, sequence_parallel=False)  # refuses what none can be
        self._recompute = given

    def add_callback(self, callback: Any) -> None:
        """Add a callback of either kind."""
        self.callback_handler.add(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Take out a callback, or the first of a class, and return it."""
        return self.callback_handler.pop(callback)

    def remove_callback(self, callback: Any) -> None:
        """Take out a callback, or the first of a class."""
        self.callback_handler.pop(callback)

    # --- verbs ------------------------------------------------------------------------------------

    def train(
        self,
        train_checkpoint: str | bool | None = None,
        resume_training: str | bool | None = None,
        auto_trans_ckpt: bool | None = None,
        do_eval: bool | None = None,
        *,
        resume_from_checkpoint: str | bool | None = None,
    ) -> TrainOutput:
        """Train to the end.

        Args:
            train_checkpoint: weights to start from; True: the newest of ``output_dir``.
            resume_training: go on with the run of ``train_checkpoint`` or ``output_dir``, bit for
                bit, its position in the data included.
            auto_trans_ckpt: without effect, every checkpoint is read in any layout.
            do_eval: evaluate after every pass.
            resume_from_checkpoint: go on with the run of this folder; True: of ``output_dir``.

        Returns:
            Steps, mean loss and metrics.

        Raises:
            ValueError: settings or data that cannot be used, before any long work.
            RunFailure: the run had begun and cannot go on.
        """
        del auto_trans_ckpt
        resume = resume_from(self.args, resume_from_checkpoint, resume_training, train_checkpoint)
        weights = "" if resume else self._checkpoint(train_checkpoint) or self._source.weights
        return self._fit("train", weights, resume, do_eval)

    def finetune(
        self,
        finetune_checkpoint: str | bool | None = None,
        resume_from_checkpoint: str | bool | None = None,
        resume_training: str | bool | None = None,
        auto_trans_ckpt: bool | None = None,
        do_eval: bool | None = None,
    ) -> TrainOutput:
        """Go on training a model that has weights.

        Args:
            finetune_checkpoint: of any format; True: the newest of ``output_dir``. None: the
                model's own.
            resume_from_checkpoint: go on with the finetuning of this folder.
            resume_training: the same by the name of MindFormers.
            auto_trans_ckpt: without effect, every checkpoint is read in any layout.
            do_eval: evaluate after every pass.

        Raises:
            ValueError: there are no weights, or as in ``train``.
        """
        del auto_trans_ckpt
        resume = resume_from(
            self.args, resume_from_checkpoint, resume_training, finetune_checkpoint
        )
        weights = "" if resume else self._checkpoint(finetune_checkpoint)
        weights = weights or self._source.find_weights()
        if not weights and not resume and not self._has_weights:
            raise ValueError(
                "finetune starts from weights; give finetune_checkpoint, or a model that has "
                "weights; train starts from none"
            )
        return self._fit("finetune", weights, resume, do_eval)

    def evaluate(
        self,
        eval_dataset: Any = None,
        eval_checkpoint: str | bool | None = None,
        auto_trans_ckpt: bool | None = None,
    ) -> dict[str, float]:
        """Evaluate the model, of which every token weighs the same.

        Args:
            eval_dataset: data; None: the trainer's.
            eval_checkpoint: weights, True for the newest of ``output_dir``. None: those in memory,
                or the model's own.
            auto_trans_ckpt: without effect, every checkpoint is read in any layout.

        Returns:
            ``loss``, the mean over all tokens, and ``PPL``, its exponential.

        Raises:
            ValueError: no data, or data or weights that do not fit.
        """
        del auto_trans_ckpt
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if given is None:
            raise ValueError("there is nothing to evaluate; give eval_dataset")
        weights = self._checkpoint(eval_checkpoint)
        if self._run is None:
            self._open_for_evaluation(given, weights)
            assert self._run is not None, "just opened"
            losses = self._run.evaluate()
        else:
            if weights:
                self._run.load_weights(weights)
            losses = self._evaluate_in(self._run, given)
        metrics = metrics_of(losses)
        print_rank_0(str(metrics))
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Generate text; see ``pipeline``."""
        del args, kwargs
        raise NotImplementedError("predict is not available yet; train, finetune or evaluate")

    def plan(
        self,
        world_size: int | None = None,
        memory_gb: float | None = None,
        suggest: bool = False,
        tflops: float | None = None,
    ) -> Plan:
        """Tell memory, traffic and time of a step, before anything is built; printed, too.

        Args:
            world_size: ranks; None: those there are.
            memory_gb: memory of a device, in GiB.
            suggest: print the fastest layouts besides.
            tflops: of a device.

        Returns:
            The plan.

        Raises:
            ValueError: settings that training would refuse.
        """
        size = world_size or self._world().size
        wanted = self._wanted("train", "", None, None, World(size, rank_table.num_servers()))
        if wanted.train is None and not wanted.task.max_steps:
            task = dataclasses.replace(wanted.task, max_steps=1)
            wanted = dataclasses.replace(wanted, task=task)
        config = build(wanted, size).config
        device = with_memory(Device(), memory_gb, tflops)
        plan = make_plan(config, size, device)
        lines = plan_lines(plan)
        if suggest:
            lines += suggestion_lines(suggest_layouts(config, size, device))
        self._join()
        for line in lines:
            print_rank_0(line)
        return plan

    def close(self) -> None:
        """Give back what the last run holds; the trainer can be used again.

        Parallelism: collective.
        """
        run, self._run = self._run, None
        if run is not None:
            run.close()

    # --- how it is done ---------------------------------------------------------------------------

    @property
    def _has_weights(self) -> bool:
        """Whether the model in memory is more than random numbers."""
        return self._run is not None or self._source.is_given

    def _checkpoint(self, given: str | bool | None) -> str:
        if given is True:
            return str(self.args.output_dir or "./output")
        if given and not Path(given).exists():
            found = source_of(given, None).find_weights() if "/" not in given else ""
            if not found:
                raise ValueError(f"checkpoint {given}: there is no such file or folder")
            return found
        return given or ""

    def _world(self) -> World:
        told = launch.told_by_launcher()
        return World(1 if told is None else told[1], rank_table.num_servers())

    def _join(self) -> None:
        """Meet the other ranks, and print for all of them."""
        if context.asked_parallel() is None:
            lines = script_context.apply({})
            comm.init_process_group()
            set_up_output()
            self._say(lines)
        set_up_output()

    def _say(self, lines: Sequence[str]) -> None:
        """Print lines, each once."""
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                print_rank_0(line)

    def _task(self, run_mode: str, resume: str | None, world: World) -> Task:
        """The settings as a task."""
        mapped = self.args.mapped()
        keys = {key: value for key, value in mapped.keys.items() if key != _DTYPE_KEY}
        asked = context.asked_parallel()
        context_keys = dict(asked or {})
        if asked is None and world.size > 1 and not self._parallel:
            context_keys["parallel_mode"] = ParallelMode.DATA_PARALLEL.value
        own: Tree = {
            "run_mode": run_mode if run_mode != "finetune" else "train",
            "parallel": context_keys,
            "parallel_config": self._parallel,
            "context": dict(context.asked_device()),
        }
        if self._recompute:
            own["recompute_config"] = self._recompute
        keys |= {"resume_training": bool(resume), "load_checkpoint": resume or ""}
        tree = merge_trees([tree_of(keys), canonical(own)])
        task = read_task(localize(tree), world)
        return dataclasses.replace(task, notes=(*mapped.notes, *task.notes))

    def _wanted(
        self, run_mode: str, weights: str, resume: str | None, evaluation: Any, world: World
    ) -> Wanted:
        train = self.train_dataset if run_mode != "eval" else None
        extra: dict[str, dict[str, Any]] = {"model_config": {}, "training_config": {}}
        for switch, dtype in _DTYPES.items():
            if getattr(self.args, switch):
                extra["training_config"][switch] = True
                extra["model_config"] |= {"params_dtype": dtype, "compute_dtype": dtype}
        if self.args.max_length:
            extra["model_config"]["seq_length"] = self.args.max_length
        if self.pet_method == "lora":
            extra["lora_config"] = {"use_lora": True, **lora_fields(self.lora_config)}
        return Wanted(
            task=self._task(run_mode, resume, world),
            args=self.args,
            model=self._source,
            train=self._known(train, "train_dataset"),
            evaluation=self._known(evaluation, "eval_dataset"),
            write=self._writer,
            weights=weights,
            extra=extra,
        )

    def _known(self, given: Any, key: str) -> Source | None:
        """The source of data that was given; told once, as files may have to be read."""
        if given is None:
            return None
        if id(given) not in self._sources:
            self._sources[id(given)] = (given, Source.of(given, key))
        return self._sources[id(given)][1]

    def _writer(self) -> Writer:
        tokenizer = self.tokenizer
        if tokenizer is None:
            name = self.model if isinstance(self.model, str) else self.model_name
            if not name:
                raise ValueError("texts need a tokenizer; give tokenizer")
            tokenizer = AutoTokenizer.from_pretrained(name)
            self.tokenizer = tokenizer
        return Writer(tokenizer, self.chat_template, self.args.assistant_only_loss)

    def _fit(
        self, run_mode: str, weights: str, resume: str | None, do_eval: bool | None
    ) -> TrainOutput:
        if self.train_dataset is None:
            raise ValueError(f"{run_mode} needs data; give train_dataset")
        if do_eval is not None and do_eval != self.args.do_eval:
            self.args.do_eval = do_eval
        if self.args.strategy("eval") != "no" and self.eval_dataset is None:
            raise ValueError(
                f"eval_strategy is {self.args.strategy('eval')}, but there is nothing to evaluate; "
                "give eval_dataset"
            )
        self._join()
        self.close()
        wanted = self._wanted(run_mode, weights, resume, self.eval_dataset, self._world())
        built = build(wanted, comm.get_world_size())
        self._say([*wanted.task.notes, *built.lines, *self.callback_handler.never_called()])
        self.state = self._first_state(built)
        events = Events(
            self.args,
            self.callback_handler,
            self.state,
            built.samples_per_pass,
            self.eval_dataset is not None,
        )
        run = self._open(built, events)
        try:
            events.begin(run)
            run.train()
            events.end()
        except BaseException:
            self._run = None
            run.__exit__(*sys.exc_info())
            raise
        metrics = {"train_loss": events.training_loss, "epoch": self.state.epoch}
        return TrainOutput(self.state.global_step, events.training_loss, metrics)

    def _first_state(self, built: Built) -> TrainerState:
        training = built.config.training_config
        steps = training.training_iters
        batch = built.config.global_batch_size(comm.get_world_size())
        passes = steps * batch / built.samples_per_pass if built.samples_per_pass else 1.0
        return TrainerState(
            max_steps=steps,
            num_train_epochs=passes if self.args.max_steps > 0 else self.args.num_train_epochs,
            logging_steps=training.log_interval or 1,
            eval_steps=self.args.interval("eval", steps) or 0,
            save_steps=self.args.interval("save", steps) or 0,
            train_batch_size=built.config.dataset_config.batch_size,
            is_local_process_zero=comm.get_local_rank() == 0,
            is_world_process_zero=comm.get_rank() == 0,
        )

    def _open(self, built: Built, events: Events | None) -> Run:
        for line in without_effect(built.config) if comm.get_rank() == 0 else ():
            logger.warning("%s", line)
        instance = self._source.instance
        earlier = getattr(instance, _HELD, None)
        if earlier is not None:  # of another trainer of this model, as in a cell that runs again
            earlier.close()
        self._run = Run(
            built.config,
            built.provider,
            built.datasets,
            built.loader,
            functions=StepFunctions(on_step=events),
        )
        object.__setattr__(instance, _HELD, self._run)
        self._source.take(self._run)
        return self._run

    def _open_for_evaluation(self, given: Any, weights: str) -> None:
        weights = weights or self._source.find_weights()
        self._join()
        if not weights and not self._source.is_given:
            self._say(["WARNING: no weights are given or found: what is evaluated is random"])
        wanted = self._wanted("eval", weights, None, given, self._world())
        built = build(wanted, comm.get_world_size())
        self._say([*wanted.task.notes, *built.lines])
        self._open(built, None)

    def _evaluate_in(self, run: Run, given: Any) -> list[dict[str, float]]:
        """Evaluate in an open run: its own data, or other."""
        source = self._known(given, "eval_dataset")
        assert source is not None, "given"
        if given is self.eval_dataset:
            found = run.evaluate()
            if found:
                return found
        if source.token_files:
            raise ValueError(
                "other token files are evaluated by a new Trainer: this one's run has its own"
            )
        full_batch = comm.get_world_size() == 1 or bool(
            (context.asked_parallel() or {}).get("full_batch")
        )
        dataset = source.dataset(
            run.config, self._writer, full_batch=full_batch, packing=self.args.packing
        )
        with run.active():
            return run.evaluate(dataset=filled(run.config, dataset))
