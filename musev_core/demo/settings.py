"""How the demo model is sampled."""

from ..denoise.denoiser import DenoiserOptions
from ..denoise.schedulers import SchedulerConfig
from ..denoise.windows import WindowOptions
from ..pipeline import SamplingOptions

SCHEDULER = SchedulerConfig(prediction_type="v_prediction")
SAMPLING = SamplingOptions(
    num_steps=10,
    guidance_scale=1.5,
    scheduler=SCHEDULER,
    denoiser=DenoiserOptions(windows=WindowOptions(fuse="linear")),
)
