"""Writes the features which training reads: what exists stays, what breaks off is done again (extra.md 1.2)."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encode.text import encode_prompts
from ..errors import MuseVError
from ..frames.images import clip_pixel_values, fit_images
from ..frames.video import iter_frames
from .features import MAX_PEOPLE, POINTS, FeatureKeys, h5py
from .sources import Source

log = logging.getLogger(__name__)

BATCH = 10  # frames encoded at once
PoseDetector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # RGB -> (people, 134, 2) in 0..1, scores


@dataclass
class Extractor:
    """The networks that make features; each may be left out together with its feature.

    Args:
        keys: names for the size the frames get.
        vae: its encoder's mean and logarithm of the variance are stored.
        text: (tokenizer, text encoder).
        image_encoder: a transformers `CLIPVisionModelWithProjection`.
        poses: finds people in an RGB picture.
        stored_rate: every so many frames of the video one is stored.
    """

    keys: FeatureKeys
    vae: Any = None
    text: tuple[Any, Any] | None = None
    image_encoder: Any = None
    poses: PoseDetector | None = None
    stored_rate: int = 2

    def names(self) -> list[str]:
        """What a complete file holds."""
        names = [self.keys.frames]
        names += [self.keys.moments] if self.vae is not None else []
        names += [self.keys.text()] if self.text is not None else []
        names += [self.keys.image] if self.image_encoder is not None else []
        names += [self.keys.pose] if self.poses is not None else []
        return names

    @torch.no_grad()
    def missing(self, source: Source, path: Path) -> dict[str, np.ndarray]:
        """The arrays that the feature file at `path` does not have yet.

        Raises:
            MuseVError: the video is broken.
        """
        wanted = [name for name in self.names() if name not in _names_in(path)]
        if not wanted:
            return {}
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        if self.text is not None and self.keys.text() in wanted:
            arrays[self.keys.text()] = [encode_prompts(*self.text, source.caption, None, max_chunks=1).half().numpy()]
        per_frame = [name for name in wanted if name != self.keys.text()]
        count = 0
        for frames in self._frames(source) if per_frame else ():
            if self.keys.moments in wanted:
                arrays[self.keys.moments].append(self._moments(frames))
            if self.keys.image in wanted:
                arrays[self.keys.image].append(self._embeddings(frames))
            if self.poses is not None and self.keys.pose in wanted:
                arrays[self.keys.pose].append(self._poses(frames, self.poses))
            count += len(frames)
        if self.keys.frames in wanted:
            arrays[self.keys.frames] = [np.arange(count, dtype=np.uint32) * self.stored_rate]
        if per_frame and not count:
            raise MuseVError(f"{source.path} has no frames")
        return {name: np.concatenate(parts) for name, parts in arrays.items()}

    def _frames(self, source: Source) -> Iterator[Tensor]:
        batch: list[Tensor] = []
        for frame in iter_frames(source.path, stride=self.stored_rate):
            batch.append(frame)
            if len(batch) == BATCH:
                yield self._fitted(batch)
                batch = []
        if batch:
            yield self._fitted(batch)

    def _fitted(self, frames: Sequence[Tensor]) -> Tensor:
        return fit_images(torch.stack(list(frames)), self.keys.height, self.keys.width, resample="bicubic")

    def _moments(self, frames: Tensor) -> np.ndarray:
        weight = next(self.vae.parameters())
        pixels = frames.permute(0, 3, 1, 2).to(weight) / 127.5 - 1
        return self.vae.encode(pixels).latent_dist.parameters.half().cpu().numpy()

    def _embeddings(self, frames: Tensor) -> np.ndarray:
        weight = next(self.image_encoder.parameters())
        pixels = clip_pixel_values(frames, size=self.image_encoder.config.image_size)
        return self.image_encoder(pixels.to(weight)).image_embeds.half().cpu().numpy()

    def _poses(self, frames: Tensor, detect: PoseDetector) -> np.ndarray:
        found = np.zeros((len(frames), MAX_PEOPLE, POINTS, 3), np.float32)
        for i, frame in enumerate(frames.numpy()):
            points, scores = detect(frame)
            people = min(len(points), MAX_PEOPLE)
            found[i, :people, :, :2], found[i, :people, :, 2] = points[:people], scores[:people]
        return found


def extract(
    sources: Sequence[Source], extractor: Extractor, folder: Path, *, tell: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Writes a feature file per video below `folder`; every file is complete or as it was before.

    Returns:
        How many videos were `written`, `skipped` because nothing was missing, and `broken`.
    """
    counts = {"written": 0, "skipped": 0, "broken": 0}
    for number, source in enumerate(sources, 1):
        path = folder / f"{source.feature_name}.h5py"
        try:
            arrays = extractor.missing(source, path)
        except MuseVError as error:
            log.warning("%s is left out: %s", source.path, error)
            counts["broken"] += 1
            continue
        if arrays:
            _add(path, arrays, source.caption)
        counts["written" if arrays else "skipped"] += 1
        if tell is not None:
            tell(f"{number} of {len(sources)}: {source.path.name}")
    return counts


def _names_in(path: Path) -> set[str]:
    if not path.exists():
        return set()
    try:
        with h5py().File(path, "r") as file:
            return set(file)
    except OSError as error:
        log.warning("%s cannot be read (%s) and is written anew", path, error)
        return set()


def _add(path: Path, arrays: dict[str, np.ndarray], caption: str) -> None:
    """A copy of the file with more arrays takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    old = _names_in(path)
    with h5py().File(part, "w") as file:
        if old:
            with h5py().File(path, "r") as before:
                for name in old:
                    before.copy(name, file)
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        if "tag" not in file:
            file.create_dataset("tag", data=[caption], dtype=h5py().string_dtype("utf-8"))
    os.replace(part, path)
