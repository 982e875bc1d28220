"""Slides whose colours say the place, in files of every reader and every kind of pyramid; the least of DICOM and SCN."""

import io
import math
import struct

import numpy as np
import tifffile
from PIL import Image

UM_PER_PX = 0.25
FINE, COARSE = 96.0, 1000.0  # periods, level-0 px


def pattern(width, height, left=0.0, top=0.0):
    """Red is a wave along x, green one along y, of FINE px; blue is a long one of both. Its first px lies at left, top."""
    x, y = left + np.arange(width) + 0.5, top + np.arange(height) + 0.5
    red, green = (140 + 80 * np.sin(2 * np.pi * at / FINE) for at in (x, y))
    blue = 127 + long_wave(x) + long_wave(y)[:, None]
    return np.stack([*np.meshgrid(red, green), blue], axis=-1).round().astype(np.uint8)


def long_wave(at):
    """The same of COARSE px, which tells one fine wave from the next."""
    return 50 * np.sin(2 * np.pi * at / COARSE)


def off_by(patch, centre, scale):
    """How far (x, y) a patch of a pattern lies from where its centre should be, level-0 px; ``scale``: level-0 px a px."""
    inner = patch[3:-3, 3:-3].astype(float)  # without what the filter takes from beyond a border
    at = (np.arange(len(inner)) + 0.5 - len(inner) / 2) * scale
    found = []
    for axis in (0, 1):
        along = inner.mean(axis=axis)  # (n_px, 3)
        fine = shift_of(along[:, axis], centre[axis] + at)
        shifts = fine + FINE * np.arange(-3, 4)
        long = long_wave(centre[axis] + at[:, None] + shifts) - along[:, 2:]  # (n_px, n_shifts)
        found.append(shifts[long.std(axis=0).argmin()])
    return np.array(found)


def shift_of(values, x):
    """By how much a wave of FINE px, sampled where it is said to be ``x``, really lies further on."""
    phase = 2 * np.pi * x / FINE
    _, sine, cosine = np.linalg.lstsq(np.stack([np.ones_like(x), np.sin(phase), np.cos(phase)], 1), values, rcond=None)[0]
    return math.atan2(cosine, sine) * FINE / (2 * np.pi)


def smaller(image, factor, rounded="down"):
    """The means of squares of ``factor`` px; a rest at the right and below is left out ("down"), or makes px of its own ("up").

    Or ("resized") the whole image, made to fit in as many px as "down" has.
    """
    if rounded == "resized":
        size = image.shape[1] // factor, image.shape[0] // factor
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    if rounded == "up":
        image = np.pad(image, [(0, -side % factor) for side in image.shape[:2]] + [(0, 0)], mode="edge")
    height, width = (side // factor for side in image.shape[:2])
    cut = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return cut.mean(axis=(1, 3)).round().astype(np.uint8)


def write_tiff(path, levels, **options):
    """A tiled TIFF; the first of the levels states UM_PER_PX."""
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None, **options}
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(levels):
            said = {"resolution": (1e4 / UM_PER_PX,) * 2, "resolutionunit": "CENTIMETER"} if i == 0 else {}
            tiff.write(level, subfiletype=int(i > 0), **said, **options)
    return path


def write_scn(path, levels, at=(0, 0)):
    """A Leica SCN whose scanned area begins at ``at`` px of the whole plane, and lies in its middle."""
    nm, (height, width) = round(UM_PER_PX * 1000), levels[0].shape[:2]
    plane = width + 2 * at[0], height + 2 * at[1]

    def part(name, sizes, first, view, objective):
        pixels = "".join(f'<dimension sizeX="{x}" sizeY="{y}" r="{r}" ifd="{first + r}"/>' for r, (x, y) in enumerate(sizes))
        return (
            f'<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate><device model="L" '
            f'version="1"/><pixels sizeX="{sizes[0][0]}" sizeY="{sizes[0][1]}">{pixels}</pixels><view sizeX="{view[0] * nm}" '
            f'sizeY="{view[1] * nm}" offsetX="{view[2] * nm}" offsetY="{view[3] * nm}" spacingZ="0"/><scanSettings>'
            f"<objectiveSettings><objective>{objective}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.6</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    sizes = [level.shape[1::-1] for level in levels]
    text = (
        f'<?xml version="1.0"?><scn xmlns="http:{"//"}www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:a">'
        f'<collection name="c" uuid="urn:uuid:b" sizeX="{plane[0] * nm}" sizeY="{plane[1] * nm}"><barcode>MQ==</barcode>'
        + part("macro", [(300, 250)], 0, (*plane, 0, 0), 1)
        + part("main", sizes, 1, (width, height, *at), 40)
        + "</collection></scn>"
    )
    options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}, "tile": (256, 256)}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(np.full((250, 300, 3), 200, np.uint8), description=text, metadata=None, **options)
        for level in levels:
            said = {"resolution": (1e4 / UM_PER_PX,) * 2, "resolutionunit": "CENTIMETER"} if level is levels[0] else {}
            tiff.write(level, metadata=None, **said, **options)
    return path


