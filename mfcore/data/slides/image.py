"""PNG, which no slide scanner writes: an image is decoded whole, once, while the slide is open."""

import threading
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from mfcore.data.slides.reader import CONVERT, TURN, Reader, SlideError, Window, stated_resolution
from mfcore.data.slides.tiles import Memory

MAX_PX = 1 << 27  # 4 bytes a px: 512 MiB; the largest images of MIDOG have a third of it
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
START, END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"
TAIL_BYTES = 4096  # some programs add a few bytes behind the end
ORIENTATION = 274  # the tag of Exif


class ImageReader(Reader):
    """A PNG of 8 bits a channel in grey, colour or palette; white where it is transparent.

    Raises SlideError for another format, a file cut short, and more than `MAX_PX` px.
    """

    downsamples = (1.0,)

    def __init__(self, path: Path, memory: Memory):
        self._path = path
        self._memory = memory
        self._lock = threading.Lock()
        self._image: Image.Image | None = None
        with _open(path) as image:
            self.size_px = image.size
            um_per_px = [25400 / float(value) for value in image.info.get("dpi", ()) if value]
        self.level_sizes_px = (self.size_px,)
        self.n_bytes_whole = 4 * self.size_px[0] * self.size_px[1]
        self.stated_um_per_px, self.tag = stated_resolution(path, um_per_px)

    def region(self, window: Window) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        with self._lock:
            if self._image is None:
                self._memory.wait_and_add(self.n_bytes_whole)
                self._image = self._decode()
        patch = Image.new("RGB", (window.width, window.height), "white")
        patch.paste(self._image, (-window.x_px, -window.y_px))
        return np.asarray(patch)

    def close(self) -> None:
        """Give the memory back."""
        if self._image is not None:
            self._image = None
            self._memory.add(-self.n_bytes_whole)

    def _decode(self) -> Image.Image:
        """The whole image in RGB, on white."""
        try:
            with _open(self._path) as image:
                if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                    white, transparent = Image.new("RGB", image.size, "white"), image.convert("RGBA")
                    white.paste(transparent, (0, 0), transparent)
                    return white
                return image.convert("RGB")
        except Exception as error:  # Pillow raises errors of many types
            self._memory.add(-self.n_bytes_whole)
            raise SlideError(f"{self._path}: damaged ({error}); fetch the file again") from None


def _open(path: Path) -> PngImagePlugin.PngImageFile:
    """The image, not yet decoded; raises SlideError by what its header says."""
    with path.open("rb") as content:
        head = content.read(32)
        content.seek(max(0, path.stat().st_size - TAIL_BYTES))
        tail = content.read()
    if not head.startswith(START):
        kind = path.suffix or "no suffix" if head else "an empty file"
        raise SlideError(
            f"{path}: {kind}, not a format that OpenSlide reads, nor TIFF or PNG; if the file is whole, make it a tiled TIFF: "
            f"{CONVERT}"
        )
    if END not in tail:
        raise SlideError(f"{path}: cut short; fetch the file again")
    try:
        image = PngImagePlugin.PngImageFile(path)  # Image.open has another limit on px
    except Exception as error:
        raise SlideError(f"{path}: damaged ({error}); fetch the file again") from None
    (width, height), n_bits = image.size, head[24]  # of IHDR; Pillow would cut 16-bit colour to 8 bits
    orientation = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
    problem = ""
    if width * height > MAX_PX:
        problem = f"{width:,} x {height:,} px; a PNG is decoded whole, up to {MAX_PX:,} px; make it a tiled TIFF: {CONVERT}"
    elif n_bits > 8 or image.mode not in MODES:
        problem = f"{image.mode} with {n_bits} bits a channel; save it in RGB with 8 bits a channel"
    elif orientation in range(2, 9):
        problem = f"orientation {orientation}, turned or mirrored when shown; {TURN}"
    if problem:
        image.close()
        raise SlideError(f"{path}: {problem}")
    return image
