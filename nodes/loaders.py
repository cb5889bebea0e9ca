"""Files into networks: Load MuseV Motion, Load MuseV ReferenceNet, Load MuseV IP-Adapter."""

import torch
from comfy_api.latest import io

from .host import paths
from .host.networks import load_ip_adapter, load_motion, load_reference_net
from .sockets import CATEGORY, IPAdapter, Motion, Node, ReferenceNet

_CATEGORY = CATEGORY + "/loaders"
_DTYPES = {"auto": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def _dtype(besides: str = "") -> io.Combo.Input:
    return io.Combo.Input(
        "dtype",
        options=list(_DTYPES),
        default="auto",
        tooltip=(
            "Precision of the weights in memory. auto takes what ComfyUI takes on this device; fp16 and bf16 need half "
            f"the memory of fp32; fp32 is the most exact and the slowest.{besides}"
        ),
    )


def _file(name: str, kind: paths.FileKind, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=paths.options(kind),
        tooltip=(
            f"{tooltip} Listed are files below models/musev, models/diffusers/TMElyralab/MuseV and the folders that "
            "extra_model_paths.yaml names; press R after adding one."
        ),
    )


class LoadMotion(Node):
    """A MuseV UNet's motion layers; the Stable Diffusion part of the file is not read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="MuseV_LoadMotion",
            display_name="Load MuseV Motion",
            category=_CATEGORY,
            description=(
                "Loads MuseV's motion layers from a published file, complete or motion only. They move any Stable "
                "Diffusion 1.5 model: connect both to Apply MuseV Motion."
            ),
            inputs=[
                _file(
                    "motion_name",
                    paths.MOTION,
                    "MuseV's UNet file. musev_referencenet keeps a person best and takes reference pictures; musev is "
                    "the model without them; musev_referencenet_pose is trained further for pose control.",
                ),
                _dtype(),
            ],
            outputs=[Motion.Output(display_name="motion", tooltip="The motion layers, for Apply MuseV Motion.")],
        )

    @classmethod
    def validate_inputs(cls, motion_name: str | None = None) -> bool | str:
        """A sentence about a missing file before anything runs; slashes of other systems are understood."""
        return paths.check(paths.MOTION, motion_name)

    @classmethod
    def execute(cls, motion_name: str, dtype: str = "auto") -> io.NodeOutput:
        """Loads the file."""
        return io.NodeOutput(load_motion(paths.find(paths.MOTION, motion_name), _DTYPES[dtype]))


class LoadReferenceNet(Node):
    """The network that reads reference pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="MuseV_LoadReferenceNet",
            display_name="Load MuseV ReferenceNet",
            category=_CATEGORY,
            description=(
                "Loads the network that shows the motion model what a person looks like. It works with the "
                "musev_referencenet models: connect it to Apply ReferenceNet."
            ),
            inputs=[
                _file(
                    "reference_net_name",
                    paths.REFERENCE_NET,
                    "The file in the folder referencenet; musev_referencenet_pose uses the one of musev_referencenet.",
                ),
                _dtype(),
            ],
            outputs=[ReferenceNet.Output(display_name="reference_net", tooltip="The network, for Apply ReferenceNet.")],
        )

    @classmethod
    def validate_inputs(cls, reference_net_name: str | None = None) -> bool | str:
        """A sentence about a missing file before anything runs; slashes of other systems are understood."""
        return paths.check(paths.REFERENCE_NET, reference_net_name)

    @classmethod
    def execute(cls, reference_net_name: str, dtype: str = "auto") -> io.NodeOutput:
        """Loads the file."""
        return io.NodeOutput(load_reference_net(paths.find(paths.REFERENCE_NET, reference_net_name), _DTYPES[dtype]))


class LoadIPAdapter(Node):
    """MuseV's image projection, or an original IP-Adapter with its own attention layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="MuseV_LoadIPAdapter",
            display_name="Load MuseV IP-Adapter",
            category=_CATEGORY,
            description=(
                "Loads what turns a picture into an image prompt: MuseV's own projection, or an IP-Adapter for Stable "
                "Diffusion 1.5 (plain, plus, plus-face, FaceID), recognised from its tensors."
            ),
            inputs=[
                _file(
                    "ip_adapter_name",
                    paths.IP_ADAPTER,
                    "ip_adapter_image_proj is MuseV's own and fits the musev_referencenet models; an ip-adapter file "
                    "takes its place; FaceID is for Apply FaceID. The folder models/ipadapter is listed as well.",
                ),
                _dtype(" The small projection stays in fp32."),
            ],
            outputs=[
                IPAdapter.Output(
                    display_name="ip_adapter",
                    tooltip="The adapter, for Apply IP-Adapter, or Apply FaceID if it is one.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, ip_adapter_name: str | None = None) -> bool | str:
        """A sentence about a missing file before anything runs; slashes of other systems are understood."""
        return paths.check(paths.IP_ADAPTER, ip_adapter_name)

    @classmethod
    def execute(cls, ip_adapter_name: str, dtype: str = "auto") -> io.NodeOutput:
        """Loads the file."""
        return io.NodeOutput(load_ip_adapter(paths.find(paths.IP_ADAPTER, ip_adapter_name), _DTYPES[dtype]))


class LoadDemo(Node):
    """The model inside the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="MuseV_LoadDemo",
            display_name="Load MuseV Demo",
            category=_CATEGORY,
            description="A tiny model of 64 x 64 pixels inside the pack: everything MuseV needs, without a download, "
            "fast on any CPU. To try graphs, not for pictures.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The base model, without motion."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder; it knows the captions of a toy world."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE."),
                Motion.Output(display_name="motion", tooltip="Its motion model, a small musev_referencenet."),
                ReferenceNet.Output(display_name="reference_net", tooltip="Its ReferenceNet."),
                IPAdapter.Output(display_name="ip_adapter", tooltip="Its image projection."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="Its image encoder."),
                io.ControlNet.Output(display_name="control_net", tooltip="A ControlNet for the toy world's poses."),
                io.Image.Output(display_name="image", tooltip="A start picture, 64 x 64 pixels."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Builds ComfyUI's objects around the demo's weights."""
        from ..musev_core.demo.files import read_weights
        from .host import demo

        weights = read_weights()
        return io.NodeOutput(
            demo.model(weights["unet"]),
            demo.clip(weights["text_encoder"]),
            demo.vae(weights["vae"]),
            demo.motion(weights["unet"]),
            demo.reference_net(weights["reference_net"]),
            demo.ip_adapter(weights["image_projection"]),
            demo.clip_vision(weights["image_encoder"]),
            demo.control_net(weights["controlnet"]),
            demo.picture(),
        )


NODES = [LoadMotion, LoadReferenceNet, LoadIPAdapter, LoadDemo]
