# SPDX-License-Identifier: Apache-2.0
"""``Trainer``: train, finetune, evaluate and predict, in a script, under a launcher, in a notebook.

Source: MindFormers r0.3 and r1.0 ``Trainer`` (names), transformers 5 ``Trainer`` (names).
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mindspeed_ms.backend import bars, comm, rank_table
from mindspeed_ms.config import without_effect
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.run import Run, StepFunctions
from mindspeed_ms.planning.plan import Plan, make_plan
from mindspeed_ms.planning.report import plan_lines
from mindspeed_ms.planning.suggest import search, suggestion_lines, with_memory
from mindspeed_ms.planning.timing import Device
from mindspeed_ms.toolkit import context
from mindspeed_ms.toolkit.mapping.parallel import World
from mindspeed_ms.toolkit.models.saving import has_adapters_apart
from mindspeed_ms.toolkit.peft import save_adapter
from mindspeed_ms.toolkit.pipelines.text_generation import pipeline
from mindspeed_ms.toolkit.trainer.build import Built, build, filled
from mindspeed_ms.toolkit.trainer.callbacks import TrainerState
from mindspeed_ms.toolkit.trainer.events import Events, metrics_of
from mindspeed_ms.toolkit.trainer.inputs import (
    resume_from,
    texts_of,
)
from mindspeed_ms.toolkit.trainer.predicting import NO_WEIGHTS, write_texts
from mindspeed_ms.toolkit.trainer.settings import TrainerSettings
from mindspeed_ms.training.teacher_description import with_teacher

logger = logging.getLogger(__name__)

_HELD = "_run_of_trainer"
"""Attribute of a model: the open run that trains it."""


class TrainOutput(NamedTuple):
    """What ``train`` returns."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer(TrainerSettings):
    """Trains a model, and evaluates and uses it.

    One loop does the work, that of the engine: settings become its configuration. Methods raise
    exceptions and may be called in any order; what was trained stays in memory for ``evaluate`` and
    ``predict``.

    Args:
        task: ``text_generation``. Without names, arguments may also stand in MindFormers' order,
            ``args, task, model``, or in that of ``transformers``, ``model, args``.
        model: name of a size (weights drawn at random, unless they are needed and are here), a
            folder with weights, a configuration, a model of this package, or a Cell of one's own
            that returns its loss.
        args: how to train: ``TrainingArguments``; or a whole file of MindFormers, as a path or
            ``MindFormerConfig``, which names model and data too. None: the defaults.
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

    def predict(
        self,
        predict_checkpoint: str | bool | None = None,
        auto_trans_ckpt: bool | None = None,
        input_data: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[dict[str, list[str]]]:
        """Go on with texts; written to ``text_generation_result.txt`` in this folder, too.

        Args:
            predict_checkpoint: weights, True for the newest of ``output_dir``. None: those in
                memory, or the model's own.
            auto_trans_ckpt: without effect, every checkpoint is read in any layout.
            input_data: a text, a list of texts, or a file with a text a line.
            batch_size: texts that are worked on at a time; None: all.
            options: of generation, see ``pipeline``.

        Returns:
            ``[{"text_generation_text": [text, ...]}]``, one for each text.

        Raises:
            ValueError: no text, no tokenizer, or options that cannot be served.
            OSError: the tokenizer's files are not here.
        """
        del auto_trans_ckpt
        texts = texts_of(input_data)
        self._join()
        model = self._predicting(self._checkpoint(predict_checkpoint))
        model.set_train(False)
        generate = pipeline("text_generation", model=model, tokenizer=self._own_tokenizer())
        found = generate(texts, batch_size=batch_size, **options)
        write_texts(found)
        Events(self.args, self.callback_handler, self.state, None, False).tell("on_predict")
        return found

    def save_model(self, output_dir: str | None = None) -> Path:
        """Write the model as ``transformers`` does, and its tokenizer; return the folder.

        Of a model with adapters, unless they are merged, they alone are written, in PEFT's files.

        Args:
            output_dir: the folder; None: the trainer's ``output_dir``.

        Raises:
            ValueError: nothing is in memory yet, or it is a Cell of the user's own; or several
                ranks share adapters.

        Parallelism: collective; the first rank writes.
        """
        source = self._source
        if source.is_own_cell:
            raise ValueError("save_model writes models of this package; save a Cell of your own")
        if not source.is_in_memory:
            raise ValueError("there is nothing to save yet; train, or load the model first")
        if self._run is not None:
            with self._run.active():
                for chunk in self._run.model:
                    chunk.finish_param_sync()
        folder = Path(output_dir or self.args.output_dir or "./output")
        if has_adapters_apart(source.instance):
            save_adapter(source.instance, folder)
        else:
            source.instance.save_pretrained(folder)
        if self.tokenizer is not None and comm.get_rank() == 0:
            self.tokenizer.save_pretrained(str(folder))
        return folder

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
        if world_size is not None and (type(world_size) is not int or world_size < 1):
            raise ValueError(f"world_size is {world_size!r}, but must be a whole number above 0")
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
            lines += suggestion_lines(search(config, size, device))
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

    @property
    def _has_weights(self) -> bool:
        """Whether the model in memory is more than random numbers."""
        return self._source.is_given or self._source.is_in_memory

    def _predicting(self, weights: str) -> Any:
        """The model that generates, with its weights."""
        source, layout = self._source, self._layout()
        if source.is_own_cell:
            raise ValueError(
                "predict needs a model of this package; a Cell of one's own has no cache"
            )
        if self._run is not None:
            if weights:
                self._run.load_weights(weights)
            return source.instance
        weights = weights or source.find_weights()
        cls, config = type(source.instance), source.instance.config
        if weights:
            return cls.from_pretrained(weights, config=config, **layout)
        if self._has_weights:
            return source.instance
        self._say([NO_WEIGHTS])
        return cls(config, **layout)

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
        of_evaluation, size = self.args.per_device_eval_batch_size, self.args.train_batch_size
        if of_evaluation not in (None, size):
            self._say([f"per_device_eval_batch_size: no effect while training, as {size} is used"])
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
            with bars.hidden(bool(self.args.disable_tqdm)):
                run.train()
            metrics = events.end()
            self._source.take(run)  # in the mode, training or not, that the user's object is in
        except BaseException:
            self._run = None
            run.__exit__(*sys.exc_info())
            raise
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

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
            with_teacher(built.config),
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
        if not weights and not self._has_weights:
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
