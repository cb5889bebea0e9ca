"""How a function becomes an operator of the namespace `musev`."""

from collections.abc import Callable
from typing import Any

import torch

# Registered directly: `torch.library.custom_op` does the same at twice the cost per call, and at several milliseconds
# of import, for an autograd layer that these operators do not have.
_library = torch.library.Library("musev", "FRAGMENT")


def operator(schema: str, run: Callable[..., Any], shape: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with this schema, e.g. `"geglu(Tensor x) -> Tensor"`.

    `run` computes it on every device; `shape` makes empty results of the right shape, type and layout, for
    `torch.compile` and fake tensors. A second copy of this package in the process shares the first one's operators.
    """
    name = schema[: schema.index("(")]
    if not hasattr(torch.ops.musev, name):
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"musev::{name}", shape, lib=_library)
    return getattr(torch.ops.musev, name).default
