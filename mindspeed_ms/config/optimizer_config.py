# SPDX-License-Identifier: Apache-2.0
"""The optimizer and its schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from mindspeed_ms.config.dtypes import BFLOAT16, FLOAT32, DType
from mindspeed_ms.config.kinds import (
    Count,
    DecayRate,
    Epsilon,
    Natural,
    NonNegative,
    Positive,
    Share,
)
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.config.section import Section

_ADAMW_NAMES = frozenset(
    {"AdamWeightDecay", "AdamW", "adamw", "adam", "Adam", "mint.AdamW", "SpeedAdamW", "AdamWZeRO"}
)

LrDecayStyle = Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"]
WsdDecayStyle = Literal["linear", "cosine", "exponential", "minus_sqrt"]
WeightDecayStyle = Literal["constant", "linear", "cosine"]
MainType = Literal["float32", "float16"]
Algorithm = Literal["adamw", "ema_adamw", "sgd", "lion", "muon", "adaptive_muon", "soap"]
STATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "adamw": ("exp_avg", "exp_avg_sq"),
        "ema_adamw": ("exp_avg", "exp_avg_sq", "ema_params"),
        "sgd": ("momentum_buffer",),
        "lion": ("exp_avg",),
        "muon": ("momentum_buffer",),
        "adaptive_muon": ("momentum_buffer", "moment2_buffer"),
        "soap": (),
    }
)
"""Update rule -> tensors it keeps, each as large as the parameter."""
SOAP_STATES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("exp_avg", "exp_avg_sq"), 0),
        **{"soap_left": 1, "soap_right": 2, "soap_left_basis": 1, "soap_right_basis": 2},
    }
)
"""What SOAP keeps of a whole matrix [m, n]: 0 as large as it, 1 [m, m], 2 [n, n]."""
STATE_NAMES = tuple(
    dict.fromkeys((*(name for names in STATES.values() for name in names), *SOAP_STATES))
)
"""Every such tensor, under the name it has in checkpoints."""
NEWTON_SCHULZ: Mapping[str, tuple[tuple[float, float, float], ...]] = MappingProxyType(
    {
        "simple": ((3.4445, -4.7750, 2.0315),),
        "quintic": (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        "polar_express": (
            (8.2051, -22.9019, 16.4607),
            (4.0664, -2.8612, 0.5184),
            (3.9096, -2.8234, 0.5250),
            (3.2856, -2.4153, 0.4853),
            (2.2779, -1.6198, 0.3985),
            (1.8726, -1.2307, 0.3585),
            (1.8564, -1.2132, 0.3568),
            (1.8750, -1.2500, 0.3750),
        ),
        "aol": (
            (4.0098, -7.0585, 2.4635),
            (3.4585, -5.5479, 2.5959),
            (2.7573, -3.2939, 1.4254),
            (2.7215, -3.0494, 1.3169),
        ),
    }
)
"""Name -> (a, b, c) of one step after the other, X' = a X + (b A + c A A) X with A = X X^T.

