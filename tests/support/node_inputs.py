"""The table of every input of every node: what it is changed to, and what that changes (`sensitivity`)."""

from .node_results import (
    GENERATED,
    Faces,
    executed,
    face_adapter,
    film,
    latent_of,
    latent_outputs,
    loaded,
    masks,
    model_node,
    moving,
    named,
    noisy,
    one_handed,
    poses,
    sampled_by_ours,
    started,
)
from .sensitivity import Changed, Others, Subject
from .small_comfy import REFERENCENET, Vision, adapter, base, clip, motion, pictures, prompt, reference_net
from .tiny_comfy import tiny_vae

SPAN = {"start_percent": Changed(0.4, GENERATED), "end_percent": Changed(0.4, GENERATED)}
SPAN_OF_PICTURES = {**SPAN, "start_percent": Changed(0.4, GENERATED, off=1.0)}
WINDOWS = {"context_length": 4, "context_overlap": 2, "schedule": "uniform_v2", "fuse": "linear", "shift": 0}
SIZES = {"width": 64, "height": 64, "size_ratio": 1.0}


# ----------------------------------------------------------------------------------------------- the table

TABLE: dict[str, Subject] = {}

MOTION, REFERENCE = (f"motion/{{}}/{folder}/diffusion_pytorch_model.bin" for folder in ("unet", "referencenet"))
TABLE["MuseV_LoadMotion"] = Subject(
    loaded("MuseV_LoadMotion", lambda motion: [motion.tree]),
    {"motion_name": MOTION.format(REFERENCENET), "dtype": "fp32"},
    {"motion_name": Changed(MOTION.format("other"), "weights"), "dtype": Changed("fp16", "weights dtype")},
)
TABLE["MuseV_LoadReferenceNet"] = Subject(
    loaded("MuseV_LoadReferenceNet", lambda net: [net.net]),
    {"reference_net_name": REFERENCE.format(REFERENCENET), "dtype": "fp32"},
    {"reference_net_name": Changed(REFERENCE.format("other"), "weights"), "dtype": Changed("fp16", "weights dtype")},
)
TABLE["MuseV_LoadIPAdapter"] = Subject(
    loaded("MuseV_LoadIPAdapter", lambda x: [x.projection, *x.layers.values()]),
    {"ip_adapter_name": "adapters/adapter_0.safetensors", "dtype": "fp32"},
    {
        "ip_adapter_name": Changed("adapters/adapter_1.safetensors", "weights"),
        "dtype": Changed("fp16", "weights dtype"),
    },
)
TABLE["MuseV_LoadDemo"] = Subject(lambda: {}, {}, {})

TABLE["MuseV_ImageToVideo"] = Subject(
    latent_outputs("MuseV_ImageToVideo"),
    {"vae": tiny_vae, "images": lambda: pictures(2, 64), **SIZES, "length": 5, "condition_indices": "0"},
    {
        "vae": Changed(lambda: tiny_vae(seed=1), "latents"),
        "images": Changed(lambda: pictures(2, 64, 1), "latents fitted"),
        "width": Changed(32, "latents mask fitted width"),
        "height": Changed(32, "latents mask fitted height"),
        "length": Changed(6, "latents mask"),
        "condition_indices": Changed("0, -1", "latents mask"),
        "size_ratio": Changed(2.0, "latents mask fitted height", beside={"height": 0}),
    },
)
TABLE["MuseV_VideoToVideo"] = Subject(
    latent_outputs("MuseV_VideoToVideo"),
    {
        **{"vae": tiny_vae, "video": lambda: pictures(3, 64), **SIZES},
        **{"video_has_condition": True, "condition_images": lambda: pictures(1, 64, 2)},
    },
    {
        "vae": Changed(lambda: tiny_vae(seed=1), "latents"),
        "video": Changed(lambda: pictures(3, 64, 1), "latents fitted"),
        "width": Changed(32, "latents mask fitted width"),
        "height": Changed(32, "latents mask fitted height"),
        "video_has_condition": Changed(False, "latents mask fitted"),
        "size_ratio": Changed(2.0, "latents mask fitted width", beside={"width": 0}),
        "condition_images": Changed(lambda: pictures(1, 64, 3), "latents"),
    },
)
TABLE["MuseV_ContinueVideo"] = Subject(
    latent_outputs("MuseV_ContinueVideo"),
    {"previous": noisy, "length": 5, "condition_frames": 1, "match_statistics": False},
    {
        "previous": Changed(lambda: noisy(seed=1), "latents"),
        "length": Changed(6, "latents mask"),
        "condition_frames": Changed(2, "latents mask"),
        "match_statistics": Changed(True, "latents"),
    },
)

