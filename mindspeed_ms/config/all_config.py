# SPDX-License-Identifier: Apache-2.0
"""The whole configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

from mindspeed_ms.config import rules
from mindspeed_ms.config.dataset_config import DatasetConfig
from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.config.optimizer_config import OptimizerConfig
from mindspeed_ms.config.training_config import TrainingConfig
from mindspeed_ms.config.transformer_config import TransformerConfig
from mindspeed_ms.config.yaml_reader import yaml_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mindspeed_ms.config.section import PlainData, Section

SECTION_CLASSES: Mapping[str, type[Section]] = MappingProxyType(
    {
        cls.NAME: cls
        for cls in (
            ModelParallelConfig,
            DatasetConfig,
            LoraConfig,
            MoEConfig,
            TrainingConfig,
            TransformerConfig,
            OptimizerConfig,
        )
    }
)
"""Section name -> class, every section after the ones it links to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllConfig:
    """All sections of one run. Sections that another section links to are the same objects.

    An object of this class obeys every rule that needs no number of ranks.

    Raises:
        ValueError: a section links to other settings than the ones given here, or the first broken
            rule between sections, as one line: given, rule, fix.

    """

    model_config: TransformerConfig
    """The model."""

    training_config: TrainingConfig = field(default_factory=TrainingConfig)
    """The training run."""

    parallel_config: ModelParallelConfig = field(default_factory=ModelParallelConfig)
    """The layout over ranks."""

    dataset_config: DatasetConfig = field(default_factory=DatasetConfig)
    """Data and micro-batches."""

    optimizer_config: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedules."""

    moe_config: MoEConfig = field(default_factory=MoEConfig)
    """Mixture of experts."""

    lora_config: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""

    model_type: str = "model_config"
    """Name under which the user knows the model section; it is an attribute of this object too."""

    def __post_init__(self) -> None:
        """Refuse links to other sections than these, and sections that contradict each other."""
        for name in SECTION_CLASSES:
            section = getattr(self, name)
            for link in section.LINKS:
                linked = getattr(section, link)
                if linked is not None and linked != getattr(self, link):
                    raise ValueError(
                        f"{name}.{link} differs from the {link} of the whole configuration; "
                        f"pass the same object to both"
                    )
        rules.check_model_and_layout(self.model_config, self.parallel_config)
        rules.check_layers_and_stages(self.model_config, self.parallel_config)
        rules.check_model_and_training(self.model_config, self.training_config)
        rules.check_model_and_experts(self.model_config, self.moe_config, self.parallel_config)
        rules.check_model_and_optimizer(self.model_config, self.optimizer_config)
        rules.check_training_and_optimizer(self.training_config, self.optimizer_config)

    def __getattr__(self, name: str) -> TransformerConfig:
        """Return the model section under the name the user gave it."""
        model_type = object.__getattribute__(self, "model_type")
        if name == model_type:
            return self.model_config
        raise AttributeError(f"the configuration has no section {name!r}")

    def validate(self, world_size: int | None = None) -> AllConfig:
        """Check the rules that need the number of ranks; return self.

        Args:
            world_size: number of ranks; None checks nothing.

        Raises:
            ValueError: the first broken rule, as one line: given, rule, fix.

        """
        if world_size is not None:
            rules.check_world(self.parallel_config, world_size)
            rules.check_remainder(self.dataset_config, world_size)
            self.num_micro_batches(world_size)
            self.evaluation_batch_size(world_size)
        return self

    def num_micro_batches(self, world_size: int) -> int:
        """Return the micro-batches per step on each rank, once the batch has its full size.

        Raises:
            ValueError: the global batch does not divide, or contradicts micro_batch_num.

        """
        return rules.num_micro_batches(
            self.training_config,
            self.dataset_config,
            self.parallel_config.data_parallel_size(world_size),
        )

    def global_batch_size(self, world_size: int) -> int:
        """Return the sequences per step over all ranks, once the batch has its full size."""
        return (
            self.num_micro_batches(world_size)
            * self.dataset_config.batch_size
            * self.parallel_config.data_parallel_size(world_size)
        )

    def evaluation_batch_size(self, world_size: int) -> int:
        """Return the sequences per step of an evaluation over all ranks.

        Raises:
            ValueError: one micro-batch of every rank does not divide it.

        """
        training = self.training_config
        size = training.eval_global_batch_size
        if size is None:
            size = self.global_batch_size(world_size)
        ranks = self.parallel_config.data_parallel_size(world_size)
        rules.check_evaluation_batch(size, self.evaluation_micro_batch_size, ranks)
        return size

    @property
    def evaluation_micro_batch_size(self) -> int:
        """Sequences in one micro-batch of an evaluation."""
        return self.training_config.eval_micro_batch_size or self.dataset_config.batch_size

    @property
    def shards_optimizer(self) -> bool:
        """Whether data parallel ranks share the optimizer's state out."""
        return rules.shards_optimizer(
            self.training_config, self.optimizer_config, self.parallel_config
        )

    def to_dict(self) -> dict[str, dict[str, PlainData]]:
        """Return section -> key -> value, defaults included, as data that YAML can hold."""
        names = [item.name for item in fields(self) if item.name in SECTION_CLASSES]
        return {name: getattr(self, name).to_dict() for name in names}


def to_yaml(all_config: AllConfig) -> str:
    """Return the resolved configuration as YAML, defaults included; it loads back equal."""
    return yaml_text(all_config.to_dict())