def write_dicom(folder, levels, name="level{}.dcm", series="1.2.3.4", kinds=(), side=256):
    """A slide in DICOM: an instance a level, each in a file of its own, the tiles in JPEG.

    kinds: the third value of ImageType for the first instances, "VOLUME" where none is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    height, width = levels[0].shape[:2]
    for i, level in enumerate(levels):
        frames = []
        for y in range(0, len(level), side):
            for x in range(0, level.shape[1], side):
                tile = np.full((side, side, 3), 255, np.uint8)
                part = level[y : y + side, x : x + side]
                tile[: len(part), : part.shape[1]] = part
                Image.fromarray(tile).save(jpeg := io.BytesIO(), "JPEG", quality=95, subsampling=0)
                frames.append(jpeg.getvalue())
        kind = kinds[i] if i < len(kinds) else "VOLUME"
        factor = round(width / level.shape[1])
        spacing = f"{UM_PER_PX * factor / 1000:.6g}"
        (folder / name.format(i)).write_bytes(
            _dicom(
                {
                    (0x0008, 0x0008): (
                        "CS",
                        "\\".join(["DERIVED" if i else "ORIGINAL", "PRIMARY", kind, "NONE" if not i else "RESAMPLED"]),
                    ),
                    (0x0008, 0x0016): ("UI", VL_SLIDE),
                    (0x0008, 0x0018): ("UI", f"{series}.{i}"),
                    (0x0008, 0x0060): ("CS", "SM"),
                    (0x0020, 0x000D): ("UI", "1.2.3"),
                    (0x0020, 0x000E): ("UI", series),
                    (0x0020, 0x0013): ("IS", str(i + 1)),
                    (0x0020, 0x0052): ("UI", "1.2.3.9"),
                    (0x0020, 0x9311): ("CS", "TILED_FULL"),
                    (0x0028, 0x0002): ("US", 3),
                    (0x0028, 0x0004): ("CS", "YBR_FULL_422"),
                    (0x0028, 0x0006): ("US", 0),
                    (0x0028, 0x0008): ("IS", str(len(frames))),
                    (0x0028, 0x0010): ("US", side),
                    (0x0028, 0x0011): ("US", side),
                    (0x0028, 0x0100): ("US", 8),
                    (0x0028, 0x0101): ("US", 8),
                    (0x0028, 0x0102): ("US", 7),
                    (0x0028, 0x0103): ("US", 0),
                    (0x0048, 0x0001): ("FL", width * UM_PER_PX / 1000),
                    (0x0048, 0x0002): ("FL", height * UM_PER_PX / 1000),
                    (0x0048, 0x0006): ("UL", level.shape[1]),
                    (0x0048, 0x0007): ("UL", level.shape[0]),
                    (0x0048, 0x0105): ("SQ", {(0x0048, 0x0106): ("SH", "1")}),
                    (0x0048, 0x0302): ("UL", 1),
                    (0x0048, 0x0303): ("UL", 1),
                    (0x5200, 0x9229): ("SQ", {(0x0028, 0x9110): ("SQ", {(0x0028, 0x0030): ("DS", f"{spacing}\\{spacing}")})}),
                    (0x7FE0, 0x0010): ("OB", frames),
                }
            )
        )
    return folder / name.format(0)


VL_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


def _dicom(elements):
    """A file of DICOM, explicit and little-endian."""
    instance = elements[(0x0008, 0x0018)][1]
    meta = {(0x0002, 0x0002): ("UI", VL_SLIDE), (0x0002, 0x0003): ("UI", instance), (0x0002, 0x0010): ("UI", JPEG_BASELINE)}
    head = _elements({(0x0002, 0x0001): ("OB", b"\0\1"), **meta})
    return bytes(128) + b"DICM" + _elements({(0x0002, 0x0000): ("UL", len(head))}) + head + _elements(elements)


def _elements(elements):
    content = b""
    for (group, element), (kind, value) in sorted(elements.items()):
        content += struct.pack("<HH2s", group, element, kind.encode())
        if isinstance(value, list):  # frames, each in a fragment of its own behind an empty table of offsets
            parts = [b"", *(frame + b"\0" * (len(frame) % 2) for frame in value)]
            content += struct.pack("<HI", 0, 0xFFFFFFFF)
            content += b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in parts)
            content += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
            continue
        if kind == "SQ":
            item = _elements(value)
            value = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
        elif not isinstance(value, str | bytes):
            value = struct.pack({"US": "<H", "UL": "<I", "FL": "<f"}[kind], value)
        elif isinstance(value, str):
            value = value.encode()
            value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
        content += struct.pack("<HI", 0, len(value)) if kind in ("OB", "SQ") else struct.pack("<H", len(value))
        content += value
    return content
