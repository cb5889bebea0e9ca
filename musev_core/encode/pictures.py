"""From pictures to what the networks take: image prompt tokens, face tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MuseVError, require
from ..frames.images import clip_pixel_values, to_uint8
from ..precision import expect_finite


def _placed(x: Tensor, net: nn.Module) -> Tensor:
    """`x` where the network's weights are, in their precision."""
    parameter = next(net.parameters())
    return x.to(parameter.device, parameter.dtype)


@dataclass
class ImagePromptEncoder:
    """CLIP vision and a projection: pictures to prompt tokens (musev.md 3, extra.md 6.2).

    Args:
        encoder: a transformers `CLIPVisionModelWithProjection`.
        projection: `ImageProjection` (MuseV's own, plain IP-Adapter) or `Resampler` (plus, plus-face).
    """

    encoder: Any
    projection: Any

    @torch.no_grad()
    def tokens(
        self, images: Tensor, height: int | None = None, width: int | None = None, *, legacy: bool = False
    ) -> Tensor:
        """`(1, tokens, dim)`, the tokens of all `images (n, H, W, 3)` side by side.

        The pictures are cropped to the shape of the video, as the condition image is.
        """
        size = self.encoder.config.image_size
        pixels = clip_pixel_values(images, size=size, height=height, width=width, legacy=legacy)
        return self._project(pixels).flatten(0, 1)[None]

    @torch.no_grad()
    def unconditional(self, count: int) -> Tensor:
        """`(1, tokens, dim)` standing for no picture, for `count` pictures: the projection of zeros."""
        config = self.encoder.config
        if self.projection.config.kind == "plus":
            # the resampler's zero is the encoding of an empty picture, not an empty encoding
            return self._project(torch.zeros(count, 3, config.image_size, config.image_size)).flatten(0, 1)[None]
        zeros = torch.zeros(count, self.projection.config.input_dim)
        return self.projection(_placed(zeros, self.projection)).flatten(0, 1)[None]

    def _project(self, pixels: Tensor) -> Tensor:
        pixels = _placed(pixels, self.encoder)
        if self.projection.config.kind == "plus":
            encoded = self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
        else:
            encoded = self.encoder(pixels).image_embeds
        expect_finite(encoded, "the image encoder")
        return self.projection(_placed(encoded, self.projection))


@dataclass
class FacePromptEncoder:
    """A face recognition network and a projection: faces to prompt tokens (extra.md 6.1).

    Args:
        extractor: uint8 RGB pictures `(n, H, W, 3)` to unit embeddings `(n, dim)`, e.g. `insightface_extractor()`.
        projection: `FaceProjection`.
    """

    extractor: Callable[[Tensor], Tensor]
    projection: Any

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """`(1, tokens, dim)`, the tokens of all `images (n, H, W, 3)` side by side."""
        embeddings = self.extractor(to_uint8(images))
        return self.projection(_placed(embeddings, self.projection)).flatten(0, 1)[None]

    @torch.no_grad()
    def unconditional(self, count: int) -> Tensor:
        """`(1, tokens, dim)` standing for no face: the projection of zeros."""
        zeros = torch.zeros(count, self.projection.config.input_dim)
        return self.projection(_placed(zeros, self.projection)).flatten(0, 1)[None]


def face_model_folder(root: str | Path, *, name: str = "buffalo_l") -> Path:
    """`<root>/models/<name>`, where insightface looks for its models.

    Raises:
        MuseVError: it is not there.
    """
    folder = Path(root) / "models" / name
    if not folder.is_dir():
        raise MuseVError(
            f"the face models were expected in {folder}; put det_10g.onnx and w600k_r50.onnx of insightface's {name} "
            "there (their licence is non-commercial)"
        )
    return folder


def insightface_extractor(root: str | Path, *, name: str = "buffalo_l") -> Callable[[Tensor], Tensor]:
    """Face embeddings by insightface, from `<root>/models/<name>/*.onnx`.

    Raises:
        MissingPackageError: insightface is not installed.
        MuseVError: the model files are missing; when called: see `face_extractor`.
    """
    face_model_folder(root, name=name)
    app_module = require("insightface.app", install="insightface onnxruntime", purpose="FaceID")
    return face_extractor(
        app_module.FaceAnalysis(name=name, root=str(root), allowed_modules=["detection", "recognition"])
    )


def face_extractor(app: Any) -> Callable[[Tensor], Tensor]:
    """Face embeddings by an insightface `FaceAnalysis`: uint8 RGB `(n, H, W, 3)` to unit vectors `(n, 512)`.

    The largest face of every picture counts. The networks want BGR; the original handed them RGB by mistake
    (musev.md 9.8). Large faces are found at smaller detection sizes.

    Raises:
        MuseVError: when called, no face was found in a picture.
    """

    def extract(images: Tensor) -> Tensor:
        embeddings = []
        for number, image in enumerate(images):
            bgr = image.flip(-1).cpu().numpy()
            faces: list[Any] = []
            for size in (640, 480, 320):
                app.prepare(ctx_id=0, det_size=(size, size))
                faces = app.get(bgr)
                if faces:
                    break
            if not faces:
                raise MuseVError(
                    f"no face was found in face picture {number + 1} ({image.shape[1]} x {image.shape[0]} pixels); "
                    "use a picture that shows the face larger and from the front"
                )
            largest = max(faces, key=lambda f: (f.bbox[2] - f.bbox[0]) * (f.bbox[3] - f.bbox[1]))
            embeddings.append(torch.from_numpy(largest.normed_embedding))
        return torch.stack(embeddings)

    return extract
