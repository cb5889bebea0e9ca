"""The options of `musev generate`: the original's names (extra.md 2.8) and ours."""

import argparse
import logging
import re
from pathlib import Path
from typing import Any

from ..tasks.dead import DEAD_PARAMETERS, refuse_dead
from ..tasks.task import FIELDS, Task

log = logging.getLogger(__name__)

FILE_TYPES = {"mp4": ".mp4", "gif": ".gif", "webp": ".webp", "images": ""}
DTYPES = ("float32", "float16", "bfloat16")
_NOT_OPTIONS = {"name", "prompt", "style", "sex", "video_path", "condition_images", "condition_images_index"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds all options."""
    parser.add_argument("tasks", type=Path, nargs="?", metavar="TASKS.yaml", help="the task file")
    parser.add_argument("-test_data_path", type=Path, dest="test_data_path", help=argparse.SUPPRESS)
    parser.add_argument("--target_datas", default=None, help="names of the tasks to run, a comma list; default: all")
    _add_model_arguments(parser.add_argument_group("models"))
    _add_output_arguments(parser.add_argument_group("results"))
    _add_task_arguments(parser.add_argument_group("videos (defaults for tasks which do not say otherwise)"))
    for name in DEAD_PARAMETERS:
        parser.add_argument(f"--{name}", action=_Dead, nargs="*", help=argparse.SUPPRESS)


class _Dead(argparse.Action):
    """An option of the original which never worked: named, with what to use instead."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        refuse_dead(self.dest, " ".join(values), "of the command line")


class _OnByDefault(argparse.BooleanOptionalAction):
    """A switch which the original turns *off* by naming it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        super().__call__(parser, namespace, values, option_string)
        if getattr(namespace, self.dest):
            log.warning(
                "%s turns this on, as its name says; in the original the same switch turned it off. Write --no-%s "
                "for that",
                option_string,
                self.dest,
            )


def _audio(text: str) -> Path | str:
    return text if text in ("source", "none") else Path(text)


def _frames(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected two frame numbers such as 480:960, 480: or :480, got {text!r}")
    start, stop = (int(number) if number else None for number in match.groups())
    return start, stop


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"expected a share such as 2/8, from 1/8 to 8/8, got {text!r}")
    return number, count


def _add_model_arguments(group: Any) -> None:
    group.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR",
        help="where `musev models download --layout original` has put things: what is only named is looked for there",
    )  # fmt: skip
    group.add_argument(
        "--musev", "--unet_model_cfg_path", dest="musev", default=None,
        help="MuseV's weights: a folder of models, one model's folder, a UNet file, or a YAML table; default: motion "
        "in --checkpoints",
    )  # fmt: skip
    group.add_argument(
        "--variant", "--unet_model_name", dest="variant", default=None,
        help="musev, musev_referencenet or musev_referencenet_pose; default: the only one there is",
    )  # fmt: skip
    group.add_argument(
        "--base", "--sd_model_cfg_path", dest="base", default=None,
        help="Stable Diffusion 1.5: a diffusers folder, a checkpoint file, a folder of models, or a YAML table; "
        "default: t2i/sd1.5 in --checkpoints",
    )  # fmt: skip
    group.add_argument("--sd_model_name", default="all", help="which of several base models, a comma list")
    group.add_argument(
        "--vae", "--vae_model_path", dest="vae", default=None,
        help="another VAE than the base model's; default: sd-vae-ft-mse if it is in --checkpoints, else the base "
        "model's own, which None asks for",
    )  # fmt: skip
    group.add_argument("--text_encoder", default=None, help="another CLIP text encoder than the base model's")
    group.add_argument("--tokenizer", default=None, help="CLIP tokenizer folder, for single-file base models")
    group.add_argument(
        "--referencenet", "--referencenet_model_cfg_path", dest="referencenet", default=None,
        help="ReferenceNet; default: the one beside the UNet",
    )  # fmt: skip
    group.add_argument(
        "--referencenet_model_name", default=None, help="which in --musev; None: run without ReferenceNet"
    )
    group.add_argument(
        "--image_projection", "--ip_adapter_model_cfg_path", dest="image_projection", default=None,
        help="MuseV's image projection; default: the one beside the UNet",
    )  # fmt: skip
    group.add_argument(
        "--ip_adapter_model_name", default=None,
        help="whose image projection: a MuseV model's, or IPAdapter, IPAdapterPlus, IPAdapterPlus-face; None: run "
        "without image prompt",
    )  # fmt: skip
    group.add_argument(
        "--image_encoder", "--vision_clip_model_path", dest="image_encoder", default=None,
        help="folder of CLIP ViT-H; without it there is no image prompt",
    )  # fmt: skip
    group.add_argument("--vision_clip_extractor_class_name", default=None, help=argparse.SUPPRESS)
    group.add_argument(
        "--ip_adapter", default=None, help="an original IP-Adapter (plain, plus, plus-face) instead of MuseV's"
    )
    group.add_argument(
        "--face_adapter", "--ip_adapter_face_model_cfg_path", dest="face_adapter", default=None,
        help="ip-adapter-faceid_sd15, keeps the face of face_image",
    )  # fmt: skip
    group.add_argument("--ip_adapter_face_model_name", default=None, help="IPAdapterFaceID; None: run without FaceID")
    group.add_argument("--face_models", default=None, help="folder with insightface's models/buffalo_l, for FaceID")
    group.add_argument(
        "--lcm", "--lcm_model_cfg_path", dest="lcm", default=None, help="LCM LoRA: few steps (4 to 8), little guidance"
    )
    group.add_argument("--lcm_model_name", default=None, help="lcm; None: run without LCM")
    group.add_argument(
        "--lora", action="append", default=[], metavar="PATH[:STRENGTH]", help="merge a LoRA; repeatable"
    )
    group.add_argument(
        "--embeddings", action="append", default=[], metavar="PATH",
        help="textual inversion file or folder, beside those in --checkpoints; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--controlnet", action="append", default=[], metavar="NAME=PATH",
        help="where the ControlNet for a preprocessor is, if not in --checkpoints, e.g. "
        "canny=control_v11p_sd15_canny; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--annotators", action="append", default=[], metavar="DIR",
        help="folder with weights of control preprocessors (musev models download preprocessor_NAME), beside those in "
        "--checkpoints; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--scheduler", default=None, help="euler, euler_leading, ddim or lcm; default: euler, lcm with --lcm"
    )
    group.add_argument("--device", default=None, help="default: the accelerator if there is one")
    group.add_argument("--dtype", choices=DTYPES, default=None, help="default: float16 on an accelerator, else float32")


def _add_output_arguments(group: Any) -> None:
    group.add_argument("--output_dir", type=Path, default=Path("results"), help="where the results go")
    group.add_argument("--overwrite", action="store_true", help="make and replace results which exist already")
    group.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with videos which another run has begun; --no-resume begins them anew",
    )  # fmt: skip
    group.add_argument(
        "--audio", type=_audio, default=None, metavar="FILE",
        help="what is heard with an mp4: a file, `source` for the driving video's, or `none`; default: the driving "
        "video's, where it plays as fast as the result",
    )  # fmt: skip
    group.add_argument(
        "--frames", type=_frames, default=":", metavar="A:B",
        help="make only the frames A..B-1 of every video, as files which `musev join` puts together",
    )  # fmt: skip
    group.add_argument(
        "--share", type=_share, default="1/1", metavar="I/N",
        help="make only every N-th video, from the I-th on: N machines with 1/N to N/N make all of them",
    )  # fmt: skip
    group.add_argument("--save_filetype", choices=list(FILE_TYPES), default="mp4", help="format of the results")
    group.add_argument("--save_images", action="store_true", help="write every frame as a PNG file as well")
    group.add_argument("--write_info", action="store_true", help="write name and frame number into the pictures")
    group.add_argument("--n_cols", type=int, default=3, help="videos in a row, with need_return_videos or _condition")


def _add_task_arguments(group: Any) -> None:
    for name, info in FIELDS.items():
        if name in _NOT_OPTIONS:
            continue
        flags = [f"--{name}"] + ([f"--{info.option}"] if info.option and info.option != name else [])
        if info.kind is bool:
            action = _OnByDefault if getattr(Task, name) else argparse.BooleanOptionalAction
            group.add_argument(*flags, dest=name, action=action, default=None, help=info.help)
        else:
            group.add_argument(*flags, dest=name, default=None, metavar=info.kind.__name__.upper(), help=info.help)
