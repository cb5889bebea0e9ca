"""Small weight files of every kind and form, and ways to damage them."""

import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from . import golden_models as models
from . import published

FORMS = ("safetensors", "zip", "legacy")
SUFFIX = {"safetensors": ".safetensors", "zip": ".bin", "legacy": ".pt"}
NONSENSE = [
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, 2**64, -(2**70), 1e400, float("nan"), 0.5, "", "x", "\ud800", "\x1b[2J"),
    *([], {}, [[]], [1, 2, 3], [-1], [0], [1e9], [2**40, 2**40], [True], {"a": 1}, "F32", "F4", "I64"),
]
CONFIG_NAMES = (
    *("norm_num_groups", "attention_head_dim", "num_attention_heads", "scaling_factor", "hidden_act", "layer_norm_eps"),
    *("controlnet_conditioning_channel_order", "global_pool_conditions"),
)


def networks() -> dict[str, dict[str, Tensor]]:
    """The tensors of a small file of each kind, by what it is."""
    size, seed = published.SIZE, published.SEED
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    projection = {f"image_proj.{name}": x for name, x in models.projection("plain", seed).state_dict().items()}
    return {
        "unet": models.unet("musev_referencenet", size, seed).state_dict(),
        "reference_net": models.reference_net(size, seed).state_dict(),
        "projection": projection,
        "adapter": projection | {"ip_adapter.1.to_k_ip.weight": torch.ones(32, 32)},
        "vae": models.vae(seed).state_dict(),
        "text": published.text_state(),
        "vision": models.image_encoder(seed).state_dict(),
        "controlnet": models.controlnet(size, seed).state_dict(),
        "lora": {
            f"{key}.lora_down.weight": torch.ones(2, 32),
            f"{key}.lora_up.weight": torch.ones(32, 2),
            f"{key}.alpha": torch.tensor(1.0),
        },
        "embedding": {"emb_params": torch.ones(2, 768)},
    }


def written(tensors: Mapping[str, Tensor], form: str) -> bytes:
    """A weight file's bytes."""
    tensors = {name: x.clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
    if form == "safetensors":
        return save(tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------ damage to bytes


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random, share: float = 1.0) -> bytes:
    """Some bytes changed, in the first `share` of the file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(max(1, int(len(changed) * share)))] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed)


def flipped_head(data: bytes, rng: random.Random) -> bytes:
    return flipped(data, rng, 0.1)


def moved(data: bytes, rng: random.Random) -> bytes:
    """A piece of the file in another place as well."""
    start, length, place = rng.randrange(len(data)), rng.randrange(1, 200), rng.randrange(len(data))
    return data[:place] + data[start : start + length] + data[place + rng.choice((0, length)) :]


def edited_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with other JSON; other forms get other bytes in their pickle, whose checksum is right."""
    if data[8:9] != b"{":
        return edited_pickle(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(list(header))
        entry = header[name]
        match rng.randrange(5):
            case 0:
                header[name] = rng.choice(NONSENSE)
            case 1 if isinstance(entry, dict):
                entry[rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(NONSENSE)
            case 2 if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                entry["shape"] = rng.choice(([], [1], entry["shape"][::-1], [*entry["shape"], 1], [2**20] * 4))
            case 3:
                header[str(rng.choice(NONSENSE))] = entry
            case _:
                header.pop(name, None) if len(header) > 1 else None
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        depth = rng.choice((10, 1000, 100_000))
        text = rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, text * 2))
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def edited_pickle(data: bytes, rng: random.Random) -> bytes:
    if not data.startswith(b"PK"):
        return flipped(data, rng, 0.3)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl"):
                content = rng.choice((flipped, moved, truncated))(content, rng)
            new.writestr(info.filename, content)
    return buffer.getvalue()


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(truncated, flipped, flipped_head, moved),
    *(edited_header, edited_header),
)


# ------------------------------------------------------------------------------------------ damage to tensors


def changed_tensors(tensors: Mapping[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """A readable file whose tensors are not what they should be."""
    changed = dict(tensors)
    for name in rng.sample(list(changed), min(len(changed), rng.choice((1, 1, 4, 1000)))):
        x = changed[name]
        match rng.randrange(9):
            case 0:
                del changed[name]
            case 1:
                changed[name] = x.flatten()
            case 2:
                changed[name] = x.flatten()[0]
            case 3:
                changed[name] = x[None]
            case 4:
                changed[name] = x.new_empty(0)
            case 5:
                changed[name] = torch.full_like(x, rng.choice((float("nan"), float("inf"), 1e38)))
            case 6:
                changed[name] = x.to(rng.choice((torch.int8, torch.int64, torch.bool, torch.float64, torch.float16)))
            case 7:
                changed[rng.choice((f"x.{name}", name.replace("0", "9"), name[::-1], name.replace("weight", "")))] = x
            case _:
                changed[name] = torch.cat([x, x]) if x.ndim else x
    return changed or {"x": torch.zeros(1)}


def config_text(rng: random.Random) -> str:
    """A config.json that nobody would have written."""
    if rng.random() < 0.2:
        return rng.choice(("", "[]", "1", "{", "null", '"x"', "[" * 5000, '{"a":' * 5000, "\ufeff{}", "{}" * 3))
    return json.dumps({name: rng.choice(NONSENSE) for name in rng.sample(CONFIG_NAMES, rng.randrange(1, 4))})


def damaged_file(kinds: Mapping[str, Mapping[str, Tensor]], folder: Path, rng: random.Random) -> tuple[str, Path]:
    """Writes one damaged file, sometimes with a config.json beside it; its kind and path."""
    kind, form = rng.choice(list(kinds)), rng.choice(FORMS)
    tensors = kinds[kind]
    if rng.random() < 0.35:
        data = written(changed_tensors(tensors, rng), form)
    else:
        data = rng.choice(BYTES)(written(tensors, form), rng)
    path = folder / f"{kind}{SUFFIX[form]}"
    path.write_bytes(data)
    config = folder / "config.json"
    config.unlink(missing_ok=True)
    if rng.random() < 0.5:
        config.write_text(config_text(rng), encoding="utf-8")
    elif kind == "vision":
        config.write_text(json.dumps(models.CONFIG["clip_vision"]), encoding="utf-8")
    return kind, path
