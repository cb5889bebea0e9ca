"""Numbers of a training run that do not depend on what is trained."""

from dataclasses import dataclass

from ..errors import MuseVError
from ..values import check_seed

LEARNING_RATES = ("constant", "linear", "cosine")
PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the defaults are the original's (extra.md 1.6).

    Args:
        steps: optimizer steps in all. batch_size: clips per process and pass. accumulation: passes per step.
        learning_rate: peak of the schedule; learning_rate_schedule: `constant`, `linear` or `cosine` down to 0 after
            `warmup_steps`.
        muon_rate: peak learning rate of the hidden layers' matrices by Muon instead of AdamW, see `muon`.
        betas, eps, weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; None: as they are.
        ema_decay: 0..1, how slowly the published weights follow the trained ones; None: they are the trained ones.
        mixed_precision: `no`, `fp16` or `bf16`.
        gradient_checkpointing: activations are computed twice instead of kept.
        seed: of data order, noise and everything else drawn.
        checkpoint_every, keep_checkpoints: steps between checkpoints, and how many of them stay (the last ones).
        validate_every: steps between sample videos; 0: none. log_every: steps between log entries.
        workers: processes which prepare samples; 0: none.
    """

    steps: int = 100_000
    batch_size: int = 1
    accumulation: int = 4
    learning_rate: float = 1e-5
    muon_rate: float | None = None
    learning_rate_schedule: str = "constant"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float | None = 1.0
    ema_decay: float | None = None
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    seed: int = 33
    checkpoint_every: int = 500
    keep_checkpoints: int = 30
    validate_every: int = 0
    log_every: int = 10
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise MuseVError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("validate_every", "warmup_steps", "workers"):
            if getattr(self, name) < 0:
                raise MuseVError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "muon_rate", "eps", "weight_decay"):
            if (getattr(self, name) or 0) < 0:
                raise MuseVError(f"{name} must not be negative, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise MuseVError(f"betas must be at least 0 and below 1, got {self.betas[0]} and {self.betas[1]}")
        check_seed("seed", self.seed)
        if self.learning_rate_schedule not in LEARNING_RATES:
            raise MuseVError(
                f"unknown learning_rate_schedule {self.learning_rate_schedule!r}, expected one of "
                f"{', '.join(LEARNING_RATES)}"
            )
        if self.mixed_precision not in PRECISIONS:
            raise MuseVError(
                f"unknown mixed_precision {self.mixed_precision!r}, expected one of {', '.join(PRECISIONS)}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise MuseVError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise MuseVError(f"max_grad_norm must be positive, got {self.max_grad_norm}")
