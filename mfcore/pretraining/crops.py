"""Views of patches for pretraining: multi-crop, and the patch tokens that are masked for iBOT.

**Multi-crop.** From each patch two global and several local crops, each cut, coloured and blurred at random. The recipe is
DINO's (Caron et al. 2021, sections 3.1 and 3.2; the augmentations are BYOL's), with vertical flips, as slides have no up.

Crops and masks depend on the name of a random stream and on the patch's position in it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mfcore import streams as rng
from mfcore.data import augment
from mfcore.pretraining.method import Crops

N_GLOBAL = 2
ASPECT = (3 / 4, 4 / 3)
N_ATTEMPTS = 10  # to place a crop, as torchvision's RandomResizedCrop, before the whole patch is taken; to place a block
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
BLUR_PROBABILITY = (1.0, 0.1, 0.5)  # first and second global crop, local ones
BLUR_SIGMA_PX = (0.1, 2.0)  # of crops of PUBLISHED_PX; narrower crops are blurred in proportion
PUBLISHED_PX = 224
SOLARISE_PROBABILITY = 0.2  # second global crop only
SOLARISE_FROM = 0.5
CUBIC = -0.5  # Keys' parameter, as Pillow has it
LEAST_TOKENS = 4  # of a masked block, unless fewer are left to mask
MOST_SHARE = 0.5  # of the grid, that one masked block may cover
BLOCK_ASPECT = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Drawn:
    """How n patches are cropped, arrays (n, 2 + n_local), global crops first.

    top_px, left_px, height_px, width_px: the cut from a patch of ``patch_px``. flip_x, flip_y: mirrored left to right, top to
    bottom. brightness, contrast, saturation: factors, 1 for no change; hue: added, in turns, 0 for no change. blur_px: sigma
    in px of the crop, 0 for no blur. global_px, local_px: sides to which the cuts are resized.
    """

    top_px: np.ndarray
    left_px: np.ndarray
    height_px: np.ndarray
    width_px: np.ndarray
    flip_x: np.ndarray
    flip_y: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    grey: np.ndarray
    blur_px: np.ndarray
    solarise: np.ndarray
    patch_px: int
    global_px: int
    local_px: int

    def __len__(self) -> int:
        return len(self.top_px)

    def __getitem__(self, part: slice | np.ndarray) -> "Drawn":
        """The same for some of the patches, a slice of them or their rows."""
        return self._of(lambda values: values[part])

    def crop(self, number: int) -> "Drawn":
        """One crop of each patch; its arrays are (n,)."""
        return self._of(lambda values: values[:, number])

    def _of(self, part: Callable[[np.ndarray], np.ndarray]) -> "Drawn":
        values = vars(self)
        return Drawn(**{name: part(value) if isinstance(value, np.ndarray) else value for name, value in values.items()})


def draw(crops: Crops, n: int, patch_px: int, seed: int, *names: object) -> Drawn:
    """Parameters of the crops of n patches of ``patch_px``, from the stream ``names`` under ``seed``.

    Row i depends on the stream and on i alone; processes that share a batch draw the whole batch and take their rows. Raises
    ValueError where the scales of ``crops`` are None (`in_full` fills them in).
    """
    if crops.global_scale is None or crops.local_scale is None:
        raise ValueError("crops: global_scale and local_scale are None; method.in_full fills them in")
    n_crops = N_GLOBAL + crops.n_local
    uniform = rng.generator(seed, *names).random((n, n_crops, 2 * N_ATTEMPTS + 13))
    scales = np.array([crops.global_scale] * N_GLOBAL + [crops.local_scale] * crops.n_local).T  # (2, n_crops)
    height_px, width_px = _sides(uniform[..., : 2 * N_ATTEMPTS], scales, patch_px)
    top, left, flip_x, flip_y, coloured, *jitter, grey, blurred, sigma, solarise = np.moveaxis(
        uniform[..., 2 * N_ATTEMPTS :], 2, 0
    )
    colour = [
        np.where(coloured < JITTER_PROBABILITY, reach * (2 * u - 1), 0.0) for reach, u in zip(JITTER, jitter, strict=True)
    ]
    blur_probability = np.array([*BLUR_PROBABILITY[:N_GLOBAL], *[BLUR_PROBABILITY[-1]] * crops.n_local])
    low_px, high_px = (sigma_px * crops.global_px / PUBLISHED_PX for sigma_px in BLUR_SIGMA_PX)
    return Drawn(
        top_px=np.floor(top * (patch_px - height_px + 1)),
        left_px=np.floor(left * (patch_px - width_px + 1)),
        height_px=height_px,
        width_px=width_px,
        flip_x=flip_x < 0.5,
        flip_y=flip_y < 0.5,
        brightness=1 + colour[0],
        contrast=1 + colour[1],
        saturation=1 + colour[2],
        hue=colour[3],
        grey=grey < GREY_PROBABILITY,
        blur_px=np.where(blurred < blur_probability, low_px + (high_px - low_px) * sigma, 0.0),
        solarise=(solarise < SOLARISE_PROBABILITY) & (np.arange(n_crops) == N_GLOBAL - 1),
        patch_px=patch_px,
        global_px=crops.global_px,
        local_px=crops.local_px,
    )


def _sides(uniform: np.ndarray, scales: np.ndarray, patch_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths in px, (n, n_crops) each: of the first attempt that fits into the patch, or the whole patch.

    uniform: (n, n_crops, 2 * N_ATTEMPTS); scales: least and largest share of the patch's area, (2, n_crops).
    """
    share, aspect = uniform[..., :N_ATTEMPTS], uniform[..., N_ATTEMPTS:]
    low, high = scales[..., None]
    area = patch_px**2 * (low + (high - low) * share)
    root = np.exp((math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspect) / 2)  # of width / height
    height, width = np.rint(np.sqrt(area) / root), np.rint(np.sqrt(area) * root)
    fits = (height > 0) & (height <= patch_px) & (width > 0) & (width <= patch_px)  # (n, n_crops, N_ATTEMPTS)
    first = fits.argmax(-1)[..., None]
    chosen = (np.take_along_axis(sides, first, -1)[..., 0] for sides in (height, width))
    height, width = (np.where(fits.any(-1), sides, patch_px) for sides in chosen)
    return height, width


