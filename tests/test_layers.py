"""Leaf layers have the published names and shapes and may belong to a host; all attention goes through one function."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import unet_inputs as small
from support.golden_models import GOLDENS, PREFIX, unet_config
from support.numbers import fill
from torch import Tensor, nn

from musev_core import kernels
from musev_core.config import MUSEV, MUSEV_REFERENCENET, SD15, VARIANTS, UNetConfig
from musev_core.models.attention import scaled_dot_product
from musev_core.models.conditions import ClipConditions
from musev_core.models.layers import Borrowed, Layers, conv_over_time, hosted_layers, new_layers, norm_silu
from musev_core.models.owned import lay_out_weights
from musev_core.models.reference_fusion import ReferenceFusion
from musev_core.models.reference_net import ReferenceNet
from musev_core.models.temporal import TemporalSelfAttention
from musev_core.models.transformer import CrossAttention, SelfAttention
from musev_core.models.unet import MuseVUNet

MANIFESTS = Path(__file__).parent / "manifests"
TINY2_CONFIG = unet_config(small.REFERENCED, "tiny2")
WITH_FACE = replace(MUSEV_REFERENCENET, face_prompt=True)


def manifest(name: str) -> dict[str, list[int]]:
    return json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))["state_dict"]


def tiny2_names(what: str) -> set[str]:
    names = json.loads((GOLDENS / "manifests.json").read_text(encoding="utf-8"))[f"{what}/tiny2"]
    return {name for name in names if "ip_adapter_face_to_" not in name}


def shapes(module: nn.Module) -> dict[str, list[int]]:
    """Of everything a file would hold; buffers would show up here too."""
    return {name: list(x.shape) for name, x in module.state_dict().items()}


def on_meta() -> Layers:
    return Layers(new_layers(device="meta"))


def borrowed(module: nn.Module) -> dict[str, nn.Module]:
    """The host's leaves inside, by their published name."""
    return {
        f"{place}.{attribute}" if place else attribute: value.layer
        for place, part in module.named_modules()
        for attribute, value in vars(part).items()
        if isinstance(value, Borrowed)
    }


@pytest.fixture
def host() -> nn.Module:
    return small.diffusers_unet()


def hosted(host: nn.Module, build: type[MuseVUNet] | type[ReferenceNet] = MuseVUNet) -> nn.Module:
    """A network over the host's leaves; its own weights are those of `small.unet`."""
    layers = Layers(hosted_layers(dict(host.named_modules()), new_layers()))
    return fill(build(TINY2_CONFIG, layers), PREFIX["unet"], 0).double()


