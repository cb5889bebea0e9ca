"""Pictures that somebody built to hang, to fill the memory, or to start another program."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from itertools import repeat

import pytest
import torch
from PIL import Image
from support.bounded import bounded
from support.damaged import good

from musev_core.errors import MuseVError
from musev_core.frames.image_files import load_image

_SHORT, _LONG = 3, 4  # types of TIFF


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of black grey pixels, with chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height), 1)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def tiff(*tags: tuple[int, int, int, int], after: bytes = b"") -> bytes:
    """A little-endian TIFF of (tag, type, count, value or offset)."""
    entries = b"".join(struct.pack("<HHII", *entry) for entry in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + after


def endless_tags() -> bytes:
    """Each of 60,000 tags wants most of the file."""
    return tiff(*((5000 + i, 7, 900_000, 0) for i in range(60_000)), after=bytes(200_000))


def huge_tile() -> bytes:
    """A TIFF of 64 x 64 whose only tile is 100,000 x 20,000."""
    values = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 100_000, 323: 20_000, 324: 8, 325: 99}
    return tiff(*((tag, _LONG, 1, value) for tag, value in values.items()))


def many_passes() -> bytes:
    """A progressive JPEG of 36 million pixels whose last scan comes 200 times."""
    file = io.BytesIO()
    Image.new("L", (6000, 6000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 200 + data[-2:]


def resized(kind: str, form: str, *sizes: int) -> bytes:
    """A picture of 40 x 24 whose header says another size."""
    before = struct.pack(form, *(40, 24) if len(sizes) == 2 else (40,))
    assert before in good(kind)
    return good(kind).replace(before, struct.pack(form, *sizes))


_NO_PICTURE, _ENDLESS = "damaged, or none of PNG", "its header does not end"
HOSTILE: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n", _NO_PICTURE),
    "eps with a preview": (lambda: b"\xc5\xd0\xd3\xc6" + bytes(200), _NO_PICTURE),
    "wmf": (lambda: b"\xd7\xcd\xc6\x9a" + bytes(200), _NO_PICTURE),
    "pdf": (lambda: b"%PDF-1.4\n1 0 obj\n", _NO_PICTURE),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='100' height='100'/>", _NO_PICTURE),
    "film": (lambda: good("mp4"), _NO_PICTURE),
    "empty": (lambda: b"", "is empty"),
    "no pixels": (lambda: png(0, 0), "cannot be read|only 0 x 0"),
    "flat": (lambda: png(4000, 1), "only 1 x 4000 pixels"),
    "bomb": (lambda: png(9000, 9000), "is too large: 9000 x 9000 .* 81.0 million"),
    "pixels missing": (lambda: resized("png", ">II", 5000, 5000), "cannot be read as an image"),
    "jpeg 2000 bomb": (lambda: resized("jpeg2000", ">II", 9000, 9000), "is too large|cannot be read"),
    "gif bomb": (lambda: resized("gif_still", "<HH", 65535, 65535), "is too large|cannot be read"),
    "text that unpacks": (
        lambda: png(16, 16, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 25)))),
        "cannot be read",
    ),
    "profile that unpacks": (
        lambda: png(16, 16, (b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 25)))),
        "cannot be read",
    ),
    "chunks without end": (lambda: png(16, 16, *repeat((b"teSt", b""), 100_000)), _ENDLESS),
    "comment without end": (
        lambda: b"GIF89a" + struct.pack("<HHI", 16, 16, 0)[:7] + b"!\xfe" + (b"\xff" + bytes(255)) * 50_000,
        _ENDLESS,
    ),
    "junk between markers": (lambda: b"\xff\xd8\xff" + b"\xff\x00" * 5_000_000, _ENDLESS),
    "tags without end": (endless_tags, _ENDLESS),
    "tag of gigabytes": (lambda: tiff((256, _LONG, 1 << 31, 0), (257, 7, 1 << 31, 0)), "cannot be read"),
    "tile of gigabytes": (huge_tile, "is too large"),
    "metadata without end": (lambda: png(16, 16, (b"eXIf", endless_tags())), None),
    "metadata that is none": (lambda: png(16, 16, (b"eXIf", b"II*\0\xff\xff\xff\xff")), None),
    "many passes": (many_passes, "wants .* passes"),
    "slow text": (lambda: b"P3 2000 2000 255 " + b"1 2 3 " * 4_000_000, "too large: .* may have 1 million"),
    "slow depth": (lambda: b"P6 2000 2000 1000 " + bytes(24_000_000), "too large: .* may have 1 million"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_get_a_sentence_in_time(tmp_path, name):
    make, message = HOSTILE[name]
    path = tmp_path / "picture.png"
    path.write_bytes(make())
    outcome = bounded(lambda: load_image(path), size=path.stat().st_size)
    if message is None:
        assert isinstance(outcome, torch.Tensor)
    else:
        assert isinstance(outcome, MuseVError) and re.search(message, str(outcome)), outcome
        assert "picture.png" in str(outcome)
