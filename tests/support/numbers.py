"""Deterministic tensors by name (goldens/FORMAT.md 1)."""

import math
import zlib

import numpy as np
import torch


def _random(name: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(name.encode("utf-8")) + 1000003 * seed) % 2**32)


def det(name: str, shape, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normal float32 tensor (FORMAT.md 1.1)."""
    a = _random(name, seed).standard_normal(math.prod(shape)).astype(np.float32).reshape(shape)
    return torch.from_numpy(a * np.float32(scale))


def det_image(name: str, shape, seed: int = 0) -> torch.Tensor:
    """Smooth uint8 picture `(b, c, t, h, w)` (FORMAT.md 1.2); float64 on purpose."""
    b, c, t, h, w = shape
    low_size = (b * t, c, max(2, h // 8), max(2, w // 8))
    low = _random(name, seed).uniform(0, 255, low_size).astype(np.float32).astype(np.float64)

    def enlarge(a: np.ndarray, axis: int, size: int) -> np.ndarray:
        n = a.shape[axis]
        y = np.maximum(0.0, (np.arange(size) + 0.5) * n / size - 0.5)
        j = np.floor(y).astype(int)
        k = np.minimum(j + 1, n - 1)
        f = (y - j).reshape([-1 if i == axis else 1 for i in range(a.ndim)])
        return (1 - f) * a.take(j, axis) + f * a.take(k, axis)

    image = enlarge(enlarge(low, 2, h), 3, w).reshape(b, t, c, h, w).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(np.clip(np.round(image), 0, 255).astype(np.uint8))


def det_param(key: str, shape, seed: int) -> torch.Tensor:
    """The weight called `key`, prefix included (FORMAT.md 1.3)."""
    last = key.rsplit(".", 1)[-1]
    if last == "temporal_weight":
        return det(key, shape, seed, 0.7)
    if last == "bias":
        return det(key, shape, seed, 0.1)
    if len(shape) >= 2:
        gain = 1.0
        if "refer_emb_attns" in key:
            gain = 0.1 if ".to_q." in key or ".to_k." in key else 0.5
        return det(key, shape, seed, gain * math.prod(shape[1:]) ** -0.5)
    return det(key, shape, seed, 0.1) + np.float32(1)


def fill(module: torch.nn.Module, prefix: str, seed: int) -> torch.nn.Module:
    """Overwrites every parameter by its rule and returns the module, ready for inference."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(det_param(prefix + key, tuple(parameter.shape), seed))
    return module.eval().requires_grad_(False)
