"""Strength 0, or a place outside start and end, is absence: bit for bit, whatever else hangs on the MODEL."""

import itertools

import pytest
import torch
from support.comfy_clips import PLAIN, Clip, Nodes, base, sample

STILL = Clip(condition_frames=0)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def absent():
    """What ComfyUI makes of the clip without any of our nodes."""
    with torch.inference_mode():
        return {clip.condition_frames: sample(base(), clip) for clip in (Clip(), STILL)}


def test_motion_of_strength_0_is_as_if_no_node_were_there(nodes, absent):
    assert torch.equal(sample(nodes.motion(base(), strength=0.0)), absent[1])


def test_strength_0_switches_everything_off_wherever_it_stands(nodes, absent):
    """A schedule, windows and pictures are MuseV's; without motion nothing of it is left."""
    after = nodes.everything(nodes.motion(base(), strength=0.0))
    before = nodes.motion(nodes.everything(base()), strength=0.0)
    assert torch.equal(sample(after), absent[1])
    assert torch.equal(sample(before), absent[1])


@pytest.mark.parametrize("span", [(1.0, 1.0), (0.4, 0.6)])  # the two steps lie at 0 and at 0.999
def test_outside_start_and_end_comfyui_computes_the_clip(span, nodes, absent):
    model = nodes.noise(nodes.motion(base(), start_percent=span[0], end_percent=span[1]))
    assert torch.equal(sample(model, STILL), absent[0])
    # condition frames leave as they came, which ComfyUI alone does to rounding only
    clip = Clip()
    out = sample(model, clip)
    assert torch.equal(out[1:], absent[1][1:])
    assert torch.equal(out[:1], clip.latents[:1])


def test_steps_within_the_span_move_and_others_do_not(nodes, absent):
    first = sample(nodes.noise(nodes.motion(base(), end_percent=0.5)), STILL)
    second = sample(nodes.noise(nodes.motion(base(), start_percent=0.5)), STILL)
    both = sample(nodes.noise(nodes.motion(base())), STILL)
    for a, b in itertools.combinations((first, second, both, absent[0]), 2):
        assert not torch.equal(a, b)


PICTURES = {"reference": "strength", "ip_adapter": "weight", "face": "weight"}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_strength_0_are_as_if_their_node_were_not_there(name, nodes):
    moving = nodes.motion(base())
    without = sample(moving)
    attach = getattr(nodes, name)
    assert torch.equal(sample(attach(moving, **{PICTURES[name]: 0.0})), without)
    assert torch.equal(sample(attach(moving, start_percent=1.0)), without)
    assert not torch.equal(sample(attach(moving)), without)


def test_one_kind_of_pictures_switched_off_leaves_the_others_as_they_are(nodes):
    moving = nodes.ip_adapter(nodes.motion(base()))
    assert torch.equal(sample(nodes.face(nodes.reference(moving, start_percent=1.0), weight=0.0)), sample(moving))


def test_the_order_of_nodes_does_not_matter(nodes):
    """Pictures are looked at when sampling starts: a node can stand before or after the motion model."""
    kinds = (nodes.motion, nodes.reference, nodes.ip_adapter, nodes.face)
    results = []
    for order in (kinds, kinds[::-1], (nodes.face, nodes.motion, nodes.ip_adapter, nodes.reference)):
        model = base()
        for node in order:
            model = node(model)
        results.append(sample(model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_a_node_is_given_stays_as_it_was(nodes, absent):
    plain = base()
    moving = nodes.motion(plain)
    moved = sample(moving)
    everything = nodes.everything(moving)
    other = nodes.motion(plain, arch=PLAIN)
    assert not torch.equal(sample(everything), moved)
    assert not torch.equal(sample(other), moved)
    assert torch.equal(sample(moving), moved)
    assert torch.equal(sample(plain), absent[1])
    assert not plain.wrappers
    assert not plain.attachments
    assert "context_handler" not in plain.model_options
