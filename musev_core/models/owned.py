"""Weights that are ours, laid out in memory as the layers read them."""

import torch
from torch import nn

from .temporal import TemporalSelfAttention


def lay_out_weights(net: nn.Module) -> None:
    """Rearranges the memory of a network's own weights; their names, shapes and values stay.

    Weights of convolutions become channels-last, like the activations: otherwise CUDA rearranges them at every call.
    The projections of temporal attention come to lie next to each other, so that the fused kernel can read them as one
    matrix and no clip keeps a copy. Leaves lent by a host are none of the network's modules, and stay untouched.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.detach().contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.detach().contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, TemporalSelfAttention):
            module.join_projections()
