"""`musev train`: a run from its configuration, feature extraction, and the demo model."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..errors import MuseVError
from .recipe import Recipe, load_recipe

log = logging.getLogger(__name__)


def train(options: argparse.Namespace) -> int:
    """Runs a training configuration, or goes on with it."""
    changes = {}
    for text in options.set:
        name, separator, value = text.partition("=")
        if not separator:
            raise MuseVError(f"--set wants NAME=VALUE, got {text!r}")
        changes[name.strip()] = value.strip()
    recipe = load_recipe(options.config, changes)
    run = build_trainer(recipe)
    if options.resume != "none":
        run.resume(options.resume if options.resume == "latest" else Path(options.resume))
    run.run()
    return 0


def build_trainer(recipe: Recipe) -> Any:
    """The trainer of a recipe, with all networks loaded and the data looked through."""
    from .networks import build_objective, frozen_encoders
    from .trainer import Trainer
    from .video_clips import EncodingObjective, VideoClips

    config, data = recipe.model, recipe.data
    pictures = config.variant != "musev"
    videos = data.kind == "videos"
    samples: Dataset
    encoders: tuple[Any, ...] = ()
    if videos:
        from .sources import find_sources

        sources = find_sources(data.places, video_dir=data.video_dir)
        samples = VideoClips(sources, data.rule, data.height, data.width, seed=recipe.train.seed)
        encoders = frozen_encoders(config, image=pictures)
        empty = _empty_text(encoders[1], encoders[2])
    else:
        samples = _features(recipe, pictures)
        empty = _empty_text(*_text_encoder(recipe)) if _drops_text(recipe) else torch.zeros(77, 768)
    decode = None
    if recipe.diffusion.uses_pixels:
        from ..loading import load_vae

        decode = _decoder(encoders[0] if encoders else load_vae(config.vae or config.base))
    objective: nn.Module = build_objective(
        config,
        recipe.diffusion,
        empty_text=empty,
        condition_frames=data.condition_frames,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        decode=decode,
    )
    if videos:
        objective = EncodingObjective(objective, *encoders, reference_scale=data.reference_scale)  # type: ignore[arg-type]
    trainer = Trainer(objective, samples, recipe.train, recipe.output_dir)
    for net in encoders:
        if isinstance(net, nn.Module):
            net.to(trainer.accelerator.device)
    if recipe.validation.tasks is not None:
        trainer.validate = _sample_videos(recipe, objective)
    return trainer


def _features(recipe: Recipe, pictures: bool) -> Dataset:
    from .features import FeatureClips, FeatureKeys
    from .sources import find_features

    data = recipe.data
    files = find_features(
        data.places,
        path_column=data.path_column,
        min_frames=data.rule.num_frames * data.rule.max_sample_rate,
    )
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
    from ..text import encode_prompts

    return encode_prompts(tokenizer, text_encoder, "", None)[0].float()


def _decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    def decode(latents: Tensor) -> Tensor:
        vae.to(latents.device)
        return vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5

    return decode


def _sample_videos(recipe: Recipe, objective: nn.Module) -> Callable[[int, Path], dict[str, float]]:
    """Makes the videos of a task file with the networks in training."""
    from ..encoders import ImagePromptEncoder
    from ..pipeline import MuseVPipeline
    from ..tasks.files import load_tasks
    from ..tasks.results import check_files
    from ..tasks.runner import result_frames, video_request, without_unused_pictures
    from ..video import VideoWriter
    from .networks import frozen_encoders

    tasks = load_tasks(recipe.validation.tasks)  # type: ignore[arg-type]
    for task in tasks:
        check_files(task)
    motion: Any = getattr(objective, "motion", objective)
    vae, tokenizer, text_encoder, image_encoder = frozen_encoders(
        recipe.model, image=recipe.model.image_encoder is not None
    )

    def sample(step: int, folder: Path) -> dict[str, float]:
        projection = motion.image_projection
        prompt = ImagePromptEncoder(image_encoder, projection) if image_encoder is not None and projection else None
        pipeline = MuseVPipeline(motion.unet, vae, tokenizer, text_encoder, motion.reference_net, prompt)
        pipeline.to(next(motion.unet.parameters()).device)
        folder.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            request = without_unused_pictures(video_request(task), pipeline.picture_networks())
            result = pipeline.generate(request, generator=torch.Generator().manual_seed(recipe.train.seed))
            path = folder / f"{step:07d}-{task.name}.mp4"
            with VideoWriter(path, fps=recipe.validation.fps, overwrite=True) as writer:
                for part in result_frames(task, request, result):
                    writer.write(part)
            log.info("sample video: %s", path)
        return {}

    return sample


# ------------------------------------------------------------------------------------------ extraction


def extract_command(options: argparse.Namespace) -> int:
    """Writes feature files."""
    from ..loading import default_device
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
