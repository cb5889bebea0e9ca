"""Where a network's leaf layers come from, and how they are called on channels-last video.

Activations are `(b, t, h, w, c)` everywhere. A network builds its composite structure itself and takes every leaf
(Linear, Conv, Norm) from a factory, under the published name: without a host the factory makes new layers, inside a
host it lends the host's own module objects, so that the host stays the owner of the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import kernels
from .attention import AttentionFunction, scaled_dot_product


class LayerFactory(Protocol):
    """`factory(name, kind, *shape)` gives the leaf called `name`.

    Kinds: `linear` (in, out, bias), `conv2d` (in, out, kernel, stride, padding), `temporal_conv` (in, out: 3 taps over
    time), `group_norm` (groups, channels, eps), `layer_norm` (channels, eps), `parameter` (shape).
    """

    def __call__(self, name: str, kind: str, *shape: Any) -> Any:
        """The leaf, a callable on tensors, or for `parameter` a parameter."""
        ...


Gains = tuple[Tensor, Tensor]  # weight and bias of a norm, (channels,) each


class Borrowed:
    """A leaf that belongs to somebody else: callable, but invisible to `parameters()`, `state_dict()` and `to()`.

    `gains` is the host's way to a norm's weight and bias, None where the layer may only be called.
    """

    __slots__ = ("gains", "layer")

    def __init__(self, layer: nn.Module, gains: Callable[[nn.Module], Gains | None] | None = None):
        self.layer = layer
        self.gains = gains

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's own result."""
        return self.layer(x)


def new_layers(operations: Any = nn, *, device: Any = None, dtype: torch.dtype | None = None) -> LayerFactory:
    """A factory of new layers from an `operations` namespace shaped like `torch.nn`."""

    def make(name: str, kind: str, *shape: Any) -> Any:
        place = {"device": device, "dtype": dtype}
        if kind == "linear":
            n_in, n_out, bias = shape
            return operations.Linear(n_in, n_out, bias=bias, **place)
        if kind == "conv2d":
            n_in, n_out, kernel, stride, padding = shape
            return operations.Conv2d(n_in, n_out, kernel, stride=stride, padding=padding, **place)
        if kind == "temporal_conv":
            n_in, n_out = shape
            return operations.Conv3d(n_in, n_out, (3, 1, 1), padding=(1, 0, 0), **place)
        if kind == "group_norm":
            groups, channels, eps = shape
            return operations.GroupNorm(groups, channels, eps=eps, **place)
        if kind == "layer_norm":
            channels, eps = shape
            return operations.LayerNorm(channels, eps=eps, **place)
        if kind == "parameter":
            return nn.Parameter(torch.ones(*shape, **place))
        raise ValueError(f"unknown kind of layer {kind!r} for {name!r}")

    return make


def hosted_layers(
    host: Mapping[str, nn.Module],
    otherwise: LayerFactory,
    gains: Callable[[nn.Module], Gains | None] | None = None,
) -> LayerFactory:
    """Lends the leaves in `host` (published name -> module object); all others come from `otherwise`.

    `gains(norm)` gives weight and bias of a host's norm, cast and patched, or None; without it norms are only called.
    """

    def make(name: str, kind: str, *shape: Any) -> Any:
        layer = host.get(name)
        return otherwise(name, kind, *shape) if layer is None else Borrowed(layer, gains)

    return make