TABLE["MuseV_ApplyMotion"] = Subject(
    **model_node("MuseV_ApplyMotion"),
    inputs={
        **{"model": base, "motion": lambda: motion(REFERENCENET), "motion_speed": 8.0, "strength": 1.0},
        **{"start_percent": 0.0, "end_percent": 1.0, "frame_strength": None},
    },
    rows={
        "model": Changed(lambda: base(seed=1), GENERATED),
        "motion": Changed(lambda: motion(REFERENCENET, seed=1), GENERATED),
        "motion_speed": Changed(16.0, GENERATED),
        "strength": Changed(0.5, GENERATED, off=0.0),
        "frame_strength": Changed(lambda: masks(5), GENERATED),
        **SPAN,
    },
)
TABLE["MuseV_ContextWindows"] = Subject(
    **model_node("MuseV_ContextWindows", latent=clip(7)),
    inputs={"model": moving, **WINDOWS},
    rows={
        "model": Changed(lambda: moving(seed=1), GENERATED),
        "context_length": Changed(3, GENERATED),
        "context_overlap": Changed(1, GENERATED),
        "schedule": Changed(Others, GENERATED),
        # the two ramps differ only where windows meet in more frames than their overlap, as at the end of a loop
        "fuse": Changed(Others, GENERATED, beside={"schedule": "uniform", "context_length": 5, "context_overlap": 1}),
        "shift": Changed(1, GENERATED),
    },
)
TABLE["MuseV_Noise"] = Subject(
    **model_node("MuseV_Noise"),
    inputs={
        **{"model": moving, "noise_type": "video_fusion", "individual_weight": 0.5, "image_weight": 0.001},
        **{"original_scaling": False, "draw": "frames"},
    },
    rows={
        "model": Changed(lambda: moving(seed=1), GENERATED),
        "noise_type": Changed(Others, GENERATED),
        "individual_weight": Changed(0.1, GENERATED),
        "image_weight": Changed(0.5, GENERATED),
        "original_scaling": Changed(True, GENERATED),
        "draw": Changed(Others, GENERATED),
    },
)
TABLE["MuseV_GuidanceSchedule"] = Subject(
    **model_node("MuseV_GuidanceSchedule", latent=clip(3), steps=5),
    inputs={"model": moving, "start": 3.5, "end": 1.5, "curve": "linear"},
    rows={
        "model": Changed(lambda: moving(seed=1), GENERATED),
        "start": Changed(7.0, GENERATED),
        "end": Changed(1.0, GENERATED),
        "curve": Changed(Others, GENERATED),
    },
)

