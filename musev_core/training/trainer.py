"""The training loop: the same whatever is trained.

Everything random comes from generators made for the number of the step, and data order and learning rate are functions
of it. So a run that is killed and resumed ends with the weights of a run that was not.
"""

import importlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import CheckpointError, MuseVError, require
from ..frames.video import Video, write_video
from . import checkpoints
from .muon import MuonWithAdamW, parameter_groups
from .options import TrainOptions
from .schedule import RunSampler, ema_decay, generator, learning_rate

log = logging.getLogger(__name__)


class Objective(Protocol):
    """What is trained: a module which gives the losses of a batch.

    Its parameters with `requires_grad` are trained. `forward(batch, generator)` returns scalars by name; the one called
    `loss` is minimised. `publish(folder)` writes the weights in the layout they are used in.
    """

    def __call__(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses."""
        ...

    def publish(self, folder: Path) -> None:
        """Writes what others load."""
        ...


def make_accelerator(options: TrainOptions) -> Any:
    """accelerate's view of this machine: devices, processes, precision.

    Raises:
        MuseVError: the device cannot compute in this precision.
    """
    accelerate = require("accelerate", install="accelerate", purpose="training")
    precision = options.mixed_precision
    try:
        accelerator = accelerate.Accelerator(
            mixed_precision=precision, gradient_accumulation_steps=options.accumulation
        )
    except ValueError as error:
        raise MuseVError(f"mixed_precision {precision!r} is not possible here: {error} Set it to bf16 or no") from error
    if precision != "no" and not accelerator.native_amp:  # accelerate would train in float32 without a word
        raise MuseVError(
            f"mixed_precision {precision!r} is not possible here: the device is {accelerator.device.type!r}; set it to "
            "bf16 or no"
        )
    return accelerator


class Trainer:
    """Trains an objective.

    Args:
        objective: an `nn.Module` that follows `Objective`.
        samples: maps the number of a sample in an endless run to its tensors; the same number must always give the
            same sample (see `schedule.place_in_epoch`).
        folder: gets `checkpoints/` and `log/`.
        validate: called with the step and a folder for results, with the averaged weights in place; the figures and
            videos that it returns go to the log.
        collate: makes a batch of samples; default: torch's.
        accelerator: of `make_accelerator`, where it was needed before.
    """

    def __init__(
        self,
        objective: nn.Module,
        samples: Dataset,
        options: TrainOptions,
        folder: Path,
        *,
        validate: Callable[[int, Path], Mapping[str, float | Video]] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        accelerator: Any = None,
    ):
        self.options = options
        self.folder = Path(folder)
        self.objective = objective
        self.samples = samples
        self.validate = validate
        self.collate = collate
        self.parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise MuseVError("nothing is to be trained: every parameter is frozen")
        self.accelerator = accelerator if accelerator is not None else make_accelerator(options)
        optimizer = MuonWithAdamW(
            parameter_groups(self.parameters, options.muon_rate, options.learning_rate),
            lr=options.learning_rate,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        self._wrapped, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.average: dict[str, Tensor] | None = None
        if options.ema_decay is not None:
            self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step = 0
        self._writer: Any = None

    # ------------------------------------------------------------------------------------------ state

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    def resume(self, checkpoint: str | Path = "latest") -> int:
        """Goes on from a checkpoint: a folder, or `latest`, which may be none; returns the step.

        Raises:
            CheckpointError: it is damaged, or of a run with other networks.
        """
        if checkpoint == "latest":
            found = checkpoints.checkpoint_folders(self.checkpoints)
            if not found:
                return 0
            checkpoint = list(found.values())[-1]
        tensors, progress = checkpoints.read_state(Path(checkpoint))
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
        for name, x in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = x
        if set(parts["weights"]) != set(self.parameters):
            raise CheckpointError(
                f"{checkpoint} belongs to a run which trained other parameters ({len(parts['weights'])}, here "
                f"{len(self.parameters)}); start a new run in another folder"
            )
        with torch.no_grad():
            for name, x in parts["weights"].items():
                self.parameters[name].copy_(x)
        if self.average is not None and parts["average"]:
            self.average = {name: x.to(self.parameters[name].device) for name, x in parts["average"].items()}
        checkpoints.restore_optimizer(self._plain_optimizer(), self.parameters, parts["optimizer"])
        if self.accelerator.scaler is not None and progress.get("scaler"):
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        self.step = int(progress["step"])
        log.info("resumed from %s", checkpoint)
        return self.step

    def save(self) -> Path:
        """Writes a checkpoint of the present step: the state, and the weights in the layout in which they are used."""
        folder = self.checkpoints / f"checkpoint-{self.step}"
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return folder
        names = {id(p): name for name, p in self.parameters.items()}
        tensors = {f"weights/{name}": p for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": x for name, x in (self.average or {}).items()}
        for name, x in checkpoints.optimizer_tensors(self._plain_optimizer(), names).items():
            tensors[f"optimizer/{name}"] = x
        scaler = self.accelerator.scaler
        progress = {"step": self.step, "scaler": scaler.state_dict() if scaler is not None else None}

        def write(part: Path) -> None:
            with self.averaged():
                self.objective.publish(part)  # type: ignore[operator]
            checkpoints.save_tensors(part / checkpoints.STATE / checkpoints.TENSORS, tensors)
            checkpoints.save_json(part / checkpoints.STATE / checkpoints.PROGRESS, progress)

        checkpoints.write_folder(folder, write)
        checkpoints.remove_old(self.checkpoints, self.options.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return folder

    def averaged(self) -> "_Swapped":
        """A `with` block in which the networks have their averaged weights."""
        return _Swapped(self.parameters, self.average)

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    # ------------------------------------------------------------------------------------------ loop

    def run(self) -> None:
        """Trains from the present step to the last one."""
        options = self.options
        batches = self._batches()
        started, first = time.monotonic(), self.step
        sums: dict[str, float] = {}
        while self.step < options.steps:
            rate = learning_rate(options, self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            losses = self._step(batches)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
            if self.step % options.log_every == 0 or self.step == options.steps:
                since = (self.step - first) % options.log_every or min(options.log_every, self.step - first)
                speed = (time.monotonic() - started) / (self.step - first)
                self._log({name: value / since for name, value in sums.items()}, rate, speed)
                sums = {}
            if options.validate_every and self.step % options.validate_every == 0:
                self._validate()
            if self.step % options.checkpoint_every == 0 or self.step == options.steps:
                self.save()
        if self._writer is not None:
            self._writer.close()

    def _batches(self) -> Iterator[Any]:
        sampler = RunSampler(self.step, self.options, self.accelerator.process_index, self.accelerator.num_processes)
        return iter(
            DataLoader(
                self.samples,
                batch_size=self.options.batch_size,
                sampler=sampler,
                num_workers=self.options.workers,
                collate_fn=self.collate,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )

    def _step(self, batches: Iterator[Any]) -> dict[str, float]:
        """One optimizer step; the mean of each loss over its passes."""
        options, accelerator = self.options, self.accelerator
        sums: dict[str, Tensor] = {}
        self._wrapped.train()
        for micro in range(options.accumulation):
            numbers = (options.seed, self.step, micro, accelerator.process_index)
            batch = _to(next(batches), accelerator.device)
            torch.manual_seed(generator(*numbers, 1).initial_seed())  # for layers with a randomness of their own
            with accelerator.accumulate(self._wrapped):
                losses = self._wrapped(batch, generator(*numbers, 0, device=accelerator.device))
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients and options.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(self.parameters.values(), options.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                value = value.detach().float()
                sums[name] = value if name not in sums else sums[name] + value
        if self.average is not None:
            decay = ema_decay(options.ema_decay or 0.0, self.step)
            with torch.no_grad():
                for name, average in self.average.items():
                    average.lerp_(self.parameters[name].to(average), 1 - decay)
        return {name: value.item() / options.accumulation for name, value in sums.items()}

    def _log(self, losses: dict[str, float], rate: float, seconds: float) -> None:
        if not self.accelerator.is_main_process:
            return
        text = ", ".join(f"{name} {value:.5f}" for name, value in losses.items())
        log.info("step %d of %d: %s (rate %.2e, %.2f s per step)", self.step, self.options.steps, text, rate, seconds)
        for name, value in {**losses, "learning_rate": rate, "seconds_per_step": seconds}.items():
            self.writer.add_scalar(f"train/{name}", value, self.step)

    def _validate(self) -> None:
        if self.accelerator.is_main_process and self.validate is not None:
            with self.averaged(), torch.no_grad():
                self._wrapped.eval()
                results = self.validate(self.step, self.folder / "samples")
            figures = {name: value for name, value in results.items() if not isinstance(value, Video)}
            for name, value in figures.items():
                self.writer.add_scalar(f"validation/{name}", value, self.step)
            for name, value in results.items():
                if isinstance(value, Video):
                    self._log_video(f"samples/{name}", value)
            if figures:
                text = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
                log.info("validation at step %d: %s", self.step, text)
        self.accelerator.wait_for_everyone()

    def _log_video(self, name: str, video: Video) -> None:
        """TensorBoard plays a GIF that it is given as a picture; torch's way to one would need moviepy."""
        messages: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        with tempfile.TemporaryDirectory() as folder:
            encoded = write_video(Path(folder) / "video.gif", video.frames, fps=video.fps).read_bytes()
        _, height, width, _ = video.frames.shape
        picture = messages.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        value = messages.Summary.Value(tag=name, image=picture)
        self.writer.file_writer.add_summary(messages.Summary(value=[value]), self.step)
        self.writer.flush()

    @property
    def writer(self) -> Any:
        """TensorBoard's writer for `log/`."""
        if self._writer is None:
            self._writer = tensorboard().SummaryWriter(str(self.folder / "log"))
        return self._writer


def tensorboard() -> Any:
    """torch's interface to TensorBoard."""
    return require("torch.utils.tensorboard", install="tensorboard", purpose="the training log")


class _Swapped:
    """Exchanges the values of parameters with others for the time of a `with` block."""

    def __init__(self, parameters: dict[str, nn.Parameter], values: dict[str, Tensor] | None):
        self.pairs = [] if values is None else [(parameters[name], x) for name, x in values.items()]

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: Any) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, value in self.pairs:
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def _to(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    if isinstance(x, dict):
        return {name: _to(value, device) for name, value in x.items()}
    return x
