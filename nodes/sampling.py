"""Sample MuseV Video: MuseV's defaults on ComfyUI's samplers."""

import comfy.sample
import comfy.samplers
import latent_preview
from comfy_api.latest import io

from ..musev_core.config import GUIDANCE_METHODS
from ..musev_core.errors import MuseVError
from .host.options import GuidanceOptions, options_of
from .host.patching import with_options
from .host.schedules import ORIGINAL, sigmas_of
from .sockets import CATEGORY, Node


class SampleVideo(Node):
    """The easy way: one node from LATENT to LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_Sampler",
            display_name="Sample MuseV Video",
            category=CATEGORY,
            description="KSampler with MuseV's defaults: 10 steps, cfg 3.5, Euler, and a guidance that may change over "
            "the steps. Any other sampler of ComfyUI works with the same MODEL.",
            inputs=[
                io.Model.Input("model", tooltip="A model with Apply MuseV Motion."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input("latent", tooltip="The clip, from Image to Video, Video to Video or Continue Video."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Number that decides the noise: the same seed gives the same video.",
                ),
                io.Int.Input(
                    "steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="Steps from noise to video. More is finer and slower; 10 is MuseV's, 4 to 8 with LCM.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance scale of the first step: more follows the prompt harder and burns colours; 1 "
                    "ignores the negative prompt and halves the time.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="euler",
                    tooltip="How the steps are taken. euler is MuseV's; lcm needs an LCM LoRA.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[*comfy.samplers.SCHEDULER_NAMES, ORIGINAL],
                    default="normal",
                    tooltip="How noise is spread over the steps. normal equals MuseV's at 4 and 10 steps; "
                    f"{ORIGINAL} is the original's at any number.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far the result may leave the frames of the latent, 0..1. 1 starts from pure noise, "
                    "which is right for Image to Video.",
                ),
                io.Float.Input(
                    "cfg_end",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance scale of the last step. 0 keeps cfg for all steps; lower than cfg gives softer "
                    "pictures, higher ones that follow the prompt harder.",
                ),
                io.Combo.Input(
                    "guidance_curve",
                    options=list(GUIDANCE_METHODS),
                    default="linear",
                    tooltip="How guidance goes from cfg to cfg_end. linear: evenly. two_stage: half and half. "
                    "three_stage: thirds, the middle one at the mean, rounded down. fix_two_stage: three steps at "
                    "cfg, the rest at cfg_end.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The clip; decode it with VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        denoise,
        cfg_end=0.0,
        guidance_curve="linear",
    ) -> io.NodeOutput:
        """Samples."""
        if options_of(model).motion is None:
            raise MuseVError("the MODEL has no motion: put Apply MuseV Motion between the checkpoint and this node")
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        mask = latent.get("noise_mask")
        if cfg_end not in (0, cfg):
            model = with_options(model, guidance=GuidanceOptions(cfg, cfg_end, guidance_curve))
        if scheduler == ORIGINAL:
            model = with_options(model, fractional_time=True)
        sigmas = sigmas_of(model, scheduler, steps, denoise, sampler_name)
        if len(sigmas) == 0:
            return io.NodeOutput(latent)
        callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
        out = comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
            cfg,
            comfy.samplers.sampler_object(sampler_name),
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=mask,
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return io.NodeOutput({**latent, "samples": out})


NODES = [SampleVideo]
