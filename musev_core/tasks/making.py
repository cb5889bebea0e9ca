"""One video of a task, from its task to its file, and from where another run was stopped to its end."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encode.vae import decoding_dtype, fitting_batch
from ..errors import MuseVError
from ..frames.audio import Sound, has_sound
from ..frames.joining import range_ending
from ..frames.run_file import RunFile, run_folder, unfinished
from ..frames.segments import ResumableVideo, identity
from ..frames.video import frame_rate
from ..locks import is_free
from ..pipeline import PART, MuseVPipeline, Observer
from ..values import SEEDS
from .results import frame_count, output_name, result_facts
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
        audio: what is heard: a file, "source" for the driving video's, "none", or None for the driving video's where it
            plays as fast as the result.
        frames: only these of every video, as a file of their own; None stands for the first, or for all that follow.
        overwrite: make and replace what exists already.
        resume: go on with what another run has begun.
        n_cols, write_info: see `result_frames`.
    """

    folder: Path
    suffix: str = ".mp4"
    images: bool = False
    audio: Path | str | None = None
    frames: tuple[int | None, int | None] = (None, None)
    overwrite: bool = False
    resume: bool = True
    n_cols: int = 3
    write_info: bool = False


@dataclass(frozen=True)
class Job:
    """A video that does not exist yet, or not wholly; or the `frames` of it which are asked for."""

    task: Task
    seed: int
    video: ResumableVideo
    frames: tuple[int, int | None]


def open_jobs(
    task: Task,
    output: Output,
    *,
    model: str,
    networks: Mapping[str, Any],
    random_seed: Callable[[], int],
    turns: Iterator[bool],
) -> Iterator[Job]:
    """The videos of a task which are not finished, one for every repeat; checked, with nothing made or written.

    A task without a seed goes on with videos of any seed that another run has begun.

    Args:
        model: the name of what makes them; `networks`: see `result_facts`.
        turns: for every repeat, whether it is this run's to make it.

    Raises:
        MuseVError: see `ResumableVideo`, `frame_size`; frames that the video will not have.
    """
    facts = result_facts(task, networks)
    frames, ending = _range(task, output)
    shown: dict[str, Any] = {"n_cols": output.n_cols, "write_info": task.name if output.write_info else False}
    if ending:
        shown["frames"] = frames
    sound = _sound(task, output, part=bool(ending))
    if sound is not None:
        shown["audio"] = [sound.path.name, sound.delay]
    whole = identity({**facts, **shown}, fps=task.fps, images=output.images)
    # an original noise is drawn at once for the whole clip, so nothing of it can be made later
    resume = output.resume and task.noise_draw != "original"

    def place(seed: int) -> Path:
        return output.folder / f"{output_name(task, facts, model=model, seed=seed)}{ending}{output.suffix}"

    begun = _begun_seeds(output, whole, place) if resume and task.seed is None else []
    for repeat in range(task.n_repeat):
        if not next(turns):
            continue
        seed = begun.pop(0) if begun else random_seed() if task.seed is None else (task.seed + repeat) % SEEDS
        target = place(seed)
        if target.exists() and not output.overwrite and not RunFile.exists(target):
            log.info("%s exists and is skipped (--overwrite makes it anew)", target)
            continue
        video = ResumableVideo(
            target,
            fps=task.fps,
            facts=whole,
            images=output.images,
            sound=sound,
            overwrite=output.overwrite,
            resume=resume,
        )
        yield Job(task, seed, video, frames)


def _range(task: Task, output: Output) -> tuple[tuple[int, int | None], str]:
    """The first frame and one past the last, None for the end; and what the file's name ends in."""
    start, stop = output.frames
    if start is None and stop is None:
        return (0, None), ""
    total = frame_count(task)
    first, last = start or 0, total if stop is None else stop
    if not 0 <= first < last <= total:
        raise MuseVError(
            f"--frames {first}:{last}: a part of this video lies within 0:{total}, the last number not included."
        )
    if task.noise_draw == "original":
        raise MuseVError(
            "--frames: the original draws the noise of a whole clip at once; take noise_draw: frames for a part of it."
        )
    return (first, None if stop is None else last), range_ending(first, last)


def _sound(task: Task, output: Output, *, part: bool) -> Sound | None:
    """What is heard with the video of a task."""
    choice = output.audio
    if choice == "none":
        return None
    if output.suffix != ".mp4" or part:
        if choice is not None and part:
            raise MuseVError("--audio: parts of a video have no sound; give it to musev join, which makes the whole.")
        if choice is not None:
            raise MuseVError("--audio: these files have no sound; take save_filetype mp4, or leave it out.")
        return None
    if isinstance(choice, Path):
        if not has_sound(choice):
            raise MuseVError(f"--audio: {choice} has no sound.")
        return Sound(choice)
    source = task.video_path
    if source is None or not has_sound(source):
        return None
    rate = frame_rate(source) / task.sample_rate
    if abs(rate / task.fps - 1) > 0.01:
        told = f"task {task.name}: {source.name} plays {rate:g} of its frames a second, the result {task.fps:g}"
        if choice is None:
            log.info("%s; its sound is left out (--audio source takes it all the same, or fps: %g)", told, rate)
            return None
        log.warning("%s: its sound goes another way than the pictures", told)
    before = len(task.conditions) if task.needs_condition_map else 0
    if task.condition_images_index is not None:  # only those which stand before the first driving frame
        before = next(i for i in range(before + 1) if i == before or i not in task.condition_images_index)
    return Sound(source, delay=before / task.fps)


def _begun_seeds(output: Output, facts: Mapping[str, Any], place: Callable[[int], Path]) -> list[int]:
    """The seeds of this task's unfinished videos on which nobody works now."""
    return [
        seed
        for target, run in unfinished(output.folder)
        if run.facts == facts and isinstance(seed := run.choices.get("seed"), int) and place(seed) == target
        if is_free(run_folder(target))
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
    log.info("task %s, seed %d: %s", task.name, job.seed, video.path)
    with video:
        request = video_request(
            task, controlnets=controlnets, annotators=annotators, device=pipeline.device, scheduler=scheduler
        )
        request = without_unused_pictures(request, pipeline.picture_networks())
        steps = {"first frame": request.first_frame.num_steps, "video": request.sampling.num_steps}
        shots = pipeline.plan(request, seed=job.seed, observer=observer(steps))
        batch = fitting_batch(pipeline.vae, shots.height, shots.width, decoding_dtype(pipeline.vae))
        start, stop = job.frames[0], shots.num_frames if job.frames[1] is None else job.frames[1]
        count = video.begin(stop - start, {"seed": job.seed, "decode_batch": batch}, _notes(pipeline))
        first = start + count
        if count > 0:
            log.info("%d of %d frames are finished already", count, stop - start)
        if first < stop:
            stream = shots.stream(
                None if task.noise_draw == "original" else PART,
                frames=range(first, stop),
                checkpoint=video.checkpoint,
                batch=video.choices["decode_batch"],
            )
            result = result_frames(task, shots, stream, first=first, n_cols=output.n_cols, write_info=output.write_info)
            for part in writing(result, count, stop - start):
                video.write(part)
    return video.path


def _notes(pipeline: MuseVPipeline) -> dict[str, str]:
    device = torch.device(pipeline.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "torch": torch.__version__}
