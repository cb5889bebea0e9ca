"""What is published where, and into which folders it belongs (extra.md 8.1, 8.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MuseVError, nearest

MUSEV_REPO = "TMElyralab/MuseV"
ANNOTATORS = "lllyasviel/Annotators"
RESEARCH_ONLY = "non-commercial research only"


@dataclass(frozen=True)
class Source:
    """One file of a hub repository, or all files below one of its folders.

    Args:
        repo: `owner/name`.
        path: in the repository; a folder ends in `/`.
        original: where it goes below the original's `checkpoints/`; a folder if `path` is one.
        comfyui: where it goes below ComfyUI's `models/`; None for what ComfyUI has no use for.
    """

    repo: str
    path: str
    original: str
    comfyui: str | None


@dataclass(frozen=True)
class Published:
    """Something to ask for by name: what it is, its files, and terms of use that are easily overlooked."""

    title: str
    sources: tuple[Source, ...]
    terms: str = ""


def _tree(path: str) -> Source:
    """A part of MuseV's own repository, in the folder where all ComfyUI packs for MuseV look for it."""
    return Source(MUSEV_REPO, path, path, f"diffusers/{MUSEV_REPO}/{path}")


def _image_encoder_file(name: str, comfyui: str | None) -> Source:
    folder = "models/image_encoder"
    return Source("h94/IP-Adapter", f"{folder}/{name}", f"IP-Adapter/{folder}/{name}", comfyui)


def _ip_adapter(name: str, title: str) -> Published:
    file = f"{name}_sd15.safetensors"
    source = Source("h94/IP-Adapter", f"models/{file}", f"IP-Adapter/models/{file}", f"ipadapter/{file}")
    return Published(title, (source,))


def _face_adapter(file: str, comfyui: str) -> Source:
    return Source("h94/IP-Adapter-FaceID", file, f"IP-Adapter/models/{file}", comfyui)


def _face_model(name: str) -> Source:
    path = f"IP-Adapter/models/image_encoder/models/buffalo_l/{name}"
    return Source(MUSEV_REPO, path, path, f"insightface/models/buffalo_l/{name}")


def _preprocessor(title: str, repo: str, *files: str, terms: str = "") -> Published:
    """Weights of a control preprocessor, below a folder for all of them as comfyui_controlnet_aux keeps them."""
    sources = (Source(repo, file, f"controlnet_aux/{repo}/{file}", f"controlnet_aux/{repo}/{file}") for file in files)
    return Published(f"preprocessor: {title}", tuple(sources), terms)


def _diffusers_network(repo: str, original: str, comfyui: str) -> tuple[Source, Source]:
    """Configuration and weights; ComfyUI reads the latter alone, under a name of their own."""
    weights = "diffusion_pytorch_model.safetensors"
    return (
        Source(repo, "config.json", f"{original}/config.json", None),
        Source(repo, weights, f"{original}/{weights}", comfyui),
    )


def _controlnet(name: str, title: str) -> Published:
    files = _diffusers_network(f"lllyasviel/{name}", f"controlnet/{name}", f"controlnet/{name}.safetensors")
    return Published(f"ControlNet for {title}", files)


