"""What is measured: a network of any variant and its inputs, at any size, on any device, real or fake.

The only file of the benchmark that knows the networks' interface.
"""

import copy
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import kernels
from ..config import MAX_FRAMES, MAX_SIDE, VARIANTS, UNetConfig, resized
from ..denoise.denoiser import ClipDenoiser, DenoiserOptions
from ..denoise.windows import WindowOptions, context_windows
from ..errors import MuseVError
from ..models.attention import use_attention
from ..models.compilation import compile_network
from ..models.conditions import ClipConditions, ReferenceFeatures
from ..models.layers import Layers, new_layers
from ..models.owned import lay_out_weights
from ..models.unet import MuseVUNet

BRANCHES = ("both", "split", "one")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_PIXELS_PER_LATENT = 8
_TEXT_TOKENS, _IMAGE_TOKENS = 77, 4
_TIMESTEP = 500.0
Network = TypeVar("Network", bound=nn.Module)
_TINY = UNetConfig(
    block_out_channels=(32, 64, 64), cross_attention_blocks=(True, True, False), layers_per_block=1, context_dim=32
)


@dataclass(frozen=True)
class Case:
    """A clip to be denoised.

    Args:
        variant: of the network, a name in `VARIANTS`.
        height, width: in pixels, multiples of 8.
        frames: generated frames of the clip; cut into windows of `window` which share `overlap`.
        condition_frames: clean frames in front of every window.
        branches: with guidance in one call ("both") or in two ("split"), or without guidance ("one").
        tiny: a network with few channels and layers, for trying things out.

    Raises:
        MuseVError: for anything out of range.
    """

    variant: str = "musev_referencenet"
    height: int = 512
    width: int = 512
    frames: int = 12
    condition_frames: int = 1
    branches: str = "both"
    window: int = 12
    overlap: int = 4
    dtype: str = "float16"
    tiny: bool = False

    def __post_init__(self) -> None:
        for name, known in (("variant", VARIANTS), ("branches", BRANCHES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise MuseVError(f"{name} can be {', '.join(known)}, but {getattr(self, name)!r} was asked for")
        for name in ("height", "width"):
            size = getattr(self, name)
            if size < _PIXELS_PER_LATENT or size % _PIXELS_PER_LATENT:
                raise MuseVError(f"{name} must be a positive multiple of {_PIXELS_PER_LATENT}, got {size}")
        for name, low, high in (
            ("height", 1, MAX_SIDE),
            ("width", 1, MAX_SIDE),
            ("frames", 1, MAX_FRAMES),
            ("condition_frames", 0, MAX_FRAMES),
        ):
            if not low <= getattr(self, name) <= high:
                raise MuseVError(f"{name} must be at least {low} and at most {high:,}, got {getattr(self, name)}")
        _ = self.windows  # refuses a window and overlap which do not go together

    @property
    def config(self) -> UNetConfig:
        """Of the network."""
        config = VARIANTS[self.variant]
        return resized(config, _TINY) if self.tiny else config

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.height // _PIXELS_PER_LATENT, self.width // _PIXELS_PER_LATENT

    @property
    def rows(self) -> int:
        """Prompts: one per guidance branch."""
        return 1 if self.branches == "one" else 2

    @property
    def window_options(self) -> WindowOptions:
        """How the clip is cut."""
        return WindowOptions(length=self.window, overlap=self.overlap)

    @property
    def windows(self) -> list[int]:
        """The number of generated frames in each window of the clip."""
        return [len(frames) for frames in context_windows(self.frames, self.window_options)]


@dataclass(frozen=True)
class Options:
    """Choices which change what it costs, not the result.

    Args:
        kernels: see `musev_core.kernels.use`.
        attention: a name in `attention_backends()`.
        compiled: through `torch.compile`; graphs: and recorded as CUDA graphs.
        windows_per_call: windows evaluated at once.
    """

    kernels: str = "auto"
    attention: str = "sdpa"
    compiled: bool = False
    graphs: bool = False
    windows_per_call: int = 1

    def __str__(self) -> str:
        parts = [f"kernels {self.kernels}", self.attention]
        if self.compiled:
            parts.append("compiled with CUDA graphs" if self.graphs else "compiled")
        if self.windows_per_call > 1:
            parts.append(f"{self.windows_per_call} windows per call")
        return ", ".join(parts)


class _Uninitialised:
    """Layers like torch.nn's which leave their memory as it comes: what torch draws at first is thrown away anyway."""

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            """Leaves everything as it is."""

    class Conv2d(nn.Conv2d):
        def reset_parameters(self) -> None:
            """Leaves everything as it is."""

    class Conv3d(nn.Conv3d):
        def reset_parameters(self) -> None:
            """Leaves everything as it is."""

    GroupNorm = nn.GroupNorm
    LayerNorm = nn.LayerNorm


def random_network(make: Callable[[Any], Network], case: Case, device: torch.device) -> Network:
    """`make(operations)` on the device, with random weights of sensible size: zeros would run faster than real ones."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(DTYPES[case.dtype])
        with device:
            net = make(_Uninitialised)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(mean=0.5, std=0.1)
    return net.eval().requires_grad_(False)


def random_unet(case: Case, device: torch.device) -> MuseVUNet:
    """The network of the case with random weights, laid out as loading does."""
    unet = random_network(lambda operations: MuseVUNet(case.config, Layers(new_layers(operations))), case, device)
    lay_out_weights(unet)
    return unet


def random_clip(case: Case, device: torch.device) -> ClipConditions:
    """Text, image tokens and reference features, as far as the network takes them."""
    config, rows = case.config, case.rows

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=DTYPES[case.dtype])

    reference = None
    if config.reference_fusion:
        # the same picture in both branches, as in a real clip
        features = [normal(1, 1, *shape).repeat(rows, 1, 1, 1, 1) for shape in feature_shapes(config, case.latent_size)]
        reference = ReferenceFeatures(tuple(features[:-1]), features[-1])
    return ClipConditions(
        normal(rows, _TEXT_TOKENS, config.context_dim),
        normal(rows, _IMAGE_TOKENS, config.context_dim) if config.image_prompt else None,
        reference=reference,
    )


def feature_shapes(config: UNetConfig, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """`(h, w, c)` of every ReferenceNet feature; the mid block's is the last."""
    h, w = size
    widths = config.block_out_channels
    shapes = [(h, w, widths[0])]
    for i, width in enumerate(widths):
        shapes += [(h, w, width)] * config.layers_per_block
        if i < len(widths) - 1:
            h, w = (h + 1) // 2, (w + 1) // 2
            shapes.append((h, w, width))
    return [*shapes, (h, w, widths[-1])]


def guidance_calls(case: Case, clip: ClipConditions) -> list[ClipConditions]:
    """The conditions of each call of the network for one window; what is constant over the clip is kept in them."""
    return [clip.take([i]) for i in range(case.rows)] if case.branches == "split" else [clip]


def window_call(
    case: Case, unet: nn.Module, clips: Sequence[ClipConditions], length: int, *, windows: int = 1
) -> Callable[[], Tensor]:
    """The network's calls for windows of `length` generated frames, `clips` from `guidance_calls`."""
    device = clips[0].text.device
    shape = (windows, 4, case.condition_frames + length, *case.latent_size)
    sample = torch.randn(shape, device=device, dtype=DTYPES[case.dtype])
    timestep = torch.full((), _TIMESTEP, device=device)
    branches = case.rows // len(clips)
    condition = tuple(range(case.condition_frames))

    def call() -> Tensor:
        outputs = [unet(sample, timestep, clip, condition_frames=condition, branches=branches) for clip in clips]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return call


def clip_step(case: Case, unet: nn.Module, clip: ClipConditions, options: Options) -> Callable[[], Tensor]:
    """One denoising step of the whole clip, without guidance and scheduler."""
    device = clip.text.device
    condition, frames = range(case.condition_frames), case.condition_frames + case.frames
    denoiser = ClipDenoiser(
        unet,  # type: ignore[arg-type]
        clip.take(range(case.rows)),  # what is constant over the clip anew for every set of options
        branches=case.rows,
        num_frames=frames,
        condition_frames=condition,
        options=DenoiserOptions(
            windows=case.window_options,
            windows_per_call=options.windows_per_call,
            split_guidance=case.branches == "split",
        ),
    )
    latents = torch.randn((1, 4, frames, *case.latent_size), device=device, dtype=DTYPES[case.dtype])
    timestep = torch.full((), _TIMESTEP, device=device)
    return lambda: denoiser(latents, timestep, 0, 10)


def compiled(unet: Network, options: Options) -> Network:
    """The network as the options want it compiled, or as it is; it shares all layers with the given one."""
    if not options.compiled:
        return unet
    network = copy.copy(unet)
    compile_network(network, graphs=options.graphs)
    return network


_attention_of: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # where it is not the default


def with_options(unet: nn.Module, options: Options) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A wrapper for calls which sets the options of a network around every one of them."""

    def wrap(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            if _attention_of.get(unet, Options.attention) != options.attention:
                use_attention(unet, options.attention)
                _attention_of[unet] = options.attention
            with kernels.use(options.kernels):
                return call()

        return run

    return wrap


def attention_backends() -> list[str]:
    """Those which are installed."""
    return ["sdpa", *(["xformers"] if importlib.util.find_spec("xformers") is not None else [])]


def weight_bytes(net: nn.Module) -> int:
    """Memory of the parameters."""
    return sum(x.numel() * x.element_size() for x in net.parameters())


# ------------------------------------------------------------------------------------------ parts

_TEMPORAL = r"(temp_attentions|transformer_in)\b"
_PARTS: Sequence[tuple[str, str]] = (
    (r"refer_emb_attns", "reference fusion"),
    (r"samplers", "up- and downsamplers"),
    (r"resnets", "spatial resnets"),
    (r"temp_convs", "temporal convolution"),
    (_TEMPORAL + r".*\.attn", "temporal attention"),
    (_TEMPORAL + r".*\.ff", "temporal GEGLU"),
    (_TEMPORAL, "temporal transformer, rest"),
    (r"attentions.*\.attn1", "spatial self-attention"),
    (r"attentions.*\.attn2", "cross-attention"),
    (r"attentions.*\.ff", "spatial GEGLU"),
    (r"attentions", "spatial transformer, rest"),
)


def part_of(path: str, current: str) -> str:
    """The part of the network a submodule belongs to, by its published name; helpers belong to whoever called them."""
    return next((part for pattern, part in _PARTS if re.search(pattern, path)), current)
