# SPDX-License-Identifier: Apache-2.0
"""What a trainer is told before it does anything: model, data, layout, callbacks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import comm, launch, rank_table, script_context
from mindspeed_ms.config.section import suggestion
from mindspeed_ms.engine.output import print_rank_0, set_up_output
from mindspeed_ms.engine.run import Run
from mindspeed_ms.formats.find import find_checkpoint
from mindspeed_ms.toolkit import context
from mindspeed_ms.toolkit.data.conversations import Writer
from mindspeed_ms.toolkit.data.sources import Source
from mindspeed_ms.toolkit.given import shown
from mindspeed_ms.toolkit.hub import checked_name
from mindspeed_ms.toolkit.mapping import parallel
from mindspeed_ms.toolkit.mapping.parallel import ParallelMode, World
from mindspeed_ms.toolkit.mapping.recompute import map_recompute
from mindspeed_ms.toolkit.mapping.tree import Task, canonical, read_task
from mindspeed_ms.toolkit.models.building import lacks_further_layers
from mindspeed_ms.toolkit.paths import localize
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer
from mindspeed_ms.toolkit.trainer.build import Wanted
from mindspeed_ms.toolkit.trainer.callbacks import CallbackHandler, TrainerState
from mindspeed_ms.toolkit.trainer.events import Events
from mindspeed_ms.toolkit.trainer.file_settings import FileSettings, is_file
from mindspeed_ms.toolkit.trainer.inputs import (
    TASKS,
    arguments,
    in_any_order,
    listed,
    lora_fields,
    refuse,
)
from mindspeed_ms.toolkit.trainer.model_source import source_of
from mindspeed_ms.toolkit.yaml_config import Tree, merge_trees, tree_of

PET_METHODS = ("", "lora")
_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
_FIRST_SCALE = 65536.0
"""Of an fp16 loss, as in ``transformers`` and MindFormers; Megatron starts at 2**32."""
_DTYPE_KEY = "model.model_config.compute_dtype"


class TrainerSettings:
    """A trainer's arguments and settings, and the runs they describe; see ``Trainer``."""

    @in_any_order
    def __init__(  # noqa: PLR0913  (the arguments of MindFormers)
        self,
        task: Any = "text_generation",
        model: Any = None,
        args: Any = None,
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
        if not isinstance(task, str) or task not in TASKS:
            near = suggestion(task, TASKS) if isinstance(task, str) else ""
            raise ValueError(f"task {shown(task)} is not available{near}; use text_generation")
        if not isinstance(pet_method, str) or pet_method not in PET_METHODS:
            raise ValueError(f"pet_method {shown(pet_method)}: use '' or 'lora'")
        tokenizer = others.pop("processing_class", None) or tokenizer
        more = others.pop("eval_callbacks", None)
        refuse(others)
        self.task, self.pet_method, self.lora_config = task, pet_method, lora_config
        self._file = FileSettings(args) if is_file(args) else None
        if self._file is not None:
            args = self._file.arguments()
            model = self._file.model if model is None and model_name is None else model
            train_dataset = self._file.data("train") if train_dataset is None else train_dataset
            eval_dataset = self._file.data("eval") if eval_dataset is None else eval_dataset
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
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if isinstance(dataset, str | os.PathLike):
                Source.of(dataset, name)  # a path without data is said at once
        events = Events(self.args, self.callback_handler, self.state, None, False)
        events.tell("on_init_end")

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

    def _checkpoint(self, given: str | bool | None) -> str:
        if given is None and self._file is not None:
            given = self._file.checkpoint
        if given is True:
            return str(self.args.output_dir or "./output")
        if given is not None and given is not False:
            given = checked_name(given)
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
        if context.asked_parallel() is None and self._file is not None:
            context.build_context(self._file.given)
        elif context.asked_parallel() is None:
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
        if asked is None and world.size > 1 and not self._parallel and self._file is None:
            context_keys["parallel_mode"] = ParallelMode.DATA_PARALLEL.value
        sizes, lines = self._sizes(context_keys, world)
        own: Tree = {
            "run_mode": run_mode if run_mode != "finetune" else "train",
            "parallel": context_keys,
            "parallel_config": sizes,
            "context": dict(context.asked_device()),
        }
        if self._recompute:
            own["recompute_config"] = self._recompute
        if self._file is not None:  # it says itself how to train
            keys = {key: value for key, value in keys.items() if key == "output_dir"}
        keys |= {"resume_training": bool(resume), "load_checkpoint": resume or ""}
        own = merge_trees([tree_of(keys), canonical(own)])
        tree = own if self._file is None else self._file.merged(own)
        task = read_task(localize(tree), world)
        return dataclasses.replace(task, notes=(*mapped.notes, *lines, *task.notes))

    def _sizes(self, asked: Mapping[str, Any], world: World) -> tuple[dict[str, Any], list[str]]:
        """``parallel_config``; ranks whose sizes nobody has said share the batch."""
        mode, _ = parallel.mode_of(asked, world)
        is_said = self._parallel or self._file is not None or "pipeline_stages" in asked
        if is_said or world.size == 1 or mode is not ParallelMode.SEMI_AUTO_PARALLEL:
            return self._parallel, []
        line = "set_parallel_config was not called: data_parallel is {0}, as there are {0} ranks"
        return {"data_parallel": world.size}, [line.format(world.size)]

    def _wanted(
        self, run_mode: str, weights: str, resume: str | None, evaluation: Any, world: World
    ) -> Wanted:
        train = self.train_dataset if run_mode != "eval" else None
        extra: dict[str, dict[str, Any]] = {"model_config": {}, "training_config": {}}
        for switch, dtype in _DTYPES.items():
            if getattr(self.args, switch):
                extra["training_config"][switch] = True
                extra["model_config"] |= {"params_dtype": dtype, "compute_dtype": dtype}
        if self.args.fp16:
            extra["training_config"]["loss_scale_value"] = _FIRST_SCALE
        if self.args.neftune_noise_alpha:
            extra["lora_config"] = {"neftune_noise_alpha": self.args.neftune_noise_alpha}
        if self._lacks_further_layers():
            extra["model_config"]["mtp_num_layers"] = None
        if self.args.max_length:
            extra["model_config"]["seq_length"] = self.args.max_length
        if self.pet_method == "lora":
            own = extra.get("lora_config", {})
            extra["lora_config"] = {**lora_fields(self.lora_config), **own, "use_lora": True}
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

    def _lacks_further_layers(self) -> bool:
        """Whether the model's folder has no layers for further tokens, as its description has."""
        source = self._source
        if source.is_own_cell or source.is_in_memory:
            return False
        described = source.describe({})
        if described.model_config.mtp_num_layers is None or not (path := source.find_weights()):
            return False  # most models: no folder is looked into
        found = find_checkpoint(Path(path))
        if found is None or not lacks_further_layers(described, found):
            return False
        self._say([f"{path} has no layers for further tokens: the model has none either"])
        return True

    def _known(self, given: Any, key: str) -> Source | None:
        """The source of data that was given; told once, as files may have to be read."""
        if given is None:
            return None
        if id(given) not in self._sources:
            self._sources[id(given)] = (given, Source.of(given, key))
        return self._sources[id(given)][1]

    def _writer(self) -> Writer:
        tokenizer = self._own_tokenizer()
        return Writer(tokenizer, self.chat_template, self.args.assistant_only_loss)

    def _own_tokenizer(self) -> Any:
        if self.tokenizer is None:
            named = self.model if isinstance(self.model, str | os.PathLike) else self.model_name
            name = named or getattr(self._source.instance, "name_or_path", "")
            if not name:
                raise ValueError("texts need a tokenizer; give tokenizer")
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        return self.tokenizer

    def _layout(self) -> dict[str, Any]:
        """How ranks share a model that is not trained."""
        sizes = parallel.read_sizes(self._parallel)
        names = {
            "tensor_parallel": sizes.model_parallel,
            "pipeline_parallel": sizes.pipeline_stage,
            "expert_parallel": sizes.expert_parallel,
        }
        return {name: size for name, size in names.items() if size > 1}