Jordan et al., 2024 (simple, quintic); Amsel et al., 2025 (polar_express); Boissin et al., 2025
(aol)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Section ``optimizer_config``, update rule, clipping, learning rate and weight decay."""

    NAME: ClassVar[str] = "optimizer_config"
    LINKS: ClassVar[frozenset[str]] = frozenset({"parallel_config"})
    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"optimizer": "optimizer_type", "lr": "learning_rate", "adam_eps": "eps"}
    )

    parallel_config: ModelParallelConfig | None = field(default=None, repr=False, kw_only=False)
    """The run's parallel section."""

    # --- rule
    optimizer_type: Literal[
        "AdamWeightDecay",
        "AdamW",
        "adamw",
        "adam",
        "Adam",
        "mint.AdamW",
        "SpeedAdamW",
        "AdamWZeRO",
        "SGD",
        "sgd",
        "lion",
        "muon",
        "dist_muon",
        "adaptive_muon",
        "soap",
    ] = "AdamWeightDecay"
    """Update rule.

    All Adam names mean AdamW with decoupled weight decay, as Megatron's ``adam`` does. The muons
    update matrices, but not embedding and head, by orthogonal ones; everything else is updated by
    ``muon_scalar_optimizer``. ``dist_muon`` also shares the state out over data parallel ranks.
    ``soap`` updates the same matrices by Adam in the eigenbasis of their gradients' correlations,
    everything else by Adam.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""

    optimizer_selection: Literal["fused_adamw", "fused_torch_adamw", "fused_ema_adamw"] = (
        "fused_adamw"
    )
    """``fused_ema_adamw``: AdamW that also keeps a moving average of the weights, in fp32, which
    checkpoints hold as ``ema_params`` and ``convert_ckpt --ema`` makes a model of. The other two
    are names of one rule.
    """

    ema_decay: DecayRate = 0.9999
    """Weight of the past in the moving average of the weights."""

    eps: Epsilon = 1e-8
    """Adam's addend to the root of the second moment."""

    decoupled_weight_decay: bool = True
    """Shrink weights beside Adam's step (AdamW). False: add the decay to the gradient (Adam with L2
    regularisation).
    """

    use_precision_aware_optimizer: bool = False
    """Keep Adam's fp32 copies and moments in the types below. False: all in fp32."""

    main_params_dtype: MainType = "float32"
    """Type of the copies of 16-bit weights that Adam updates."""

    reuse_fp32_param: bool = False
    """Let the fp32 copies of bf16 weights share their memory: 2 instead of 4 bytes for each."""

    exp_avg_dtype: DType = FLOAT32
    """Type of Adam's first moments."""

    exp_avg_sq_dtype: DType = FLOAT32
    """Type of Adam's second moments."""

    sgd_momentum: DecayRate = 0.9
    """Momentum of SGD."""

    lion_beta1: DecayRate = 0.95
    """Share of the moment in the direction whose sign Lion takes."""

    lion_beta2: DecayRate = 0.98
    """Decay rate of Lion's moment."""

    muon_momentum: DecayRate = 0.9
    """Decay rate of Muon's moment."""

    muon_nesterov: bool = False
    """Look ahead: mix the gradient into the moment once more before it is made orthogonal."""

    muon_split_qkv: bool = True
    """Make queries', keys' and values' parts of their common matrix orthogonal one by one."""

    muon_scale_mode: Literal["spectral", "unit_rms_norm", "shape_scaling"] = "spectral"
    """Factor on the orthogonal matrix [out, in]: sqrt(max(out, in)), sqrt(out / in), or
    sqrt(max(1, out / in)).
    """

    muon_extra_scale_factor: Positive = 1.0
    """Further factor on it."""

    muon_coefficient_type: Literal["simple", "quintic", "polar_express", "aol"] = "quintic"
    """Coefficients of the Newton-Schulz steps."""

    muon_num_ns_steps: Count = 5
    """Newton-Schulz steps: a multiple of the coefficients' number, at least 8 for polar_express."""

    muon_fp32_matmul_prec: Literal["low", "medium", "high"] = "medium"
    """Precision of these steps: high keeps fp32, the others round every product to bf16."""

    muon_tp_mode: Literal["blockwise", "duplicated", "distributed"] = "duplicated"
    """Matrices split over tensor parallel ranks: each part by itself, the whole matrix on every
    rank, or the whole matrix with each rank computing on its part.
    """

    muon_scalar_optimizer: Literal["adam", "lion"] = "adam"
    """Update rule of what is no matrix, and of embedding and head."""

    adaptive_muon_beta2: DecayRate = 0.95
    """Decay rate of the second moment of adaptive_muon's orthogonal matrices."""

    adaptive_muon_eps: Epsilon = 1e-8
    """Addend to the root of that moment."""

    soap_shampoo_beta: DecayRate = 0.95
    """Decay rate of SOAP's preconditioners."""

    soap_precondition_frequency: Count = 1
    """Updates from one change of SOAP's eigenbases to the next."""

    soap_use_kl_shampoo: bool = True
    """Weigh gradients in a preconditioner by the other one's inverse (KL-Shampoo)."""

    soap_eps: Epsilon = 1e-8
    """Addend to the root of SOAP's second moment, and smallest eigenvalue that is divided by."""

    clip_grad: NonNegative = 0.0
    """Largest L2 norm of all gradients together; larger ones are scaled down.

    0: no clipping, no norm.
    """

    # --- learning rate
    learning_rate: Positive = 1e-3
    """Largest learning rate."""

    min_lr: NonNegative = 0.0
    """Learning rate at and after the end of decay."""

    lr_decay_style: LrDecayStyle = "constant"
    """Shape of the decay after warm-up."""

    lr_decay_iters: Count | None = None
    """Steps until min_lr. None: the length of training."""

    lr_decay_samples: Count | None = None
    """Sequences until min_lr, with train_samples. None: train_samples."""

    lr_warmup_iters: Natural = 0
    """Steps of linear warm-up."""

    lr_warmup_samples: Natural = 0
    """Sequences of linear warm-up, with train_samples."""

    lr_warmup_fraction: Share | None = None
    """Warm-up as a fraction of the decay length. None: lr_warmup_iters or lr_warmup_samples."""

    lr_warmup_init: NonNegative = 0.0
    """Learning rate at the start of warm-up."""

    lr_wsd_decay_style: WsdDecayStyle = "linear"
    """Shape of the last part of WSD. Megatron flags set it to exponential."""

    lr_wsd_decay_iters: Natural | None = None
    """Steps of the last part of WSD, 0: another run has it. None: not WSD."""

    lr_wsd_decay_samples: Natural | None = None
    """Sequences of the last part of WSD, with train_samples. None: not WSD."""

    decoupled_lr: Positive | None = None
    """Learning rate of embedding and output weights. None: learning_rate."""

    decoupled_min_lr: NonNegative | None = None
    """min_lr of embedding and output weights. None: min_lr."""

    # --- weight decay
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""

    start_weight_decay: NonNegative | None = None
    """Weight decay at the start. None: weight_decay when constant, otherwise 0."""

    end_weight_decay: NonNegative | None = None
    """Weight decay at the end of training. None: weight_decay when constant, otherwise 0."""

    weight_decay_incr_style: WeightDecayStyle = "constant"
    """How weight decay goes from start to end."""

    no_weight_decay_params: tuple[str, ...] = ("Default_Setup",)
    """Regular expressions of parameter names without decay; ``Default_Setup`` stands for biases and
    one-dimensional ones.
    """

    apply_wd_to_qk_layernorm: bool = False
    """Let the norms of queries and keys decay, although they are one-dimensional."""

    # --- resume
    use_checkpoint_opt_param_scheduler: bool = True
    """On resume take the schedule stored in the checkpoint.

    Megatron flags set it to False: it must agree.
    """

    override_opt_param_scheduler: bool = False
    """On resume take this configuration's schedule and only the position from the checkpoint."""

    # --- distributed optimizer
    overlap_param_gather: bool = False
    """Gather updated parameters as the next forward needs them. False: all after the step."""

    @property
    def algorithm(self) -> Algorithm:
        """The update rule behind the many names."""
        if self.optimizer_type in _ADAMW_NAMES:
            return "adamw"
        if self.optimizer_type in ("SGD", "sgd"):
            return "sgd"
        if self.optimizer_type == "lion":
            return "lion"
        if self.optimizer_type == "soap":
            return "soap"
        return "adaptive_muon" if self.optimizer_type == "adaptive_muon" else "muon"

    @property
    def keeps_average(self) -> bool:
        """Whether the optimizer keeps a moving average of the weights."""
        return self.optimizer_selection == "fused_ema_adamw"

    @property
    def updates_matrices(self) -> bool:
        """Whether matrices have an update rule of their own."""
        return self.algorithm in ("muon", "adaptive_muon", "soap")

    @property
    def element_algorithm(self) -> Algorithm:
        """The update rule of what is updated element by element."""
        if not self.updates_matrices:
            return self.algorithm
        is_lion = self.algorithm != "soap" and self.muon_scalar_optimizer == "lion"
        return "lion" if is_lion else "adamw"

    def has_matrix_rule(self, num_dims: int, is_vocabulary: bool) -> bool:
        """Whether a parameter is updated as a matrix."""
        return self.updates_matrices and num_dims == 2 and not is_vocabulary

    def states_of(self, num_dims: int, is_vocabulary: bool) -> tuple[str, ...]:
        """Tensors that the optimizer keeps of a parameter, beside its fp32 copy."""
        if self.algorithm == "sgd" and not self.sgd_momentum:
            return ()
        is_matrix = self.has_matrix_rule(num_dims, is_vocabulary)
        if self.keeps_average:
            return STATES["ema_adamw"]
        return STATES[self.algorithm if is_matrix else self.element_algorithm]

    def _resolve(self) -> None:
        constant = self.weight_decay_incr_style == "constant"
        self._fill("start_weight_decay", self.weight_decay if constant else 0.0)
        self._fill("end_weight_decay", self.weight_decay if constant else 0.0)

    def _check(self) -> None:
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(
                    f"optimizer_config.betas[{index}] ({beta}) must lie in [0, 1); usual values "
                    "are 0.9 and 0.95"
                )
        self._check_learning_rate()
        self._check_weight_decay()
        self._check_newton_schulz()
        self._check_types()
        self._check_average()
        if self.use_checkpoint_opt_param_scheduler and self.override_opt_param_scheduler:
            raise ValueError(
                "use_checkpoint_opt_param_scheduler and override_opt_param_scheduler are both "
                "set, but exclude each "
                "other; set use_checkpoint_opt_param_scheduler: False to override"
            )

    def _check_learning_rate(self) -> None:
        if self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr ({self.min_lr}) must not exceed learning_rate ({self.learning_rate}); "
                "exchange or lower it"
            )
        if self.lr_warmup_init > self.learning_rate:
            raise ValueError(
                f"lr_warmup_init ({self.lr_warmup_init}) must not exceed learning_rate "
                f"({self.learning_rate}); "
                f"warm-up goes upwards, lower it"
            )
        if self.decoupled_min_lr is not None and self.decoupled_lr is None:
            raise ValueError(
                "decoupled_min_lr needs decoupled_lr; give decoupled_lr or leave it out"
            )
        if self.lr_warmup_fraction is not None and (self.lr_warmup_iters or self.lr_warmup_samples):
            raise ValueError(
                f"lr_warmup_fraction ({self.lr_warmup_fraction}) excludes lr_warmup_iters and "
                "lr_warmup_samples; keep one"
            )
        wsd_lengths = {self.lr_wsd_decay_iters, self.lr_wsd_decay_samples}
        if self.lr_decay_style == "WSD" and wsd_lengths == {None}:
            raise ValueError(
                "lr_decay_style WSD needs the length of its last part; give lr_wsd_decay_iters or "
                "lr_wsd_decay_samples"
            )

    @property
    def narrow_types(self) -> dict[str, DType]:
        """State, or ``main`` for copies of weights -> its type, where that is not fp32.

        Copies in bf16 are those of ``reuse_fp32_param``: the half of an fp32 number that the
        weights lack.
        """
        types = self._asked_types() if self.use_precision_aware_optimizer else {}
        return {**types, "main": BFLOAT16} if self.reuse_fp32_param else types

    def _asked_types(self) -> dict[str, DType]:
        types: dict[str, DType] = {
            "main": self.main_params_dtype,
            "exp_avg": self.exp_avg_dtype,
            "exp_avg_sq": self.exp_avg_sq_dtype,
        }
        return {name: dtype for name, dtype in types.items() if dtype != FLOAT32}

    def _check_average(self) -> None:
        if self.keeps_average and self.algorithm != "adamw":
            raise ValueError(
                f"optimizer_selection fused_ema_adamw is a kind of AdamW, but optimizer_type is "
                f"{self.optimizer_type}; use adam, or leave optimizer_selection out"
            )

    def _check_types(self) -> None:
        if self.reuse_fp32_param and (self.updates_matrices or self.main_params_dtype != FLOAT32):
            raise ValueError(
                "reuse_fp32_param rebuilds fp32 copies for rules of single elements; leave it out, "
                f"or optimizer_type ({self.optimizer_type}) muon, dist_muon, adaptive_muon and "
                f"soap, and main_params_dtype ({self.main_params_dtype}) float16"
            )
        asked = self._asked_types()
        if not asked:
            return
        names = " and ".join(
            "main_params_dtype" if name == "main" else f"{name}_dtype" for name in asked
        )
        if not self.use_precision_aware_optimizer:
            raise ValueError(
                f"{names} other than float32 need use_precision_aware_optimizer; set it to True or "
                "leave them out"
            )
        if self.algorithm != "adamw":
            raise ValueError(
                f"{names} are types of Adam's states, but optimizer_type is {self.optimizer_type}; "
                "leave them out or use adam"
            )

    def _check_newton_schulz(self) -> None:
        kind, steps = self.muon_coefficient_type, self.muon_num_ns_steps
        period = len(NEWTON_SCHULZ[kind])
        if kind == "polar_express" and steps < period:
            raise ValueError(
                f"muon_num_ns_steps ({steps}) must be at least {period} with polar_express; "
                f"give {period} or choose other coefficients"
            )
        if kind != "polar_express" and steps % period:
            raise ValueError(
                f"muon_num_ns_steps ({steps}) must be a multiple of {period}, the number of "
                f"{kind} coefficients; give {period * (steps // period + 1)}"
            )

    def _check_weight_decay(self) -> None:
        start, end = self.start_weight_decay, self.end_weight_decay
        if start is None or end is None:  # filled by _resolve; tells the type checker so
            raise AssertionError("weight decay ends are filled before they are checked")
        if self.weight_decay_incr_style == "constant" and start != end:
            raise ValueError(
                f"start_weight_decay ({start}) and end_weight_decay ({end}) differ although "
                "weight_decay_incr_style is constant; choose linear or cosine, or make them equal"
            )
        if end < start:
            raise ValueError(
                f"end_weight_decay ({end}) must not be smaller than start_weight_decay ({start}); "
                "exchange them"
            )
