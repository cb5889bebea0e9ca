"""MuseV's UNet written straight down in NCHW, with all the work that the published implementation repeats.

The thing to measure against, not to use. Same weights under the same names and same results as `MuseVUNet`, but as the
original does it (musev.md 2 and 10): tokens of condition frames, reference pictures and prompts are repeated for every
frame and projected again; layouts are rearranged around every temporal layer; heads are copied around attention;
results are divided by 1.0; two computations whose results are thrown away (AdaIN towards the condition frames, self
attention of the unconditional half) run as well. Two things are kinder than the original: attention is torch's instead
of xformers', and the discarded self attention waits for the host once per block instead of four times.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musev_core.config import UNetConfig
from musev_core.models.conditions import ClipConditions, ControlResiduals

# the original's output_scale_factor and rescale_output_factor
SCALE = 1.0
TEMPORAL_GROUPS = 32


@dataclass
class Call:
    """What all layers of one call need."""

    frames: int
    time: Tensor  # (b t, dim)
    frame_embedding: Tensor | None  # (b, t, dim); None: no temporal layers
    text: Tensor  # (b t, n, dim)
    image_tokens: Tensor | None
    image_scale: float
    face_tokens: Tensor | None
    face_scale: float
    references: Sequence[Tensor] | None  # (b, c, pictures, h, w), the mid block's last
    condition: Tensor | None  # numbers of the condition frames
    generated: Tensor | None  # numbers of the others
    guidance: bool


def fold_heads(x: Tensor, heads: int) -> Tensor:
    """`(b, n, heads d)` copied to `(1, b heads, n, d)`."""
    b, n, c = x.shape
    return x.view(b, n, heads, c // heads).permute(0, 2, 1, 3).reshape(1, b * heads, n, c // heads).contiguous()


def unfold_heads(x: Tensor, heads: int) -> Tensor:
    """The way back, another copy."""
    _, bh, n, d = x.shape
    return x.view(bh // heads, heads, n, d).permute(0, 2, 1, 3).reshape(bh // heads, n, heads * d).contiguous()


class Attention(nn.Module):
    def __init__(self, operations: Any, channels: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = operations.Linear(channels, channels, bias=False)
        self.to_k = operations.Linear(context_dim or channels, channels, bias=False)
        self.to_v = operations.Linear(context_dim or channels, channels, bias=False)
        self.to_out = nn.ModuleList([operations.Linear(channels, channels), nn.Dropout(0.0)])

    def finish(self, out: Tensor) -> Tensor:
        return self.to_out[1](self.to_out[0](out)) / SCALE


class SelfAttention(Attention):
    """Among the pixels of a frame and those of the condition frames."""

    def forward(self, x: Tensor, call: Call | None) -> Tensor:
        """`(b t, n, c)`; without `call` plain attention."""
        tokens = x
        if call is not None and call.condition is not None:
            own = x.unflatten(0, (-1, call.frames))
            shared = own.index_select(1, call.condition).contiguous().flatten(1, 2)[:, None]
            shared = shared.repeat_interleave(call.frames, dim=1)
            tokens = torch.cat([own, shared], dim=2).flatten(0, 1)
        q, k, v = (fold_heads(y, self.heads) for y in (self.to_q(x), self.to_k(tokens), self.to_v(tokens)))
        return self.finish(unfold_heads(F.scaled_dot_product_attention(q, k, v), self.heads))


class TemporalAttention(Attention):
    """Among the frames at one pixel."""

    def forward(self, x: Tensor, call: Call | None) -> Tensor:
        """`(b h w, t, c)`."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(split(self.to_q(x)), split(self.to_k(x)), split(self.to_v(x)))
        return self.finish(out.transpose(1, 2).reshape(x.shape))


