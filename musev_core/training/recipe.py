"""The configuration file of `musev train`: which networks, which data, which numbers."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..config import VARIANTS
from ..errors import MuseVError, nearest
from ..values import beside, is_none, scalar, user_path
from ..yaml_file import read_yaml
from .clip_sampling import ClipRule
from .diffusion import DiffusionOptions
from .options import TrainOptions

EXAMPLE = """\
output_dir: runs/my-motion
model:
  variant: musev_referencenet
  base: checkpoints/t2i/sd1.5/majicmixRealv6Fp16
  musev: checkpoints/motion/musev_referencenet
data:
  kind: features
  places: [datasets/webvid/csvs/train.csv]
  width: 512
  height: 320
train: {steps: 100000, learning_rate: 1.0e-5, accumulation: 4, mixed_precision: fp16}
diffusion: {text_dropout: 0.1}
"""
DATA_KINDS = ("features", "videos")
TRAINED = ("motion", "all")
CHECKPOINT_CONTENTS = ("motion", "all")


@dataclass(frozen=True)
class ModelRecipe:
    """Which networks are trained, and from which weights.

    Args:
        base: a Stable Diffusion 1.5 model: UNet, and for `videos` VAE, text encoder and tokenizer.
        variant: of `VARIANTS`. musev: an earlier MuseV model to go on from; None: new motion layers.
        reference_net, image_projection: default: beside `musev`, else the ReferenceNet begins as the base model.
        image_encoder: folder of CLIP ViT-H, for `videos` with an image prompt.
        controlnet: a frozen OpenPose ControlNet, for training on poses (musev_referencenet_pose).
        controlnet_scale: its strength. train_reference_net: default: as published, not for musev_referencenet_pose.
        vae: another VAE than the base model's. tokenizer: a folder, for single-file base models.
        train: `motion` layers only, as published, or `all` of the UNet: checkpoints then have a base model in `base/`.
        save: `motion` layers only, or `all` of the UNet's weights, as published.
    """

    base: Path
    variant: str = "musev_referencenet"
    musev: Path | None = None
    reference_net: Path | None = None
    image_projection: Path | None = None
    image_encoder: Path | None = None
    controlnet: Path | None = None
    controlnet_scale: float = 1.0
    train_reference_net: bool | None = None
    vae: Path | None = None
    tokenizer: Path | None = None
    train: str = "motion"
    save: str = "motion"

    def __post_init__(self) -> None:
        for name, known in (("variant", tuple(VARIANTS)), ("train", TRAINED), ("save", CHECKPOINT_CONTENTS)):
            value = getattr(self, name)
            if value not in known:
                raise MuseVError(f"model.{name} must be one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class DataRecipe:
    """Which clips are trained on.

    Args:
        kind: `features`: HDF5 files by `musev train extract` or the original; `videos`: decoded while training.
        places: folders and CSV tables. path_column: of a feature table. video_dir: where a video table's paths begin.
        width, height: pixels, multiples of 8.
        texts: numbers of the captions in feature files, one is drawn each time.
        reference_scale: of reference latents, see `FeatureClips`.
        condition_frames: the first frames of every clip, which stay clean.
    """

    kind: str = "features"
    places: tuple[Path, ...] = ()
    path_column: str = "emb_path"
    video_dir: Path | None = None
    width: int = 512
    height: int = 320
    texts: tuple[int, ...] = (0,)
    reference_scale: float = 0.18215
    condition_frames: int = 1
    rule: ClipRule = field(default_factory=ClipRule)

    def __post_init__(self) -> None:
        if self.kind not in DATA_KINDS:
            raise MuseVError(f"data.kind must be one of {', '.join(DATA_KINDS)}, got {self.kind!r}")
        if not self.places:
            raise MuseVError("data.places must name at least one folder or CSV table")
        if self.width % 8 or self.height % 8 or min(self.width, self.height) < 8:
            raise MuseVError(f"data.width and data.height must be multiples of 8, got {self.width} and {self.height}")
        if not 1 <= self.condition_frames < self.rule.num_frames:
            raise MuseVError(
                f"data.condition_frames must lie in 1..{self.rule.num_frames - 1} for clips of "
                f"{self.rule.num_frames} frames, got {self.condition_frames}"
            )


@dataclass(frozen=True)
class ValidationRecipe:
    """Sample videos while training: every task of a task file, `train.validate_every` says when.

    Args:
        tasks: a task file as `musev generate` takes; None: no samples.
        fps: of the written videos.
    """

    tasks: Path | None = None
    fps: float = 4.0


@dataclass(frozen=True)
class Recipe:
    """A whole training run; see the classes of its parts."""

    output_dir: Path
    model: ModelRecipe
    data: DataRecipe
    train: TrainOptions = field(default_factory=TrainOptions)
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)

    def __post_init__(self) -> None:
        if self.model.controlnet is not None and self.data.kind == "videos":
            raise MuseVError("model.controlnet needs poses, which only data.kind features has; extract them first")
        if self.train.validate_every and self.validation.tasks is None:
            raise MuseVError("train.validate_every needs validation.tasks, the task file of the sample videos")


def load_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a configuration file; paths in it are looked for beside it, then in the working directory.

    Args:
        changes: values by dotted name, e.g. `{"train.steps": 100}`, which replace those of the file.

    Raises:
        MuseVError: not readable, an unknown name, or a value that does not fit; the message names it.
    """
    content = read_yaml(path, what="training configuration", example=EXAMPLE)
    if not isinstance(content, Mapping):
        raise MuseVError(f"{path} must be a YAML mapping like this:\n{EXAMPLE}")
    content = {str(key): value for key, value in content.items()}
    for name, value in (changes or {}).items():
        _set(content, name.split("."), value, name)
    return _build(Recipe, content, "", path.parent)


def _set(content: dict[str, Any], parts: list[str], value: Any, name: str) -> None:
    for part in parts[:-1]:
        inner = content.setdefault(part, {})
        if not isinstance(inner, dict):
            raise MuseVError(f"{name} cannot be set: {part} is no group of values")
        content = inner
    content[parts[-1]] = value


def _build(kind: type, values: Any, where: str, folder: Path) -> Any:
    """An instance of a dataclass from a mapping, with every value checked."""
    if not isinstance(values, Mapping):
        raise MuseVError(f"{where or 'the configuration'} must be a group of named values, got {values!r}")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    arguments = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise MuseVError(f"unknown value {name!r}.{nearest(str(key), known)} Known here: {', '.join(known)}")
        arguments[key] = _value(name, value, hints[key], folder)
    missing = [
        name
        for name, f in known.items()
        if f.default is MISSING and f.default_factory is MISSING and name not in arguments
    ]
    if missing:
        raise MuseVError(
            f"{where + '.' if where else ''}{missing[0]} is missing; a configuration looks like:\n{EXAMPLE}"
        )
    return kind(**arguments)


def _value(name: str, value: Any, hint: Any, folder: Path) -> Any:
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if is_none(value) else _value(name, value, kinds[0], folder)
    if is_dataclass(hint):
        return _build(hint, value, name, folder)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        values = value if isinstance(value, (list, tuple)) else [value]
        if kinds[-1] is not Ellipsis and len(values) != len(kinds):
            raise MuseVError(f"{name}: expected {len(kinds)} values, got {value!r}")
        return tuple(_value(name, x, kinds[0], folder) for x in values)
    if hint is Path:
        path = scalar(name, value, Path)
        return user_path(path) if name == "output_dir" else beside(folder, str(path))
    return scalar(name, value, hint)
