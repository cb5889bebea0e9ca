"""Pictures and a video for tasks to start from."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_inputs(folder: Path) -> Path:
    """Writes a.png (96x160), b.png (128x128) and clip.mp4 (192x128, 3 frames) and returns the folder."""
    Image.new("RGB", (96, 160), "red").save(folder / "a.png")
    Image.new("RGB", (128, 128), "blue").save(folder / "b.png")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(4))
        stream.width, stream.height = 192, 128
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((128, 192, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return folder
