"""The one place where attention is computed. A host may hand in its own function."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

# (q, k, v), each (b, heads, tokens, head_dim) and possibly strided, to (b, heads, tokens of q, head_dim)
AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention without mask, by torch."""
    return F.scaled_dot_product_attention(q, k, v)


def heads_first(x: Tensor, heads: int) -> Tensor:
    """`(b, n, heads * d)` as a view `(b, heads, n, d)`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def heads_last(x: Tensor) -> Tensor:
    """`(b, heads, n, d)` to `(b, n, heads * d)`."""
    return x.transpose(1, 2).flatten(2)
