"""`musev train`: a run from its configuration, feature extraction, and the demo model."""

import argparse
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..errors import MuseVError
from ..file_names import made_folder, portable_name
from ..frames.images import to_uint8
from ..frames.video import Video, write_video
from ..locks import alone_with
from .checkpoints import find_checkpoint
from .recipe import Recipe, load_recipe
from .schedule import derived_seed

if TYPE_CHECKING:
    from ..tasks.task import Task

log = logging.getLogger(__name__)
_Encoders = tuple[Any, Any, Any, Any]  # of `frozen_encoders`


def train(options: argparse.Namespace) -> int:
    """Runs a training configuration, or goes on with it."""
    changes = {}
    for text in options.set:
        name, separator, value = text.partition("=")
        if not separator:
            raise MuseVError(f"--set wants NAME=VALUE, got {text!r}")
        changes[name.strip()] = value.strip()
    recipe = load_recipe(options.config, changes)
    checkpoints = recipe.output_dir / "checkpoints"
    find_checkpoint(checkpoints, options.resume)  # a wrong name is told before anything is read
    run = build_trainer(recipe)
    with _alone_in(recipe.output_dir):
        checkpoint = find_checkpoint(checkpoints, options.resume)
        if checkpoint is not None:
            run.resume(checkpoint)
        if run.step >= recipe.train.steps:
            log.info("all %d steps are done already; a larger train.steps goes on from here", recipe.train.steps)
        run.run()
        run.accelerator.end_training()
    return 0


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The folder of a run, for this run alone; of its processes the first speaks for all."""
    if int(os.environ.get("RANK", "0")):
        yield
        return
    with alone_with(made_folder(folder), "training"):
        yield


def build_trainer(recipe: Recipe) -> Any:
    """The trainer of a recipe, with all networks loaded and the data looked through.

    What takes no time to check comes first: a wrong file name is not told after an hour of counting frames.
    """
    from .networks import build_objective, check_models, frozen_encoders
    from .trainer import Trainer, make_accelerator, tensorboard
    from .video_clips import EncodingObjective, VideoClips

    config, data = recipe.model, recipe.data
    pictures = config.variant != "musev"
    accelerator = make_accelerator(recipe.train)
    if not accelerator.is_main_process:
        logging.getLogger("musev_core").setLevel(logging.ERROR)  # all processes find the same to tell
    tensorboard()
    tasks = _sample_tasks(recipe)
    check_models(config)
    found = _find_data(recipe)

    samples: Any
    encoders: _Encoders | None = None
    image_dim = 1024
    if data.kind == "videos":
        encoders = frozen_encoders(config, image=pictures)
        empty = _empty_text(encoders[1], encoders[2])
        if encoders[3] is not None:
            image_dim = encoders[3].config.projection_dim
        samples = VideoClips(found, data.rule, data.height, data.width, seed=recipe.train.seed)
    else:
        samples = _features(recipe, found, pictures)
        # a text of any width stands for the one that never takes a dropped text's place
        empty = _empty_text(*_text_encoder(recipe)) if _drops_text(recipe) else torch.zeros(77, 1)
        if pictures:
            image_dim = samples[0]["image"].shape[-1]
    decode = None
    if recipe.diffusion.uses_pixels:
        from ..loading import load_vae

        decode = _decoder(encoders[0] if encoders else load_vae(config.vae or config.base))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(recipe.train.seed, 2))  # new layers begin alike in every run of the recipe
        objective: Any = build_objective(
            config,
            recipe.diffusion,
            empty_text=empty,
            condition_frames=data.condition_frames,
            gradient_checkpointing=recipe.train.gradient_checkpointing,
            decode=decode,
            image_dim=image_dim,
        )
    if encoders is not None:
        objective = EncodingObjective(objective, *encoders, reference_scale=data.reference_scale)
    trainer = Trainer(objective, samples, recipe.train, recipe.output_dir, accelerator=accelerator)
    for net in encoders or ():
        if isinstance(net, nn.Module):
            net.to(trainer.accelerator.device)
    if tasks and accelerator.is_main_process:
        trainer.validate = _sample_videos(recipe, tasks, objective, encoders)
    log.info("checkpoints, samples and log (tensorboard --logdir) go to %s", recipe.output_dir)
    return trainer


def _sample_tasks(recipe: Recipe) -> list["Task"]:
    """The tasks of the sample videos, whose files are there."""
    from ..tasks.files import load_tasks
    from ..tasks.results import check_files

    if recipe.validation.tasks is None or not recipe.train.validate_every:
        return []
    tasks = load_tasks(recipe.validation.tasks)
    for task in tasks:
        check_files(task)
        if task.controlnet_name:
            raise MuseVError(f"task {task.name!r}: sample videos have no ControlNets; leave controlnet_name out")
    return tasks


def _find_data(recipe: Recipe) -> list[Any]:
    """Videos or feature files, not looked into."""
    from .sources import find_features, find_sources

    data = recipe.data
    if data.kind == "videos":
        return find_sources(data.places, video_dir=data.video_dir)
    return find_features(
        data.places,
        path_column=data.path_column,
        min_frames=data.rule.num_frames * data.rule.max_sample_rate,
    )


def _features(recipe: Recipe, files: Sequence[Path], pictures: bool) -> Dataset:
    from .features import FeatureClips, FeatureKeys

    data = recipe.data
    return FeatureClips(
        files,
        FeatureKeys(data.width, data.height),
        data.rule,
        seed=recipe.train.seed,
        texts=data.texts,
        images=pictures,
        poses=recipe.model.controlnet is not None,
        reference_scale=data.reference_scale,
    )


def _drops_text(recipe: Recipe) -> bool:
    return recipe.diffusion.text_dropout > 0 or recipe.diffusion.both_dropout > 0


def _text_encoder(recipe: Recipe) -> tuple[Any, Any]:
    from .networks import frozen_encoders

    return frozen_encoders(recipe.model, image=False)[1:3]


@torch.no_grad()
def _empty_text(tokenizer: Any, text_encoder: Any) -> Tensor:
    from ..encode.text import encode_prompts

    return encode_prompts(tokenizer, text_encoder, "", None)[0].float()


def _decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    def decode(latents: Tensor) -> Tensor:
        vae.to(latents.device)
        return vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5

    return decode


def _sample_videos(
    recipe: Recipe, tasks: Sequence["Task"], objective: nn.Module, encoders: _Encoders | None
) -> Callable[[int, Path], dict[str, Video]]:
    """Makes videos with the networks in training."""
    from ..encode.pictures import ImagePromptEncoder
    from ..pipeline import MuseVPipeline
    from ..tasks.runner import result_frames, video_request, without_unused_pictures
    from .networks import frozen_encoders

    motion: Any = getattr(objective, "motion", objective)
    if encoders is None:
        encoders = frozen_encoders(recipe.model, image=recipe.model.image_encoder is not None)
    vae, tokenizer, text_encoder, image_encoder = encoders
    fps = recipe.validation.fps

    def sample(step: int, folder: Path) -> dict[str, Video]:
        projection = motion.image_projection
        prompt = ImagePromptEncoder(image_encoder, projection) if image_encoder is not None and projection else None
        pipeline = MuseVPipeline(motion.unet, vae, tokenizer, text_encoder, motion.reference_net, prompt)
        pipeline.to(next(motion.unet.parameters()).device)
        videos = {}
        for task in tasks:
            request = without_unused_pictures(video_request(task), pipeline.picture_networks())
            shots = pipeline.plan(request, seed=recipe.train.seed)
            frames = to_uint8(torch.cat(list(result_frames(task, shots, shots.stream(None)))))
            path = write_video(folder / f"{step:07d}-{portable_name(task.name)}.mp4", frames, fps=fps, overwrite=True)
            log.info("sample video: %s", path)
            videos[task.name] = Video(frames, fps)
        return videos

    return sample


# ------------------------------------------------------------------------------------------ extraction


def extract_command(options: argparse.Namespace) -> int:
    """Writes feature files."""
    from ..devices import default_device
    from .extract import Extractor, extract
    from .features import FeatureKeys
    from .networks import frozen_encoders, place
    from .recipe import ModelRecipe
    from .sources import find_sources

    if options.width % 8 or options.height % 8 or min(options.width, options.height) < 8:
        raise MuseVError(f"--width and --height must be multiples of 8, got {options.width} and {options.height}")
    sources = find_sources(options.places, video_dir=options.video_dir)[: options.limit]
    recipe = ModelRecipe(base=options.base, image_encoder=options.image_encoder)
    vae, tokenizer, text_encoder, image_encoder = frozen_encoders(recipe, image=options.image_encoder is not None)
    place((vae, image_encoder), default_device(), torch.float32)
    poses = None if options.pose_weights is None else pose_detector(options.pose_weights)
    keys = FeatureKeys(options.width, options.height)
    extractor = Extractor(keys, vae, (tokenizer, text_encoder), image_encoder, poses, options.stored_rate)
    counts = extract(sources, extractor, options.output_dir, tell=log.info)
    log.info("written %(written)d, complete before %(skipped)d, left out %(broken)d", counts)
    return 0


def pose_detector(folder: Path) -> Any:
    """DWPose as `Extractor` wants it: points in OpenPose's order, 0..1, with raw scores."""
    from ..pose.preprocessors import ControlPreprocessor
    from .features import stored_points

    detector = ControlPreprocessor("dwpose_body_hand", folders=[folder])

    def find(image: Any) -> Any:
        return stored_points(detector.run(torch.from_numpy(image)[None]).poses[0])

    return find