PUBLISHED: dict[str, Published] = {
    "musev": Published(
        "the motion model without reference layers",
        (_tree("motion/musev/"),),
        RESEARCH_ONLY,
    ),
    "musev_referencenet": Published(
        "the motion model with ReferenceNet and image prompt, the one to start with",
        (_tree("motion/musev_referencenet/"),),
        RESEARCH_ONLY,
    ),
    "musev_referencenet_pose": Published(
        "the same, trained further for pose control",
        (_tree("motion/musev_referencenet_pose/"), _tree("motion/musev_referencenet/referencenet/")),
        RESEARCH_ONLY,
    ),
    "base": Published(
        "majicMIX realistic v6, the Stable Diffusion 1.5 model the original uses",
        (_tree("t2i/sd1.5/majicmixRealv6Fp16/"),),
        "its own licence",
    ),
    "base_fantasticmix": Published(
        "fantasticmix v1, the original's other Stable Diffusion 1.5 model",
        (_tree("t2i/sd1.5/fantasticmix_v10/"),),
        "its own licence",
    ),
    "vae": Published(
        "the VAE sd-vae-ft-mse, instead of the base model's",
        _diffusers_network("stabilityai/sd-vae-ft-mse", "vae/sd-vae-ft-mse", "vae/sd-vae-ft-mse.safetensors"),
    ),
    "image_encoder": Published(
        "CLIP ViT-H, for the image prompt and every IP-Adapter",
        (
            _image_encoder_file("config.json", None),
            # the name that IP-Adapter packs look for
            _image_encoder_file("model.safetensors", "clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"),
        ),
    ),
    "ip_adapter": _ip_adapter("ip-adapter", "IP-Adapter, instead of MuseV's own image prompt"),
    "ip_adapter_plus": _ip_adapter("ip-adapter-plus", "IP-Adapter plus: closer to the picture"),
    "ip_adapter_plus_face": _ip_adapter("ip-adapter-plus-face", "IP-Adapter plus for cropped faces"),
    "faceid": Published(
        "IP-Adapter FaceID, its LoRA, and the face models of insightface",
        (
            _face_adapter("ip-adapter-faceid_sd15.bin", "ipadapter/ip-adapter-faceid_sd15.bin"),
            _face_adapter("ip-adapter-faceid_sd15_lora.safetensors", "loras/ip-adapter-faceid_sd15_lora.safetensors"),
            _face_model("det_10g.onnx"),
            _face_model("w600k_r50.onnx"),
        ),
        "non-commercial (insightface)",
    ),
    "lcm": Published(
        "LCM LoRA: 4 to 8 steps",
        (
            Source(
                "latent-consistency/lcm-lora-sdv1-5",
                "pytorch_lora_weights.safetensors",
                "lcm/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors",
                "loras/lcm-lora-sdv1-5.safetensors",
            ),
        ),
    ),
    "embeddings": Published(
        "negative embeddings (badhandv4, EasyNegativeV2, ...)",
        (Source(MUSEV_REPO, "embedding/", "embedding/", "embeddings/"),),
    ),
    "preprocessor_dwpose": _preprocessor("dwpose*", "yzd-v/DWPose", "yolox_l.onnx", "dw-ll_ucoco_384.onnx"),
    "preprocessor_openpose": _preprocessor(
        "pose*", ANNOTATORS, "body_pose_model.pth", "hand_pose_model.pth", "facenet.pth", terms="non-commercial (CMU)"
    ),
    "preprocessor_hed": _preprocessor("hed, hed_scribble", ANNOTATORS, "ControlNetHED.pth"),
    "preprocessor_midas": _preprocessor("depth", ANNOTATORS, "dpt_hybrid-midas-501f0c75.pt"),
    "preprocessor_pidi": _preprocessor("pidi", ANNOTATORS, "table5_pidinet.pth"),
    "preprocessor_normal_bae": _preprocessor("normal_bae", ANNOTATORS, "scannet.pt"),
    "preprocessor_lineart": _preprocessor("lineart", ANNOTATORS, "sk_model.pth", "sk_model2.pth"),
    "preprocessor_lineart_anime": _preprocessor("lineart_anime", ANNOTATORS, "netG.pth"),
    "preprocessor_zoe": _preprocessor("zoe", ANNOTATORS, "ZoeD_M12_N.pt"),
    "preprocessor_leres": _preprocessor("leres", ANNOTATORS, "res101.pth", "latest_net_G.pth"),
    "preprocessor_sam": _preprocessor("sam", "ybelkada/segment-anything", "checkpoints/sam_vit_h_4b8939.pth"),
    "preprocessor_mobile_sam": _preprocessor("mobile_sam", "dhkim2810/MobileSAM", "mobile_sam.pt"),
    "controlnet_openpose": _controlnet("control_v11p_sd15_openpose", "poses"),
    "controlnet_canny": _controlnet("control_v11p_sd15_canny", "canny edges"),
    "controlnet_tile": _controlnet("control_v11f1e_sd15_tile", "the frames themselves (tile)"),
    "controlnet_depth": _controlnet("control_v11f1p_sd15_depth", "depth (depth, zoe, leres)"),
    "controlnet_softedge": _controlnet("control_v11p_sd15_softedge", "soft edges (hed, pidi)"),
    "controlnet_hed": _controlnet("sd-controlnet-hed", "hed, version 1.0 as the original uses it"),
    "controlnet_scribble": _controlnet("control_v11p_sd15_scribble", "scribbles (hed_scribble)"),
    "controlnet_normalbae": _controlnet("control_v11p_sd15_normalbae", "surface normals (normal_bae)"),
    "controlnet_lineart": _controlnet("control_v11p_sd15_lineart", "line art"),
    "controlnet_lineart_anime": _controlnet("control_v11p_sd15s2_lineart_anime", "anime line art"),
    "controlnet_seg": _controlnet("control_v11p_sd15_seg", "segments (sam, mobile_sam)"),
    "controlnet_shuffle": _controlnet("control_v11e_sd15_shuffle", "shuffled content (content)"),
}


def sources_of(names: Sequence[str]) -> list[Source]:
    """The files to fetch for these names, each once.

    Raises:
        MuseVError: an unknown name.
    """
    for name in names:
        if name not in PUBLISHED:
            raise MuseVError(
                f"nothing is known under the name {name!r}.{nearest(name, PUBLISHED)} Names: {', '.join(PUBLISHED)}."
            )
    return list(dict.fromkeys(source for name in names for source in PUBLISHED[name].sources))
