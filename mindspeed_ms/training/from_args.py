"""From Megatron's arguments to :class:`AllConfig`, by the flag table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, overload

from mindspeed_ms.config.all_config import SECTION_CLASSES, AllConfig
from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.section import Section, field_default
from mindspeed_ms.config.transformer_config import GATED_ACTIVATIONS
from mindspeed_ms.training.derived_args import REPLACED_BY_MOCK_DATA, Values, derive
from mindspeed_ms.training.flags import BY_NAME, ROWS, Field, NoEffect, Refused
from mindspeed_ms.training.yaml_styles.build import build_selected, clean_sections, merge_sections

UNSET: Any = object()
"""Result of a transform when the arguments say nothing about the field."""

FRONT_DOOR_VALUES: Mapping[str, Any] = MappingProxyType(
    {
        "parallel_config.allow_uneven_stages": False,
        "model_config.mask_func_type": "attn_mask_fill",
        "dataset_config.data_layout": "SBH",
    }
)
"""Fields without a flag whose value for Megatron's arguments differs from the one for YAML."""

_TP_PP_DP_ORDER = "tp-cp-ep-pp-dp"
_CP_ALGO_OF_COMM_TYPE = {
    "p2p": "megatron_cp_algo",
    "a2a": "ulysses_cp_algo",
    "a2a+p2p": "hybrid_cp_algo",
    "allgather": "kvallgather_cp_algo",
    "all_gather": "kvallgather_cp_algo",
}


@dataclass(frozen=True, slots=True)
class YamlSource:
    """Where arguments come from when YAML files were named.

    Attributes:
        sections: what the files say.
        baseline: the arguments these sections alone amount to; only differences to it override the
            files.
        given: attributes the command line set.

    """

    sections: Sections
    baseline: Mapping[str, Any]
    given: frozenset[str]


# --- fields that need more than one argument ------------------------------------------------------


def _hidden_act(values: Values) -> Any:
    if values.get("hidden_act") is not None:
        return values["hidden_act"]
    if values.get("swiglu"):
        return "swiglu"
    if values.get("squared_relu"):
        return "squared_relu"
    if values.get("openai_gelu"):
        return "fast_gelu"
    if values.get("bias_gelu_fusion") is None:
        return UNSET
    is_tanh = values["bias_gelu_fusion"] and values.get("add_bias_linear", True)
    return "fast_gelu" if is_tanh else "gelu"


def _position_embedding_type(values: Values) -> Any:
    kind = values.get("position_embedding_type")
    if kind in ("learned_absolute", "absolute") and values.get("add_position_embedding") is False:
        return "none"
    return UNSET if kind is None else kind


def _normalization(values: Values) -> Any:
    kind = values.get("normalization")
    if values.get("use_fused_rmsnorm") and kind == "RMSNorm":
        return "FusedRMSNorm"
    return UNSET if kind is None else kind


def _has_bias(own_switch: str | None) -> Callable[[Values], Any]:
    def transform(values: Values) -> Any:
        switches = [values.get(name) for name in ("add_bias_linear", own_switch) if name]
        if all(switch is None for switch in switches):
            return UNSET
        return any(switches)

    return transform


def _micro_batch_num(values: Values) -> Any:
    total, micro = values.get("global_batch_size"), values.get("micro_batch_size")
    ranks = values.get("data_parallel_size")
    if total and micro and ranks and total % (micro * ranks) == 0:
        return total // (micro * ranks)
    if total is not None:
        return UNSET
    return _or_unset(values.get("micro_batch_num"))


def _resume_training(values: Values) -> Any:
    if values.get("resume_training") is not None:
        return values["resume_training"]
    if values.get("load") is None:
        return UNSET
    return not values.get("finetune")


def _use_checkpoint_scheduler(values: Values) -> Any:
    if values.get("use_checkpoint_opt_param_scheduler") is not None:
        return values["use_checkpoint_opt_param_scheduler"]
    return False if values.get("override_opt_param_scheduler") else UNSET


def _betas(values: Values) -> Any:
    first, second = values.get("adam_beta1"), values.get("adam_beta2")
    if first is None and second is None:
        return UNSET
    return (0.9 if first is None else first, 0.999 if second is None else second)


