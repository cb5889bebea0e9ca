"""What MuseV's nodes have said about a MODEL: one immutable object, attached to it and replaced on every change."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...musev_core.denoise.noise import NoiseOptions
from ...musev_core.denoise.windows import WindowOptions
from ...musev_core.errors import MuseVError
from .networks import HostedIPAdapter, HostedReferenceNet, Motion

KEY = "musev"  # of everything this pack hangs on a MODEL


@dataclass(frozen=True)
class Span:
    """The part of the sampling steps in which something acts, as fractions 0..1 of ComfyUI's percent scale."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise MuseVError(
                f"start_percent and end_percent must be 0..1 and start not after end, got {self.start} and {self.end}"
            )

    def sigmas(self, model_sampling: Any) -> tuple[float, float]:
        """The noise levels between which it acts, higher one first."""
        return float(model_sampling.percent_to_sigma(self.start)), float(model_sampling.percent_to_sigma(self.end))


@dataclass(frozen=True, eq=False)
class MotionOptions:
    """Apply MuseV Motion. `frame_strength (frames,)` multiplies `strength` frame by frame."""

    motion: Motion
    speed: float = 8.0
    strength: float = 1.0
    span: Span = field(default_factory=Span)
    frame_strength: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ReferenceOptions:
    """Apply ReferenceNet. `images (n, H, W, 3)`; sizes in pixels, 0: those of the video."""

    net: HostedReferenceNet
    vae: Any
    images: Tensor
    strength: float = 1.0
    span: Span = field(default_factory=Span)
    width: int = 0
    height: int = 0


@dataclass(frozen=True, eq=False)
class ImagePromptOptions:
    """Apply IP-Adapter. `mask (1 or frames, H, W)`; `combine`: concat or average."""

    adapter: HostedIPAdapter
    clip_vision: Any
    images: Tensor
    weight: float = 1.0
    combine: str = "concat"
    span: Span = field(default_factory=Span)
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FaceOptions:
    """Apply FaceID. `embeddings (n, 512)` of the faces, unit length."""

    adapter: HostedIPAdapter
    embeddings: Tensor
    weight: float = 1.0
    span: Span = field(default_factory=Span)


@dataclass(frozen=True)
class GuidanceOptions:
    """Set Guidance Schedule."""

    start: float
    end: float
    curve: str


@dataclass(frozen=True, eq=False)
class Options:
    """Everything together; None: the node is not there."""

    motion: MotionOptions | None = None
    windows: WindowOptions = field(default_factory=lambda: WindowOptions(fuse="linear"))
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    original_scaling: bool = False
    fractional_time: bool = False  # the network is told the exact time of a noise level, as by the original's Euler
    guidance: GuidanceOptions | None = None
    reference: ReferenceOptions | None = None
    image_prompt: ImagePromptOptions | None = None
    face: FaceOptions | None = None

    def __deepcopy__(self, memo: dict) -> "Options":
        return self  # immutable; ComfyUI copies what hangs on a MODEL

    def with_(self, **changes: Any) -> "Options":
        """A copy with changes."""
        return replace(self, **changes)


def options_of(model: Any) -> Options:
    """What is attached to a MODEL, or the defaults."""
    return model.get_attachment(KEY) or Options()
