"""Nodes that keep a person: ReferenceNet, IP-Adapter, FaceID. They only attach; the sampler computes the features."""

from comfy_api.latest import io

from ..musev_core.errors import MuseVError
from .host.clips import rgb
from .host.faces import embeddings, with_face_lora
from .host.options import FaceOptions, ImagePromptOptions, ReferenceOptions, Span, options_of
from .host.patching import with_options
from .sockets import CATEGORY, InsightFace, IPAdapter, Node, ReferenceNet, span_inputs

_MODEL = CATEGORY + "/model"


def _images(what: str) -> io.Image.Input:
    return io.Image.Input("images", tooltip=f"One or several pictures (a batch) {what}.")


def _model_input() -> io.Model.Input:
    return io.Model.Input(
        "model", tooltip="A model with Apply MuseV Motion before or after; the order does not matter."
    )


def _refuse_second(model, name: str, title: str) -> None:
    if getattr(options_of(model), name) is not None:
        raise MuseVError(
            f"this MODEL already has an {title}. Give all pictures to one node as a batch (Batch Images), instead of "
            "chaining nodes of the same kind."
        )


class ApplyReferenceNet(Node):
    """Pictures whose details every frame may look at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_ApplyReferenceNet",
            display_name="Apply ReferenceNet",
            category=_MODEL,
            description="Lets every frame look at the details of reference pictures: clothes, hair, background. Needs "
            "a musev_referencenet motion model. Attach the condition picture itself, or others of the same person.",
            inputs=[
                _model_input(),
                ReferenceNet.Input("reference_net", tooltip="The network, from Load MuseV ReferenceNet."),
                io.Vae.Input("vae", tooltip="The VAE which encodes the pictures: that of the checkpoint."),
                _images("to look at. Each costs memory, and time at every step"),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Factor of what the pictures add. 1 is as trained, less follows them less, 0 switches off.",
                ),
                *span_inputs("the pictures are looked at"),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Width in pixels at which the pictures are looked at; 0 is the video's. Larger sees more "
                    "detail and costs more.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Height in pixels at which the pictures are looked at; 0 is the video's.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with these reference pictures.")],
        )

    @classmethod
    def execute(
        cls, model, reference_net, vae, images, strength, start_percent, end_percent, width, height
    ) -> io.NodeOutput:
        """Attaches the pictures."""
        _refuse_second(model, "reference", "Apply ReferenceNet")
        if width % 8 or height % 8:
            raise MuseVError(f"width and height must be multiples of 8 pixels or 0, got {width} x {height}")
        options = ReferenceOptions(
            reference_net, vae, rgb(images), strength, Span(start_percent, end_percent), width, height
        )
        return io.NodeOutput(with_options(model, reference=options))


class ApplyIPAdapter(Node):
    """Pictures as part of the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_ApplyIPAdapter",
            display_name="Apply IP-Adapter",
            category=_MODEL,
            description="Pictures as part of the prompt: the overall look of a person or scene. Takes MuseV's own "
            "image projection (with musev_referencenet models) or an ip-adapter, -plus or -plus-face file for SD1.5.",
            inputs=[
                _model_input(),
                IPAdapter.Input("ip_adapter", tooltip="The adapter, from Load MuseV IP-Adapter."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="CLIP ViT-H/14 (IP-Adapter/models/image_encoder), from Load CLIP Vision."
                ),
                _images("whose look is wanted; the centre square of each is seen"),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.01,
                    tooltip="Factor of the pictures beside the text. More looks more like them and listens less to the "
                    "prompt; 0 switches off.",
                ),
                io.Combo.Input(
                    "combine",
                    options=["concat", "average"],
                    default="concat",
                    tooltip="Several pictures: concat shows all of them side by side, average their mean.",
                ),
                *span_inputs("the pictures are part of the prompt"),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the pictures act, 0..1: one mask for all frames, or one per frame of the clip.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with these pictures as a prompt.")],
        )

    @classmethod
    def execute(
        cls, model, ip_adapter, clip_vision, images, weight, combine, start_percent, end_percent, mask=None
    ) -> io.NodeOutput:
        """Attaches the pictures."""
        _refuse_second(model, "image_prompt", "Apply IP-Adapter")
        if ip_adapter.config.kind == "faceid":
            raise MuseVError(f"{ip_adapter.name} is an IP-Adapter FaceID: use Apply FaceID for it")
        options = ImagePromptOptions(
            ip_adapter,
            clip_vision,
            rgb(images),
            weight,
            combine,
            Span(start_percent, end_percent),
            mask,
        )
        return io.NodeOutput(with_options(model, image_prompt=options))


class ApplyFaceID(Node):
    """A face as part of the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_ApplyFaceID",
            display_name="Apply FaceID",
            category=_MODEL,
            description="A face as part of the prompt, recognised by insightface (its models are for non-commercial "
            "use). The largest face of each picture counts.",
            inputs=[
                _model_input(),
                IPAdapter.Input("ip_adapter", tooltip="ip-adapter-faceid_sd15, from Load MuseV IP-Adapter."),
                _images("of the face, from the front and not too small"),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.01,
                    tooltip="Factor of the face beside the text. More looks more like it; 0 switches off.",
                ),
                *span_inputs("the face is part of the prompt"),
                io.Float.Input(
                    "lora_strength",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Strength of the LoRA inside the file. 0.5 to 0.7 is usual with other models and looks "
                    "more alike; the original MuseV leaves it out (0), as its motion was trained without.",
                ),
                InsightFace.Input(
                    "insightface",
                    optional=True,
                    tooltip="A loaded face analysis of another pack; without it buffalo_l is loaded from "
                    "models/insightface/models/buffalo_l.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with this face.")],
        )

    @classmethod
    def execute(
        cls, model, ip_adapter, images, weight, start_percent, end_percent, lora_strength, insightface=None
    ) -> io.NodeOutput:
        """Finds the faces and attaches them."""
        _refuse_second(model, "face", "Apply FaceID")
        span = Span(start_percent, end_percent)
        if ip_adapter.config.kind != "faceid" or not ip_adapter.layers:
            raise MuseVError(
                f"{ip_adapter.name} is no IP-Adapter FaceID ({ip_adapter.config.kind}): load ip-adapter-faceid_sd15.bin"
            )
        found = embeddings(rgb(images), insightface)
        model = with_options(model, face=FaceOptions(ip_adapter, found, weight, span))
        return io.NodeOutput(with_face_lora(model, ip_adapter, lora_strength))


NODES = [ApplyReferenceNet, ApplyIPAdapter, ApplyFaceID]
