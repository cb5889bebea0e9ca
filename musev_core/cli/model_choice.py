"""Which files make up the pipeline of `musev generate`: named by path, by a table, or as the original names them.

Every name is looked up before anything is loaded: it has an effect, or it is refused.
"""

import argparse
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import VARIANTS
from ..denoise.schedulers import scheduler_config
from ..errors import MuseVError, nearest, require
from ..tasks.fields import convert
from ..tasks.model_table import load_model_table, pick
from ..tasks.task import FIELDS, Task
from ..weights.downloaded import (
    ANNOTATORS,
    EMBEDDINGS,
    FACE_MODELS,
    controlnet_name,
    fetch_it,
    find_downloaded,
    place,
)
from ..weights.layout import MuseVFiles, find_musev_files

if TYPE_CHECKING:
    from ..loading import LoraFile, ModelFiles
    from ..tasks.model_table import ModelEntry

log = logging.getLogger(__name__)

# the names of the original's configs/model, and what is published under them
_LCM = {"lcm": "lcm"}
_IP_ADAPTERS = {
    "IPAdapter": "ip_adapter",
    "IPAdapterPlus": "ip_adapter_plus",
    "IPAdapterPlus-face": "ip_adapter_plus_face",
}
_FACE_ADAPTERS = {"IPAdapterFaceID": "faceid"}
_REFERENCED = tuple(name for name, config in VARIANTS.items() if config.reference_fusion)
_EXTRACTORS = ("ImageClipVisionFeatureExtractor", "ImageClipVisionFeatureExtractorV2")
_TABLES = (".py", ".yaml", ".yml")

_REFERENCE_FIELDS = ("refer_image", "fixed_refer_image", "redraw_condition_image_with_referencenet")
_IMAGE_FIELDS = (
    "ipadapter_image", "ip_adapter_scale", "fixed_ip_adapter_image", "redraw_condition_image_with_ipdapter",
)  # fmt: skip
_FACE_FIELDS = (
    "face_image", "ip_adapter_face_scale", "fixed_refer_face_image", "redraw_condition_image_with_ip_adapter_face",
)  # fmt: skip


