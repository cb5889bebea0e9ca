"""What `musev models download --layout original` has fetched, found again by name."""

from pathlib import Path

from ..errors import MuseVError
from .published import PUBLISHED

EMBEDDINGS = Path("embedding")
ANNOTATORS = Path("controlnet_aux")
FACE_MODELS = Path("IP-Adapter/models/image_encoder")  # insightface looks for models/buffalo_l below it


def place(name: str) -> Path:
    """Where the files of a published name lie below `checkpoints/`: the file, or the folder of several."""
    places = [Path(source.original) for source in PUBLISHED[name].sources]
    return places[0].parent if places[0].name == "config.json" else places[0]


def find_downloaded(root: Path, name: str, *, purpose: str, option: str) -> Path:
    """The file or folder of a published name below `root`; weights may be .bin instead of .safetensors.

    Args:
        root: the folder that `musev models download --layout original --to` was given.
        name: of `PUBLISHED`.
        purpose: what asks for it, for the message.
        option: of the command line, which says where else it is.

    Raises:
        MuseVError: it is not there; the message says how to fetch it.
    """
    path = root / place(name)
    # the original's own tables look for IP-Adapters one folder further up
    for candidate in (path, path.with_suffix(".bin"), path.parent.parent / path.with_suffix(".bin").name):
        if candidate.exists():
            return candidate
    raise MuseVError(f"{purpose} is not in {path}. {fetch_it(root, name)}; or say where it is with {option}")


def fetch_it(root: Path, name: str) -> str:
    """What to do about a published name which is not there."""
    return f"Fetch it with: musev models download {name} --layout original --to {root}"


def controlnet_name(repository: str) -> str | None:
    """The published name of a ControlNet by its repository on the hub."""
    return next((name for name, published in PUBLISHED.items() if published.sources[0].repo == repository), None)
