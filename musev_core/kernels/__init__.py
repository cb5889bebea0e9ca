"""Fused operations for CUDA with their torch reference beside them.

Each operation is one `torch.library` operator of the namespace `musev`: `torch.compile` sees it as one node, and it
runs a Triton kernel on CUDA tensors and the torch reference on all others. The functions choose for themselves, so
they may be called anywhere; `active` tells a caller that has a path of its own whether the operators would run.
"""

from .attention import temporal_attention
from .gating import geglu
from .group_norm import group_norm_silu
from .layer_norm import add_layer_norm
from .selection import active, use

__all__ = ["active", "add_layer_norm", "geglu", "group_norm_silu", "temporal_attention", "use"]
