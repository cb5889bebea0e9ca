"""The weights belong to ComfyUI: they exist once, and are loaded, moved and freed by its memory management."""

import copy
import gc

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from support.comfy_clips import REFERENCENET, Clip, Nodes, base, faceid, motion, prompt, reference_net, sample
from support.golden_comfy import golden_base
from support.numbers import det

from musev_pack.nodes.host.options import options_of


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


def moved(nodes: Nodes, model):
    return nodes.face(nodes.ip_adapter(nodes.reference(nodes.windows(nodes.motion(model)))))


@pytest.fixture(autouse=True)
def nothing_loaded():
    comfy.model_management.unload_all_models()
    yield
    comfy.model_management.unload_all_models()


def with_lora(model):
    """A LoRA on a weight and on a bias."""
    unet = "diffusion_model.middle_block.1.transformer_blocks.0."
    differences = {f"{unet}attn1.to_q.weight": (64, 64), f"{unet}norm1.weight": (64,), f"{unet}ff.net.2.bias": (64,)}
    new = model.clone()
    new.add_patches({key: ("diff", (det(key, shape, scale=0.1),)) for key, shape in differences.items()}, 0.5)
    return new


@pytest.fixture
def little_memory(monkeypatch):
    """ComfyUI finds room for a few layers and leaves the others where they are, to be cast when they are called."""
    load = comfy.model_patcher.ModelPatcher.load

    def partly(self, device_to=None, lowvram_model_memory=0, *args, **kwargs):
        return load(self, device_to, 400_000, **{**kwargs, "full_load": False})

    def allow():
        comfy.model_management.unload_all_models()
        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", partly)

    return allow


@pytest.mark.parametrize("lora", [False, True])
def test_partly_loaded_models_give_the_same_clip(lora, nodes, little_memory):
    model = moved(nodes, with_lora(base()) if lora else base())
    expected = sample(model)
    little_memory()
    assert torch.equal(sample(model), expected)
    tree = motion(REFERENCENET, nodes.folder).patcher.model
    for network in (base().model, tree, reference_net(nodes.folder).net):
        assert network.model_lowvram
        assert 0 < network.model_loaded_weight_memory < comfy.model_management.module_size(network)


def test_memory_is_asked_for_one_window(nodes, monkeypatch):
    asked = []
    load = comfy.model_management.load_models_gpu

    def recorded(models, *args, **kwargs):
        asked.append((list(models), kwargs.get("memory_required", args[0] if args else 0)))
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", recorded)
    model = nodes.windows(nodes.motion(base()), length=2)
    sample(model, Clip(frames=9), steps=1)
    ((models, memory),) = asked
    assert [m.model for m in models] == [base().model, motion(REFERENCENET, nodes.folder).tree]
    one_window = [2 * 3, 4, 8, 8]  # two branches of a condition frame and two others
    context = {"c_crossattn": [prompt("positive")[0][0].shape] * 2}
    assert memory == base().model.memory_required(one_window, cond_shapes=context)


def test_pictures_are_prepared_by_networks_that_comfyui_loads(nodes):
    sample(moved(nodes, base()), steps=1)
    loaded = [m.model.model for m in comfy.model_management.current_loaded_models]
    face = faceid(nodes.folder)
    for network in (reference_net(nodes.folder).net, face.projection, face.patchers[1].model):
        assert sum(network is m for m in loaded) == 1


def test_base_and_moving_model_are_one_loaded_model(nodes):
    sample(base(), steps=1)
    sample(moved(nodes, base()), steps=1)
    sample(base(), steps=1)
    loaded = [m.model.model for m in comfy.model_management.current_loaded_models]
    assert sum(m is base().model for m in loaded) == 1
    assert sum(type(m) is type(base().model) for m in loaded) == 1


def memory(tensors) -> dict[int, int]:
    """Storages and their sizes."""
    storages = [x.untyped_storage() for x in tensors]
    return {s.data_ptr(): s.nbytes() for s in storages}


def living() -> int:
    """Bytes in tensors of the whole process."""
    gc.collect()
    return sum(memory(x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)).values())


def test_base_weights_exist_once_whatever_moves_them(nodes):
    """Offloading gives every tensor a new place; a second network which shares memory would keep the old ones."""
    model = moved(nodes, golden_base())
    unet = model.model.diffusion_model
    modules = list(unet.modules())
    expected = sample(model, steps=1)
    before = living()
    for weight in unet.parameters():
        weight.data = weight.data.clone()
    assert torch.equal(sample(model, steps=1), expected)
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(model, steps=1), expected)
    assert all(a is b for a, b in zip(modules, unet.modules(), strict=True))
    assert living() - before < 0.01 * sum(memory(unet.parameters()).values())


def test_runs_and_clones_leave_no_tensors_behind(nodes):
    def run():
        sample(moved(nodes, base()), steps=1)

    run()
    before = living()
    for _ in range(3):
        run()
    assert living() - before < 1000


def test_clones_share_what_the_nodes_have_said(nodes):
    """ComfyUI copies what hangs on a MODEL: pictures and networks are not copied with it."""
    model = moved(nodes, base())
    assert options_of(model.clone()) is options_of(model)
    before = living()
    copies = [copy.deepcopy(model.model_options) for _ in range(3)]
    assert living() == before
    assert len(copies) == 3


def test_torch_compile_changes_nothing(nodes):
    """Our forward is not compiled, and must not be torn apart by a compiler that tries."""
    model = moved(nodes, base())
    expected = sample(model, steps=1)
    after = TorchCompileModel.execute(model, "eager").result[0]
    before = moved(nodes, TorchCompileModel.execute(base(), "eager").result[0])
    assert torch.equal(sample(after, steps=1), expected)
    assert torch.equal(sample(before, steps=1), expected)
    assert torch.equal(sample(model, steps=1), expected)
