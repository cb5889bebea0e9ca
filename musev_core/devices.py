"""Where networks run: the device asked for, tried before anything is loaded."""

import torch

from .errors import MuseVError, shown


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            return accelerator
    return torch.device("cpu")


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of this name, which works; None: `default_device()`.

    Raises:
        MuseVError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("nothing is computed there")
        torch.empty(1, device=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError) as error:
        accelerator = default_device()
        usable = "cpu" if accelerator.type == "cpu" else f"{accelerator} or cpu"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MuseVError(
            f"The device {shown(str(name))} cannot be used here ({reason:.200}). Usable: {usable}."
        ) from error
    return device
