"""`musev generate`: the run from a task file to video files."""

import argparse
import itertools
import logging
import random
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..encode.prompts import NEGATIVE_EMBEDDINGS
from ..errors import MuseVError
from ..file_names import made_folder
from ..tasks.task import FIELDS, Task
from ..weights.downloaded import fetch_it
from .failures import Failures
from .generate_options import FILE_TYPES, add_arguments
from .model_choice import ModelChoice
from .terminal import add_command, say

if TYPE_CHECKING:
    from ..tasks.making import Job, Output
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
    from ..tasks.making import Output

    path = options.tasks or options.test_data_path
    if path is None:
        raise MuseVError("give a task file: musev generate TASKS.yaml")
    if options.n_cols < 1:
        raise MuseVError(f"--n_cols must be at least 1, got {options.n_cols}")
    if options.device is not None:
        from ..devices import find_device

        find_device(options.device)
    defaults = {name: value for name in FIELDS if (value := getattr(options, name, None)) is not None}
    targets = options.target_datas.split(",") if options.target_datas and options.target_datas != "all" else None
    choice = ModelChoice(options)
    choice.check_effect(defaults)
    failures = Failures()
    tasks = load_tasks(path, defaults=defaults, targets=targets, refuse=failures.add, unused=choice.unused())
    tasks = _with_controls(tasks, choice, failures)
    output = Output(
        made_folder(options.output_dir),
        FILE_TYPES[options.save_filetype],
        images=options.save_images,
        audio=options.audio,
        frames=options.frames,
        overwrite=options.overwrite,
        resume=options.resume,
        n_cols=options.n_cols,
        write_info=options.write_info,
    )
    _warn_of_embeddings(tasks, choice)
    number, count = options.share
    turns = itertools.cycle([turn == number for turn in range(1, count + 1)])
    for entry in choice.entries():
        suiting = [task for task in tasks if entry.suits(style=task.style, sex=task.sex)]
        jobs = _open_jobs(suiting, entry, choice, output, turns, failures)
        with failures.of(f"Model {entry.name!r}"):
            if jobs:
                _run_jobs(jobs, entry, choice, output, failures)
    if failures:
        say(f"musev: not everything was made.\n{failures.summary}", file=sys.stderr)
    return failures.status


def _with_controls(tasks: Sequence[Task], choice: ModelChoice, failures: Failures) -> list[Task]:
    """The tasks whose ControlNets and preprocessors are there."""
    from ..tasks.runner import check_controls

    ready = []
    for task in tasks:
        with failures.of(f"Task {task.name!r}"):
            check_controls(task, choice.controlnets(task.controlnet_name), choice.annotators)
            ready.append(task)
    return ready


def _warn_of_embeddings(tasks: Sequence[Task], choice: ModelChoice) -> None:
    texts = [text for task in tasks for text in (task.negative_prompt, task.video_negative_prompt)]
    named = [name for name in NEGATIVE_EMBEDDINGS if any(re.search(rf"\b{name}\b", text, re.I) for text in texts)]
    missing = [name for name in named if name.lower() not in choice.embedding_names()]
    if missing:
        log.warning(
            "the negative prompts name the embeddings %s, which are not there and count as plain words. %s",
            ", ".join(missing),
            fetch_it(choice.root, "embeddings"),
        )


def _open_jobs(
    tasks: Sequence[Task],
    entry: "ModelEntry",
    choice: ModelChoice,
    output: "Output",
    turns: Iterator[bool],
    failures: Failures,
) -> list["Job"]:
    """Every video of this run's share which does not exist yet."""
    from ..tasks.making import open_jobs

    jobs: list[Job] = []
    model = f"{choice.variant or choice.musev.stem}-{entry.name}"
    for task in tasks:
        with failures.of(f"Task {task.name!r}"):
            networks = choice.facts(entry, task.controlnet_name)
            jobs += open_jobs(
                task,
                output,
                model=model,
                networks=networks,
                random_seed=lambda: random.randint(0, MAX_RANDOM_SEED),
                turns=turns,
            )
    return jobs


def _run_jobs(
    jobs: Sequence["Job"],
    entry: "ModelEntry",
    choice: ModelChoice,
    output: "Output",
    failures: Failures,
) -> None:
    import torch

    from ..loading import load_pipeline, plan_controlnet
    from ..tasks.making import make_video
    from .progress import TerminalProgress

    progress = TerminalProgress()
    options = choice.options
    dtype = getattr(torch, options.dtype) if options.dtype else None
    names = sorted({x for job in jobs for x in job.task.controlnet_name})
    planned = {name: plan_controlnet(path) for name, path in choice.controlnets(names).items()}
    pipeline = load_pipeline(choice.files(entry), device=options.device, dtype=dtype, progress=progress.loading)
    parameter = next(pipeline.unet.parameters())
    controlnets = {}
    for name, plan in planned.items():
        progress.loading(f"ControlNet {name}")
        controlnets[name] = plan.load(parameter.dtype).to(parameter.device)
    for job in jobs:
        with failures.of(f"Task {job.task.name!r}"):
            path = make_video(
                pipeline,
                job,
                output,
                controlnets=controlnets,
                annotators=choice.annotators,
                scheduler=choice.scheduler,
                observer=progress.observer,
                writing=progress.writing,
            )
            say(str(path))
        progress.close()
