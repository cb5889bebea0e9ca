"""Training: the loss reaches every weight of the UNet, the ReferenceNet and the image projection."""

import copy
from functools import cache

import torch
from support import golden_models as models
from support import unet_inputs as small
from support.numbers import fill
from torch import nn

from musev_core.models.conditions import ClipConditions


@cache
def trained() -> dict[str, nn.Module]:
    """All trainable networks after one backward pass through all of them."""
    unet, reference_net = copy.deepcopy(small.unet()), copy.deepcopy(small.reference_net())
    image_projection = copy.deepcopy(models.projection("plain", 0)).double()
    networks = {"unet": unet, "reference_net": reference_net, "image_projection": image_projection}
    for net in networks.values():
        net.requires_grad_(True)
    tokens = image_projection(small.numbers("embedding", 2, 24))
    features = reference_net(small.numbers("ref", 2, 4, 1, *small.SIZE), tokens)
    clip = ClipConditions(small.text(), tokens, reference=features)
    prediction = unet(small.sample(), 500.0, clip, condition_frames=(0,))
    (prediction - small.sample(seed=1))[:, :, 1:].square().mean().backward()  # no loss on the condition frame
    return networks


def unreached(net: nn.Module) -> set[str]:
    """Weights whose gradient is missing or nothing but rounding, measured by the largest one."""
    sizes = {
        name: 0.0 if x.grad is None else float(x.grad.norm() / x.detach().norm()) for name, x in net.named_parameters()
    }
    return {name for name, size in sizes.items() if not size > 1e-9 * max(sizes.values())}


def test_gradients_reach_every_weight_of_the_unet() -> None:
    # With 32 channels in 32 groups the next norm takes a bias away again; the released widths have 10 channels or more.
    followed_by_norm = ("conv1.2", "conv2.3", "conv3.3")
    places = [("down_blocks.0", 2), ("up_blocks.3", 3)]
    exceptions = {
        f"{block}.temp_convs.{j}.{conv}.bias" for block, n in places for j in range(n) for conv in followed_by_norm
    }
    assert unreached(trained()["unet"]) == exceptions


def test_gradients_reach_every_weight_of_the_reference_net() -> None:
    # the last two features are never used, but the mid block comes after the layers which make them
    assert unreached(trained()["reference_net"]) == set()


def test_gradients_reach_the_image_projection() -> None:
    assert unreached(trained()["image_projection"]) == set()


def test_gradients_reach_the_context_of_the_reference_net() -> None:
    context = small.image_tokens().requires_grad_()
    features = small.reference_net()(small.numbers("ref", 2, 4, 1, *small.SIZE), context)
    (gradient,) = torch.autograd.grad(features.mid.square().sum(), context)
    assert gradient.norm() > 1e-4


def test_a_network_made_during_inference_can_be_trained_by_the_next_test() -> None:
    with torch.inference_mode():
        net = models.shared(lambda: fill(nn.Linear(2, 2), "shared.", 0))()
    net.requires_grad_(True)
    net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is not None
