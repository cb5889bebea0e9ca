"""Whether a device can be used here."""

from .errors import MuseVError


def check_device(device: str | None) -> None:
    """Raises MuseVError for a device which is not there; None stands for the default one."""
    import torch

    if device is None:
        return
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without that backend
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise MuseVError(
            f"the device {device!r} cannot be used here ({reason}). Leave it out for the accelerator if there is one, "
            "or use cpu"
        ) from error