class Layers:
    """A factory together with the place in the network where it is used, and the host's attention function."""

    def __init__(self, factory: LayerFactory, name: str = "", attention: AttentionFunction = scaled_dot_product):
        self.factory = factory
        self.name = name
        self.attention = attention

    def at(self, *parts: str | int) -> "Layers":
        """The place below this one, e.g. `layers.at("down_blocks", 0)`."""
        return Layers(self.factory, ".".join([*([self.name] if self.name else []), *map(str, parts)]), self.attention)

    def _leaf(self, name: str, kind: str, *shape: Any) -> Any:
        return self.factory(f"{self.name}.{name}" if self.name else name, kind, *shape)

    def linear(self, name: str, n_in: int, n_out: int, *, bias: bool = True) -> Any:
        """Linear over the last axis."""
        return self._leaf(name, "linear", n_in, n_out, bias)

    def conv2d(self, name: str, n_in: int, n_out: int, *, kernel: int = 3, stride: int = 1) -> Any:
        """Convolution of single frames, padded to keep the size; call it through `per_frame`."""
        return self._leaf(name, "conv2d", n_in, n_out, kernel, stride, kernel // 2)

    def temporal_conv(self, name: str, n_in: int, n_out: int) -> Any:
        """Convolution with 3 taps over time, zero padded; call it through `conv_over_time`."""
        return self._leaf(name, "temporal_conv", n_in, n_out)

    def group_norm(self, name: str, groups: int, channels: int, *, eps: float) -> Any:
        """Group norm: call it through `norm_silu`."""
        return self._leaf(name, "group_norm", groups, channels, eps)

    def layer_norm(self, name: str, channels: int) -> Any:
        """Layer norm over the channels; the original has eps 0 in two of three, either suits (musev.md 8.3)."""
        return self._leaf(name, "layer_norm", channels, 1e-5)

    def parameter(self, name: str, *shape: int) -> nn.Parameter:
        """A bare parameter of a composite."""
        return self._leaf(name, "parameter", *shape)


class Group(nn.Module):
    """Gives leaves the numbered names they have in the published files, e.g. `to_out.0`."""

    def __init__(self, **leaves: Any):
        super().__init__()
        for name, leaf in leaves.items():
            setattr(self, name.removeprefix("_"), leaf)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Calls a layer that expects `(n, c, h, w)` on every frame of `x (b, t, h, w, c)`."""
    rows = rearrange(x, "b t h w c -> (b t) h w c")
    y = layer(rearrange(rows, "n h w c -> n c h w"))  # apart: of a single row, strides tell torch that c is last
    y = rearrange(y, "n c h w -> n h w c").contiguous()
    return rearrange(y, "(b t) h w c -> b t h w c", b=x.shape[0])


def norm_gains(norm: Any) -> Gains | None:
    """Weight and bias of a norm for a fused kernel, None if it may only be called."""
    if isinstance(norm, Borrowed):
        return None if norm.gains is None else norm.gains(norm.layer)
    return norm.weight, norm.bias


def norm_silu(
    norm: Any, x: Tensor, *, over_time: bool = False, silu: bool = True, shift: Tensor | None = None
) -> Tensor:
    """Group norm of `x (b, t, h, w, c)` over (h, w), or with `over_time` over (t, h, w), then SiLU.

    `shift (1 or b, 1 or t, c)` is added first.
    """
    if kernels.active(x) and (gains := norm_gains(norm)) is not None:
        module: Any = norm.layer if isinstance(norm, Borrowed) else norm
        groups, eps = module.num_groups, module.eps
        return kernels.group_norm_silu(x, *gains, groups, eps, over_time=over_time, silu=silu, shift=shift)
    if shift is not None:
        x = x + shift[:, :, None, None]
    x = norm_per_clip(norm, x) if over_time else norm_per_frame(norm, x)
    return F.silu(x) if silu else x


def add_and_norm(norm: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """`x + h`, and its layer norm."""
    if kernels.active(x) and (gains := norm_gains(norm)) is not None:
        module: Any = norm.layer if isinstance(norm, Borrowed) else norm
        return kernels.add_layer_norm(h, x, *gains, module.eps)
    x = x + h
    return x, norm(x)


# torch's channels-last group norm on the CPU subtracts squares, which loses digits where a group holds few values
_FEW_POSITIONS = 64


def norm_per_frame(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Group norm of every frame of `x (b, t, h, w, c)` over (h, w)."""
    if x.is_cpu and x.shape[2] * x.shape[3] < _FEW_POSITIONS:
        y = norm(rearrange(x, "b t h w c -> (b t) c (h w)").contiguous())
        return rearrange(y, "(b t) c (h w) -> b t h w c", b=x.shape[0], h=x.shape[2])
    return per_frame(norm, x)


def norm_per_clip(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Group norm of `x (b, t, h, w, c)` over (t, h, w)."""
    if x.is_cpu and x.shape[1] * x.shape[2] * x.shape[3] < _FEW_POSITIONS:
        y = norm(rearrange(x, "b t h w c -> b c (t h w)").contiguous())
        return rearrange(y, "b c (t h w) -> b t h w c", t=x.shape[1], h=x.shape[2])
    return per_clip(norm, x)


def scaled_residual(x: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """`x + weight * h` in one pass."""
    return torch.addcmul(x, h, weight)


def to_batch(x: Tensor, batch: int) -> Tensor:
    """Rows which all guidance branches share, as rows of each branch; a view for a single row."""
    if x.shape[0] == batch:
        return x
    if x.shape[0] == 1:
        return x.expand(batch, *x.shape[1:])
    return x.repeat(batch // x.shape[0], *[1] * (x.ndim - 1))


def per_clip(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Calls a layer that expects `(b, c, t, h, w)` on `x (b, t, h, w, c)`."""
    y = layer(rearrange(x, "b t h w c -> b c t h w"))
    return rearrange(y, "b c t h w -> b t h w c").contiguous()


def conv_over_time(conv: Any, x: Tensor) -> Tensor:
    """Calls a convolution with 3 taps over time on `x (b, t, h, w, c)`.

    A layer of our own runs on planes of frames by pixels: the same sums, three times as fast on the CPU, and unlike
    torch's convolution of volumes channels-last in every type.
    """
    if getattr(type(conv), "forward", None) is not nn.Conv3d.forward:
        return per_clip(conv, x)
    planes = rearrange(x, "b t h w c -> b t (h w) c")
    y = F.conv2d(rearrange(planes, "b t n c -> b c t n"), conv.weight[..., 0], conv.bias, padding=(1, 0))
    y = rearrange(y, "b c t n -> b t n c").contiguous()
    return rearrange(y, "b t (h w) c -> b t h w c", h=x.shape[2])