TABLE["MuseV_ApplyReferenceNet"] = Subject(
    **model_node("MuseV_ApplyReferenceNet"),
    inputs={
        **{"model": moving, "reference_net": reference_net, "vae": tiny_vae, "images": lambda: pictures(1)},
        **{"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "width": 0, "height": 0},
    },
    rows={
        "model": Changed(lambda: moving(seed=1), GENERATED),
        "reference_net": Changed(lambda: reference_net(seed=1), GENERATED),
        "vae": Changed(lambda: tiny_vae(seed=1), GENERATED),
        "images": Changed(lambda: pictures(1, seed=1), GENERATED),
        "strength": Changed(0.5, GENERATED, off=0.0),
        **SPAN_OF_PICTURES,
        "width": Changed(64, GENERATED),
        "height": Changed(64, GENERATED),
    },
)
TABLE["MuseV_ApplyIPAdapter"] = Subject(
    **model_node("MuseV_ApplyIPAdapter"),
    inputs={
        **{"model": moving, "ip_adapter": lambda: adapter("plain", layers=False), "clip_vision": Vision},
        **{"images": lambda: pictures(2), "weight": 1.0, "combine": "concat"},
        **{"start_percent": 0.0, "end_percent": 1.0, "mask": None},
    },
    rows={
        "model": Changed(lambda: moving(seed=1), GENERATED),
        "ip_adapter": Changed(lambda: adapter("plain"), GENERATED),
        "clip_vision": Changed(lambda: Vision(seed=1), GENERATED),
        "images": Changed(lambda: pictures(2, seed=1), GENERATED),
        "weight": Changed(0.5, GENERATED, off=0.0),
        "combine": Changed(Others, GENERATED),
        **SPAN_OF_PICTURES,
        "mask": Changed(masks, GENERATED),
    },
)
TABLE["MuseV_ApplyFaceID"] = Subject(
    **model_node("MuseV_ApplyFaceID"),
    inputs={
        **{"model": moving, "ip_adapter": face_adapter, "images": lambda: pictures(1), "weight": 1.0},
        **{"start_percent": 0.0, "end_percent": 1.0, "lora_strength": 0.0, "insightface": Faces},
    },
    rows={
        "model": Changed(lambda: moving(seed=1), GENERATED),
        "ip_adapter": Changed(lambda: face_adapter(seed=1), GENERATED),
        "images": Changed(lambda: pictures(1, seed=1), GENERATED),
        "weight": Changed(0.5, GENERATED, off=0.0),
        **SPAN_OF_PICTURES,
        "lora_strength": Changed(0.6, GENERATED),
        "insightface": Changed(lambda: Faces("another"), GENERATED),
    },
)

TABLE["MuseV_PreprocessControl"] = Subject(
    named("MuseV_PreprocessControl", "maps", "poses"),
    {"images": lambda: pictures(1, 64), "preprocessor": "canny", "resolution": 0},
    {
        "images": Changed(lambda: pictures(1, 64, 1), "maps"),
        "preprocessor": Changed("tile", "maps"),
        "resolution": Changed(128, "maps poses"),
    },
)
TABLE["MuseV_AlignPose"] = Subject(
    named("MuseV_AlignPose", "poses", "maps"),
    {"poses": poses, "reference": lambda: poses(1.0), "mode": "robust", "smoothing": 0, "width": 0, "height": 0},
    {
        "poses": Changed(lambda: poses(0.5), "poses maps"),
        "reference": Changed(lambda: poses(0.9), "poses maps"),
        "mode": Changed(Others, "poses maps", beside={"poses": one_handed}),
        "smoothing": Changed(3, "poses maps"),
        "width": Changed(128, "maps"),
        "height": Changed(256, "maps"),
    },
)
TABLE["MuseV_DrawPose"] = Subject(
    named("MuseV_DrawPose", "maps"),
    {"poses": poses, "body": True, "hands": True, "face": False, "width": 0, "height": 0},
    {
        "poses": Changed(lambda: poses(0.5), "maps"),
        "body": Changed(False, "maps"),
        "hands": Changed(False, "maps"),
        "face": Changed(True, "maps"),
        "width": Changed(128, "maps"),
        "height": Changed(256, "maps"),
    },
)


TABLE["MuseV_Sampler"] = Subject(
    sampled_by_ours,
    {
        **{"model": moving, "positive": lambda: prompt("good"), "negative": lambda: prompt("bad"), "latent": started},
        **{"seed": 0, "steps": 3, "cfg": 3.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        **{"cfg_end": 0.0, "guidance_curve": "linear"},
    },
    {
        "model": Changed(lambda: moving(seed=1), GENERATED),
        "positive": Changed(lambda: prompt("better"), GENERATED),
        "negative": Changed(lambda: prompt("worse"), GENERATED),
        "latent": Changed(lambda: started(seed=1), f"condition {GENERATED}"),
        "seed": Changed(1, GENERATED),
        "steps": Changed(4, GENERATED),
        "cfg": Changed(7.0, GENERATED),
        "sampler_name": Changed("dpmpp_2m", GENERATED),
        "scheduler": Changed("sgm_uniform", GENERATED),
        "denoise": Changed(0.6, GENERATED),
        "cfg_end": Changed(1.5, GENERATED),
        "guidance_curve": Changed(Others, GENERATED, beside={"cfg_end": 1.5, "steps": 5}),
    },
)

TABLE["MuseV_JoinVideo"] = Subject(
    lambda **inputs: latent_of(executed("MuseV_JoinVideo")(**inputs)[0]),
    {"first": noisy, "second": lambda: noisy(3, 1), "overlap": 1},
    {
        "first": Changed(lambda: noisy(seed=2), "latents"),
        "second": Changed(lambda: noisy(3, 2), "latents"),
        "overlap": Changed(0, "latents"),
    },
)
TABLE["MuseV_MatchColor"] = Subject(
    named("MuseV_MatchColor", "frames"),
    {"images": lambda: pictures(2), "reference": lambda: pictures(1, seed=1), "method": "histogram", "amount": 1.0},
    {
        "images": Changed(lambda: pictures(2, seed=2), "frames"),
        "reference": Changed(lambda: pictures(1, seed=2), "frames"),
        "method": Changed(Others, "frames"),
        "amount": Changed(0.5, "frames", off=0.0),
    },
    absent=lambda images, **_: {"frames": images},
)
TABLE["MuseV_VisualizeWindows"] = Subject(
    named("MuseV_VisualizeWindows", "image"),
    {"length": 49, "condition_frames": 1, **WINDOWS, "context_length": 12, "context_overlap": 4, "steps": 10},
    {
        "length": Changed(50, "image"),
        "condition_frames": Changed(2, "image"),
        "context_length": Changed(11, "image"),
        "context_overlap": Changed(3, "image"),
        "schedule": Changed(Others, "image"),
        "fuse": Changed(Others, "image"),
        "shift": Changed(3, "image"),
        "steps": Changed(4, "image", beside={"shift": 3}),
    },
)
TABLE["MuseV_MeasureVideo"] = Subject(
    named("MuseV_MeasureVideo", "report", "plot"),
    {
        **{"images": film, "context_length": 12, "context_overlap": 4, "condition_frames": 1},
        "reference": lambda: pictures(1),
    },
    {
        "images": Changed(lambda: film(1), "report plot"),
        "context_length": Changed(11, "report plot"),
        "context_overlap": Changed(3, "report plot"),
        "condition_frames": Changed(2, "report plot"),
        "reference": Changed(lambda: pictures(1, seed=1), "report plot"),
    },
)
