"""Batch augmentation: every image of a batch gets its own random parameters.

What happens to an image depends on the stream's name and on the image's position in the epoch, not
on the batch size. The recipe is that of Ganz et al. 2024, section 3: colour jitter, Gaussian blur,
flips and rotation. A rotated crop is cut from a stored patch wide enough for it, so that it has no
corner without image; as the authors' released code does it, the crop is turned when all else is
done, and has black corners.
"""

import typing
from collections.abc import Callable

import numpy as np

from mfcore import streams as rng

if typing.TYPE_CHECKING:
    import torch

BLUR_KERNEL_PX = 5
BLUR_SIGMA_PX = (0.1, 2.0)  # torchvision's GaussianBlur; the paper names no sigma
RELEASED_BLUR_SIGMA_PX = (0.1, 1.0)  # the released training scripts'
GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, as torchvision rounds it
# That a core works on at once: few enough for its cache, many enough for torch's calls to pay
PIECE_PX = 2 * 224 * 224


class Strength(typing.Protocol):
    """How much images are changed: largest changes of colour (in shares; of the hue in turns) and
    shift, and probabilities.
    """

    colour_jitter: float
    colour_probability: float
    blur_probability: float
    rotation_probability: float
    shift_px: int


def draw(
    strength: Strength, n_images: int, seed: int, *names: object, released: bool = False
) -> np.recarray:
    """What is done to each of the ``n_images`` of one epoch, from the stream ``names`` under
    ``seed``.

    Records (n_images,) with the fields angle (rotation in radians, 0 for none), flip_x, flip_y
    (mirrored left to right, top to bottom), shift_x_px, shift_y_px (of the crop's centre in the
    stored patch, whole px), brightness, contrast, saturation (factors, 1 for none), hue (added, in
    turns of the colour circle, 0 for none), blur_px (sigma in px, 0 for none), and last_angle.
    released: crops are rotated as the released training scripts do, by last_angle: last, by nearest
    neighbour, with black corners. Row i depends on the stream and on i alone: neither the batch
    size nor ``n_images`` changes it.
    """
    uniform = rng.generator(seed, *names).random((n_images, 13)).T  # (13, n_images)
    coloured = uniform[0] < strength.colour_probability
    blurred = uniform[1] < strength.blur_probability
    rotated = uniform[2] < strength.rotation_probability
    # Shape: (4, n_images)
    jitter = np.where(coloured, strength.colour_jitter * (2 * uniform[3:7] - 1), 0.0)
    low, high = RELEASED_BLUR_SIGMA_PX if released else BLUR_SIGMA_PX
    # Shape: (2, n_images)
    shift_px = np.floor(uniform[11:13] * (2 * strength.shift_px + 1)) - strength.shift_px
    angle = np.where(rotated, np.pi * (2 * uniform[7] - 1), 0.0)
    fields = {
        "angle": angle * (not released),
        "flip_x": uniform[8] < 0.5,
        "flip_y": uniform[9] < 0.5,
        "shift_x_px": shift_px[0],
        "shift_y_px": shift_px[1],
        "brightness": 1 + jitter[0],
        "contrast": 1 + jitter[1],
        "saturation": 1 + jitter[2],
        "hue": jitter[3],
        "blur_px": np.where(blurred, low + (high - low) * uniform[10], 0.0),
        "last_angle": angle * released,
    }
    return np.rec.fromarrays(list(fields.values()), names=list(fields))