def _context_parallel_algo(values: Values) -> Any:
    if values.get("context_parallel_algo") is not None:
        return values["context_parallel_algo"]
    kinds = values.get("cp_comm_type")
    if not kinds:
        return UNSET
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if len(set(kinds)) > 1:
        raise ValueError(
            f"--cp-comm-type {' '.join(kinds)} names a kind per layer; all layers exchange in one "
            f"way here: give one kind, for example --cp-comm-type {kinds[0]}"
        )
    kind = kinds[0]
    return _CP_ALGO_OF_COMM_TYPE.get(kind, kind)


def _ulysses_degree(values: Values) -> Any:
    sizes = values.get("hierarchical_context_parallel_sizes")
    return _or_unset(values.get("ulysses_degree_in_cp") or (sizes[0] if sizes else None))


def _kept_checkpoints(values: Values) -> Any:
    """Return how many stay: a command line that does not say keeps all, as Megatron does."""
    if values.get("keep_checkpoint_max") is not None:
        return values["keep_checkpoint_max"]
    if "save" not in values:
        return UNSET
    return 0 if values.get("save_retain_interval") is None else 1


def _wrap_with_ddp(values: Values) -> Any:
    """Megatron has no such switch: there, flat gradient buffers are always used."""
    if values.get("wrap_with_ddp") is not None:
        return values["wrap_with_ddp"]
    needing = (
        "use_distributed_optimizer",
        "overlap_grad_reduce",
        "bucket_size",
        "ddp_num_buckets",
        "zero_level",
    )
    return True if any(values.get(name) for name in needing) else UNSET


def _hysteresis_as_factor(values: Values) -> Any:
    return _or_unset(values.get("hysteresis"))


def _growth_factor(values: Values) -> Any:
    return 2.0 if values.get("hysteresis") is not None else UNSET


def _shared_expert_width(values: Values) -> Any:
    count, width = values.get("n_shared_experts"), values.get("moe_ffn_hidden_size")
    if count and width:
        return count * width
    return _or_unset(values.get("moe_shared_expert_intermediate_size"))


def _any_switch(*names: str) -> Callable[[Values], Any]:
    def transform(values: Values) -> Any:
        switches = [values[name] for name in names if values.get(name) is not None]
        return any(switches) if switches else UNSET

    return transform


def _same(name: str) -> Callable[[Values], Any]:
    return lambda values: _or_unset(values.get(name))


def _or_unset(value: object) -> Any:
    return UNSET if value is None else value


