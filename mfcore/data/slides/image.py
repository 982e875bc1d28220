"""PNG, which is no slides' format: an image decoded whole, once, while the slide is open."""

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from mfcore.data.slides.reader import CONVERT, SlideError, Window, given, overlap, stated_resolution
from mfcore.data.slides.tiff_index import TURN
from mfcore.data.slides.tiles import Memory

MAX_PX = 1 << 27  # 4 bytes a px: 512 MiB; MIDOG's largest have a third of it
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")

START, END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"
ORIENTATION = 274  # Exif's tag, which is TIFF's
TAIL_BYTES = 4096  # some programs add a few bytes behind the end


class ImageReader:
    """A PNG of 8 bits a channel in grey, colour or palette; white where it is transparent.

    Raises SlideError for another format, a file cut short, and more than `MAX_PX` px.
    """

    downsamples = (1.0,)
    scanned_at_px = (0, 0)

    def __init__(self, path: Path, memory: Memory):
        self._path = path
        self._memory = memory
        self._lock = threading.Lock()
        self._is_loaded = False
        self._image = _open(path)
        try:
            self.size_px = self._image.size
            self.level_sizes_px = (self.size_px,)
            self.n_bytes_whole = self.size_px[0] * self.size_px[1] * (1 if self._image.mode in ("1", "L", "P") else 4)
            per_inch = [float(value) for value in self._image.info.get("dpi", ()) if value]
            self.stated_um_per_px, self.tag = stated_resolution(path, [25400 / value for value in per_inch])
        except SlideError:
            self._image.close()
            raise

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """See `mfcore.data.slides.reader.Reader`."""
        return at_px

    def expect(self, windows: Iterable[Window]) -> None:
        """Nothing to prepare: all is decoded at the first read."""

    def region(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        self._load()
        patch = Image.new("RGB", (window.width, window.height), "white")
        left, right = overlap(window.x_px, window.width, self.size_px[0])
        top, bottom = overlap(window.y_px, window.height, self.size_px[1])
        if left < right and top < bottom:
            inside = self._image.crop((left, top, right, bottom))
            is_transparent = inside.mode in ("LA", "PA", "RGBA") or "transparency" in inside.info
            inside = inside.convert("RGBA" if is_transparent else "RGB")
            patch.paste(inside, (left - window.x_px, top - window.y_px), inside if is_transparent else None)
        return given(np.asarray(patch), out)

    def close(self) -> None:
        """Give file and memory back."""
        self._image.close()
        if self._is_loaded:
            self._is_loaded = False
            self._memory.add(-self.n_bytes_whole)

    def _load(self) -> None:
        """Decode the image unless it is."""
        with self._lock:
            if self._is_loaded:
                return
            self._memory.wait_and_add(self.n_bytes_whole)
            try:
                self._image.load()
            except Exception as error:  # Pillow's plugins raise what they come upon
                self._memory.add(-self.n_bytes_whole)
                raise SlideError(f"{self._path}: damaged ({error}); fetch the file again") from None
            self._is_loaded = True


def _open(path: Path) -> PngImagePlugin.PngImageFile:
    """The image, not yet decoded, after looking at all that its header says."""
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
    with contextlib.ExitStack() as undo:
        try:
            image = PngImagePlugin.PngImageFile(path)  # not Image.open, which has another limit on px
        except Exception as error:
            raise SlideError(f"{path}: damaged ({error}); fetch the file again") from None
        undo.callback(image.close)
        width, height = image.size
        if width * height > MAX_PX:
            raise SlideError(
                f"{path}: {width:,} x {height:,} px; a PNG is decoded whole, up to {MAX_PX:,} px of it; make it a tiled "
                f"TIFF: {CONVERT}"
            )
        n_bits = head[24]  # of IHDR; Pillow would cut 16-bit colour to 8 unasked
        if n_bits > 8 or image.mode not in MODES:
            raise SlideError(f"{path}: {image.mode} with {n_bits} bits a channel; save it in RGB with 8 bits a channel")
        if "exif" in image.info and (turned := image.getexif().get(ORIENTATION, 1)) in range(2, 9):
            raise SlideError(f"{path}: orientation {turned}, turned or mirrored when shown; {TURN}")
        undo.pop_all()
        return image