def predict(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(small.sample(), 500.0, small.full_clip(), condition_frames=(0,))


# published names and shapes


@pytest.mark.parametrize(
    "name, config",
    [
        ("musev.unet", VARIANTS["musev"]),
        ("musev_referencenet.unet", VARIANTS["musev_referencenet"]),
        ("musev_referencenet_pose.unet", VARIANTS["musev_referencenet_pose"]),
        ("musev_referencenet.unet_with_faceid", WITH_FACE),
        ("sd15_unet", SD15),
        ("sd15_unet", MUSEV_REFERENCENET.spatial()),
    ],
)
def test_full_size_unet_has_the_published_tensors(name: str, config: UNetConfig) -> None:
    assert shapes(MuseVUNet(config, on_meta())) == manifest(name)


def test_full_size_reference_net_has_the_published_tensors() -> None:
    assert shapes(ReferenceNet(MUSEV_REFERENCENET, on_meta())) == manifest("musev_referencenet.referencenet")


# layers of a host


@pytest.mark.parametrize(
    "name, config",
    [
        ("musev.unet", MUSEV),
        ("musev_referencenet.unet", MUSEV_REFERENCENET),
        ("musev_referencenet.unet_with_faceid", WITH_FACE),
    ],
)
def test_full_size_over_a_stable_diffusion_unet_owns_the_motion_layers_only(name: str, config: UNetConfig) -> None:
    base = MuseVUNet(SD15, on_meta())
    net = MuseVUNet(config, Layers(hosted_layers(dict(base.named_modules()), new_layers(device="meta"))))

    expected = {key: shape for key, shape in manifest(name).items() if key not in manifest("sd15_unet")}
    assert shapes(net) == expected
    assert {key for key, _ in net.named_parameters()} == set(expected)


def test_hosted_network_predicts_what_a_network_of_its_own_predicts(host: nn.Module) -> None:
    assert small.distance(predict(hosted(host)), predict(small.unet())) <= small.SAME


def test_hosted_network_borrows_every_leaf_of_the_host_and_lists_none(host: nn.Module) -> None:
    net = hosted(host)
    base = tiny2_names("unet2d")

    lent = borrowed(net)
    assert set(lent) == {key.rpartition(".")[0] for key in base}
    assert all(leaf is host.get_submodule(name) for name, leaf in lent.items())
    own = tiny2_names("unet/musev_referencenet") - base
    assert set(net.state_dict()) == own
    assert {name for name, _ in net.named_parameters()} == own


def test_moving_a_hosted_network_leaves_the_host_alone(host: nn.Module) -> None:
    net = hosted(host)
    net.to(torch.float16).requires_grad_(True)
    assert {x.dtype for x in net.parameters()} == {torch.float16}
    assert {(x.dtype, x.requires_grad) for x in host.parameters()} == {(torch.float64, False)}


@pytest.mark.parametrize("leaf", ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"])
def test_a_changed_host_weight_changes_the_prediction(host: nn.Module, leaf: str) -> None:
    net = hosted(host)
    before = predict(net)
    with torch.no_grad():
        host.get_submodule(leaf).bias.add_(0.1)
    assert small.distance(predict(net), before) > 1e-4


def test_hosted_reference_net_owns_nothing_and_sees_the_same(host: nn.Module) -> None:
    net = hosted(host, ReferenceNet)
    own = fill(ReferenceNet(TINY2_CONFIG), PREFIX["unet"], 0).double()
    assert not net.state_dict()
    assert set(borrowed(net)) == {key.rpartition(".")[0] for key in tiny2_names("reference_net")}

    latents, context = small.numbers("ref", 2, 4, 1, *small.SIZE), small.image_tokens()
    with torch.no_grad():
        got, expected = net(latents, context), own(latents, context)
    assert len(got.down) == 12
    for x, y in zip([*got.down, got.mid], [*expected.down, expected.mid], strict=True):
        assert small.distance(x, y) <= small.SAME


def test_motion_layers_get_the_same_gradients_over_a_host(host: nn.Module) -> None:
    """Training may borrow a frozen base; the flow through borrowed leaves must not be cut."""
    net, own = hosted(host), MuseVUNet(TINY2_CONFIG).double()
    own.load_state_dict(small.unet().state_dict())
    target = small.sample(seed=1)
    for network in (net, own):
        network.requires_grad_(True)
        output = network(small.sample(), 500.0, small.full_clip(), condition_frames=(0,))
        (output - target).square().mean().backward()

    expected = dict(own.named_parameters())
    total = sum(x.grad.square().sum() for x in expected.values()) ** 0.5
    for name, parameter in net.named_parameters():
        assert (parameter.grad - expected[name].grad).norm() <= small.SAME * total, name
    assert all(x.grad is None for x in host.parameters())


def test_new_layers_come_from_the_given_operations_with_device_and_dtype() -> None:
    class Linear(nn.Linear):
        pass

    operations = SimpleNamespace(**{**vars(nn), "Linear": Linear})
    net = MuseVUNet(TINY2_CONFIG, Layers(new_layers(operations, device="meta", dtype=torch.bfloat16)))
    assert {(x.device.type, x.dtype) for x in net.parameters()} == {("meta", torch.bfloat16)}
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert len(linear) > 100
    assert all(type(m) is Linear for m in linear)


def test_an_unknown_kind_of_layer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown kind of layer 'conv1d' for 'a.b'"):
        new_layers()("a.b", "conv1d", 1, 2)


# attention


def spelled_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.mark.parametrize("arch", small.ARCHS)
def test_every_attention_goes_through_the_function_of_the_host(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, clip = small.unet(arch), small.full_clip()
    with torch.no_grad():
        expected = own(small.sample(), 500.0, clip, condition_frames=(0,))

    calls = 0

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return spelled_out(q, k, v)

    net = MuseVUNet(unet_config(arch, "tiny2"), Layers(new_layers(dtype=torch.float64), attention=attention))
    net.load_state_dict(own.state_dict())
    monkeypatch.delattr(torch.nn.functional, "scaled_dot_product_attention")
    with torch.no_grad():
        got = net(small.sample(), 500.0, clip, condition_frames=(0,))

    assert small.distance(got, expected) <= small.SAME
    kinds = Counter(type(m) for m in net.modules())
    image_terms = kinds[CrossAttention] if net.config.image_prompt else 0
    single = kinds[SelfAttention] + kinds[CrossAttention] + kinds[TemporalSelfAttention] + kinds[ReferenceFusion]
    assert calls == single + image_terms


def test_the_reference_net_uses_the_function_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, context = small.numbers("ref", 2, 4, 1, *small.SIZE), small.image_tokens()
    net = ReferenceNet(TINY2_CONFIG, Layers(new_layers(dtype=torch.float64), attention=spelled_out))
    net.load_state_dict(small.reference_net().state_dict())
    with torch.no_grad():
        expected = small.reference_net()(latents, context)
        monkeypatch.delattr(torch.nn.functional, "scaled_dot_product_attention")
        assert small.distance(net(latents, context).mid, expected.mid) <= small.SAME


def test_plain_attention_is_softmax_of_scaled_products() -> None:
    q, k, v = (small.numbers(name, 2, 3, n, 8) for name, n in (("q", 5), ("k", 7), ("v", 7)))
    assert small.distance(scaled_dot_product(q, k, v), spelled_out(q, k, v)) <= small.SAME


@pytest.mark.parametrize("arch", ["musev", small.REFERENCED])
def test_fused_operators_give_the_same_prediction(arch):
    """The operators run their torch reference here; the kernels themselves are tested in test_kernels.py."""
    clip = small.full_clip() if arch == small.REFERENCED else ClipConditions(small.text(2))
    net, options = small.unet(arch), {"condition_frames": (0,)}
    with torch.no_grad():
        plain = net(small.sample(), 500.0, clip, **options)
        with kernels.use("on"):
            fused = net(small.sample(), 500.0, replace(clip), **options)
    assert small.distance(fused, plain) <= 1e-12


def test_a_hosts_norms_are_called_unless_it_gives_their_gains():
    calls = []

    def gains(norm):
        calls.append(norm)
        return norm.weight * 2, norm.bias

    norm = torch.nn.GroupNorm(8, 32)
    x = torch.randn(1, 2, 4, 4, 32)
    with torch.no_grad(), kernels.use("on"):
        called = norm_silu(Borrowed(norm), x)
        given = norm_silu(Borrowed(norm, gains), x)
        norm.weight.mul_(2)
        expected = norm_silu(norm, x)
    assert len(calls) == 1
    torch.testing.assert_close(given, expected)
    assert not torch.allclose(called, expected)


# weights of our own


def laid_out(net: nn.Module | None = None) -> nn.Module:
    net = copy.deepcopy(net or small.unet())
    lay_out_weights(net)
    return net


def temporal_attentions(net: nn.Module) -> list[TemporalSelfAttention]:
    return [m for m in net.modules() if isinstance(m, TemporalSelfAttention)]


def projections_bytes(net: nn.Module) -> int:
    return sum(x.nbytes for m in temporal_attentions(net) for x in (m.to_q.weight, m.to_k.weight, m.to_v.weight))


def fused(net: nn.Module) -> tuple[Tensor, ClipConditions]:
    """A prediction by our operators, and its clip with what was kept for it."""
    clip = replace(small.full_clip())
    with torch.no_grad(), kernels.use("on"):
        return net(small.sample(), 500.0, clip, condition_frames=(0,)), clip


def is_channels_last(weight: Tensor) -> bool:
    layout = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    return weight.is_contiguous(memory_format=layout)


def test_laid_out_weights_keep_names_values_and_predictions() -> None:
    plain, net = small.unet(), laid_out()
    state, expected = net.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(x, expected[name]) for name, x in state.items())
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(is_channels_last(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    assert small.distance(predict(net), predict(plain)) <= small.SAME


def test_a_clip_keeps_no_copy_of_joined_projections() -> None:
    plain, net = small.unet(), laid_out()
    (expected, with_copies), (got, without) = fused(plain), fused(net)
    assert torch.equal(got, expected)
    assert with_copies.nbytes() - without.nbytes() == projections_bytes(net) > 0


def test_projections_stay_joined_when_the_network_moves() -> None:
    net = laid_out().float()
    _, clip = fused(net.double())
    _, copies = fused(small.unet())
    assert copies.nbytes() - clip.nbytes() == projections_bytes(net)
    assert all(m.projection is not None and m.projection.dtype == torch.float64 for m in temporal_attentions(net))


def test_a_change_of_joined_weights_in_place_counts() -> None:
    net = laid_out()
    before, _ = fused(net)
    with torch.no_grad():
        temporal_attentions(net)[0].to_v.weight.mul_(2)
    after, _ = fused(net)
    assert small.distance(after, before) > 1e-4
    assert small.distance(after, predict(net)) <= small.SAME


@pytest.mark.parametrize("how", ["assigned", "copied"])
def test_weights_that_were_replaced_are_not_mistaken_for_joined_ones(how: str) -> None:
    net = laid_out()
    if how == "assigned":
        state = {name: x * 1.1 for name, x in net.state_dict().items()}
        net.load_state_dict(state, assign=True)
    else:
        net = copy.deepcopy(net)
        with torch.no_grad():
            temporal_attentions(net)[0].to_v.weight.mul_(2)
    assert small.distance(fused(net)[0], predict(net)) <= small.SAME


def test_joined_weights_are_written_to_a_file_as_any_others(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    net = laid_out()
    state = {name: x.contiguous() for name, x in net.state_dict().items()}
    save_file(state, tmp_path / "unet.safetensors")
    assert all(torch.equal(x, state[name]) for name, x in load_file(tmp_path / "unet.safetensors").items())


def test_weights_of_a_host_are_not_rearranged(host: nn.Module) -> None:
    net = hosted(host)
    before = {name: (x.data_ptr(), x.stride()) for name, x in host.named_parameters()}
    expected = predict(net)
    lay_out_weights(net)
    assert {name: (x.data_ptr(), x.stride()) for name, x in host.named_parameters()} == before
    own = [m for m in net.modules() if isinstance(m, nn.Conv3d)]
    assert own and all(is_channels_last(m.weight) for m in own)
    assert small.distance(predict(net), expected) <= small.SAME


# convolution over time


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_convolution_over_time_is_the_convolution_of_volumes(dtype: torch.dtype) -> None:
    conv, x = nn.Conv3d(8, 6, (3, 1, 1), padding=(1, 0, 0)).double(), small.numbers("x", 2, 5, 4, 3, 8)
    with torch.no_grad():
        expected = conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        y = conv_over_time(conv.to(dtype), x.to(dtype))
    assert y.shape == (2, 5, 4, 3, 6) and y.is_contiguous()
    assert small.distance(y.double(), expected) <= (small.SAME if dtype == torch.float64 else 2e-3)


def test_a_hosts_convolution_over_time_is_called() -> None:
    class Casting(nn.Conv3d):
        """A host's layer, which does something to its weights first."""

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    conv, x = Casting(8, 8, (3, 1, 1), padding=(1, 0, 0)).double(), small.numbers("x", 1, 4, 3, 3, 8)
    plain = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)).double()
    plain.load_state_dict(conv.state_dict())
    with torch.no_grad():
        assert small.distance(conv_over_time(conv, x), conv_over_time(plain, x) + 1) <= small.SAME
