"""ComfyUI's patch points inside our forward: attention and block patches of other packs find their places.

Same places, same order and same shapes as in ComfyUI's own UNet: frames are rows, pictures are `(b t, c, h, w)`, tokens
`(b t, n, c)`. What MuseV adds (tokens of the condition frames, image prompts) joins after the patches.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...musev_core.models.attention import heads_first, heads_last
from ...musev_core.models.conditions import ClipConditions
from ...musev_core.models.layers import to_batch
from ...musev_core.models.transformer import TransformerBlock, take_frames
from .view import optimized_attention

_ATTENTION = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "middle_patch")
# patches which act after the guidance branches have parted
_AFTER_PROMPT = {"attn2_patch", "attn2_output_patch", "output_block_patch", "middle_block_after_patch"}


def acts_before_prompt(transformer_options: dict[str, Any], control: dict[str, list] | None) -> bool:
    """Whether something of a patch or a T2I adapter lies where the guidance branches are still one."""
    patches = {name for name, found in transformer_options.get("patches", {}).items() if found}
    replaced = {name for name, found in transformer_options.get("patches_replace", {}).items() if found}
    return bool(patches - _AFTER_PROMPT or replaced - {"attn2"} or (control or {}).get("input"))


def needed(transformer_options: dict[str, Any], control: dict[str, list] | None) -> bool:
    """Whether there is anything to call, or anybody who wants to know in which block we are."""
    found = (*transformer_options.get("patches", {}).values(), *transformer_options.get("patches_replace", {}).values())
    return control is not None or any(found) or "optimized_attention_override" in transformer_options


class Patches:
    """The hooks of one call of the network.

    Args:
        transformer_options: of the call; `block` and its kin are set as in ComfyUI's UNet.
        control: residuals of ControlNets and T2I adapters.
        frames: per window.
        inputs: what some patches want to see: x, timesteps, context.
    """

    def __init__(
        self,
        transformer_options: dict[str, Any],
        control: dict[str, list] | None,
        frames: int,
        inputs: dict[str, Any],
        model_channels: int,
        layers_per_block: int,
    ):
        self.options = transformer_options
        self.patches: dict[str, list] = transformer_options.get("patches", {})
        self.replace: dict[str, dict] = transformer_options.get("patches_replace", {})
        self.control = control
        self.frames = frames
        self.inputs = inputs
        self.model_channels = model_channels
        self.layers_per_block = layers_per_block
        self.attention = any(self.patches.get(name) for name in _ATTENTION) or any(self.replace.values())
        transformer_options["original_shape"] = list(inputs["x"].shape)
        transformer_options["transformer_index"] = 0

    # ------------------------------------------------------------------------------- blocks

    def time_embedding(self, emb: Tensor) -> Tensor:
        """`(1 or b, 1, dim)` to `(b, t, dim)` if there is a patch for it."""
        rows = self.inputs["x"].shape[0]
        flat = emb.expand(rows // self.frames, self.frames, -1).reshape(rows, -1)
        found = self.patches.get("emb_patch", ())
        for patch in found:
            flat = patch(flat, self.model_channels, self.options)
        self.inputs["emb"] = flat
        self.options["block"] = ("input", 0)
        return flat.unflatten(0, (-1, self.frames)) if found else emb

    def input_block(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Control residuals of T2I adapters, then patches before and after the skip connection."""
        self.options["block"] = ("input", index)
        x = self._add_control(x, "input")
        x = self._pictures(x, "input_block_patch")
        return x, self._pictures(x, "input_block_patch_after_skip")

    def middle_block(self, x: Tensor) -> Tensor:
        """ControlNet's residual of the mid block, and patches behind it."""
        self.options["block"] = ("middle", 0)
        x = self._add_control(x, "middle")
        found = self.patches.get("middle_block_after_patch", ())
        if found:
            h = _to_pictures(x)
            for patch in found:
                h = patch({**self.inputs, "h": h, "y": None, "transformer_options": self.options})["h"]
            x = self._to_frames(h)
        return x

    def output_block(self, index: int, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """ControlNet's residual of the skip connection, and patches of both inputs."""
        self.options["block"] = ("output", index)
        skip = self._add_control(skip, "output")
        found = self.patches.get("output_block_patch", ())
        if found:
            h, s = _to_pictures(x), _to_pictures(skip)
            for patch in found:
                h, s = patch(h, s, self.options)
            x, skip = self._to_frames(h), self._to_frames(s)
        return x, skip

    def _add_control(self, x: Tensor, name: str) -> Tensor:
        residuals = (self.control or {}).get(name)
        residual = residuals.pop() if residuals else None
        if residual is None:
            return x
        rows = x.shape[0] * self.frames
        residual = residual[:rows]
        if residual.shape[0] != rows:
            # one hint for all frames; and T2I adapters keep their answer when guidance begins or ends
            residual = residual.repeat(rows // residual.shape[0], 1, 1, 1)
        return x + self._to_frames(residual).to(x.dtype)

    def _pictures(self, x: Tensor, name: str) -> Tensor:
        found = self.patches.get(name, ())
        if not found:
            return x
        h = _to_pictures(x)
        for patch in found:
            h = patch(h, self.options)
        return self._to_frames(h)

    def _to_frames(self, h: Tensor) -> Tensor:
        return h.permute(0, 2, 3, 1).unflatten(0, (-1, self.frames)).contiguous()

    # ---------------------------------------------------------------------------- attention

    def transformer_block(
        self,
        block: TransformerBlock,
        x: Tensor,
        clip: ClipConditions,
        condition_frames: Sequence[int],
        batch: int,
        size: tuple[int, int],
    ) -> Tensor | None:
        """The block with its attention patches; None if there are none."""
        place = self._place(block.name)
        self.options["block"] = place
        self.options["block_index"] = 0
        self.options["activations_shape"] = [batch * x.shape[1], x.shape[3], *size]
        if not self.attention:
            return None
        extra = {name: value for name, value in self.options.items() if name not in ("patches", "patches_replace")}
        extra |= {"n_heads": block.attn1.heads, "dim_head": x.shape[3] // block.attn1.heads, "attn_precision": None}
        rows = x.flatten(0, 1)  # (b t, n, c)
        rows = self._self_attention(block, block.norm1(rows), condition_frames, place, extra) + rows
        for patch in self.patches.get("middle_patch", ()):
            rows = patch(rows, extra)
        rows = to_batch(rows.unflatten(0, (-1, self.frames)), batch).flatten(0, 1)  # the guidance branches part
        rows = self._cross_attention(block, block.norm2(rows), clip, place, extra, size) + rows
        rows = rows + block.ff(block.norm3(rows))
        self.options["transformer_index"] += 1
        return rows.unflatten(0, (-1, self.frames))

    def _self_attention(
        self, block: TransformerBlock, n: Tensor, condition_frames: Sequence[int], place: tuple, extra: dict
    ) -> Tensor:
        context = value = n
        for patch in self.patches.get("attn1_patch", ()):
            n, context, value = patch(n, context, value, extra)
        attn = block.attn1
        q = attn.to_q(n)
        tiles = q.shape[0] // context.shape[0]
        k = self._beside_conditions(attn.to_k(context), condition_frames, tiles)
        v = self._beside_conditions(attn.to_v(value), condition_frames, tiles)
        replacement = self._replacement("attn1", place)
        out = self._attend(attn, q, k, v) if replacement is None else replacement(q, k, v, extra)
        out = attn.to_out["0"](out[:, : q.shape[1]])  # some answer with as many tokens as there are keys
        for patch in self.patches.get("attn1_output_patch", ()):
            out = patch(out, extra)
        return out

    def _beside_conditions(self, x: Tensor, condition_frames: Sequence[int], tiles: int) -> Tensor:
        """Keys or values of every frame, with those of the condition frames behind them.

        HyperTile cuts the queries into tiles, which become rows, and leaves it to the attention to deal the keys out to
        them: so each tile gets its part of every frame.
        """
        if not condition_frames:
            return x
        windows = x.unflatten(0, (-1, self.frames)).unflatten(2, (tiles, -1))  # (b, t, tiles, n, c)
        b, t, _, _, c = windows.shape
        shared = take_frames(windows, condition_frames).transpose(1, 2).reshape(b, 1, tiles, -1, c)
        return torch.cat([windows, shared.expand(-1, t, -1, -1, -1)], dim=3).flatten(0, 2)

    def _cross_attention(
        self, block: TransformerBlock, n: Tensor, clip: ClipConditions, place: tuple, extra: dict, size: tuple[int, int]
    ) -> Tensor:
        attn = block.attn2
        found = self.patches.get("attn2_patch", ())
        replacement = self._replacement("attn2", place)
        if found or replacement is not None:
            context = value = self.inputs["context"]
            for patch in found:
                n, context, value = patch(n, context, value, extra)
            q, k, v = attn.to_q(n), attn.to_k(context), attn.to_v(value)
            out = replacement(q, k, v, extra) if replacement is not None else self._attend(attn, q, k, v)
            pictures = attn.picture_terms(clip)
            if pictures:
                windows = (y.unflatten(0, (-1, self.frames)) for y in (out, q))
                out = attn.add_terms(*windows, pictures, size).flatten(0, 1)
            out = attn.to_out["0"](out)
        else:
            windows = n.unflatten(0, (-1, self.frames))
            out = attn(windows, clip, windows.shape[0], size).flatten(0, 1)
        for patch in self.patches.get("attn2_output_patch", ()):
            out = patch(out, extra)
        return out

    def _attend(self, attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return heads_last(optimized_attention(*(heads_first(y, attn.heads) for y in (q, k, v)), self.options))

    def _replacement(self, name: str, place: tuple) -> Any:
        found = self.replace.get(name, {})
        return found.get((*place, 0), found.get(place))

    def _place(self, name: str) -> tuple[str, int]:
        """ComfyUI's name of the block: `down_blocks.1.attentions.0. ...` is input block 4."""
        part, *rest = name.split(".")
        if part == "mid_block":
            return ("middle", 0)
        i, j, row = int(rest[0]), int(rest[2]), self.layers_per_block + 1
        return ("input", 1 + row * i + j) if part == "down_blocks" else ("output", row * i + j)


def _to_pictures(x: Tensor) -> Tensor:
    """`(b, t, h, w, c)` to `(b t, c, h, w)`; a copy where rows are shared, since patches may write into it."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)
