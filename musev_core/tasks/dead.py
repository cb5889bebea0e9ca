"""Parameters of the original which do nothing, there or here: what to use instead, and the values that do no harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import MuseVError


@dataclass(frozen=True)
class DeadParameter:
    """`hint`: what to do instead; `harmless`: values which existing scripts and files give it, as lower-case text."""

    hint: str
    harmless: tuple[str, ...] = ()


_NO_FACEIN = "face-in was never finished; keep a face with face_image and an IP-Adapter face model"
_NO_SERIAL = "blending with the shot before was an experiment; use one long shot (n_batch 1) with context windows"
DEAD_PARAMETERS: Mapping[str, DeadParameter] = MappingProxyType(
    {
        "facein_model_cfg_path": DeadParameter(_NO_FACEIN, ("facein.py",)),
        "facein_model_name": DeadParameter(_NO_FACEIN),
        "facein_scale": DeadParameter(_NO_FACEIN, ("1", "1.0")),
        "redraw_condition_image_with_facein": DeadParameter(_NO_FACEIN, ("", "true", "false")),
        "context_stride": DeadParameter(
            "strided windows have no effect with uniform_v2; widen context_frames or context_overlap", ("1", "1.0")
        ),
        "interpolation_factor": DeadParameter(
            "frames are not interpolated; make more of them with time_size, or raise fps", ("1", "1.0")
        ),
        "end_to_end": DeadParameter("it has no effect; n_batch and time_size say how shots are chained", ("true",)),
        "pose_guider_model_path": DeadParameter(
            "it was an experiment; guide poses with controlnet_name: dwpose_body_hand"
        ),
        "enable_zero_snr": DeadParameter("it was an experiment which breaks guidance; leave it out", ("false",)),
        "record_mid_video_latents": DeadParameter(_NO_SERIAL, ("false",)),
        "record_mid_video_noises": DeadParameter(_NO_SERIAL, ("false",)),
        "video_overlap": DeadParameter(_NO_SERIAL, ("1", "1.0")),
        "need_video2video": DeadParameter("write which2video: video", ("false",)),
        "prompt_only_use_image_prompt": DeadParameter(
            "the released models read text and image prompts apart; write prompt: ''", ("false",)
        ),
        "cross_attention_dim": DeadParameter("it is read from the weights; leave it out", ("768",)),
        "negprompt_cfg_path": DeadParameter(
            "the presets Empty and V1 to V5 are built in; leave it out, and write texts of your own into "
            "negative_prompt and video_negative_prompt"
        ),
        "img_edge_ratio": DeadParameter("it is called img_length_ratio", ("1", "1.0")),
    }
)


def refuse_dead(name: str, value: Any, where: str) -> None:
    """Raises MuseVError for a dead parameter, unless its value asks for nothing."""
    text = "" if value is None else str(value).strip().lower()
    dead = DEAD_PARAMETERS[name]
    nothing = value is None or text in ("none", "null") or text.rpartition("/")[2] in dead.harmless
    if not nothing:
        raise MuseVError(f"{name}: no longer a parameter {where}: {dead.hint}.")