TRANSFORMS: Mapping[str, Callable[[Values], Any]] = MappingProxyType(
    {
        "model_config.hidden_act": _hidden_act,
        "model_config.position_embedding_type": _position_embedding_type,
        "model_config.normalization": _normalization,
        "model_config.qkv_has_bias": _has_bias("add_qkv_bias"),
        "model_config.out_proj_has_bias": _has_bias("add_dense_bias"),
        "model_config.mlp_has_bias": _has_bias(None),
        "model_config.vocab_size": lambda values: _or_unset(values.get("padded_vocab_size")),
        "model_config.seq_length": lambda values: _or_unset(values.get("seq_length")),
        "model_config.apply_rope_fusion": lambda values: _or_unset(
            values.get("use_fused_rotary_pos_emb") or values.get("apply_rope_fusion")
        ),
        "model_config.num_layers": _same("num_layers"),
        "model_config.recompute_granularity": _same("recompute_granularity"),
        "model_config.recompute_method": _same("recompute_method"),
        "model_config.recompute_num_layers": _same("recompute_num_layers"),
        "model_config.recompute_modules": _same("recompute_modules"),
        "moe_config.moe_shared_expert_intermediate_size": _shared_expert_width,
        "parallel_config.zero_level": _same("zero_level"),
        "parallel_config.deterministic_mode": _any_switch(
            "deterministic_mode", "npu_deterministic"
        ),
        "training_config.crc_check": _any_switch("resume_crc_check", "verify_integrity"),
        "training_config.accumulate_allreduce_grads_in_fp32": _same(
            "accumulate_allreduce_grads_in_fp32"
        ),
        "model_config.transformer_impl": lambda values: _or_unset(values.get("transformer_impl")),
        "model_config.params_dtype": lambda values: _or_unset(values.get("params_dtype")),
        "model_config.compute_dtype": lambda values: _or_unset(values.get("compute_dtype")),
        "parallel_config.recv_dtype": lambda values: _or_unset(values.get("compute_dtype")),
        "parallel_config.order": lambda values: (
            _TP_PP_DP_ORDER if values.get("use_tp_pp_dp_mapping") else UNSET
        ),
        "parallel_config.virtual_pipeline_model_parallel_size": lambda values: _or_unset(
            values.get("virtual_pipeline_model_parallel_size")
        ),
        "parallel_config.overlap_p2p_comm": lambda values: _or_unset(
            values.get("overlap_p2p_comm")
        ),
        "parallel_config.sequence_parallel": lambda values: _or_unset(
            values.get("sequence_parallel")
        ),
        "parallel_config.context_parallel_algo": _context_parallel_algo,
        "parallel_config.ulysses_degree_in_cp": _ulysses_degree,
        "dataset_config.micro_batch_num": _micro_batch_num,
        "training_config.resume_training": _resume_training,
        "training_config.wrap_with_ddp": _wrap_with_ddp,
        "training_config.save_checkpoints": lambda values: (
            values["save"] is not None if "save" in values else UNSET
        ),
        "training_config.keep_checkpoint_max": _kept_checkpoints,
        "training_config.rampup_batch_size": lambda values: (
            tuple(int(item) for item in values["rampup_batch_size"])
            if values.get("rampup_batch_size")
            else UNSET
        ),
        "training_config.loss_scale_factor": _hysteresis_as_factor,
        "training_config.loss_scale_growth_factor": _growth_factor,
        "optimizer_config.betas": _betas,
        "optimizer_config.use_checkpoint_opt_param_scheduler": _use_checkpoint_scheduler,
        "optimizer_config.start_weight_decay": lambda values: _or_unset(
            values.get("start_weight_decay")
        ),
        "optimizer_config.end_weight_decay": lambda values: _or_unset(
            values.get("end_weight_decay")
        ),
    }
)
"""Field -> its value from the derived arguments, where it is not simply the argument of its one
flag.
"""

# --- the way back, for YAML files that flags override ---------------------------------------------

INVERSES: Mapping[str, Callable[[Callable[[str], Any]], Any]] = MappingProxyType(
    {
        "swiglu": lambda field: field("model_config.hidden_act") in GATED_ACTIVATIONS,
        "squared_relu": lambda field: field("model_config.hidden_act") == "squared_relu",
        "openai_gelu": lambda field: field("model_config.hidden_act") == "fast_gelu",
        "bias_gelu_fusion": lambda field: field("model_config.hidden_act") == "fast_gelu",
        "use_rotary_position_embeddings": lambda field: (
            field("model_config.position_embedding_type") == "rope"
        ),
        "add_position_embedding": lambda field: (
            field("model_config.position_embedding_type") != "none"
        ),
        "use_fused_rmsnorm": lambda field: field("model_config.normalization") == "FusedRMSNorm",
        "normalization": lambda field: field("model_config.normalization").removeprefix("Fused"),
        "adam_beta1": lambda field: field("optimizer_config.betas")[0],
        "adam_beta2": lambda field: field("optimizer_config.betas")[1],
        "save": lambda field: (
            field("training_config.output_dir")
            if field("training_config.save_checkpoints")
            else None
        ),
        "load": lambda field: field("training_config.load_checkpoint") or None,
        # Off is what a file says that says nothing; a --load on the command line then resumes.
        "resume_training": lambda field: field("training_config.resume_training") or None,
        "use_tp_pp_dp_mapping": lambda field: field("parallel_config.order") == _TP_PP_DP_ORDER,
        "num_experts": lambda field: (
            None if field("moe_config.num_experts") == 1 else field("moe_config.num_experts")
        ),
    }
)
"""Argument -> its value from the configuration's fields, where it is not simply the field."""

