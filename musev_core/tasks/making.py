"""One video of a task, from its task to its file, and from where another run was stopped to its end."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encode.vae import decoding_dtype, fitting_batch
from ..frames.run_file import RunFile, unfinished
from ..frames.segments import ResumableVideo, identity
from ..pipeline import PART, MuseVPipeline, Observer
from ..values import SEEDS
from .results import output_name, result_facts
from .runner import result_frames, video_request, without_unused_pictures
from .task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """Where results go, and what is shown in them.

    Attributes:
        folder: it may not exist yet.
        suffix: .mp4, .gif, .webp, or none for a folder of PNG files.
        images: make such a folder as well.
        overwrite: make and replace what exists already.
        resume: go on with what another run has begun.
        n_cols, write_info: see `result_frames`.
    """

    folder: Path
    suffix: str = ".mp4"
    images: bool = False
    overwrite: bool = False
    resume: bool = True
    n_cols: int = 3
    write_info: bool = False


@dataclass(frozen=True)
class Job:
    """A video that does not exist yet, or not wholly."""

    task: Task
    seed: int
    video: ResumableVideo


def open_jobs(
    task: Task, output: Output, *, model: str, networks: Mapping[str, Any], random_seed: Callable[[], int]
) -> Iterator[Job]:
    """The videos of a task which are not finished, one for every repeat; checked, with nothing made or written.

    A task without a seed goes on with videos of any seed that another run has begun.

    Args:
        model: the name of what makes them; `networks`: see `result_facts`.

    Raises:
        MuseVError: see `ResumableVideo`, `frame_size`.
    """
    facts = result_facts(task, networks)
    shown = {"n_cols": output.n_cols, "write_info": task.name if output.write_info else False}
    whole = identity({**facts, **shown}, fps=task.fps, images=output.images)
    # an original noise is drawn at once for the whole clip, so nothing of it can be made later
    resume = output.resume and task.noise_draw != "original"
    begun = _begun_seeds(output, whole) if resume and task.seed is None else []
    for repeat in range(task.n_repeat):
        seed = begun.pop(0) if begun else random_seed() if task.seed is None else (task.seed + repeat) % SEEDS
        name = output_name(task, facts, model=model, seed=seed)
        target = output.folder / f"{name}{output.suffix}"
        if target.exists() and not output.overwrite and not RunFile.exists(target):
            log.info("%s exists and is skipped (--overwrite makes it anew)", target)
            continue
        video = ResumableVideo(
            target, fps=task.fps, facts=whole, images=output.images, overwrite=output.overwrite, resume=resume
        )
        yield Job(task, seed, video)


def _begun_seeds(output: Output, facts: Mapping[str, Any]) -> list[int]:
    return [
        run.choices["seed"]
        for target, run in unfinished(output.folder)
        if target.suffix == output.suffix and run.facts == facts and isinstance(run.choices.get("seed"), int)
    ]


def make_video(
    pipeline: MuseVPipeline,
    job: Job,
    output: Output,
    *,
    controlnets: Mapping[str, Any],
    annotators: Sequence[str | Path],
    scheduler: str,
    observer: Callable[[dict[str, int]], Observer],
    writing: Callable[[Iterator[Tensor], int, int], Iterator[Tensor]],
) -> Path:
    """Makes what is missing of a video, and says where it is.

    Args:
        controlnets, annotators, scheduler: see `video_request`.
        observer: one for the pipeline, given the steps of the runs "first frame" and "video".
        writing: passes frames on while it counts them, given the first number and that of all.
    """
    task, video = job.task, job.video
    log.info("task %s, seed %d", task.name, job.seed)
    with video:
        request = video_request(
            task, controlnets=controlnets, annotators=annotators, device=pipeline.device, scheduler=scheduler
        )
        request = without_unused_pictures(request, pipeline.picture_networks())
        steps = {"first frame": request.first_frame.num_steps, "video": request.sampling.num_steps}
        shots = pipeline.plan(request, seed=job.seed, observer=observer(steps))
        batch = fitting_batch(pipeline.vae, shots.height, shots.width, decoding_dtype(pipeline.vae))
        first = video.begin(shots.num_frames, {"seed": job.seed, "decode_batch": batch}, _notes(pipeline))
        if first > 0:
            log.info("%d of %d frames are finished already", first, shots.num_frames)
        if first < shots.num_frames:
            stream = shots.stream(
                None if task.noise_draw == "original" else PART,
                frames=range(first, shots.num_frames),
                checkpoint=video.checkpoint,
                batch=video.choices["decode_batch"],
            )
            result = result_frames(task, shots, stream, first=first, n_cols=output.n_cols, write_info=output.write_info)
            for part in writing(result, first, shots.num_frames):
                video.write(part)
    return video.path


def _notes(pipeline: MuseVPipeline) -> dict[str, str]:
    device = torch.device(pipeline.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "torch": torch.__version__}
