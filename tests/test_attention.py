"""Attention backends: any number of heads, fallback per layer, and the choice of a network."""

import logging

import pytest
import torch
import torch.nn.functional as F
from support import golden_models as models
from support.numbers import det

from musev_core.errors import MissingPackageError, MuseVError
from musev_core.models.attention import scaled_dot_product, use_attention, with_fallback
from musev_core.models.conditions import ClipConditions


def inputs(b: int, heads: int, n: int = 5, d: int = 4) -> list[torch.Tensor]:
    return [det(name, (b, heads, n, d)) for name in "qkv"]


@pytest.mark.parametrize("b, heads", [(1, 7), (7, 1), (7, 7), (3, 3), (6, 4)])
def test_more_heads_or_rows_than_a_grid_holds_change_nothing(b, heads):
    q, k, v = inputs(b, heads)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(scaled_dot_product(q, k, v, limit=3), expected, rtol=1e-6, atol=1e-6)


def test_temporal_attention_of_a_large_picture_has_more_heads_than_a_grid_holds():
    q = torch.zeros(1, 70000, 2, 1)
    assert scaled_dot_product(q, q, q).shape == q.shape


def test_a_backend_is_used_where_it_can_and_torch_where_it_cannot(caplog):
    tried = []

    def only_narrow_heads(q, k, v):
        tried.append(q.shape[-1])
        if q.shape[-1] > 4:
            raise NotImplementedError("head too wide")
        return torch.zeros_like(q)

    attend = with_fallback(only_narrow_heads, "backend")
    narrow, wide = inputs(1, 2, d=4), inputs(1, 2, d=8)
    assert not attend(*narrow).any()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            torch.testing.assert_close(attend(*wide), F.scaled_dot_product_attention(*wide))
    assert tried == [4, 8]  # what was refused is not tried again
    assert caplog.text.count("cannot do heads of width 8") == 1


def test_out_of_memory_is_no_reason_to_try_another_backend():
    def full(q, k, v):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        with_fallback(full, "backend")(*inputs(1, 2))


def test_a_networks_backend_can_be_changed():
    import copy

    net = copy.deepcopy(models.unet("musev", "tiny", 0))
    clip, x = ClipConditions(det("text", (1, 7, 32))), det("x", (1, 4, 3, 8, 8))
    calls = []

    def counted(q, k, v):
        calls.append(q.shape)
        return scaled_dot_product(q, k, v)

    with torch.no_grad():
        expected = net(x, 500.0, clip)
        use_attention(net, counted)
        assert torch.equal(net(x, 500.0, clip), expected)
        spatial, temporal = 10, 11  # three down, one mid, six up; and the input transformer
        assert len(calls) == 2 * (spatial + temporal)
        use_attention(net, "sdpa")
        net(x, 500.0, clip)
        assert len(calls) == 2 * (spatial + temporal)


def test_unknown_and_missing_backends_are_named():
    net = models.unet("musev", "tiny", 0)
    with pytest.raises(MuseVError, match="unknown attention backend 'flash', expected one of sdpa, xformers"):
        use_attention(net, "flash")
    with pytest.raises(MissingPackageError, match="pip install xformers"):
        use_attention(net, "xformers")
