"""`musev generate`: which options there are, and the run from a task file to video files."""

import argparse
import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MuseVError
from .tasks.task import DEAD_PARAMETERS, FIELDS, Task

if TYPE_CHECKING:
    from .loading import LoraFile, ModelFiles
    from .pipeline import MuseVPipeline
    from .progress import TerminalProgress
    from .tasks.model_table import ModelEntry

log = logging.getLogger(__name__)
FILE_TYPES = {"mp4": ".mp4", "gif": ".gif", "webp": ".webp", "images": ""}
DTYPES = ("float32", "float16", "bfloat16")
MAX_RANDOM_SEED = 10**8  # as the original draws them
_NOT_OPTIONS = {"name", "prompt", "style", "sex", "video_path", "condition_images", "condition_images_index"}


# ------------------------------------------------------------------------------------------ options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options, with the original's names (extra.md 2.8) and ours."""
    parser.add_argument("tasks", type=Path, nargs="?", metavar="TASKS.yaml", help="the task file")
    parser.add_argument("-test_data_path", type=Path, dest="test_data_path", help=argparse.SUPPRESS)
    parser.add_argument("--target_datas", default=None, help="names of the tasks to run, a comma list; default: all")
    _add_model_arguments(parser.add_argument_group("models"))
    _add_output_arguments(parser.add_argument_group("results"))
    _add_task_arguments(parser.add_argument_group("videos (defaults for tasks which do not say otherwise)"))
    for name, hint in {**DEAD_PARAMETERS, **_DEAD_MODEL_OPTIONS}.items():
        parser.add_argument(f"--{name}", action=_Dead, nargs="*", hint=hint, help=argparse.SUPPRESS)


_DEAD_MODEL_OPTIONS = {
    "cross_attention_dim": "it is read from the weights; leave it out",
}


class _Dead(argparse.Action):
    """An option of the original which never worked: named, with what to use instead."""

    def __init__(self, *, hint: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.hint = hint

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        if option_string == "--context_stride" and values == ["1"]:
            return
        raise MuseVError(f"{option_string} does nothing: {self.hint}")


def _add_model_arguments(group: Any) -> None:
    group.add_argument(
        "--musev", "--unet_model_cfg_path", dest="musev", default="checkpoints/motion",
        help="MuseV's weights: a folder of models, one model's folder, a UNet file, or a YAML table",
    )  # fmt: skip
    group.add_argument(
        "--variant", "--unet_model_name", dest="variant", default=None,
        help="musev, musev_referencenet or musev_referencenet_pose; default: the only one there is",
    )  # fmt: skip
    group.add_argument(
        "--base", "--sd_model_cfg_path", dest="base", default="checkpoints/t2i/sd1.5",
        help="Stable Diffusion 1.5: a diffusers folder, a checkpoint file, a folder of models, or a YAML table",
    )  # fmt: skip
    group.add_argument("--sd_model_name", default="all", help="which of several base models, a comma list")
    group.add_argument("--vae", "--vae_model_path", dest="vae", default=None, help="another VAE than the base model's")
    group.add_argument("--tokenizer", default=None, help="CLIP tokenizer folder, for single-file base models")
    group.add_argument(
        "--referencenet", "--referencenet_model_cfg_path", dest="referencenet", default=None,
        help="ReferenceNet; default: the one beside the UNet",
    )  # fmt: skip
    group.add_argument("--referencenet_model_name", default=None, help="None: run without ReferenceNet")
    group.add_argument(
        "--image_projection", "--ip_adapter_model_cfg_path", dest="image_projection", default=None,
        help="MuseV's image projection; default: the one beside the UNet",
    )  # fmt: skip
    group.add_argument("--ip_adapter_model_name", default=None, help="None: run without image prompt")
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
    group.add_argument("--ip_adapter_face_model_name", default=None, help="None: run without FaceID")
    group.add_argument("--face_models", default=None, help="folder with insightface's models/buffalo_l, for FaceID")
    group.add_argument(
        "--lcm", "--lcm_model_cfg_path", dest="lcm", default=None, help="LCM LoRA: few steps (4 to 8), little guidance"
    )
    group.add_argument("--lcm_model_name", default=None, help="None: run without LCM")
    group.add_argument(
        "--lora", action="append", default=[], metavar="PATH[:STRENGTH]", help="merge a LoRA; repeatable"
    )
    group.add_argument("--embeddings", action="append", default=[], help="textual inversion file or folder; repeatable")
    group.add_argument(
        "--controlnet", action="append", default=[], metavar="NAME=PATH",
        help="where the ControlNet for a preprocessor is, e.g. canny=control_v11p_sd15_canny; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--annotators", action="append", default=[], metavar="DIR",
        help="folder with weights of control preprocessors (musev models download preprocessor_NAME); repeatable",
    )  # fmt: skip
    group.add_argument(
        "--scheduler", default=None, help="euler, euler_leading, ddim or lcm; default: euler, lcm with --lcm"
    )
    group.add_argument("--device", default=None, help="default: the accelerator if there is one")
    group.add_argument("--dtype", choices=DTYPES, default=None, help="default: float16 on an accelerator, else float32")


def _add_output_arguments(group: Any) -> None:
    group.add_argument("--output_dir", type=Path, default=Path("results"), help="where the results go")
    group.add_argument("--overwrite", action="store_true", help="make and replace results which exist already")
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
            group.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=info.help)
        else:
            group.add_argument(*flags, dest=name, default=None, metavar=info.kind.__name__.upper(), help=info.help)


