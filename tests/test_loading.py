"""From files in the published layout to a pipeline which gives the same video as the networks in memory."""

import copy
from dataclasses import replace

import pytest
import torch
from support import golden_models as models
from support import published
from support.letters import letters_tokenizer

from musev_core.encode.pictures import ImagePromptEncoder
from musev_core.errors import CheckpointError, MuseVError
from musev_core.loading import LoraFile, ModelFiles, load_controlnet, load_pipeline
from musev_core.models.owned import lay_out_weights
from musev_core.models.temporal import TemporalSelfAttention
from musev_core.pipeline import MuseVPipeline, SamplingOptions


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    published.write_musev(root / "motion")
    published.write_musev(root / "motion", arch="musev", suffix=".safetensors")
    published.write_base(root / "base")
    published.single_file(root / "single.safetensors")
    published.write_image_encoder(root / "image_encoder")
    return root


def in_memory(arch: str = "musev_referencenet") -> MuseVPipeline:
    size, seed = published.SIZE, published.SEED
    unet, reference_net = copy.deepcopy(models.unet(arch, size, seed)), copy.deepcopy(models.reference_net(size, seed))
    for net in (unet, reference_net):
        lay_out_weights(net)
    return MuseVPipeline(
        unet,
        models.vae(seed),
        letters_tokenizer(),
        models.text_encoder(seed),
        None if arch == "musev" else reference_net,
        None if arch == "musev" else ImagePromptEncoder(models.image_encoder(seed), models.projection("plain", seed)),
    )


def video(pipeline: MuseVPipeline) -> torch.Tensor:
    image = (torch.arange(64 * 64 * 3) % 251).reshape(1, 64, 64, 3).to(torch.uint8)
    sampling = SamplingOptions(num_steps=1)
    return pipeline("ab c", negative_prompt="d", image=image, num_frames=3, seed=1, sampling=sampling).latents


def files(disk, **changes) -> ModelFiles:
    given = ModelFiles(
        musev=disk / "motion",
        base=disk / "base",
        variant="musev_referencenet",
        image_encoder=disk / "image_encoder",
    )
    return replace(given, **changes)


@pytest.fixture(scope="module")
def expected():
    return video(in_memory())


def test_the_published_layout_gives_the_same_video(disk, expected):
    assert torch.equal(video(load_pipeline(files(disk), device="cpu")), expected)