OTHER_WAYS = frozenset(
    {
        "recompute_activations",
        "use_fused_rotary_pos_emb",
        "cp_comm_type",
        "hierarchical_context_parallel_sizes",
        "num_virtual_stages_per_pipeline_rank",
        "encoder_seq_length",
        "encoder_num_layers",
        "checkpoint_activations",
        "activations_checkpoint_method",
        "checkpoint_num_layers",
        "recompute_activation_function",
        "recompute_norm",
        "grad_reduce_in_bf16",
        "npu_deterministic",
        "verify_integrity",
        "use_megatron_fsdp",
        "use_custom_fsdp",
        "use_torch_fsdp2",
        "enable_zero3",
        "layerzero",
        "data_parallel_sharding_strategy",
        "n_shared_experts",
    }
)
"""Arguments that state in another way what a further argument states: with YAML, not given."""

RESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "swiglu": ("hidden_act", "squared_relu", "openai_gelu"),
        "squared_relu": ("hidden_act", "swiglu", "openai_gelu"),
        "openai_gelu": ("hidden_act", "swiglu", "squared_relu"),
        "hidden_act": ("swiglu", "squared_relu", "openai_gelu"),
        "bias_gelu_fusion": ("hidden_act",),
        "bf16": ("fp16", "params_dtype", "compute_dtype"),
        "fp16": ("bf16", "params_dtype", "compute_dtype"),
        "add_bias_linear": ("add_qkv_bias", "add_dense_bias"),
        "weight_decay": ("start_weight_decay", "end_weight_decay"),
        "position_embedding_type": ("use_rotary_position_embeddings",),
        "use_rotary_position_embeddings": ("position_embedding_type",),
        "num_layers_per_virtual_pipeline_stage": ("virtual_pipeline_model_parallel_size",),
        "virtual_pipeline_model_parallel_size": ("num_layers_per_virtual_pipeline_stage",),
        "train_iters": ("train_samples",),
        "train_samples": ("train_iters",),
        "global_batch_size": ("micro_batch_num",),
        "micro_batch_num": ("global_batch_size",),
        "data_path": ("mock_data", "train_data_path", "valid_data_path", "test_data_path"),
        "mock_data": ("data_path", "train_data_path", "valid_data_path", "test_data_path"),
        "cp_comm_type": ("context_parallel_algo",),
        "use_checkpoint_opt_param_scheduler": ("override_opt_param_scheduler",),
        "override_opt_param_scheduler": ("use_checkpoint_opt_param_scheduler",),
    }
)
"""Argument given on the command line -> arguments of the YAML file it replaces."""


def defaults_of_flags() -> Values:
    """Return every argument with Megatron's default."""
    defaults: Values = {}
    for row in ROWS:
        defaults.setdefault(row.dest, row.default)
    return defaults


def values_of_sections(sections: Mapping[str, Mapping[str, Any]]) -> Values:
    """Return every argument as the sections, completed by the guide's defaults, state it."""

    def field(path: str) -> Any:
        section, _, key = path.partition(".")
        head, _, rest = key.partition(".")
        found = sections.get(section, {}).get(head)
        if found is None:
            found = field_default(SECTION_CLASSES[section], head)
        return getattr(found, rest) if rest else found

    values = defaults_of_flags()
    for row in ROWS:
        if row.dest in OTHER_WAYS:
            continue
        if row.dest in INVERSES:
            values[row.dest] = INVERSES[row.dest](field)
        elif isinstance(row.state, Field):
            found = field(row.state.path)
            values[row.dest] = list(found) if isinstance(found, tuple) else found
    return values


def attributes_of(sections: Sections) -> dict[str, Any]:
    """The arguments that these fields are, for code that asks for Megatron's arguments."""
    values = values_of_sections(clean_sections(sections))
    return {
        row.dest: values[row.dest]
        for row in ROWS
        if isinstance(row.state, Field)
        and row.dest in values
        and any(_is_among(path, sections) for path in row.state.paths)
    }


def _is_among(path: str, sections: Sections) -> bool:
    section, _, name = path.partition(".")
    return name.partition(".")[0] in sections.get(section, {})


def override_by_command_line(base: Values, command_line: Mapping[str, Any]) -> Values:
    """Return the arguments of a YAML file with those of the command line put over them."""
    values = dict(base)
    defaults = defaults_of_flags()
    for dest in command_line:
        for other in RESETS.get(dest, ()):
            if other not in command_line:
                values[other] = defaults[other]
    values.update(command_line)
    return values


# --- arguments to sections ------------------------------------------------------------------------


