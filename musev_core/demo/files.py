"""The demo model's weight files inside the package, and their tensors."""

from pathlib import Path

from torch import Tensor

from ..weights.files import read_tensors

WEIGHTS = Path(__file__).parent / "weights"
FILES = {  # of the networks by name, in the folder of the weights
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "reference_net": "referencenet/diffusion_pytorch_model.safetensors",
    "image_projection": "ip_adapter_image_proj.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
    "controlnet": "controlnet/diffusion_pytorch_model.safetensors",
}


def read_weights(folder: Path = WEIGHTS) -> dict[str, dict[str, Tensor]]:
    """Every network's tensors in float32, by the network's name; they are stored in half precision.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return {
        network: {name: x.float() for name, x in read_tensors(folder / file).items()} for network, file in FILES.items()
    }