class ModelChoice:
    """The files that the options name; those of the base model come with `files`.

    Raises:
        MuseVError: an unknown name, or one whose files are not there.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root = Path(options.checkpoints)
        self.base = options.base or self.root / "t2i" / "sd1.5"
        self.variant, self.musev = self._musev()
        self.lcm = self._named("lcm", "--lcm_model_name", _LCM, "The LCM LoRA")
        if self.lcm is not None and self.lcm.is_dir():
            self.lcm = self.lcm / place("lcm").name
        self.face_adapter = self._named("face_adapter", "--ip_adapter_face_model_name", _FACE_ADAPTERS, "FaceID")
        self.face_models = self._face_models()
        self._check_layers()
        self.use_reference_net, self.reference_net = self._reference_net()
        self.use_image_prompt, self.ip_adapter, self.image_projection = self._image_prompt()
        self.image_encoder = self._image_encoder()
        self.vae = self._vae()
        self.embeddings = self._embeddings()
        self._controlnets = _named_paths(options.controlnet)
        self.scheduler = options.scheduler or ("euler" if self.lcm is None else "lcm")
        scheduler_config(self.scheduler)

    def entries(self) -> list["ModelEntry"]:
        """The base models to run with."""
        self._expect(self.musev, self.options.musev, self.variant or "musev_referencenet", "--musev")
        self._expect(Path(self.base), self.options.base, "base", "--base")
        return pick(load_model_table(self.base), self.options.sd_model_name)

    def files(self, entry: "ModelEntry") -> "ModelFiles":
        """All files of the pipeline for a base model."""
        from ..loading import LoraFile, ModelFiles

        loras = [LoraFile(x.path, x.strength + x.strength_offset, x.lora_block_weight) for x in entry.loras]
        loras += [_lora(text) for text in self.options.lora]
        loras += [] if self.lcm is None else [LoraFile(self.lcm)]
        return ModelFiles(
            musev=self.musev,
            base=entry.path,
            variant=self.variant,
            vae=self.vae,
            text_encoder=None if self.options.text_encoder is None else Path(self.options.text_encoder),
            tokenizer=None if self.options.tokenizer is None else Path(self.options.tokenizer),
            reference_net=self.reference_net,
            image_projection=self.image_projection,
            image_encoder=self.image_encoder,
            ip_adapter=self.ip_adapter,
            face_adapter=self.face_adapter,
            face_models=None if self.face_adapter is None else self.face_models,
            loras=loras,
            embeddings=self.embeddings,
            use_reference_net=self.use_reference_net,
            use_image_prompt=self.use_image_prompt,
        )

    @property
    def annotators(self) -> list[Path]:
        """Folders with weights of control preprocessors."""
        return [*map(Path, self.options.annotators), self.root / ANNOTATORS]

    def facts(self, entry: "ModelEntry", controls: Sequence[str] = ()) -> dict[str, Any]:
        """What tells these networks from others in the names of results; the folders above theirs do not count.

        `controls` are the maps of the task: of its ControlNets, those which `--controlnet` names tell results apart.
        """
        files = asdict(self.files(entry))
        facts = {name: self._told(value) for name, value in files.items() if value not in (None, [], ())}
        if given := {name: self._told(self._controlnets[name]) for name in controls if name in self._controlnets}:
            facts["controlnets"] = given
        if self.options.dtype is not None:
            facts["dtype"] = self.options.dtype
        return {**facts, "scheduler": self.scheduler}

    def _told(self, value: Any) -> Any:
        """Paths below `root`, of others the last two names; also inside lists and mappings."""
        if isinstance(value, Path):
            below = value.is_relative_to(self.root)
            return value.relative_to(self.root).as_posix() if below else "/".join(value.parts[-2:])
        if isinstance(value, Mapping):
            return {name: self._told(x) for name, x in value.items()}
        return [self._told(x) for x in value] if isinstance(value, (list, tuple)) else value

    def embedding_names(self) -> set[str]:
        """What the textual inversions are called in prompts, in lower case."""
        files = [file for path in self.embeddings for file in (path.iterdir() if path.is_dir() else [path])]
        return {file.stem.lower() for file in files}

    def unused(self) -> dict[str, str]:
        """The fields of a task which have no effect with these networks, and the network each would need."""
        layers = self.variant is None or VARIANTS[self.variant].reference_fusion
        has_projection = self.use_image_prompt and layers
        unused = {}
        for fields, used, need in (
            (_REFERENCE_FIELDS, self.use_reference_net and layers, "a ReferenceNet"),
            (_IMAGE_FIELDS, has_projection and self.image_encoder is not None, "an image encoder and its projection"),
            (_FACE_FIELDS, self.face_adapter is not None, "FaceID (--ip_adapter_face_model_name IPAdapterFaceID)"),
        ):
            unused |= {} if used else dict.fromkeys(fields, need)
        return unused

    def check_effect(self, defaults: Mapping[str, Any]) -> None:
        """Raises MuseVError for an option of a task that cannot be, whether or not the tasks say otherwise, and for one
        other than at its default which has no effect in this run."""
        unused = self.unused()
        for key, value in defaults.items():
            default = getattr(Task, key, None)
            given = convert(key, value, FIELDS[key], default)
            if key in unused and given != default:
                raise MuseVError(f"--{FIELDS[key].option or key} has no effect in this run: it needs {unused[key]}")

    def controlnets(self, names: Iterable[str]) -> dict[str, Path]:
        """Where the ControlNets for the maps of these preprocessors are."""
        from ..pose.preprocessors import PREPROCESSORS

        found = {}
        for name in names:
            repository = PREPROCESSORS[name].controlnet if name in PREPROCESSORS else ""
            published, option = controlnet_name(repository), f"--controlnet {name}=PATH"
            if name in self._controlnets:
                found[name] = self._controlnets[name]
            elif published is not None:
                purpose = f"The ControlNet for {name}"
                found[name] = find_downloaded(self.root, published, purpose=purpose, option=option)
            else:
                known = f" (given: {', '.join(self._controlnets)})" if self._controlnets else ""
                raise MuseVError(f"no ControlNet is published for {name!r}; say where it is with {option}{known}")
        return found

    # ------------------------------------------------------------------------------------------ one by one

    def _musev(self) -> tuple[str | None, Path]:
        path, variant = self.options.musev or self.root / "motion", self.options.variant
        if Path(path).suffix.lower() in _TABLES:
            return None, pick(load_model_table(path), variant or "all")[0].path
        if variant is not None:
            _check_name("--unet_model_name", variant, VARIANTS)
        return variant, Path(path)

    def _check_layers(self) -> None:
        """Refuses networks for which the chosen MuseV model has no layers."""
        if self.variant is None or VARIANTS[self.variant].reference_fusion:
            return
        names = ("referencenet_model_name", "ip_adapter_model_name")
        for key in (*names, "referencenet", "image_projection", "ip_adapter"):
            value = getattr(self.options, key)
            if value is not None and not _off(value):
                raise MuseVError(
                    f"--{key} has no effect: {self.variant} has no layers for it. Leave it out, or use one of "
                    f"{', '.join(_REFERENCED)}"
                )

    def _named(self, key: str, option: str, known: Mapping[str, str], purpose: str) -> Path | None:
        """The file of a network which is off unless its file or its name is given."""
        path, name = getattr(self.options, key), getattr(self.options, option.removeprefix("--"))
        if _off(name):
            return None
        if path is not None:
            return _from_table(path, name)
        if name is None:
            return None
        _check_name(option, name, known)
        return find_downloaded(self.root, known[name], purpose=purpose, option=f"--{key}")

    def _face_models(self) -> Path | None:
        if self.face_adapter is not None:
            require("insightface.app", install="insightface onnxruntime", purpose="FaceID")
        if self.face_adapter is None or self.options.face_models is not None:
            return None if self.options.face_models is None else Path(self.options.face_models)
        folder = self.root / FACE_MODELS
        if not (folder / "models").is_dir():
            raise MuseVError(
                f"insightface's models are not in {folder}. {fetch_it(self.root, 'faceid')}; or say where they are "
                "with --face_models"
            )
        return folder

    def _reference_net(self) -> tuple[bool, Path | None]:
        name, path = self.options.referencenet_model_name, self.options.referencenet
        if _off(name):
            return False, None
        if path is not None:
            file = _from_table(path, name)
            return True, file / "referencenet" if (file / "referencenet").is_dir() else file
        if name is None:
            return True, None
        _check_name("--referencenet_model_name", name, _REFERENCED)
        if (file := self._own_files(name).referencenet) is None:
            raise MuseVError(
                f"--referencenet_model_name {name}: no ReferenceNet lies in {self.musev}. "
                f"{fetch_it(self.root, name)}; or say where it is with --referencenet"
            )
        return True, file

    def _image_prompt(self) -> tuple[bool, Path | None, Path | None]:
        """Whether there is one, the file of an original IP-Adapter, and that of MuseV's own projection."""
        name, path = self.options.ip_adapter_model_name, self.options.image_projection
        adapter = None if self.options.ip_adapter is None else Path(self.options.ip_adapter)
        if _off(name):
            return False, None, None
        if name in _IP_ADAPTERS and adapter is None:
            purpose, option = f"The IP-Adapter {name}", "--ip_adapter"
            adapter = find_downloaded(self.root, _IP_ADAPTERS[name], purpose=purpose, option=option)
        elif name in _FACE_ADAPTERS:
            raise MuseVError(f"--ip_adapter_model_name: {name} keeps faces; write --ip_adapter_face_model_name {name}")
        elif name is not None and path is None:
            _check_name("--ip_adapter_model_name", name, (*_REFERENCED, *_IP_ADAPTERS))
            if (file := self._own_files(name).image_proj) is None and adapter is None:
                raise MuseVError(
                    f"--ip_adapter_model_name {name}: no ip_adapter_image_proj file lies in {self.musev}. "
                    f"{fetch_it(self.root, name)}; or say where it is with --image_projection"
                )
            return True, adapter, file
        return True, adapter, None if path is None else _from_table(path, name)

    def _expect(self, path: Path, given: str | None, name: str, option: str) -> None:
        """Says how to fetch what is looked for in its default place and is not there."""
        if given is None and not path.exists():
            raise MuseVError(f"{path} is not there. {fetch_it(self.root, name)}; or say where it is with {option}")

    def _own_files(self, name: str) -> MuseVFiles:
        """The files of the MuseV model of that name; of the only one there is where no folder is called so."""
        self._expect(self.musev, self.options.musev, name, "--musev")
        folder = self.musev / name
        return find_musev_files(folder if folder.is_dir() else self.musev, None if folder.is_dir() else self.variant)

    def _image_encoder(self) -> Path | None:
        path, extractor = self.options.image_encoder, self.options.vision_clip_extractor_class_name
        if _off(extractor):
            return None
        if extractor is not None:
            _check_name("--vision_clip_extractor_class_name", extractor, _EXTRACTORS)
        wanted = extractor or (self.use_image_prompt and (self.options.ip_adapter_model_name or self.ip_adapter))
        if path is None and wanted:
            return find_downloaded(
                self.root, "image_encoder", purpose="The image encoder CLIP ViT-H", option="--image_encoder"
            )
        return None if path is None else Path(path)

    def _vae(self) -> Path | None:
        """The VAE given; else the one that the original uses, if it is there; else None, the base model's."""
        if self.options.vae is not None:
            return None if _off(self.options.vae) else Path(self.options.vae)
        published = self.root / place("vae")
        if not published.is_dir():
            return None
        log.info("the VAE is %s (--vae None: the base model's own)", published)
        return published

    def _embeddings(self) -> list[Path]:
        """The negative embeddings of the original, where they are, and those given; given ones come first."""
        given = [Path(path) for path in self.options.embeddings]
        folder = self.root / EMBEDDINGS
        names = {path.stem for path in given} | {x.stem for path in given if path.is_dir() for x in path.iterdir()}
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return given + [x for x in found if x.suffix in (".pt", ".safetensors", ".bin") and x.stem not in names]


def _off(name: str | None) -> bool:
    """The original switches an optional network off by the name "None"."""
    return name is not None and name.lower() == "none"


def _check_name(option: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise MuseVError(f"{option}: there is no {name!r}, only {', '.join(known)}.{nearest(name, known)}")


def _from_table(path: str | Path, name: str | None) -> Path:
    """The file itself, or what a table has under the name."""
    if Path(path).suffix.lower() not in _TABLES:
        return Path(path)
    return pick(load_model_table(path), name or "all")[0].path


def _named_paths(texts: Sequence[str]) -> dict[str, Path]:
    named = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise MuseVError(f"--controlnet takes NAME=PATH, for example canny=control_v11p_sd15_canny; got {text!r}")
        named[name] = Path(path)
    return named


def _lora(text: str) -> "LoraFile":
    from ..loading import LoraFile

    path, _, strength = text.rpartition(":")
    try:
        return LoraFile(Path(path), float(strength)) if path else LoraFile(Path(text))
    except ValueError:  # a colon of the path itself
        return LoraFile(Path(text))
