"""What the original (TMElyralab/MuseV) publishes to run it by: its command lines and task keys, as facts.

Sizes are reduced to tiny ones, and prompts are words of our own in its syntax.
"""

import json
import os
import shutil
from pathlib import Path

import torch
import yaml

from musev_core.frames.image_files import save_image
from musev_core.frames.video import write_video

from . import golden_models, published
from .poses import write_detector, write_pose_net

SIDE = 64  # pixels
# what a run is reduced by: everything else is the original's
SMALL = ("--video_num_inference_steps", "1", "--num_inference_steps", "1", "--device", "cpu", "--seed", "1")

# name: (file, width, height, ratio) as in its configs/tasks/example.yaml; Mona_Lisa's file has another name there
PICTURES = {
    "yongen": ("yongen.jpeg", 736, 1308, 0.957),
    "jinkesi2": ("jinkesi2.jpeg", 563, 714, 1.25),
    "seaside4": ("seaside4.jpeg", 564, 317, 2.221),
    "seaside_girl": ("seaside_girl.jpeg", 736, 736, 0.957),
    "boy_play_guitar": ("boy_play_guitar.jpeg", 564, 846, 1.248),
    "girl_play_guitar2": ("girl_play_guitar2.jpeg", 564, 1002, 1.248),
    "boy_play_guitar2": ("boy_play_guitar2.jpeg", 420, 630, 1.676),
    "girl_play_guitar4": ("girl_play_guitar4.jpeg", 564, 846, 1.248),
    "dufu": ("dufu.jpeg", 471, 500, 1.495),
    "Mona_Lisa.": ("Mona_Lisa..jpg", 600, 894, 1.173),
    "Portrait-of-Dr.-Gachet": ("Portrait-of-Dr.-Gachet.jpg", 800, 985, 0.88),
    "Self-Portrait-with-Cropped-Hair": ("Self-Portrait-with-Cropped-Hair.jpg", 848, 565, 1.246),
    "The-Laughing-Cavalier": ("The-Laughing-Cavalier.jpg", 1200, 1462, 0.587),
    "waterfall4": ("waterfall4.jpeg", 564, 846, 1.248),
    "river": ("river.jpeg", 736, 736, 0.957),
    "seaside2": ("seaside2.jpeg", 736, 1313, 0.957),
}
SHIFT = 10  # pixels between the person of duffy's picture and that of the videos
MISSING = "Mona_Lisa."
VIDEOS = {
    "dance1": ("video1_girl_poseseq.mp4", "spark_girl.png"),
    "dance2": ("video1_girl_poseseq.mp4", "cyber_girl.png"),
    "duffy": ("pose-for-Duffy-4.mp4", "duffy.png"),
}

ENCODER = (
    "--vision_clip_extractor_class_name", "ImageClipVisionFeatureExtractor",
    "--vision_clip_model_path", "./checkpoints/IP-Adapter/models/image_encoder",
)  # fmt: skip
WHERE = ("-test_data_path", "./configs/tasks/example.yaml", "--output_dir", "./output")
_SHOT = ("--n_batch", "1", "--time_size", "12", "--fps", "12")
POSES = ("--controlnet_name", "dwpose_body_hand", "--which2video", "video_middle")


def _command(base: str, unet: str, target: str, *options: str) -> tuple[str, ...]:
    names = ("--sd_model_name", base, "--unet_model_name", unet)
    return ("generate", *names, *WHERE, *_SHOT, "--target_datas", target, *options)


def _networks(reference: str, projection: str) -> tuple[str, ...]:
    return ("--referencenet_model_name", reference, "--ip_adapter_model_name", projection, *ENCODER)


_REFERENCED = _networks("musev_referencenet", "musev_referencenet")
_POSED = _networks("musev_referencenet", "musev_referencenet_pose")
# the command lines of its README and README-zh, without the interpreter and the script
COMMANDS = {
    "image to video": _command("majicmixRealv6Fp16", "musev_referencenet", "yongen", *_REFERENCED),
    "poses": _command("fantasticmix_v10", "musev_referencenet", "dance1", *_REFERENCED, *POSES),
    "poses (zh)": _command("majicmixRealv6Fp16", "musev_referencenet", "dance1", *_REFERENCED, *POSES),
    "pose model": _command("fantasticmix_v10", "musev_referencenet_pose", "dance1", *_POSED, *POSES),
    "pose model (zh)": _command("majicmixRealv6Fp16", "musev_referencenet_pose", "dance1", *_POSED, *POSES),
    "plain image to video": _command("majicmixRealv6Fp16", "musev", "yongen"),
    "plain poses": _command("fantasticmix_v10", "musev", "dance1", *POSES),
    "plain poses (zh)": _command("majicmixRealv6Fp16", "musev", "dance1", *POSES),
}
ALIGN = (
    "--max_frame", "200", "--vidfn", "./data/source_video/dance.mp4", "--imgfn_refer", "./data/images/man.jpg",
    "--outfn_ref_img_pose", "./data/pose_align_results/ref_img_pose.jpg",
    "--outfn_align_pose_video", "./data/pose_align_results/align_pose_video.mp4",
    "--outfn", "./data/pose_align_results/align_demo.mp4",
)  # fmt: skip