# ------------------------------------------------------------------------------------------ the run


def generate(options: argparse.Namespace) -> int:
    """Runs every task with every base model that suits it; results which exist are skipped."""
    from .progress import TerminalProgress
    from .tasks.files import load_tasks
    from .tasks.model_table import load_model_table, pick
    from .tasks.runner import check_controls

    path = options.tasks or options.test_data_path
    if path is None:
        raise MuseVError("give a task file: musev generate TASKS.yaml")
    defaults = {name: value for name in FIELDS if (value := getattr(options, name, None)) is not None}
    targets = options.target_datas.split(",") if options.target_datas and options.target_datas != "all" else None
    tasks = load_tasks(path, defaults=defaults, targets=targets)
    controlnets = _named_paths(options.controlnet)
    for task in tasks:
        check_controls(task, controlnets, options.annotators)
    progress = TerminalProgress()
    for entry in pick(load_model_table(options.base), options.sd_model_name):
        suiting = [task for task in tasks if entry.suits(style=task.style, sex=task.sex)]
        jobs = list(_open_jobs(suiting, entry, options))
        if jobs:
            _run_jobs(jobs, entry, controlnets, options, progress)
    return 0


def _open_jobs(
    tasks: Sequence[Task], entry: "ModelEntry", options: argparse.Namespace
) -> Iterator[tuple[Task, int, Path]]:
    """(task, seed, target) of every result which does not exist yet."""
    from .tasks.results import output_name

    model = f"{options.variant or Path(options.musev).stem}-{entry.name}"
    for task in tasks:
        for repeat in range(task.n_repeat):
            seed = random.randint(0, MAX_RANDOM_SEED) if task.seed is None else task.seed + repeat
            name = output_name(task, model=model, seed=seed)
            target = options.output_dir / f"{name}{FILE_TYPES[options.save_filetype]}"
            if target.exists() and not options.overwrite:
                log.info("%s exists and is skipped (--overwrite makes it anew)", target)
            else:
                yield task, seed, target


def _run_jobs(
    jobs: Sequence[tuple[Task, int, Path]],
    entry: "ModelEntry",
    controlnet_paths: Mapping[str, Path],
    options: argparse.Namespace,
    progress: "TerminalProgress",
) -> None:
    import torch

    from .loading import load_controlnet, load_pipeline

    dtype = getattr(torch, options.dtype) if options.dtype else None
    files = model_files(options, entry)
    pipeline = load_pipeline(files, device=options.device, dtype=dtype, progress=progress.loading)
    parameter = next(pipeline.unet.parameters())
    controlnets = {}
    for name in sorted({name for task, _, _ in jobs for name in task.controlnet_name}):
        progress.loading(f"ControlNet {name}")
        controlnets[name] = load_controlnet(controlnet_paths[name], dtype=parameter.dtype).to(parameter.device)
    scheduler = options.scheduler or ("euler" if options.lcm is None or _off(options.lcm_model_name) else "lcm")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for task, seed, target in jobs:
        _run_job(pipeline, task, seed, target, controlnets, scheduler, options, progress)


