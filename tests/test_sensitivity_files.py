"""Every file a pipeline is made of changes what it makes: one row for every field of `ModelFiles` and of its LoRAs."""

from pathlib import Path

import pytest
import torch
from support import faces, published
from support.effects import Result, Row, latents, leaves, put
from support.numbers import det, det_image

from musev_core.loading import LoraFile, ModelFiles, load_pipeline
from musev_core.pipeline import SamplingOptions


@pytest.fixture(autouse=True)
def insightface(monkeypatch):
    faces.install(monkeypatch)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Two of everything: `0` is what the pipeline starts from, `1` what replaces it."""
    root = tmp_path_factory.mktemp("files")
    for seed in (0, 1):
        folder = root / str(seed)
        published.write_musev(folder / "motion", suffix=".safetensors", seed=seed)
        published.write_base(folder / "base", seed=seed)
        published.write_image_encoder(folder / "image_encoder", seed=seed)
        published.write_adapter(folder / "ip-adapter.safetensors", "plain", seed)
        published.write_adapter(folder / "faceid.safetensors", "faceid", seed)
        published.write_lora(folder / "lora.safetensors", seed)
        (folder / f"faces{seed}" / "models" / "buffalo_l").mkdir(parents=True)
        published.save({"emb_params": det("word", (2, 32), seed)}, folder / "word.safetensors")
    published.write_musev(root / "0" / "motion", arch="musev", suffix=".safetensors")
    published.write_tokenizer(root / "1" / "tokenizer", backwards=True)
    return root


FILES = ModelFiles(
    musev="0/motion",
    base="0/base",
    variant="musev_referencenet",
    image_encoder="0/image_encoder",
    loras=[LoraFile("0/lora.safetensors")],
)
FACE = {"face_adapter": "0/faceid.safetensors", "face_models": "0/faces0"}
UNET = "1/motion/musev_referencenet"

ROWS = {
    "musev": Row("1/motion"),
    "base": Row("1/base"),
    "variant": Row("musev"),
    "vae": Row("1/base"),
    "text_encoder": Row("1/base"),
    "tokenizer": Row("1/tokenizer"),
    "reference_net": Row(f"{UNET}/referencenet"),
    "image_projection": Row(f"{UNET}/ip_adapter_image_proj.safetensors"),
    "image_encoder": Row("1/image_encoder"),
    "ip_adapter": Row("1/ip-adapter.safetensors"),
    "face_adapter": Row("1/faceid.safetensors", given=FACE),
    "face_models": Row("1/faces1", given=FACE),
    "loras.0.path": Row("1/lora.safetensors"),
    "loras.0.strength": Row(0.5),
    "loras.0.block_weights": Row("OUTALL"),
    "embeddings": Row(["1/word.safetensors"], given={"embeddings": ["0/word.safetensors"]}),
    "use_reference_net": Row(False),
    "use_image_prompt": Row(False),
}


def made(files: ModelFiles, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(disk)
    picture = det_image("condition", (1, 3, 1, 32, 32)).permute(0, 2, 3, 4, 1)[0]
    result = load_pipeline(files, device="cpu")(
        "a word", negative_prompt="b", image=picture, num_frames=2, seed=1, sampling=SamplingOptions(num_steps=1)
    )
    return Result(result.latents, result.video())


@pytest.fixture(scope="module")
def unchanged():
    """Results by what the files were given besides."""
    return {}


def test_every_kind_of_file_has_a_row():
    assert set(leaves(FILES)) == set(ROWS)


def test_the_same_files_make_the_same_video_again(disk, monkeypatch):
    a, b = (made(FILES, disk, monkeypatch).frames for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("path", ROWS)
def test_another_file_makes_another_video(path, disk, monkeypatch, unchanged):
    row = ROWS[path]
    assert row.how is latents
    key = tuple(row.given)
    if key not in unchanged:
        unchanged[key] = made(put(FILES, row.given), disk, monkeypatch)
    row.how(unchanged[key], made(put(FILES, {**row.given, path: row.value}), disk, monkeypatch))
