"""`musev generate`: the run from a task file to video files."""

import argparse
import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MuseVError
from ..tasks.task import FIELDS, Task
from ..values import SEEDS
from .failures import Failures
from .generate_options import FILE_TYPES, add_arguments
from .terminal import add_command, say

if TYPE_CHECKING:
    from ..loading import LoraFile, ModelFiles
    from ..pipeline import MuseVPipeline
    from ..progress import TerminalProgress
    from ..tasks.model_table import ModelEntry

log = logging.getLogger(__name__)
MAX_RANDOM_SEED = 10**8  # as the original draws them


def add_generate(commands: Any) -> None:
    """Adds the command `generate`."""
    parser = add_command(
        commands,
        "generate",
        generate,
        "Make the videos of a task file.",
        "Options of a video give the default for tasks which do not say otherwise; a task file is a YAML list:\n\n"
        "  - name: yongen\n"
        "    prompt: (masterpiece:1.2), a girl is dancing\n"
        "    condition_images: ./images/yongen.jpeg\n"
        "    motion_speed: 8.0\n",
    )
    add_arguments(parser)


def generate(options: argparse.Namespace) -> int:
    """Runs every task with every base model that suits it; results which exist are skipped.

    A task or model that fails does not end the others: it is named when that happens and at the end.
    """
    from ..tasks.files import load_tasks
    from ..tasks.model_table import load_model_table, pick

    path = options.tasks or options.test_data_path
    if path is None:
        raise MuseVError("give a task file: musev generate TASKS.yaml")
    if options.n_cols < 1:
        raise MuseVError(f"--n_cols must be at least 1, got {options.n_cols}")
    defaults = {name: value for name in FIELDS if (value := getattr(options, name, None)) is not None}
    targets = options.target_datas.split(",") if options.target_datas and options.target_datas != "all" else None
    controlnets = _named_paths(options.controlnet)
    failures = Failures()
    tasks = load_tasks(path, defaults=defaults, targets=targets, refuse=failures.add)
    tasks = _with_controls(tasks, controlnets, options, failures)
    for entry in pick(load_model_table(options.base), options.sd_model_name):
        suiting = [task for task in tasks if entry.suits(style=task.style, sex=task.sex)]
        jobs = _open_jobs(suiting, entry, options, failures)
        with failures.of(f"Model {entry.name!r}"):
            if jobs:
                _run_jobs(jobs, entry, controlnets, options, failures)
    if failures:
        say(f"musev: not everything was made.\n{failures.summary}", file=sys.stderr)
    return failures.status


def _with_controls(
    tasks: Sequence[Task], controlnets: Mapping[str, Path], options: argparse.Namespace, failures: Failures
) -> list[Task]:
    """The tasks whose ControlNets and preprocessors are there."""
    from ..tasks.runner import check_controls

    ready = []
    for task in tasks:
        with failures.of(f"Task {task.name!r}"):
            check_controls(task, controlnets, options.annotators)
            ready.append(task)
    return ready


def _open_jobs(
    tasks: Sequence[Task], entry: "ModelEntry", options: argparse.Namespace, failures: Failures
) -> list[tuple[Task, int, Path]]:
    """(task, seed, target) of every result which does not exist yet."""
    jobs = []
    for task in tasks:
        with failures.of(f"Task {task.name!r}"):
            jobs += _repeats(task, entry, options)
    return jobs


def _repeats(task: Task, entry: "ModelEntry", options: argparse.Namespace) -> Iterator[tuple[Task, int, Path]]:
    from ..tasks.results import output_name

    model = f"{options.variant or Path(options.musev).stem}-{entry.name}"
    for repeat in range(task.n_repeat):
        seed = random.randint(0, MAX_RANDOM_SEED) if task.seed is None else (task.seed + repeat) % SEEDS
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
    failures: Failures,
) -> None:
    import torch

    from ..loading import load_controlnet, load_pipeline
    from ..progress import TerminalProgress

    options.output_dir.mkdir(parents=True, exist_ok=True)
    progress = TerminalProgress()
    dtype = getattr(torch, options.dtype) if options.dtype else None
    files = model_files(options, entry)
    pipeline = load_pipeline(files, device=options.device, dtype=dtype, progress=progress.loading)
    parameter = next(pipeline.unet.parameters())
    controlnets = {}
    for name in sorted({name for task, _, _ in jobs for name in task.controlnet_name}):
        progress.loading(f"ControlNet {name}")
        controlnets[name] = load_controlnet(controlnet_paths[name], dtype=parameter.dtype).to(parameter.device)
    scheduler = options.scheduler or ("euler" if options.lcm is None or _off(options.lcm_model_name) else "lcm")
    for task, seed, target in jobs:
        with failures.of(f"Task {task.name!r}"):
            _run_job(pipeline, task, seed, target, controlnets, scheduler, options, progress)
        progress.close()


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

    from ..tasks.runner import result_frames, video_request, without_unused_pictures
    from ..video import VideoWriter

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
    from ..loading import LoraFile, ModelFiles

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
    from ..tasks.model_table import load_model_table, pick

    if Path(path).suffix.lower() in (".py", ".yaml", ".yml"):
        return pick(load_model_table(path), variant or "all")[0].path
    return Path(path)


def _lora(text: str) -> "LoraFile":
    from ..loading import LoraFile

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
