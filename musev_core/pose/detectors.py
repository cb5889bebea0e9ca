"""The detectors behind the control preprocessors: their weight files, where these lie, how they are run (extra.md 3).

Most come from the package controlnet_aux, which is given local files, so that it downloads nothing.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, MissingPackageError, install_command, require
from ..frames.images import canny
from ..weights.files import read_tensors
from .dwpose import DWPose
from .keypoints import BODY, FACE, LEFT_HAND, NUM_POINTS, RIGHT_HAND, Person

Device = str | torch.device
MapDetector = Callable[[np.ndarray], np.ndarray]  # rgb uint8 (h, w, 3) to a map uint8 (h, w, 3)
PoseDetector = Callable[[np.ndarray], list[Person]]

ANNOTATORS = "lllyasviel/Annotators"
_SHUFFLE_GRAIN = 256  # pixels between the random values of the warp
_MEDIAPIPE = "'mediapipe<0.10.30'"  # the last with the interface controlnet_aux 0.0.10 uses
_AUX = ("controlnet_aux", "cv2", "skimage", "timm")  # what it needs beside ComfyUI's own packages
_PACKAGES = {
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "timm": "timm",
    "onnxruntime": "onnxruntime",
    "mediapipe": _MEDIAPIPE,
}
_SEED = 0  # of the warp and of segment colours: the same in every frame and run


@dataclass(frozen=True)
class Detector:
    """Where a detector comes from.

    Attributes:
        load: makes it from the paths of `files`, a device and the options of the preprocessor.
        files: keyword of `load` to file name in `repository` (Hugging Face).
        any_size: runs at every size; others need multiples of 64.
        needs: modules of optional packages.
    """

    load: Callable[..., MapDetector | PoseDetector]
    files: Mapping[str, str] = field(default_factory=dict)
    repository: str = ANNOTATORS
    any_size: bool = False
    needs: tuple[str, ...] = _AUX


def check_packages(detector: Detector, *, purpose: str) -> None:
    """Raises MissingPackageError, with the command to install them, if packages that a detector needs are missing."""
    missing = [module for module in detector.needs if not _is_installed(module)]
    if missing:
        raise MissingPackageError(
            f"{purpose} needs {', '.join(missing)}, which this Python does not have. Install with: {_advice(missing)}"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _advice(modules: Sequence[str]) -> str:
    """How to install packages and move none; controlnet_aux's own list would bring a second OpenCV beside another."""
    commands = ["pip install --no-deps controlnet_aux"] if "controlnet_aux" in modules else []
    if packages := [_PACKAGES[module] for module in modules if module in _PACKAGES]:
        commands.append(install_command(" ".join(packages)))
    return " and ".join(commands)


def find_weights(detector: Detector, folders: Sequence[str | Path], *, purpose: str) -> dict[str, Path]:
    """Paths of a detector's files by keyword.

    In each folder a file may lie under `<repository>/<file>` (as comfyui_controlnet_aux keeps it), or by its name.

    Raises:
        CheckpointError: files are in none of the folders; the message names them and where they come from.
    """
    found: dict[str, Path] = {}
    for keyword, name in detector.files.items():
        places = (Path(detector.repository) / name, Path(name), Path(Path(name).name))
        candidates = (Path(folder) / place for folder in folders for place in places)
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is not None:
            found[keyword] = path.resolve()
    missing = [name for keyword, name in detector.files.items() if keyword not in found]
    if missing:
        where = ", ".join(str(folder) for folder in folders)
        raise CheckpointError(
            f"{purpose} needs {' and '.join(missing)} of {detector.repository} (Hugging Face); nothing is downloaded "
            "while running. "
            + (f"Put {'it' if len(missing) == 1 else 'them'} into one of: {where}" if where else "No folder was given.")
        )
    return found


# ---- from controlnet_aux -------------------------------------------------------------------------------------------