def test_the_weights_are_laid_out_as_the_layers_read_them(disk):
    pipeline = load_pipeline(files(disk), device="cpu", dtype=torch.bfloat16)
    for net in (pipeline.unet, pipeline.reference_net):
        convolutions = [m.weight for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
        assert convolutions and all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    attentions = [m for m in pipeline.unet.modules() if isinstance(m, TemporalSelfAttention)]
    assert attentions
    for m in attentions:
        storages = {x.untyped_storage().data_ptr() for x in (m.to_q.weight, m.to_k.weight, m.to_v.weight, m.projection)}
        assert len(storages) == 1


def test_a_single_checkpoint_file_as_base_gives_the_same_video(disk, expected):
    # its VAE has no config beside it, so group norms are not told: take the folder's
    changes = {"base": disk / "single.safetensors", "vae": disk / "base", "tokenizer": disk / "base" / "tokenizer"}
    pipeline = load_pipeline(files(disk, **changes), device="cpu")
    # the heads of a tiny text encoder cannot be seen in a single file either
    pipeline.text_encoder = models.text_encoder(published.SEED)
    assert torch.equal(video(pipeline), expected)


def test_motion_only_file_of_its_own_gives_the_same_video(disk, expected, tmp_path):
    folder = published.write_musev(tmp_path, suffix=".safetensors", motion_only=True)
    assert torch.equal(video(load_pipeline(files(disk, musev=folder, variant=None), device="cpu")), expected)


def test_musev_without_references(disk):
    loaded = load_pipeline(files(disk, variant="musev", image_encoder=None), device="cpu")
    assert loaded.reference_net is None and loaded.image_prompt is None
    assert torch.equal(video(loaded), video(in_memory("musev")))


def test_half_precision_files_and_networks_stay_close(disk, expected, tmp_path):
    folder = published.write_musev(tmp_path, dtype=torch.float16)
    pipeline = load_pipeline(files(disk, musev=folder, variant=None), device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.bfloat16}
    assert next(pipeline.vae.parameters()).dtype == torch.float32
    got = video(pipeline)
    assert (got - expected).norm() / expected.norm() < 0.1


def test_networks_that_are_not_wanted_are_not_loaded(disk):
    pipeline = load_pipeline(files(disk, use_reference_net=False, use_image_prompt=False), device="cpu")
    assert pipeline.reference_net is None and pipeline.image_prompt is None


def test_progress_names_every_network(disk):
    said = []
    load_pipeline(files(disk), device="cpu", progress=said.append)
    assert said == ["UNet", "text encoder", "VAE", "ReferenceNet", "image encoder"]


def test_lora_changes_the_base_weights_by_its_product(disk, tmp_path):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    key = "lora_unet_" + name.replace(".", "_")
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    lora = published.save(tensors, tmp_path / "lora.safetensors")
    pipeline = load_pipeline(files(disk, loras=[LoraFile(lora, 0.5)]), device="cpu")
    before = models.unet("musev_referencenet", published.SIZE, published.SEED).get_submodule(name).weight
    after = pipeline.unet.get_submodule(name).weight
    torch.testing.assert_close(after, before + 0.5 * (1.0 / 2) * up @ down)


def test_ip_adapter_replaces_projection_and_attention(disk, tmp_path):
    from musev_core.weights.keymaps import ip_attention_key_map

    config = models.size_config(published.SIZE)
    unet = models.unet("musev_referencenet", published.SIZE, published.SEED).state_dict()
    tensors = {f"ip_adapter.{n}": unet[name] * 2 for n, name in ip_attention_key_map(config).items()}
    projection = models.projection("plain", 5).state_dict()
    tensors |= {f"image_proj.{k}": v for k, v in projection.items()}
    path = published.save(tensors, tmp_path / "ip-adapter_sd15.safetensors")
    pipeline = load_pipeline(files(disk, ip_adapter=path), device="cpu")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k_ip.weight"
    assert torch.equal(pipeline.unet.state_dict()[name], unet[name] * 2)
    assert torch.equal(pipeline.image_prompt.projection.proj.weight, projection["proj.weight"])


def test_embeddings_become_words(disk, tmp_path):
    published.save({"emb_params": torch.ones(2, 32)}, tmp_path / "embeddings" / "badhand.safetensors")
    pipeline = load_pipeline(files(disk, embeddings=[tmp_path / "embeddings"]), device="cpu")
    assert {"badhand", "badhand_1"} <= set(pipeline.tokenizer.get_vocab())


def test_controlnet_folder(tmp_path):
    folder = published.write_controlnet(tmp_path / "control")
    loaded = load_controlnet(folder)
    original = models.controlnet(published.SIZE, published.SEED).state_dict()
    assert all(torch.equal(x, original[name]) for name, x in loaded.state_dict().items())


def cases(disk, tmp_path):
    projection = disk / "motion" / "musev_referencenet" / "ip_adapter_image_proj.bin"
    unet = disk / "motion" / "musev_referencenet" / "unet" / "diffusion_pytorch_model.bin"
    (tmp_path / "empty").mkdir(exist_ok=True)
    single = disk / "single.safetensors"
    return {
        "nothing there": ({"musev": disk / "nowhere"}, "does not exist"),
        "wrong variant": ({"musev": disk / "motion" / "musev", "variant": "musev_referencenet"}, "musev UNet"),
        "several models": ({"variant": None}, "musev_referencenet"),
        "base is a MuseV file": ({"base": unet}, "musev_referencenet UNet"),
        "projection as ReferenceNet": ({"reference_net": projection}, "a ReferenceNet was expected"),
        "UNet as projection": ({"image_projection": unet}, "image projection was expected"),
        "projection as LoRA": ({"loras": [LoraFile(projection)]}, "a LoRA was expected"),
        "UNet as FaceID": ({"face_adapter": unet}, "FaceID was expected"),
        "no tokenizer": ({"base": single, "vae": disk / "base"}, "brings no tokenizer"),
        "tokenizer folder empty": ({"tokenizer": tmp_path / "empty", "base": single}, "vocab.json"),
        "image encoder without config": ({"image_encoder": tmp_path / "empty"}, "config.json"),
        "image encoder is a file": ({"image_encoder": projection}, "is a folder"),
    }


WRONG = (
    "nothing there",
    "wrong variant",
    "several models",
    "base is a MuseV file",
    "projection as ReferenceNet",
    "UNet as projection",
    "projection as LoRA",
    "UNet as FaceID",
    "no tokenizer",
    "tokenizer folder empty",
    "image encoder without config",
    "image encoder is a file",
)


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_file_is_named(disk, tmp_path, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changes, message = cases(disk, tmp_path)[name]
    with pytest.raises((CheckpointError, MuseVError), match=message):
        load_pipeline(files(disk, **changes), device="cpu")
