"""The original's pre-extracted features: one HDF5 file per video (extra.md 1.1)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import MuseVError, require
from .clip_sampling import ClipRule, choose_clip
from .schedule import place_in_epoch

if TYPE_CHECKING:
    from ..pose.keypoints import Person, PoseFrame

log = logging.getLogger(__name__)

MAX_PEOPLE, POINTS = 20, 134
TAGS = ("tag", "text")


@dataclass(frozen=True)
class FeatureKeys:
    """Names of the arrays for videos of a size."""

    width: int
    height: int

    @property
    def _size(self) -> str:
        return f"w={self.width}_h={self.height}"

    @property
    def moments(self) -> str:
        """`(T, 8, h, w)` float16: mean and logarithm of the variance of the unscaled latents."""
        return f"CompVis_stable-diffusion-v1-4_vae_{self._size}_encoder_quant_emb"

    @property
    def frames(self) -> str:
        """`(T)` uint32: numbers of the video frames."""
        return f"CompVis_stable-diffusion-v1-4_vae_{self._size}_sample_indexs"

    @property
    def image(self) -> str:
        """`(T, 1024)` float16: CLIP's image embedding of every stored frame."""
        return f"CLIPVisionModelWithProjection_ip_adapter_{self._size}_image_embeds"

    @property
    def pose(self) -> str:
        """`(T, 20, 134, 3)` float32: x / width, y / height, score."""
        return f"lllyasviel_control_v11p_sd15_openpose_dwpose_{self._size}_pose"

    @staticmethod
    def text(number: int = 0) -> str:
        """`(1, 77, 768)` float16: hidden states of caption `number`."""
        return f"CompVis_stable-diffusion-v1-4_CLIPEncoderLayer_last_hidden_state_{number}"


def h5py() -> Any:
    """The package h5py."""
    return require("h5py", install="h5py", purpose="training on extracted features")


def draw_moments(moments: Tensor, generator: torch.Generator, scaling_factor: float) -> Tensor:
    """Scaled latents `(n, 4, h, w)` drawn from `moments (n, 8, h, w)`."""
    mean, logvar = moments.float().chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator)
    return (mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise) * scaling_factor


def pose_maps(points: np.ndarray, height: int, width: int) -> Tensor:
    """OpenPose pictures `(t, 3, height, width)` in 0..1, body and hands, of `points (t, people, 134, 3)`."""
    from ..pose.drawing import draw_people

    maps = [draw_people(_people(frame), height, width) for frame in points]
    return torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float() / 255


def _people(points: np.ndarray) -> list["Person"]:
    """The people of `(people, 134, 3)`: body, feet, face, left and right hand; unused places are zero."""
    from ..pose.keypoints import MIN_SCORE, NUM_POINTS, Person

    people = []
    for one in points[points[..., 2].max(axis=1) >= MIN_SCORE]:
        order = np.concatenate([one[:18], one[92:113], one[113:134], one[24:92]])
        order = np.concatenate([order, np.zeros((NUM_POINTS - len(order), 3))])
        people.append(Person(order[:, :2], np.where(order[:, 2] >= MIN_SCORE, order[:, 2], 0)))
    return people


def stored_points(frame: "PoseFrame") -> tuple[np.ndarray, np.ndarray]:
    """The people of a picture in the order of the files: points `(people, 134, 2)` and scores; feet are zero."""
    points, scores = np.zeros((len(frame.people), POINTS, 2)), np.zeros((len(frame.people), POINTS))
    for i, person in enumerate(frame.people):
        for stored, ours in ((slice(18), slice(18)), (slice(92, 113), slice(18, 39)), (slice(113, 134), slice(39, 60)),
                             (slice(24, 92), slice(60, 128))):  # fmt: skip
            points[i, stored], scores[i, stored] = np.nan_to_num(person.points[ours]), person.score[ours]
    return points, scores


class FeatureClips(Dataset):
    """Training clips from HDF5 files, by the number of the sample in an endless run.

    Files which are broken, too short or without the features are left out with a warning.

    Args:
        files: of the videos. keys: for their size. rule: how clips are taken.
        seed: of the order and of everything drawn.
        texts: captions' numbers; one is drawn for each sample.
        images, poses: whether CLIP embeddings and pose maps are needed.
        reference_scale: what reference latents are multiplied by: 0.18215 as at inference; 1.0 as the published
            training code did (extra.md 1.9).
    """

    def __init__(
        self,
        files: Sequence[Path],
        keys: FeatureKeys,
        rule: ClipRule,
        *,
        seed: int,
        texts: Sequence[int] = (0,),
        images: bool = True,
        poses: bool = False,
        scaling_factor: float = 0.18215,
        reference_scale: float = 0.18215,
    ):
        self.keys, self.rule, self.seed, self.texts = keys, rule, seed, tuple(texts)
        self.images, self.poses = images, poses
        self.scaling_factor, self.reference_scale = scaling_factor, reference_scale
        self.files = [path for path in files if self._usable(path)]
        if not self.files:
            raise MuseVError(
                f"none of the {len(files)} feature files can be used for training at {keys.width} x {keys.height}; "
                "the warnings above say why. `musev train extract` writes such files"
            )

    def _usable(self, path: Path) -> bool:
        needed = [self.keys.moments, *(self.keys.text(i) for i in self.texts)]
        needed += [self.keys.image] if self.images else []
        needed += [self.keys.pose] if self.poses else []
        try:
            with h5py().File(path, "r") as file:
                missing = [name for name in needed if name not in file]
                stored = 0 if missing else len(file[self.keys.moments])
        except OSError as error:
            log.warning("%s is left out: it cannot be read (%s)", path, error)
            return False
        if missing:
            log.warning("%s is left out: it has no %s", path, missing[0])
        elif stored < self.rule.num_frames:
            log.warning("%s is left out: %d stored frames, a clip needs %d", path, stored, self.rule.num_frames)
        return not missing and stored >= self.rule.num_frames

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Sample `number`: see `MotionObjective` for what it holds."""
        _, place = place_in_epoch(number, len(self.files), self.seed)
        rng = np.random.default_rng((self.seed, 1, number))
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        with h5py().File(self.files[place], "r") as file:
            moments = file[self.keys.moments]
            choice = choose_clip(len(moments), self.rule, rng)
            latents = draw_moments(_rows(moments, choice.frames), generator, self.scaling_factor)
            sample = {
                "latents": latents.transpose(0, 1),
                "frame_index": torch.tensor(choice.frame_index),
                "text": torch.from_numpy(file[self.keys.text(int(rng.choice(self.texts)))][0]).float(),
            }
            pictures = choice.references or choice.frames[:1]
            reference = draw_moments(_rows(moments, pictures), generator, self.reference_scale)
            sample["reference"] = reference.transpose(0, 1)
            if self.images:
                sample["image"] = _rows(file[self.keys.image], choice.references or choice.frames).float()
            if self.poses:
                points = np.stack([file[self.keys.pose][i] for i in choice.frames])
                sample["pose"] = pose_maps(points, self.keys.height, self.keys.width)
        return sample


def _rows(array: Any, numbers: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.stack([array[i] for i in numbers]))
