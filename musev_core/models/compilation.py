"""torch.compile for a network, and CUDA graphs."""

from typing import Any

import einops
import torch
from torch import Tensor, nn


def compile_network(net: nn.Module, *, graphs: bool = False, **options: Any) -> None:
    """Lets torch.compile take the network, whose output is one tensor, as one graph at its first call for each shape.

    Args:
        graphs: record its kernels as CUDA graphs as well, so that the GPU never waits for the host between two of them.
            Every shape of the inputs is compiled and recorded on its own, so windows should have equal lengths; what is
            constant over a clip is copied into the graph's memory at every call. Nothing is recorded on other devices.
        options: of `torch.compile`.
    """
    for operation in (einops.rearrange, einops.repeat):
        # dynamo would trace how einops reads its patterns, in every call of every layer: minutes
        torch.compiler.allow_in_graph(operation)
    if graphs:
        options = {"mode": "reduce-overhead", "dynamic": False} | options
    net.compile(**({"fullgraph": True} | options))
    if graphs:
        _keep_outputs(net)


def _keep_outputs(net: nn.Module) -> None:
    """Copies the output: the graph's next run writes over it, when the caller may need it still."""
    run: Any = net._compiled_call_impl  # where `Module.compile` leaves it; a hook would become part of the graph

    def call(*args: Any, **kwargs: Any) -> Tensor:
        return run(*args, **kwargs).clone()

    net._compiled_call_impl = call
