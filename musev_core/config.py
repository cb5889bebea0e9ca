"""The networks' numbers and the names to choose from: known to all, so that it imports nothing heavy."""

from dataclasses import dataclass, replace

GUIDANCE_METHODS = ("linear", "two_stage", "three_stage", "fix_two_stage")  # denoise/guidance.py
NOISE_TYPES = ("video_fusion", "random")  # denoise/noise.py
NOISE_DRAWS = ("frames", "original")
SCHEDULES = ("uniform_v2", "uniform")  # of context windows, denoise/windows.py
FUSIONS = ("flat", "linear", "pyramid")  # of overlapping windows, denoise/windows.py

# beyond these a request is a slip, and would be one that eats the memory
MAX_FRAMES = 100_000
MAX_SIDE = 16_384  # pixels
MAX_STEPS = 1000  # as many as were trained


@dataclass(frozen=True)
class UNetConfig:
    """MuseV's UNet: the Stable Diffusion 1.5 layout plus temporal layers (musev.md 2.1).

    With `temporal=False` and every other switch off it is the plain Stable Diffusion 1.5 UNet.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention_blocks: tuple[bool, ...] = (True, True, True, False)  # down block i; up block 3-i mirrors it
    layers_per_block: int = 2
    num_heads: int = 8  # of every attention; head width = channels / heads
    norm_groups: int = 32  # temporal convolutions and the input transformer use 32 whatever stands here
    context_dim: int = 768
    in_channels: int = 4
    out_channels: int = 4

    temporal: bool = True
    input_temporal_transformer: bool = False  # transformer_in, `musev` only
    reference_fusion: bool = False  # attention to ReferenceNet features
    image_prompt: bool = False  # to_k_ip / to_v_ip in every cross attention
    face_prompt: bool = False  # ip_adapter_face_to_{k,v}_ip beside them
    zero_condition_time_embedding: bool = False
    motion_speed: bool = False  # frame index times motion speed; otherwise the speed has no effect
    silu_on_frame_embedding: bool = False  # a second SiLU, which the released weights expect (musev.md 8.1)

    @property
    def time_embed_dim(self) -> int:
        """Width of the time and frame embeddings."""
        return 4 * self.block_out_channels[0]

    def spatial(self) -> "UNetConfig":
        """The Stable Diffusion UNet inside this one."""
        return UNetConfig(
            block_out_channels=self.block_out_channels,
            cross_attention_blocks=self.cross_attention_blocks,
            layers_per_block=self.layers_per_block,
            num_heads=self.num_heads,
            norm_groups=self.norm_groups,
            context_dim=self.context_dim,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            temporal=False,
        )


SD15 = UNetConfig(temporal=False)
MUSEV = UNetConfig(input_temporal_transformer=True)
MUSEV_REFERENCENET = UNetConfig(
    reference_fusion=True,
    image_prompt=True,
    zero_condition_time_embedding=True,
    motion_speed=True,
    silu_on_frame_embedding=True,
)

# musev_referencenet_pose is the same architecture with other weights (musev.md 2.1).
VARIANTS: dict[str, UNetConfig] = {
    "musev": MUSEV,
    "musev_referencenet": MUSEV_REFERENCENET,
    "musev_referencenet_pose": MUSEV_REFERENCENET,
}


def resized(config: UNetConfig, size: UNetConfig) -> UNetConfig:
    """`config`'s switches with the widths, depths and heads of `size`."""
    return replace(
        config,
        block_out_channels=size.block_out_channels,
        cross_attention_blocks=size.cross_attention_blocks,
        layers_per_block=size.layers_per_block,
        num_heads=size.num_heads,
        norm_groups=size.norm_groups,
        context_dim=size.context_dim,
        in_channels=size.in_channels,
        out_channels=size.out_channels,
    )


@dataclass(frozen=True)
class ImageProjectionConfig:
    """From an image encoder's output to prompt tokens (extra.md 6.2).

    `kind` is "plain" (Linear + LayerNorm), "faceid" (two-layer MLP) or "plus" (Perceiver resampler).
    """

    kind: str = "plain"
    input_dim: int = 1024
    context_dim: int = 768
    num_tokens: int = 4
    depth: int = 4  # the rest: resampler only
    num_heads: int = 12
    head_dim: int = 64
    ff_mult: int = 4


IMAGE_PROJECTIONS: dict[str, ImageProjectionConfig] = {
    "plain": ImageProjectionConfig(),
    "faceid": ImageProjectionConfig(kind="faceid", input_dim=512),
    "plus": ImageProjectionConfig(kind="plus", input_dim=1280, num_tokens=16),
}
