"""Before anything is loaded: every file recognised, every network made for it and compared with it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..encode.pictures import face_model_folder
from ..encode.text import TextualInversion
from ..errors import CheckpointError, MuseVError, require
from ..models.reference_net import ReferenceNet
from ..models.unet import MuseVUNet
from ..weights.files import read_tensors
from ..weights.kinds import Family, describe
from ..weights.layout import MuseVFiles, find_musev_files
from ..weights.lora import Lora, read_lora
from .files import LoraFile, ModelFiles
from .networks import (
    Planned,
    Projection,
    expect,
    plan_image_encoder,
    plan_projection,
    plan_reference_net,
    plan_text_encoder,
    plan_unet,
    plan_vae,
    weights_in,
)
from .text import load_tokenizer, read_embeddings


@dataclass
class Plan:
    """What a pipeline will be made of. Networks that are not wanted or not there are None."""

    unet: Planned[MuseVUNet]
    text_encoder: Planned[Any]
    vae: Planned[Any]
    tokenizer: Any
    loras: list[tuple[LoraFile, Lora]] = field(default_factory=list)
    embeddings: list[TextualInversion] = field(default_factory=list)
    reference_net: Planned[ReferenceNet] | None = None
    image_encoder: Planned[Any] | None = None
    image_projection: Planned[Projection] | None = None
    face_projection: Planned[Projection] | None = None
    face_models: Path | None = None


def make_plan(files: ModelFiles) -> Plan:
    """Looks at every file: what it is, and whether its network fits it. Of weights only names and shapes are read.

    Raises:
        CheckpointError: a file is missing, damaged, or not what is asked for.
        MissingPackageError: FaceID without insightface.
    """
    found = _musev_files(files)
    face_models = _face_models(files)
    unet = plan_unet(files.base, found, files.ip_adapter, files.face_adapter)
    config = unet.net.config
    plan = Plan(
        unet=unet,
        text_encoder=plan_text_encoder(files.text_encoder or files.base),
        tokenizer=load_tokenizer(files),
        vae=plan_vae(files.vae or files.base),
        embeddings=read_embeddings(files.embeddings),
        face_models=face_models,
    )
    for lora in files.loras:
        expect(lora.path, (Family.LORA,), "a LoRA")
        plan.loras.append((lora, read_lora(read_tensors(lora.path), source=str(lora.path), config=config.spatial())))
    if found.referencenet is not None and files.use_reference_net:
        plan.reference_net = plan_reference_net(found.referencenet, config)
    if files.image_encoder is not None and files.use_image_prompt and config.image_prompt:
        source = files.ip_adapter or found.image_proj
        if source is None:
            raise CheckpointError(
                f"no ip_adapter_image_proj file lies beside {found.unet.parent}; give it as image_projection, or leave "
                "the image encoder out"
            )
        plan.image_encoder = plan_image_encoder(files.image_encoder)
        plan.image_projection = plan_projection(source)
    if files.face_adapter is not None:
        plan.face_projection = plan_projection(files.face_adapter)
    _check_widths(plan)
    return plan


def _musev_files(files: ModelFiles) -> MuseVFiles:
    """MuseV's files, those given in place of what lies beside the UNet among them."""
    found = find_musev_files(files.musev, files.variant)
    referencenet = Path(files.reference_net) if files.reference_net is not None else found.referencenet
    if referencenet is not None and referencenet.is_dir():
        referencenet = weights_in(referencenet)
    projection = Path(files.image_projection) if files.image_projection is not None else found.image_proj
    for path, families, what in (
        (referencenet, (Family.REFERENCENET, Family.UNET), "a ReferenceNet"),
        (projection, (Family.IMAGE_PROJECTION, Family.IP_ADAPTER), "MuseV's image projection"),
        (files.ip_adapter, (Family.IP_ADAPTER,), "an IP-Adapter"),
        (files.face_adapter, (Family.IP_ADAPTER,), "an IP-Adapter FaceID"),
    ):
        if path is not None:
            expect(path, families, what)
    if files.face_adapter is not None and found.kind.family is not Family.MUSEV_REFERENCENET_UNET:
        raise CheckpointError(
            f"FaceID works with the musev_referencenet models, but {found.unet} is {describe(found.kind)}"
        )
    return replace(found, referencenet=referencenet, image_proj=projection)


def _face_models(files: ModelFiles) -> Path | None:
    if files.face_adapter is None:
        return None
    if files.face_models is None:
        raise MuseVError("FaceID needs face_models as well")
    face_model_folder(files.face_models)
    require("insightface.app", install="insightface onnxruntime", purpose="FaceID")
    return Path(files.face_models)


def _check_widths(plan: Plan) -> None:
    """What goes from one network into the next must be as wide as that expects."""
    context = plan.unet.net.config.context_dim
    text = plan.text_encoder.net.config
    if text.hidden_size != context:
        raise CheckpointError(
            f"The text encoder's tokens have {text.hidden_size} numbers, the UNet expects {context}: they belong to "
            "different base models. Give a text encoder of Stable Diffusion 1.5."
        )
    if len(plan.tokenizer) > text.vocab_size:
        raise CheckpointError(
            f"The tokenizer has {len(plan.tokenizer)} tokens but the text encoder knows {text.vocab_size}: they do not "
            "belong together. Take both from the same model."
        )
    for inversion in plan.embeddings:
        if inversion.vectors.shape[1] != text.hidden_size:
            raise CheckpointError(
                f"Embedding {inversion.name!r} has {inversion.vectors.shape[1]} numbers a token, the text encoder "
                f"{text.hidden_size}: it was made for another base model."
            )
    latent_channels = plan.vae.net.config.latent_channels
    if latent_channels != plan.unet.net.config.out_channels:
        raise CheckpointError(
            f"The VAE's latents have {latent_channels} channels, the UNet's {plan.unet.net.config.out_channels}. Give "
            "a VAE of Stable Diffusion 1.5."
        )
    for projection in (plan.image_projection, plan.face_projection):
        if projection is not None and projection.net.config.context_dim != context:
            raise CheckpointError(
                f"{projection.parts[0][0]} makes tokens of {projection.net.config.context_dim} numbers, the UNet "
                f"expects {context}: choose the one for Stable Diffusion 1.5."
            )
    if plan.image_encoder is not None and plan.image_projection is not None:
        config = plan.image_projection.net.config
        encoder = plan.image_encoder.net.config
        width = encoder.hidden_size if config.kind == "plus" else encoder.projection_dim
        if config.input_dim != width:
            raise CheckpointError(
                f"The image encoder gives {width} numbers, but {plan.image_projection.parts[0][0]} expects "
                f"{config.input_dim}: MuseV's and IP-Adapter's for Stable Diffusion 1.5 need CLIP ViT-H."
            )