class CrossAttention(Attention):
    """To the text, and to image and face tokens."""

    def __init__(self, operations: Any, channels: int, config: UNetConfig):
        super().__init__(operations, channels, config.num_heads, config.context_dim)
        names = ["to_k_ip", "to_v_ip"] if config.image_prompt else []
        names += ["ip_adapter_face_to_k_ip", "ip_adapter_face_to_v_ip"] if config.face_prompt else []
        for name in names:
            setattr(self, name, operations.Linear(config.context_dim, channels, bias=False))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        q, k, v = (fold_heads(y, self.heads) for y in (self.to_q(x), self.to_k(call.text), self.to_v(call.text)))
        out = F.scaled_dot_product_attention(q, k, v)
        if call.image_tokens is not None and call.image_scale > 0:
            out = out + call.image_scale * self.look(q, call.image_tokens, self.to_k_ip, self.to_v_ip, x.shape[0])
        if call.face_tokens is not None and call.face_scale > 0:
            to_k, to_v = self.ip_adapter_face_to_k_ip, self.ip_adapter_face_to_v_ip
            out = out + call.face_scale * self.look(q, call.face_tokens, to_k, to_v, x.shape[0])
        return self.finish(unfold_heads(out, self.heads))

    def look(self, q: Tensor, tokens: Tensor, to_k: Any, to_v: Any, batch: int) -> Tensor:
        k, v = (y.repeat_interleave(batch // y.shape[0], dim=0) for y in (to_k(tokens), to_v(tokens)))
        return F.scaled_dot_product_attention(q, fold_heads(k, self.heads), fold_heads(v, self.heads))


class ReferenceFusion(Attention):
    def forward(self, x: Tensor, reference: Tensor, frames: int) -> Tensor:
        """`x (b t, c, h, w)`, `reference (b, c, pictures, h, w)`."""
        _, _, h, w = x.shape
        tokens = reference.permute(0, 2, 3, 4, 1).flatten(1, 3)
        tokens = tokens[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
        own = x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
        tokens = torch.cat([tokens, own], dim=1)
        q, k, v = (fold_heads(y, self.heads) for y in (self.to_q(own), self.to_k(tokens), self.to_v(tokens)))
        out = unfold_heads(F.scaled_dot_product_attention(q, k, v), self.heads)
        out = self.to_out[1](self.to_out[0](out)).unflatten(1, (h, w)).permute(0, 3, 1, 2)
        return (out + x) / SCALE


class GuidanceRecompute(nn.Module):
    """Self attention of the unconditional half once more; nobody uses the result."""

    def forward(self, attention: nn.Module, normed: Tensor, attended: Tensor) -> Tensor:
        result = attended.clone()
        half = torch.tensor(list(range(normed.shape[0] // 2)), device=normed.device)
        result[half] = attention(normed[half], None)
        return result.clone()


class GEGLU(nn.Module):
    def __init__(self, operations: Any, channels: int):
        super().__init__()
        self.proj = operations.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, operations: Any, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(operations, channels), nn.Dropout(0.0), operations.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, operations: Any, channels: int, attn1: nn.Module, attn2: nn.Module):
        super().__init__()
        self.norm1 = operations.LayerNorm(channels)
        self.attn1 = attn1
        self.norm2 = operations.LayerNorm(channels)
        self.attn2 = attn2
        self.norm3 = operations.LayerNorm(channels)
        self.ff = FeedForward(operations, channels)
        self.guidance_recompute = GuidanceRecompute()

    def forward(self, x: Tensor, call: Call) -> Tensor:
        normed = self.norm1(x)
        attended = self.attn1(normed, call)
        x = attended + x
        if call.guidance:
            self.guidance_recompute(self.attn1, normed, attended)
        x = self.attn2(self.norm2(x), call) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, operations: Any, channels: int, config: UNetConfig):
        super().__init__()
        self.norm = operations.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.proj_in = operations.Conv2d(channels, channels, 1)
        attn1 = SelfAttention(operations, channels, config.num_heads)
        attn2 = CrossAttention(operations, channels, config)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(operations, channels, attn1, attn2)])
        self.proj_out = operations.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(n, h * w, c)
        tokens = self.transformer_blocks[0](tokens, call)
        return self.proj_out(tokens.reshape(n, h, w, c).permute(0, 3, 1, 2).contiguous()) + x


class TemporalTransformer(nn.Module):
    def __init__(self, operations: Any, channels: int, config: UNetConfig, groups: int):
        super().__init__()
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = operations.Linear(channels, channels)
        self.frame_emb_proj = operations.Linear(config.time_embed_dim, channels)
        attn1, attn2 = (TemporalAttention(operations, channels, config.num_heads) for _ in range(2))
        self.transformer_blocks = nn.ModuleList([TransformerBlock(operations, channels, attn1, attn2)])
        self.proj_out = operations.Linear(channels, channels)
        self.temporal_weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        residual = x.unflatten(0, (-1, call.frames)).transpose(1, 2)  # (b, c, t, h, w)
        b, c, t, h, w = residual.shape
        tokens = self.proj_in(self.norm(residual).permute(0, 3, 4, 2, 1).reshape(b * h * w, t, c))
        position = self.frame_emb_proj(F.silu(call.frame_embedding))
        tokens = tokens + position.repeat_interleave(h * w, dim=0)
        tokens = self.proj_out(self.transformer_blocks[0](tokens, call))
        out = tokens.view(b, h, w, t, c).permute(0, 4, 3, 1, 2).contiguous()
        return (residual + self.temporal_weight.abs() * out).transpose(1, 2).flatten(0, 1)


class TemporalConv(nn.Module):
    def __init__(self, operations: Any, channels: int):
        super().__init__()
        for i in range(1, 5):
            norm = operations.GroupNorm(TEMPORAL_GROUPS, channels, eps=1e-5)
            conv = operations.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            dropout = [nn.Dropout(0.1)] if i > 1 else []
            setattr(self, f"conv{i}", nn.Sequential(norm, nn.SiLU(), *dropout, conv))
        self.temporal_weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        residual = x.unflatten(0, (-1, frames)).transpose(1, 2)  # (b, c, t, h, w)
        h = self.conv4(self.conv3(self.conv2(self.conv1(residual))))
        return (residual + self.temporal_weight.abs() * h).transpose(1, 2).flatten(0, 1)


class ResNet(nn.Module):
    def __init__(self, operations: Any, n_in: int, n_out: int, config: UNetConfig):
        super().__init__()
        self.norm1 = operations.GroupNorm(config.norm_groups, n_in, eps=1e-5)
        self.conv1 = operations.Conv2d(n_in, n_out, 3, padding=1)
        self.time_emb_proj = operations.Linear(config.time_embed_dim, n_out)
        self.norm2 = operations.GroupNorm(config.norm_groups, n_out, eps=1e-5)
        self.conv2 = operations.Conv2d(n_out, n_out, 3, padding=1)
        self.conv_shortcut = operations.Conv2d(n_in, n_out, 1) if n_in != n_out else None
        self.activated = config.zero_condition_time_embedding  # these models pass the embedding after its SiLU

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(time if self.activated else F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return ((x if self.conv_shortcut is None else self.conv_shortcut(x)) + h) / SCALE


class AdaIN(nn.Module):
    """Statistics of the condition frames given to the others, and the result thrown away."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        if call.condition is None:
            return x
        clip = x.unflatten(0, (-1, call.frames)).transpose(1, 2)
        others = clip.index_select(2, call.generated).contiguous()
        target = clip.index_select(2, call.condition).contiguous()
        (mean, std), (target_mean, target_std) = self.moments(others), self.moments(target)
        others = (others - mean) / std * target_std + target_mean
        result = torch.zeros_like(clip)
        result.index_copy_(2, call.generated, others)
        result.index_copy_(2, call.condition, target)
        return x

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, dim=(2, 3, 4), keepdim=True, correction=0)
        return mean, torch.maximum(var, torch.zeros_like(var) + 1e-6) ** 0.5


class Sampler(nn.Module):
    def __init__(self, operations: Any, channels: int, stride: int = 1):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        return self.conv(x if size is None else F.interpolate(x, size=size, mode="nearest"))


class Block(nn.Module):
    """Down, mid or up: layers, AdaIN after each, a sampler at the end."""

    def __init__(self, operations: Any, widths: Sequence[tuple[int, int]], config: UNetConfig, *, attentions: int = 0):
        super().__init__()
        channels = widths[-1][1]
        self.resnets = nn.ModuleList(ResNet(operations, a, b, config) for a, b in widths)
        self.temporal = config.temporal
        if config.temporal:
            self.temp_convs = nn.ModuleList(TemporalConv(operations, channels) for _ in widths)
        if attentions:
            self.attentions = nn.ModuleList(SpatialTransformer(operations, channels, config) for _ in range(attentions))
            if config.temporal:
                self.temp_attentions = nn.ModuleList(
                    TemporalTransformer(operations, channels, config, config.norm_groups) for _ in range(attentions)
                )
        self.num_attentions = attentions
        self.adain = AdaIN()

    def resnet(self, j: int, x: Tensor, call: Call) -> Tensor:
        x = self.resnets[j](x, call.time)
        if self.temporal and call.frame_embedding is not None:
            x = self.temp_convs[j](x, call.frames)
        return x

    def attend(self, j: int, x: Tensor, call: Call) -> Tensor:
        if j < self.num_attentions:
            x = self.attentions[j](x, call)
            if self.temporal and call.frame_embedding is not None:
                x = self.temp_attentions[j](x, call)
        return x


class DownBlock(Block):
    def __init__(self, operations: Any, index: int, config: UNetConfig):
        all_widths, layers = config.block_out_channels, config.layers_per_block
        n_in, n_out = all_widths[max(index - 1, 0)], all_widths[index]
        widths = [(n_in if j == 0 else n_out, n_out) for j in range(layers)]
        super().__init__(operations, widths, config, attentions=layers * config.cross_attention_blocks[index])
        final = index == len(all_widths) - 1
        self.downsamplers = nn.ModuleList([] if final else [Sampler(operations, n_out, 2)])
        count = layers + (not final)
        self.first_reference = 1 + count * index
        if config.reference_fusion:
            self.refer_emb_attns = nn.ModuleList(
                ReferenceFusion(operations, n_out, config.num_heads) for _ in range(count)
            )

    def forward(self, x: Tensor, call: Call) -> tuple[Tensor, list[Tensor]]:
        residuals = []
        for j in range(len(self.resnets)):
            x = self.adain(self.attend(j, self.resnet(j, x, call), call), call)
            x = self.fuse(j, x, call)
            residuals.append(x)
        for sampler in self.downsamplers:
            x = self.fuse(len(self.resnets), self.adain(sampler(x), call), call)
            residuals.append(x)
        return x, residuals

    def fuse(self, j: int, x: Tensor, call: Call) -> Tensor:
        if call.references is None:
            return x
        return self.refer_emb_attns[j](x, call.references[self.first_reference + j], call.frames)


class MidBlock(Block):
    def forward(self, x: Tensor, call: Call) -> Tensor:
        x = self.attend(0, self.resnet(0, x, call), call)
        return self.adain(self.resnet(1, x, call), call)


class UpBlock(Block):
    def __init__(self, operations: Any, index: int, config: UNetConfig):
        rising, n = config.block_out_channels[::-1], config.layers_per_block + 1
        n_in, n_out = rising[max(index - 1, 0)], rising[index]
        n_last = rising[min(index + 1, len(rising) - 1)]
        widths = [((n_in if j == 0 else n_out) + (n_last if j == n - 1 else n_out), n_out) for j in range(n)]
        attention = config.cross_attention_blocks[len(rising) - 1 - index]
        super().__init__(operations, widths, config, attentions=n * attention)
        last = index == len(rising) - 1
        self.upsamplers = nn.ModuleList([] if last else [Sampler(operations, n_out)])

    def forward(self, x: Tensor, residuals: list[Tensor], call: Call) -> Tensor:
        for j in range(len(self.resnets)):
            x = self.resnet(j, torch.cat([x, residuals.pop()], dim=1), call)
            x = self.adain(self.attend(j, x, call), call)
        for sampler in self.upsamplers:
            x = self.adain(sampler(x, residuals[-1].shape[2:]), call)
        return x


class Embedding(nn.Module):
    def __init__(self, operations: Any, dim: int, out_dim: int):
        super().__init__()
        self.dim = dim
        self.linear_1 = operations.Linear(dim, out_dim)
        self.linear_2 = operations.Linear(out_dim, out_dim)

    def sinusoid(self, positions: Tensor) -> Tensor:
        half = self.dim // 2
        exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=positions.device) / half
        angles = positions.float()[:, None] * exponents.exp()
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class NaiveUNet(nn.Module):
    """See the module; `operations` is a namespace like `torch.nn`."""

    def __init__(self, config: UNetConfig, operations: Any = nn):
        super().__init__()
        self.config = config
        width, dim = config.block_out_channels, config.time_embed_dim
        self.conv_in = operations.Conv2d(config.in_channels, width[0], 3, padding=1)
        self.time_embedding = Embedding(operations, width[0], dim)
        if config.temporal:
            self.frame_embedding = Embedding(operations, width[0], dim)
        if config.input_temporal_transformer:
            self.transformer_in = TemporalTransformer(operations, width[0], config, TEMPORAL_GROUPS)
        if config.reference_fusion:
            self.first_refer_emb_attns = ReferenceFusion(operations, width[0], config.num_heads)
            self.mid_block_refer_emb_attns = ReferenceFusion(operations, width[-1], config.num_heads)
        self.down_blocks = nn.ModuleList(DownBlock(operations, i, config) for i in range(len(width)))
        self.mid_block = MidBlock(operations, [(width[-1], width[-1])] * 2, config, attentions=1)
        self.up_blocks = nn.ModuleList(UpBlock(operations, i, config) for i in range(len(width)))
        self.conv_norm_out = operations.GroupNorm(config.norm_groups, width[0], eps=1e-5)
        self.conv_out = operations.Conv2d(width[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        clip: ClipConditions,
        references: Sequence[Tensor] | None = None,
        *,
        condition_frames: Sequence[int] = (),
        motion_speed: float = 8.0,
        control: ControlResiduals | None = None,
        skip_temporal: bool = False,
        guidance: bool = True,
    ) -> Tensor:
        """As `MuseVUNet.forward`; `references` from `references_of(clip)`.

        `guidance` says that the first half of the batch is unconditional.
        """
        x = sample.transpose(1, 2).flatten(0, 1)  # (b t, c, h, w)
        call = self.prepare(sample, timestep, clip, references, tuple(condition_frames), motion_speed, skip_temporal)
        call.guidance = guidance
        x = self.conv_in(x)
        if self.config.input_temporal_transformer and call.frame_embedding is not None:
            x = self.transformer_in(x, call)
        if call.references is not None:
            x = self.first_refer_emb_attns(x, call.references[0], call.frames)
        residuals = [x]
        for block in self.down_blocks:
            x, new = block(x, call)
            residuals += new
        if control is not None:
            residuals = [x + extra for x, extra in zip(residuals, control.down, strict=True)]
        x = self.mid_block(x, call)
        if call.references is not None:
            x = self.mid_block_refer_emb_attns(x, call.references[-1], call.frames)
        if control is not None and control.mid is not None:
            x = x + control.mid
        for block in self.up_blocks:
            x = block(x, residuals, call)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x.unflatten(0, (-1, call.frames)).transpose(1, 2)

    def prepare(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        clip: ClipConditions,
        references: Sequence[Tensor] | None,
        condition_frames: tuple[int, ...],
        motion_speed: float,
        skip_temporal: bool,
    ) -> Call:
        config, device, dtype = self.config, sample.device, sample.dtype
        b, _, t, _, _ = sample.shape
        condition = generated = None
        if condition_frames and t > 1:
            condition = torch.tensor(condition_frames, device=device)
            generated = torch.tensor([i for i in range(t) if i not in condition_frames], device=device)
        if not isinstance(timestep, Tensor):
            timestep = torch.tensor(timestep, device=device)
        time = self.time_embedding(self.time_embedding.sinusoid(timestep.reshape(-1).expand(b)).to(dtype))
        if config.zero_condition_time_embedding:
            time = F.silu(time)
        time = time.repeat_interleave(t, dim=0)
        if config.zero_condition_time_embedding and condition is not None:
            time = time.unflatten(0, (b, t))
            time[:, condition] = 0
            time = time.flatten(0, 1)
        positions = None
        if config.temporal and not skip_temporal:
            index = torch.arange(t, device=device)
            if config.motion_speed:
                index = (index * motion_speed).long()
            positions = self.frame_embedding.sinusoid(index)[None].repeat(b, 1, 1).to(dtype)
            positions = self.frame_embedding(positions)
            if config.silu_on_frame_embedding:
                positions = F.silu(positions)
        text = clip.text.repeat_interleave(b * t // clip.text.shape[0], dim=0)
        images, faces = (
            x.repeat_interleave(b // x.shape[0], dim=0) if x is not None and used else None
            for x, used in ((clip.image_tokens, config.image_prompt), (clip.face_tokens, config.face_prompt))
        )
        if not config.reference_fusion:
            references = None
        return Call(
            frames=t,
            time=time,
            frame_embedding=positions,
            text=text,
            image_tokens=images,
            image_scale=clip.image_scale,
            face_tokens=faces,
            face_scale=clip.face_scale,
            references=references,
            condition=condition,
            generated=generated,
            guidance=True,
        )


def references_of(clip: ClipConditions, batch: int | None = None) -> list[Tensor] | None:
    """The clip's reference features as this network wants them, `(batch, c, pictures, h, w)`, the mid block's last."""
    if clip.reference is None:
        return None
    features = [x.permute(0, 4, 1, 2, 3).contiguous() for x in (*clip.reference.down, clip.reference.mid)]
    return [x.repeat_interleave((batch or x.shape[0]) // x.shape[0], dim=0) for x in features]
