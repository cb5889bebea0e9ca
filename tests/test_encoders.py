"""Pictures to latents and tokens, and back (musev.md 3, extra.md 6)."""

import copy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import golden_models as models
from support.numbers import det, det_image

from musev_core.config import ImageProjectionConfig
from musev_core.encode.pictures import (
    FacePromptEncoder,
    ImagePromptEncoder,
    insightface_extractor,
)
from musev_core.encode.vae import decode_latents, encode_latents
from musev_core.errors import MissingPackageError, MuseVError
from musev_core.frames.images import to_vae_input
from musev_core.models.ip_adapter import image_projection


def pictures(n: int = 1, height: int = 64, width: int = 64) -> torch.Tensor:
    return det_image("pictures", (1, 3, n, height, width))[0].permute(1, 2, 3, 0).contiguous()


# ---- VAE -----------------------------------------------------------------------------------------------------------


def test_latents_are_the_scaled_mean_and_never_a_sample():
    vae: Any = models.vae(0)
    frames = pictures(5, 64, 40)
    latents = encode_latents(vae, frames)
    assert latents.shape == (4, 5, 8, 5)
    assert torch.equal(encode_latents(vae, frames), latents)
    distribution = vae.encode(to_vae_input(frames)).latent_dist
    torch.testing.assert_close(latents.transpose(0, 1), distribution.mean * 0.18215)
    assert distribution.std.min() > 0  # a sample would be something else


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_the_batch_size_makes_no_difference(batch):
    vae, frames = models.vae(0), pictures(5)
    latents = encode_latents(vae, frames)
    torch.testing.assert_close(encode_latents(vae, frames, batch=batch), latents)
    parts = list(decode_latents(vae, latents, batch=batch))
    assert [len(part) for part in parts] == [min(batch, 5 - i) for i in range(0, 5, batch)]
    torch.testing.assert_close(torch.cat(parts), torch.cat(list(decode_latents(vae, latents))), atol=1e-5, rtol=1e-5)


def test_floats_and_bytes_give_the_same_latents():
    frames = pictures(2)
    torch.testing.assert_close(encode_latents(models.vae(0), frames / 255), encode_latents(models.vae(0), frames))


def test_decoded_frames_are_pictures():
    frames = torch.cat(list(decode_latents(models.vae(0), det("latents", (4, 3, 8, 6), 0, 5))))
    assert frames.shape == (3, 64, 48, 3)
    assert frames.dtype == torch.float32
    assert frames.min() == 0  # clamped
    assert frames.max() == 1


def test_a_vae_in_bfloat16():
    vae = copy.deepcopy(models.vae(0)).bfloat16()
    latents = encode_latents(vae, pictures(2))
    assert latents.dtype == torch.float32
    frames = next(decode_latents(vae, latents))
    assert frames.dtype == torch.float32


# ---- image prompts -------------------------------------------------------------------------------------------------


def plain() -> ImagePromptEncoder:
    return ImagePromptEncoder(models.image_encoder(0), models.projection("plain", 0))


def plus() -> ImagePromptEncoder:
    config = ImageProjectionConfig(
        kind="plus", input_dim=32, context_dim=32, num_tokens=6, depth=1, num_heads=2, head_dim=8
    )
    torch.manual_seed(0)
    return ImagePromptEncoder(models.image_encoder(0), image_projection(config).eval())


@pytest.mark.parametrize("make, tokens", [(plain, 4), (plus, 6)])
def test_pictures_become_tokens_side_by_side(make, tokens):
    encoder, images = make(), pictures(3)
    got = encoder.tokens(images)
    assert got.shape == (1, 3 * tokens, 32)
    for i in range(3):
        torch.testing.assert_close(
            got[:, i * tokens : (i + 1) * tokens], encoder.tokens(images[i : i + 1]), atol=1e-4, rtol=1e-4
        )
    assert encoder.unconditional(3).shape == got.shape
    empty = encoder.unconditional(1)
    torch.testing.assert_close(encoder.unconditional(2), torch.cat([empty, empty], dim=1))


def test_no_picture_is_the_projection_of_a_zero_embedding_for_the_plain_projection():
    encoder = plain()
    assert torch.equal(encoder.unconditional(1), encoder.projection(torch.zeros(1, 24)))


def test_no_picture_is_the_encoding_of_an_empty_picture_for_plus():
    encoder = plus()
    hidden = encoder.encoder(torch.zeros(1, 3, 224, 224), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder.unconditional(1), encoder.projection(hidden))
    assert (encoder.unconditional(1) - encoder.projection(torch.zeros_like(hidden))).abs().max() > 1e-3