def augment(images: "torch.Tensor", drawn: np.recarray, input_px: int) -> "torch.Tensor":
    """Augmented crops, float32 (B, 3, input_px, input_px) in 0..1, of stored patches (B, 3,
    stored_px, stored_px).

    ``images`` are uint8, or float in 0..1, on any device; drawn: of each, as `draw` gives it.
    Geometry comes first, then colour (in torchvision's order: brightness, contrast, saturation,
    hue), then blur, then the last rotation (`turn`). An image that isn't rotated keeps its pixels,
    nothing is resampled. On a CPU an image comes out the same to the last bit whatever its batch.
    Nothing waits for a GPU. Raises ValueError where the number of records is another than that of
    images, or where a crop would reach outside its stored patch.
    """
    import torch

    n_images, n_channels, height_px, width_px = images.shape
    if n_channels != 3 or height_px != width_px:
        raise ValueError(
            f"images are {tuple(images.shape)}; (B, 3, stored_px, stored_px) are needed"
        )
    if n_images != len(drawn):
        raise ValueError(f"{n_images} images with parameters of {len(drawn)}")
    theta = affine(drawn, width_px, input_px)
    crops = torch.empty((n_images, 3, input_px, input_px), device=images.device)
    on_cpu = images.device.type == "cpu"
    n_at_once = max(1, PIECE_PX * torch.get_num_threads() // input_px**2 if on_cpu else n_images)
    for start in range(0, n_images, n_at_once):
        part = slice(start, start + n_at_once)
        out, done = crops[part], drawn[part]
        _cut(images[part], done, theta[part], out)
        if images.dtype == torch.uint8:
            out /= 255
        jitter(out, done)
        change(out, done.blur_px != 0, blur, done.blur_px.astype(np.float32))
        change(out, done.last_angle != 0, turn, done.last_angle)
    return crops


def jitter(images: "torch.Tensor", drawn: np.recarray) -> None:
    """Change images' colours, in place, by the factors drawn for each."""
    factors = np.stack([drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue])
    jittered = (factors != [[1], [1], [1], [0]]).any(axis=0)
    change(images, jittered, jitter_colour, *factors.astype(np.float32))


def change(
    images: "torch.Tensor",
    chosen: np.ndarray,
    by: Callable[..., "torch.Tensor"],
    *values: np.ndarray,
) -> None:
    """Change the images ``chosen``, bool (n,), in place, ``by`` its own of every array of
    ``values``, (n,).
    """
    if chosen.any():
        rows = _rows(chosen, images.device)
        each = (on_device(value[chosen], images.device) for value in values)
        images[rows] = by(images[rows], *each)


def _rows(chosen: np.ndarray, device: "torch.device") -> "slice | torch.Tensor":
    """What to index with for the rows ``chosen``, bool (n,): a slice, which copies nothing, for all
    of them.
    """
    return slice(None) if chosen.all() else on_device(np.flatnonzero(chosen), device)


def on_device(values: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """An array as a tensor on ``device``; a GPU copies it when it comes to it, nothing waits."""
    import torch

    here = torch.from_numpy(values)
    return (
        here.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else here.to(device)
    )


def affine(drawn: np.recarray, stored_px: int, input_px: int) -> np.ndarray:
    """Matrices (n, 2, 3) from a crop's coordinates to the stored patch's, both -1 to 1 between
    outermost pixel centres.

    The crop is mirrored, rotated and shifted about the patch's centre; one that isn't rotated stays
    on whole pixels, as the centre crop does. Raises ValueError, naming the width that would do,
    where a crop would reach outside.
    """
    half_crop_px, half_stored_px = (input_px - 1) / 2, (stored_px - 1) / 2
    angle = drawn.angle.copy()  # of records that lie apart numpy may round a cosine otherwise
    cosine, sine = np.cos(angle), np.sin(angle)
    # A patch and a crop of which one is even and one is odd have no common centre; the centre crop
    # rounds down.
    aside_px = np.where(angle == 0, -((stored_px - input_px) % 2) / 2, 0.0)
    # Shape: (2, n)
    centre_px = np.stack([drawn.shift_x_px + aside_px, drawn.shift_y_px + aside_px])
    reach_px = np.abs(centre_px) + half_crop_px * (np.abs(cosine) + np.abs(sine))  # (2, n)
    if reach_px.size and reach_px.max() > half_stored_px + 1e-6:
        raise ValueError(
            f"a crop of {input_px} px, as rotated and shifted, reaches outside its stored patch of"
            f" {stored_px} px; store patches of {int(np.ceil(2 * reach_px.max() + 1))} px or more"
            " (Network.needed_px)"
        )
    mirror_x, mirror_y = 1 - 2.0 * drawn.flip_x, 1 - 2.0 * drawn.flip_y
    scale = half_crop_px / half_stored_px
    x, y = centre_px / half_stored_px
    rows = [
        [cosine * mirror_x * scale, -sine * mirror_y * scale, x],
        [sine * mirror_x * scale, cosine * mirror_y * scale, y],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _cut(
    images: "torch.Tensor", drawn: np.recarray, theta: np.ndarray, out: "torch.Tensor"
) -> None:
    """Mirrored, rotated and shifted crops into ``out``, in the images' own range.

    A CPU copies the pixels of those that aren't rotated, which is a third of the work of sampling
    them. A GPU samples all, which is one call.
    """
    from torch.nn import functional

    input_px, margin_px = out.shape[-1], images.shape[-1] - out.shape[-1]
    sampled = (drawn.angle != 0) | (images.device.type != "cpu")
    for i in np.flatnonzero(~sampled):
        top, left = (margin_px // 2 + int(px[i]) for px in (drawn.shift_y_px, drawn.shift_x_px))
        crop = images[i, :, top : top + input_px, left : left + input_px]
        flips = (1, drawn.flip_y[i]), (2, drawn.flip_x[i])
        out[i].copy_(crop.flip([axis for axis, is_flipped in flips if is_flipped]))
    if not sampled.any():
        return
    steps = np.linspace(-1, 1, input_px)
    across = theta[sampled, :, 0, None] * steps + theta[sampled, :, 2, None]  # (n, 2, input_px)
    down = theta[sampled, :, 1, None] * steps  # (n, 2, input_px)
    across, down = on_device(np.stack([across, down]).astype(np.float32), out.device)
    # Shape: (n, input_px, input_px, 2)
    grid = (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)
    rows = _rows(sampled, out.device)
    out[rows] = functional.grid_sample(images[rows].float(), grid, align_corners=True)


def turn(images: "torch.Tensor", angle: "torch.Tensor") -> "torch.Tensor":
    """Images (B, 3, S, S) turned about their centres by angles, float64 (B,) in radians, against
    the clock.

    Each px is the nearest one's of the image, black where the image doesn't reach, as PIL's
    ``rotate`` has it.
    """
    import torch

    side_px = images.shape[-1]
    aside = torch.arange(side_px, dtype=torch.float64, device=images.device) + 0.5 - side_px / 2
    cosine, sine = (of(angle)[:, None, None] for of in (torch.cos, torch.sin))
    x = (cosine * aside - sine * aside[:, None] + side_px / 2).floor().long()  # (B, S, S)
    y = (sine * aside + cosine * aside[:, None] + side_px / 2).floor().long()
    is_inside = (x >= 0) & (x < side_px) & (y >= 0) & (y < side_px)
    # Shape: (B, 3, S * S)
    place = torch.where(is_inside, y * side_px + x, 0).flatten(1)[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, place).view_as(images) * is_inside[:, None]


def jitter_colour(
    images: "torch.Tensor",
    brightness: "torch.Tensor",
    contrast: "torch.Tensor",
    saturation: "torch.Tensor",
    hue: "torch.Tensor",
) -> "torch.Tensor":
    """Images (B, 3, H, W), float in 0..1, with brightness, contrast, saturation and hue changed,
    each by its own (B,).

    The four operations are those of torchvision's ColorJitter, which has one factor for a whole
    batch and draws their order. The first three commute but for clipping, and hue nearly does: on
    tissue the 24 orders, with jitters up to 0.1, are a tenth of a grey level of 255 from this one
    on average, so that it stands for all. ``images`` isn't changed.
    """
    n_images, _, height_px, width_px = images.shape
    pixels = images.reshape(n_images, 3, height_px * width_px)
    # One plane after another and in place, as a plane stays in the core's cache.
    pixels = (pixels * brightness[:, None, None]).clamp_(0, 1)
    luma = _luma(pixels)  # (B, H W)
    # By rows and then over rows: torch then adds in the same order whatever the batch and the
    # number of threads.
    mean = luma.reshape(n_images, height_px, width_px).sum(2).sum(1) / (height_px * width_px)
    pixels.mul_(contrast[:, None, None]).add_(((1 - contrast) * mean)[:, None, None]).clamp_(0, 1)
    luma = _luma(pixels).mul_((1 - saturation)[:, None])
    pixels.mul_(saturation[:, None, None]).add_(luma[:, None]).clamp_(0, 1)
    _turn_hue(pixels, hue[:, None])
    return pixels.reshape(images.shape)


def _luma(pixels: "torch.Tensor") -> "torch.Tensor":
    """Grey values (B, P) of pixels (B, 3, P)."""
    red, green, blue = pixels.unbind(1)
    # Multiplied and added apart: fused, the last bit of a pixel would depend on its place in a
    # batch.
    return (red * GREY[0]).add_(green * GREY[1]).add_(blue * GREY[2])


def _turn_hue(pixels: "torch.Tensor", turns: "torch.Tensor") -> None:
    """Turn the hue of HSV of pixels (B, 3, P) by ``turns`` (B, 1), in place; saturation and value
    stay.
    """
    import torch

    red, green, blue = pixels.unbind(1)  # (B, P) each
    value, lowest = pixels.amax(1), pixels.amin(1)
    chroma = value - lowest
    # The hue in sixths of a turn, -3 to 3, red at 0, without a branch: its distance from red grows
    # with the difference of green and blue while red is highest, with what red lacks while that
    # difference stays, and as the difference falls.
    scale = chroma.clamp(min=torch.finfo(chroma.dtype).tiny).reciprocal_()
    aside = (green - blue).mul_(scale)  # -1..1
    lack = (value - red).mul_(scale)  # 0..1
    apart = aside.abs()
    sextant = (apart * -2).add_(3).mul_(lack).add_(apart).copysign_(aside)
    sextant += 6 * turns
    sextant -= (sextant * (1 / 6)).floor_().mul_(6)  # 0..6
    # HSV to RGB in closed form: a channel falls from value to lowest with its colour's distance,
    # between 1 and 2 sixths; red rises with that of its opposite, cyan.
    for channel, colour in ((green, 2), (blue, 4), (red, 3)):
        torch.sub(sextant, colour, out=channel).abs_().sub_(1).clamp_(0, 1).mul_(chroma)
    torch.sub(value, green, out=green)
    torch.sub(value, blue, out=blue)
    red.add_(lowest)


def blur(
    images: "torch.Tensor", sigma_px: "torch.Tensor", kernel_px: int = BLUR_KERNEL_PX
) -> "torch.Tensor":
    """Images (B, 3, H, W) blurred with square Gaussian kernels, each with its own sigma (B,); edges
    are mirrored.
    """
    import torch
    from torch.nn import functional

    height_px, width_px = images.shape[2:]
    half = kernel_px // 2
    # Shape: (B,) each
    weights = [torch.exp(-0.5 * (distance_px / sigma_px) ** 2) for distance_px in range(half + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    weights = [(weight / total)[:, None, None, None] for weight in weights]
    images = functional.pad(images, [half] * 4, mode="reflect")
    for axis, size_px in ((2, height_px), (3, width_px)):
        # Shifted and added, as a convolution has another order of adding for another batch.
        blurred = images.narrow(axis, half, size_px) * weights[0]
        for distance_px in range(1, half + 1):
            both = images.narrow(axis, half - distance_px, size_px) + images.narrow(
                axis, half + distance_px, size_px
            )
            blurred += both.mul_(weights[distance_px])
        images = blurred
    return images