def _aux_class(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every package it could use as well
        try:
            return getattr(importlib.import_module("controlnet_aux"), name)
        except Exception as error:  # it touches many packages at import, each of which may not fit it any more
            raise MissingPackageError(
                f"The detector {name} needs the package controlnet_aux, which cannot be imported "
                f"({type(error).__name__}: {error}). A package has a version that it does not fit; for mediapipe: "
                f"pip install {_MEDIAPIPE}; for others: {_advice(_AUX)}"
            ) from error


def _load_aux(class_name: str, device: Device, files: Mapping[str, Path], **arguments: Any) -> Any:
    for path in files.values():
        read_tensors(path)  # says what is wrong with a file, and refuses one that could run code: the package unpickles
    detector_class = _aux_class(class_name)
    paths = {keyword: str(path) for keyword, path in files.items()}
    folder = next(iter(files.values())).parent  # any existing one makes it take absolute names as they are
    detector = detector_class.from_pretrained(str(folder), **paths, **arguments)
    return detector.to(device) if hasattr(detector, "to") else detector


def _aux_maps(class_name: str) -> Callable[..., MapDetector]:
    def load(device: Device, files: Mapping[str, Path], **options: Any) -> MapDetector:
        return _as_map(_load_aux(class_name, device, files), **options)

    return load


def _as_map(detector: Callable[..., np.ndarray], **options: Any) -> MapDetector:
    def detect(image: np.ndarray) -> np.ndarray:
        side = min(image.shape[:2])  # its own resizing is the identity then
        return detector(image, detect_resolution=side, image_resolution=side, output_type="np", **options)

    return detect


def _segments(model_type: str) -> Callable[..., MapDetector]:
    def load(device: Device, files: Mapping[str, Path]) -> MapDetector:
        detector = _load_aux("SamDetector", device, files, model_type=model_type)
        detector.mask_generator.predictor.model.to(device)

        def detect(image: np.ndarray) -> np.ndarray:
            masks = sorted(detector.mask_generator.generate(image), key=lambda mask: mask["area"], reverse=True)
            colours = np.random.RandomState(_SEED).randint(0, 255, (len(masks), 3))
            segments = np.zeros_like(image)
            for mask, colour in zip(masks, colours, strict=True):
                segments[mask["segmentation"]] = colour
            return segments

        return detect

    return load


def _load_openpose(device: Device, files: Mapping[str, Path], *, hands: bool, face: bool) -> PoseDetector:
    detector = _load_aux("OpenposeDetector", device, files)

    def points(keypoints: Any, count: int) -> np.ndarray:
        """`(count, 3)`; hands and faces mark a missing coordinate by a negative one."""
        result = np.zeros((count, 3))
        for i, point in enumerate(keypoints or ()):
            if point is not None and point.x >= 0 and point.y >= 0:
                result[i] = point.x, point.y, 1
        return result

    def detect(image: np.ndarray) -> list[Person]:
        people = []
        for found in detector.detect_poses(image, hands, face):
            triples = np.zeros((NUM_POINTS, 3))
            triples[BODY] = points(found.body.keypoints, 18)
            triples[LEFT_HAND], triples[RIGHT_HAND] = points(found.left_hand, 21), points(found.right_hand, 21)
            triples[FACE] = points(found.face, 70)
            people.append(Person(triples[:, :2], triples[:, 2]))
        return people

    return detect


def _load_face_mesh(device: Device, files: Mapping[str, Path]) -> MapDetector:
    return _as_map(_aux_class("MediapipeFaceDetector")(), max_faces=1, min_confidence=0.5)


# ---- our own -------------------------------------------------------------------------------------------------------


def _load_dwpose(device: Device, files: Mapping[str, Path]) -> PoseDetector:
    return DWPose(files["detector"], files["pose"], accelerate=torch.device(device).type != "cpu")


def _load_canny(device: Device, files: Mapping[str, Path]) -> MapDetector:
    return lambda image: canny(torch.from_numpy(image)[None])[0].numpy()


def _load_identity(device: Device, files: Mapping[str, Path]) -> MapDetector:
    return lambda image: image


def _load_shuffle(device: Device, files: Mapping[str, Path]) -> MapDetector:
    cv2 = require("cv2", install="opencv-python-headless", purpose="The content preprocessor")
    warps: dict[tuple[int, ...], np.ndarray] = {}

    def detect(image: np.ndarray) -> np.ndarray:
        size = image.shape[:2]
        if size not in warps:
            warps[size] = shuffle_warp(*size)
        return cv2.remap(image, warps[size], None, cv2.INTER_LINEAR)

    return detect


def shuffle_warp(height: int, width: int) -> np.ndarray:
    """Where every pixel of a shuffled picture comes from: float32 `(height, width, 2)`, x and y in pixels.

    Two smooth random fields which run from one end of the picture to the other. They depend on the size alone, so all
    frames of a video are shuffled alike (the original drew new ones for every frame).
    """
    cv2 = require("cv2", install="opencv-python-headless", purpose="The content preprocessor")
    random, f = np.random.RandomState(_SEED), _SHUFFLE_GRAIN
    fields = []
    for side in (width, height):
        coarse = random.uniform(size=(height // f + 2, width // f + 2))
        smooth = cv2.resize(coarse, (width + 2 * f, height + 2 * f), interpolation=cv2.INTER_CUBIC)
        inner = smooth[f : f + height, f : f + width]
        fields.append((inner - inner.min()) / max(np.ptp(inner), 1e-12) * (side - 1))
    return np.stack(fields, axis=-1).astype(np.float32)


DETECTORS: Mapping[str, Detector] = {
    "openpose": Detector(
        _load_openpose,
        {"filename": "body_pose_model.pth", "hand_filename": "hand_pose_model.pth", "face_filename": "facenet.pth"},
    ),
    "dwpose": Detector(
        _load_dwpose,
        {"detector": "yolox_l.onnx", "pose": "dw-ll_ucoco_384.onnx"},
        repository="yzd-v/DWPose",
        any_size=True,
        needs=("cv2", "onnxruntime"),
    ),
    "canny": Detector(_load_canny, any_size=True, needs=("cv2",)),
    "identity": Detector(_load_identity, any_size=True, needs=()),
    "shuffle": Detector(_load_shuffle, any_size=True, needs=("cv2",)),
    "hed": Detector(_aux_maps("HEDdetector"), {"filename": "ControlNetHED.pth"}),
    "midas": Detector(_aux_maps("MidasDetector"), {"filename": "dpt_hybrid-midas-501f0c75.pt"}),
    "pidi": Detector(_aux_maps("PidiNetDetector"), {"filename": "table5_pidinet.pth"}),
    "normal_bae": Detector(_aux_maps("NormalBaeDetector"), {"filename": "scannet.pt"}),
    "lineart": Detector(_aux_maps("LineartDetector"), {"filename": "sk_model.pth", "coarse_filename": "sk_model2.pth"}),
    "lineart_anime": Detector(_aux_maps("LineartAnimeDetector"), {"filename": "netG.pth"}),
    "zoe": Detector(_aux_maps("ZoeDetector"), {"filename": "ZoeD_M12_N.pt"}),
    "leres": Detector(_aux_maps("LeresDetector"), {"filename": "res101.pth", "pix2pix_filename": "latest_net_G.pth"}),
    "sam": Detector(
        _segments("vit_h"), {"filename": "checkpoints/sam_vit_h_4b8939.pth"}, repository="ybelkada/segment-anything"
    ),
    "mobile_sam": Detector(_segments("vit_t"), {"filename": "mobile_sam.pt"}, repository="dhkim2810/MobileSAM"),
    "mediapipe_face": Detector(_load_face_mesh, needs=(*_AUX, "mediapipe")),
}