def _run_job(
    pipeline: "MuseVPipeline",
    task: Task,
    seed: int,
    target: Path,
    controlnets: Mapping[str, Any],
    scheduler: str,
    options: argparse.Namespace,
    progress: "TerminalProgress",
) -> None:
    import torch

    from .tasks.runner import result_frames, video_request, without_unused_pictures
    from .video import VideoWriter

    log.info("task %s, seed %d", task.name, seed)
    request = video_request(
        task,
        controlnets=controlnets,
        annotators=options.annotators,
        device=pipeline.device,
        scheduler=scheduler,
    )
    request = without_unused_pictures(request, pipeline.picture_networks())
    steps = {"first frame": request.first_frame.num_steps, "video": request.sampling.num_steps}
    generator = torch.Generator().manual_seed(seed)
    result = pipeline.generate(request, generator=generator, observer=progress.observer(steps))
    frames = progress.writing(
        result_frames(task, request, result, n_cols=options.n_cols, write_info=options.write_info), len(result)
    )
    writers = [VideoWriter(target, fps=task.fps, overwrite=options.overwrite)]
    if options.save_images and target.suffix:
        writers.append(VideoWriter(target.with_suffix(""), fps=task.fps, overwrite=options.overwrite))
    try:
        for part in frames:
            for writer in writers:
                writer.write(part)
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    for writer in writers:
        writer.close()
    sys.stdout.write(f"{writers[0].path}\n")


def _off(name: str | None) -> bool:
    """The original switches an optional network off by the name "None"."""
    return name is not None and name.lower() == "none"


def model_files(options: argparse.Namespace, entry: "ModelEntry") -> "ModelFiles":
    """The files which the options name."""
    from .loading import LoraFile, ModelFiles

    def optional(path: str | None, name: str | None) -> str | None:
        return None if _off(name) else path

    loras = [LoraFile(lora.path, lora.strength + lora.strength_offset, lora.lora_block_weight) for lora in entry.loras]
    loras += [_lora(text) for text in options.lora]
    lcm = optional(options.lcm, options.lcm_model_name)
    if lcm is not None:
        path = Path(lcm)
        loras.append(LoraFile(path / "pytorch_lora_weights.safetensors" if path.is_dir() else path))
    return ModelFiles(
        musev=_musev(options.musev, options.variant),
        base=entry.path,
        variant=options.variant,
        vae=options.vae,
        tokenizer=options.tokenizer,
        reference_net=optional(options.referencenet, options.referencenet_model_name),
        image_projection=optional(options.image_projection, options.ip_adapter_model_name),
        image_encoder=options.image_encoder,
        ip_adapter=options.ip_adapter,
        face_adapter=optional(options.face_adapter, options.ip_adapter_face_model_name),
        face_models=options.face_models,
        loras=loras,
        embeddings=options.embeddings,
        use_reference_net=not _off(options.referencenet_model_name),
        use_image_prompt=not _off(options.ip_adapter_model_name),
    )


def _musev(path: str, variant: str | None) -> Path:
    """The folder or file of MuseV's weights; a table is looked up."""
    from .tasks.model_table import load_model_table, pick

    if Path(path).suffix.lower() in (".py", ".yaml", ".yml"):
        return pick(load_model_table(path), variant or "all")[0].path
    return Path(path)


def _lora(text: str) -> "LoraFile":
    from .loading import LoraFile

    path, _, strength = text.rpartition(":")
    try:
        return LoraFile(path, float(strength)) if path else LoraFile(text)
    except ValueError:  # a colon of the path itself
        return LoraFile(text)


def _named_paths(texts: Sequence[str]) -> dict[str, Path]:
    named = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise MuseVError(f"--controlnet takes NAME=PATH, for example canny=control_v11p_sd15_canny; got {text!r}")
        named[name] = Path(path)
    return named