# (option, value) at the default of scripts/inference/*.py, of what does nothing or does nothing at that value
HARMLESS = {
    "cross_attention_dim": "768", "context_stride": "1", "interpolation_factor": "1", "video_overlap": "1",
    "facein_scale": "1.0", "facein_model_name": "None", "pose_guider_model_path": "None",
    "lcm_model_name": "None", "ip_adapter_face_model_name": "None", "negprompt_cfg_path": "None",
    "facein_model_cfg_path": "./configs/model/facein.py", "ip_adapter_scale": "1.0", "ip_adapter_face_scale": "1.0",
    "log_level": "INFO",
}  # fmt: skip
TURNED_OFF = (  # switches which the original turns off when they are given
    "use_condition_image", "need_img_based_video_noise", "fixed_refer_image", "fixed_ip_adapter_image",
    "fixed_refer_face_image", "redraw_condition_image_with_referencenet", "redraw_condition_image_with_ipdapter",
    "redraw_condition_image_with_ip_adapter_face", "video_has_condition",
)  # fmt: skip


def example_tasks() -> list[dict]:
    """The keys of example.yaml for all of its tasks."""
    own = "${.condition_images}"
    tasks: list[dict] = [
        {
            "condition_images": f"./data/images/{file}",
            "eye_blinks_factor": 1.8,
            "height": SIDE,
            "img_length_ratio": 1.0,
            "ipadapter_image": own,
            "name": name,
            "prompt": "(best:1),(a b:1),(eyes:{eye_blinks_factor})",
            "refer_image": own,
            "video_path": None,
            "width": SIDE,
        }
        for name, (file, *_) in PICTURES.items()
    ]
    tasks += [
        {
            "name": name,
            "prompt": "(best), ((a)), b",
            "video_path": f"./data/source_video/{video}",
            "condition_images": f"./data/images/{picture}",
            "refer_image": own,
            "ipadapter_image": own,
            "height": SIDE,
            "width": SIDE,
            "img_length_ratio": 1.0,
            "video_is_middle": True,
        }
        for name, (video, picture) in VIDEOS.items()
    ]
    return tasks


def dots(frames: int, side: int = SIDE, shift: int = 0) -> torch.Tensor:
    """A picture or video of the one person whom the networks of `write_annotators` see."""
    images = torch.zeros(frames, side, side, 3, dtype=torch.uint8)
    for channel, at in enumerate((12 + shift, 28 + shift, 44 + shift)):
        images[:, at - 1 : at + 2, at - 1 : at + 2, channel] = 255
    return images


def write_annotators(folder: Path) -> None:
    """DWPose in miniature, where `musev models download` puts it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_detector(folder / "yolox_l.onnx", [((80, 80, 560, 560), 0.9, 0)])
    write_pose_net(folder / "dw-ll_ucoco_384.onnx")


def write_original(root: Path) -> Path:
    """A folder like the original's: checkpoints in miniature, pictures, videos, example.yaml."""
    checkpoints = root / "checkpoints"
    quick = ".safetensors"  # unpickling the published .bin takes longer than all the rest
    published.write_musev(checkpoints / "motion", arch="musev", suffix=quick)
    folder = published.write_musev(checkpoints / "motion", arch="musev_referencenet", suffix=quick)
    # published without a ReferenceNet of its own
    without = shutil.ignore_patterns("referencenet")
    shutil.copytree(folder, folder.with_name("musev_referencenet_pose"), copy_function=os.link, ignore=without)
    base = published.write_base(checkpoints / "t2i" / "sd1.5" / "majicmixRealv6Fp16")
    shutil.copytree(base, base.with_name("fantasticmix_v10"), copy_function=os.link)
    published.write_image_encoder(checkpoints / "IP-Adapter" / "models" / "image_encoder")
    published.write_controlnet(checkpoints / "controlnet" / "control_v11p_sd15_openpose")
    write_annotators(checkpoints / "controlnet_aux" / "yzd-v" / "DWPose")
    (root / "data" / "images").mkdir(parents=True)
    for number, file in enumerate([file for file, *_ in PICTURES.values()] + [file for _, file in VIDEOS.values()]):
        if file != PICTURES[MISSING][0]:
            picture = (torch.arange(SIDE * SIDE * 3).reshape(1, SIDE, SIDE, 3) * (number + 1) % 251).to(torch.uint8)
            save_image(root / "data" / "images" / file, picture)
    save_image(root / "data" / "images" / "duffy.png", dots(1, shift=SHIFT))
    save_image(root / "data" / "images" / "man.jpg", dots(1, 2 * SIDE))
    for file in {file for file, _ in VIDEOS.values()} | {"dance.mp4"}:
        write_video(root / "data" / "source_video" / file, dots(12), fps=8)
    (root / "configs" / "tasks").mkdir(parents=True)
    (root / "configs" / "tasks" / "example.yaml").write_text(yaml.safe_dump(example_tasks()), encoding="utf-8")
    return root


def write_vae(folder: Path, seed: int) -> None:
    """Another VAE than the base model's."""
    published.save(golden_models.vae(seed).state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"norm_num_groups": 4, "scaling_factor": 0.18215}), encoding="utf-8")