def test_plus_sees_all_places_of_the_picture():
    # the embedding of the whole picture is the same for the plain projection, the hidden states are not enough for it
    encoder = plus()
    encoded: list[torch.Tensor] = []
    hook = encoder.projection.register_forward_pre_hook(lambda _, args: encoded.append(args[0]))
    encoder.tokens(pictures(2))
    hook.remove()
    assert encoded[0].shape == (2, 1 + 7 * 7, 32)


def test_the_picture_is_cropped_to_the_shape_of_the_video():
    encoder, image = plain(), pictures(1, 64, 128)
    cropped = encoder.tokens(image, 64, 64)
    assert torch.equal(cropped, encoder.tokens(image[:, :, 32:96]))
    assert not torch.equal(encoder.tokens(image, 64, 64, legacy=True), cropped)
    # CLIP's own crop would take the centre as well, so a tall video makes the difference
    assert not torch.equal(encoder.tokens(image, 128, 64), encoder.tokens(image))


# ---- faces ---------------------------------------------------------------------------------------------------------


def test_faces_become_tokens_side_by_side():
    encoder = FacePromptEncoder(models.face_embeddings, models.projection("faceid", 0))
    assert encoder.tokens(pictures(2)).shape == (1, 8, 32)
    assert torch.equal(encoder.unconditional(1), encoder.projection(torch.zeros(1, 16)))
    assert encoder.unconditional(2).shape == (1, 8, 32)


def test_the_extractor_gets_bytes():
    seen: list[torch.Tensor] = []

    def extractor(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return models.face_embeddings(images)

    FacePromptEncoder(extractor, models.projection("faceid", 0)).tokens(pictures(1) / 255)
    assert torch.equal(seen[0], pictures(1))


class FakeFaceAnalysis:
    """A stand-in for insightface's class: finds the faces it was told of, from a detection size on downwards."""

    def __init__(self, name, root, allowed_modules):
        self.made_with = {"name": name, "root": root, "allowed_modules": allowed_modules}
        self.sizes, self.images, self.found, self.found_at = [], [], [], 640
        FakeFaceAnalysis.last = self

    def prepare(self, ctx_id, det_size):
        self.sizes.append(det_size)

    def get(self, image):
        self.images.append(image)
        return self.found if self.sizes[-1][0] <= self.found_at else []


def face(box, number):
    return SimpleNamespace(bbox=np.array(box, np.float32), normed_embedding=np.full(512, number, np.float32))


@pytest.fixture
def insightface(monkeypatch, tmp_path):
    """The folder of the face models; insightface itself is not installed."""
    app: Any = ModuleType("insightface.app")
    app.FaceAnalysis = FakeFaceAnalysis
    monkeypatch.setitem(sys.modules, "insightface", ModuleType("insightface"))
    monkeypatch.setitem(sys.modules, "insightface.app", app)
    (tmp_path / "models" / "buffalo_l").mkdir(parents=True)
    return tmp_path


def test_insightface_is_asked_for_detection_and_recognition_only(insightface):
    insightface_extractor(insightface)
    assert FakeFaceAnalysis.last.made_with == {
        "name": "buffalo_l",
        "root": str(insightface),
        "allowed_modules": ["detection", "recognition"],
    }


def test_the_largest_face_counts(insightface):
    extract = insightface_extractor(insightface)
    FakeFaceAnalysis.last.found = [face((0, 0, 5, 40), 1), face((10, 10, 30, 30), 2), face((0, 0, 8, 8), 3)]
    embeddings = extract(pictures(2))
    assert embeddings.shape == (2, 512)
    assert (embeddings == 2).all()


def test_insightface_sees_BGR(insightface):
    extract, image = insightface_extractor(insightface), pictures(1)
    FakeFaceAnalysis.last.found = [face((0, 0, 5, 5), 1)]
    extract(image)
    [seen] = FakeFaceAnalysis.last.images
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, image[0].numpy()[..., ::-1])


def test_huge_faces_are_found_at_smaller_sizes(insightface):
    extract = insightface_extractor(insightface)
    app = FakeFaceAnalysis.last
    app.found, app.found_at = [face((0, 0, 5, 5), 1)], 320
    extract(pictures(1))
    assert app.sizes == [(640, 640), (480, 480), (320, 320)]


def test_no_face_names_the_picture(insightface):
    extract = insightface_extractor(insightface)
    with pytest.raises(MuseVError, match=r"no face was found in face picture 1 \(64 x 40 pixels\); use a picture that"):
        extract(pictures(1, 40, 64))


def test_missing_face_models_say_where_they_belong(tmp_path):
    with pytest.raises(
        MuseVError, match=r"face models were expected in .*models.buffalo_l; put det_10g.onnx and w600k"
    ):
        insightface_extractor(tmp_path)


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "models" / "buffalo_l").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "insightface", None)
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(MissingPackageError, match="FaceID needs .* pip install insightface onnxruntime"):
        insightface_extractor(tmp_path)