def _fields_of(dests: Iterable[str] | None) -> list[str]:
    """Return the fields that the given arguments have a say in; None: all fields."""
    wanted = None if dests is None else set(dests)
    paths: dict[str, None] = {}
    for row in ROWS:
        if isinstance(row.state, Field) and (wanted is None or row.dest in wanted):
            paths.update(dict.fromkeys(row.state.paths))
    return list(paths)


_DEST_OF_PATH = {row.state.path: row.dest for row in reversed(ROWS) if isinstance(row.state, Field)}


def field_value(path: str, values: Values) -> Any:
    """Return the value of one field, UNSET when the arguments say nothing about it."""
    if path in TRANSFORMS:
        return TRANSFORMS[path](values)
    return _or_unset(values.get(_DEST_OF_PATH[path]))


def _set(sections: Sections, path: str, value: Any) -> None:
    section, _, key = path.partition(".")
    target = sections.setdefault(section, {})
    head, _, rest = key.partition(".")
    if rest:
        block = target.get(head)
        target[head] = block.to_dict() if isinstance(block, Section) else dict(block or {})
        target, head = target[head], rest
    if value is UNSET:
        target.pop(head, None)
    else:
        target[head] = value


def sections_from_args(run_args: Namespace) -> Sections:
    """Return the sections that the arguments describe. The Namespace is not changed.

    Raises:
        ValueError: an argument has a value that its field does not take.

    """
    values = derive(vars(run_args))
    of_checkpoint = values.get("checkpoint_sections") or {}
    return merge_sections([_stated_sections(values), clean_sections(of_checkpoint)])


def _stated_sections(values: Values) -> Sections:
    """The sections that command line and YAML files describe."""
    source = values.get("yaml_source")
    if source is None:
        sections: Sections = {}
        for path in _fields_of(None):
            value = field_value(path, values)
            if value is not UNSET:
                _set(sections, path, value)
        for path, value in FRONT_DOOR_VALUES.items():
            _set(sections, path, value)
        return clean_sections(sections)
    changed = {
        dest
        for dest in source.baseline
        if dest in source.given or values.get(dest) != source.baseline[dest]
    }
    sections = merge_sections([source.sections])
    for path in _fields_of(changed):
        _set(sections, path, field_value(path, values))
    return clean_sections(sections)


@overload
def init_configs_from_args(
    run_args: Namespace, model_type: str = "model_config", config_classes: None = None
) -> AllConfig: ...


@overload
def init_configs_from_args(
    run_args: Namespace,
    model_type: str = "model_config",
    *,
    config_classes: Sequence[type[Section]],
) -> Section | list[Section]: ...


def init_configs_from_args(
    run_args: Namespace,
    model_type: str = "model_config",
    config_classes: Sequence[type[Section]] | None = None,
) -> AllConfig | Section | list[Section]:
    """Build the configuration from Megatron's arguments.

    The arguments are only read, so that the call can be repeated. Attributes that no flag names are
    ignored; attributes that are absent leave their field at the guide's default.

    Args:
        run_args: Namespace of ``parse_args``, or any object of attributes with Megatron's names.
        model_type: name of the model section in the result.
        config_classes: build only these classes; None builds an :class:`AllConfig`.

    Returns:
        An :class:`AllConfig`, or one section for one class, or a list of sections in the order of
        the classes.

    Raises:
        ValueError: a wrong value, a missing size or a broken rule.

    """
    return build_selected(sections_from_args(run_args), config_classes, model_type)


def no_effect_report(run_args: Namespace) -> list[str]:
    """Return one line for each given flag that changes nothing, with the reason."""
    lines = []
    for name in dict.fromkeys(getattr(run_args, "given_flags", ())):
        if BY_NAME[name].dest in REPLACED_BY_MOCK_DATA and getattr(run_args, "mock_data", False):
            lines.append(f"{name} has no effect: --mock-data generates the data")
            continue
        match BY_NAME[name].state:
            case NoEffect(reason=reason):
                lines.append(f"{name} has no effect: {reason}")
            case Field(without_effect=str() as reason):
                lines.append(f"{name} has no effect: {reason}")
            case Refused():
                lines.append(f"{name} has no effect: its value asks for what happens anyway")
    return lines