def make(images: torch.Tensor, drawn: Drawn, mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Global crops (2, B, 3, g, g) and local ones (n_local, B, 3, l, l), float32, normalised with ``mean`` and ``std`` (3,).

    images: uint8 (B, 3, patch_px, patch_px) on any device, where everything is done. In this order: cut and resized by
    bicubic interpolation with antialiasing, flipped, colour jittered, made grey, blurred, solarised. Raises ValueError where
    ``drawn`` is of other patches.
    """
    expected = (len(drawn), 3, drawn.patch_px, drawn.patch_px)
    if tuple(images.shape) != expected or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; uint8 {expected} are needed")
    if images.device.type == "cpu":
        images = images.contiguous(memory_format=torch.channels_last)  # in which torch resizes bytes five times as fast
    both = []
    for group, side_px in ((range(N_GLOBAL), drawn.global_px), (range(N_GLOBAL, drawn.top_px.shape[1]), drawn.local_px)):
        out = torch.empty((len(group), len(images), 3, side_px, side_px), device=images.device)
        for number, crops in zip(group, out, strict=True):
            _fill(images, drawn.crop(number), crops, mean, std)
        both.append(out)
    return both[0], both[1]


def _fill(images: torch.Tensor, drawn: Drawn, out: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """One normalised crop of each patch into ``out`` (B, 3, side_px, side_px)."""
    n_images, side_px, device = len(images), out.shape[-1], out.device
    at_once = max(1, n_images)
    if device.type == "cpu":  # as many as the cache holds
        at_once = max(1, augment.PIECE_PX * torch.get_num_threads() // side_px**2)
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std))
    cut = _cut_singly if device.type == "cpu" else _cut_by_matrices
    for start in range(0, n_images, at_once):
        part = slice(start, start + at_once)
        cut(images[part], drawn[part], out[part])
        _change(drawn[part], out[part])
        out[part].sub_(mean).div_(std)


def _cut_singly(images: torch.Tensor, drawn: Drawn, out: torch.Tensor) -> None:
    """Cuts, resized and flipped, into ``out`` (n, 3, side_px, side_px), in 0..1: one after another, in bytes."""
    side_px = out.shape[-1]
    cuts = np.stack([drawn.top_px, drawn.left_px, drawn.height_px, drawn.width_px], axis=1).astype(int).tolist()
    resized = []
    for image, (top, left, height, width), down, across in zip(images, cuts, drawn.flip_y, drawn.flip_x, strict=True):
        cut = image[None, :, top : top + height, left : left + width]
        cut = functional.interpolate(cut, (side_px, side_px), mode="bicubic", antialias=True)
        axes = [axis for axis, flipped in ((2, down), (3, across)) if flipped]
        resized.append(cut.flip(axes) if axes else cut)
    torch.div(torch.cat(resized), 255, out=out)


def _cut_by_matrices(images: torch.Tensor, drawn: Drawn, out: torch.Tensor) -> None:
    """The same in a few calls for the whole batch; rounded to bytes after each axis, too, as Pillow does."""
    n_images, _, patch_px, _ = images.shape
    rows, columns = (
        resampling(start_px, length_px, flipped, patch_px, out.shape[-1], out.device)
        for start_px, length_px, flipped in (
            (drawn.top_px, drawn.height_px, drawn.flip_y),
            (drawn.left_px, drawn.width_px, drawn.flip_x),
        )
    )  # (n, side_px, patch_px) each
    across = images.float().reshape(n_images, 3 * patch_px, patch_px) @ columns.mT  # (n, 3 * patch_px, side_px)
    across = across.round_().clamp_(0, 255).unflatten(1, (3, patch_px))
    for channel in range(3):
        out[:, channel] = rows @ across[:, channel]
    out.round_().clamp_(0, 255).div_(255)


def _change(drawn: Drawn, out: torch.Tensor) -> None:
    """Colour, blur and solarisation of crops (n, 3, side_px, side_px) in 0..1, in place.

    Jitter keeps one order; torchvision's 24 orders differ from it by half a grey level of 255 on tissue, of the 33 it changes.
    """
    device = out.device
    factors = np.stack([drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue])  # (4, n)
    if (chosen := (factors != [[1], [1], [1], [0]]).any(0)).any():
        rows = _rows(chosen, device)
        out[rows] = augment.jitter_colour(out[rows], *augment.on_device(factors[:, chosen].astype(np.float32), device))
    if drawn.grey.any():
        rows = _rows(drawn.grey, device)
        red, green, blue = (out[rows, channel] * weight for channel, weight in enumerate(augment.GREY))
        out[rows] = (red + green + blue)[:, None]
    if (chosen := drawn.blur_px > 0).any():
        rows, sigma_px = _rows(chosen, device), augment.on_device(drawn.blur_px[chosen].astype(np.float32), device)
        out[rows] = augment.blur(out[rows], sigma_px, blur_kernel_px(drawn.global_px, out.shape[-1]))
    if drawn.solarise.any():
        rows = _rows(drawn.solarise, device)
        out[rows] = torch.where(out[rows] < SOLARISE_FROM, out[rows], 1 - out[rows])


def blur_kernel_px(global_px: int, side_px: int) -> int:
    """Side of the blur's kernel, odd: two of the widest sigmas each way, 9 px for 224, and not past the mirrored edge."""
    return 2 * min(math.ceil(2 * BLUR_SIGMA_PX[1] * global_px / PUBLISHED_PX), side_px - 1) + 1


def resampling(
    start_px: np.ndarray, length_px: np.ndarray, flipped: np.ndarray, patch_px: int, side_px: int, device: torch.device
) -> torch.Tensor:
    """Matrices, float32 (n, side_px, patch_px), that resample an axis: ``length_px`` (n,) from ``start_px`` on, to ``side_px``.

    Bicubic, widened where it shrinks (antialias), of the pixels inside only; as torchvision's and Pillow's resizing of a cut
    image. Two of them, one an axis, resize a whole batch, each image in its own way, by two matrix products.
    """
    values = np.stack([start_px, length_px, flipped]).astype(np.float32)
    start, length, flip = augment.on_device(values, device)[..., None]  # (n, 1) each
    at = torch.arange(side_px, device=device) + 0.5  # (side_px,)
    centre = torch.where(flip > 0, side_px - at, at) * (length / side_px)  # (n, side_px), from the cut's start
    inside = torch.arange(patch_px, device=device) + 0.5 - start  # (n, patch_px)
    distance = (inside[:, None, :] - centre[:, :, None]).abs_()
    distance /= (length / side_px).clamp(min=1)[..., None]
    near = ((CUBIC + 2) * distance - (CUBIC + 3)).mul_(distance).mul_(distance).add_(1)
    far = (distance - 5).mul_(distance).add_(8).mul_(distance).sub_(4).mul_(CUBIC)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights *= ((inside > 0) & (inside < length))[:, None, :]
    return weights.div_(weights.sum(2, keepdim=True))


def _rows(chosen: np.ndarray, device: torch.device) -> "torch.Tensor | slice":
    """An index of the rows ``chosen``, bool (n,); for all rows a slice, which copies nothing."""
    return slice(None) if chosen.all() else augment.on_device(np.flatnonzero(chosen), device)


# ---- masks ----


def draw_masks(
    n_images: int, grid: tuple[int, int], probability: float, ratio: tuple[float, float], generator: np.random.Generator
) -> np.ndarray:
    """Masks, bool (n_images, rows * columns of ``grid``), of blocks (Bao et al. 2022, algorithm 1).

    int(probability * n_images) images, drawn at random, get a mask; the shares of tokens to mask are one from each of as many
    equal parts of ``ratio``, so that every batch has about the same number of masked tokens (as DINOv2's authors do; Zhou et
    al. 2021 draw them freely). A mask may fall short of its share where no further block fits, never exceed it.
    Processes that share a batch draw the whole batch from the same stream, and take their rows.
    """
    rows, columns = grid
    masked = np.zeros((n_images, rows, columns), bool)
    n_masked = int(n_images * probability)
    bounds = np.linspace(*ratio, n_masked + 1)
    for i, image in enumerate(generator.permutation(n_images)[:n_masked]):
        _mask(masked[image], int(rows * columns * generator.uniform(bounds[i], bounds[i + 1])), generator)
    return masked.reshape(n_images, rows * columns)


def mask_weights(masked: np.ndarray) -> np.ndarray:
    """Weights, float32 (N,), of the N masked tokens in ``masked`` (n_images, n_tokens): 1 / masked tokens of the image."""
    per_image = masked.sum(1, keepdims=True).clip(1)
    return np.broadcast_to(1 / per_image, masked.shape)[masked].astype(np.float32)


def _mask(masked: np.ndarray, n_tokens: int, generator: np.random.Generator) -> None:
    """Mask blocks of ``masked``, bool (rows, columns), until ``n_tokens`` are masked or no block fits any more."""
    while (left := n_tokens - int(masked.sum())) > 0:
        for _ in range(N_ATTEMPTS):
            block = _block(masked.shape, left, generator)
            if block is not None and 0 < masked[block].size - masked[block].sum() <= left:
                masked[block] = True
                break
        else:
            return


def _block(grid: tuple[int, ...], left: int, generator: np.random.Generator) -> tuple[slice, slice] | None:
    """Rows and columns of a block somewhere in the grid; None for a block that leaves no room on a side."""
    most = min(left, MOST_SHARE * math.prod(grid))
    low, high, top, side = generator.random(4)
    area = min(LEAST_TOKENS, most) + low * (most - min(LEAST_TOKENS, most))
    aspect = math.exp(math.log(BLOCK_ASPECT[0]) + high * math.log(BLOCK_ASPECT[1] / BLOCK_ASPECT[0]))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < height < grid[0] and 0 < width < grid[1]):
        return None
    first, left_most = int(top * (grid[0] - height + 1)), int(side * (grid[1] - width + 1))
    return slice(first, first + height), slice(left_most, left_most + width)
