"""Augmentation: against torchvision image by image, no fill in any rotated crop, and draws that no batch size changes."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mfcore.data import augment
from mfcore.study.config import Network

torch = pytest.importorskip("torch")
reference = pytest.importorskip("torchvision.transforms.v2.functional")
transforms = pytest.importorskip("torchvision.transforms")

SLIDE = Path(__file__).parents[2].parent / "shared" / "data" / "slides" / "canine_strip.tif"

NETWORK = Network(name="test", input_px=24, shift_px=3)
PLAIN = dataclasses.replace(NETWORK, colour_probability=0, blur_probability=0, rotation_probability=0, shift_px=0)


def records(fields: dict) -> np.recarray:
    return np.rec.fromarrays(list(fields.values()), names=list(fields))


def fields_of(drawn: np.recarray) -> dict:
    return {name: drawn[name] for name in drawn.dtype.names}


def neutral(n_images: int, **changed: object) -> np.recarray:
    """Records that change nothing, but for ``changed``."""
    ones, zeros, never = np.ones(n_images), np.zeros(n_images), np.zeros(n_images, dtype=bool)
    values = {
        "angle": zeros,
        "flip_x": never,
        "flip_y": never,
        "shift_x_px": zeros,
        "shift_y_px": zeros,
        "brightness": ones,
        "contrast": ones,
        "saturation": ones,
        "hue": zeros,
        "blur_px": zeros,
        "last_angle": zeros,
    }
    return records(values | {name: np.broadcast_to(value, n_images) for name, value in changed.items()})


def patches(n_images: int, stored_px: int) -> "torch.Tensor":
    """Random uint8 images (n, 3, stored_px, stored_px), grey pixels and pure colours among them."""
    images = np.random.default_rng(3).integers(0, 256, (n_images, 3, stored_px, stored_px), dtype=np.uint8)
    images[:, :, ::5] = images[:, :1, ::5]
    images[:, 1:, 1::5] = 0
    return torch.from_numpy(images)


def test_draws_depend_on_stream_and_position_only():
    epoch = augment.draw(NETWORK, 64, 1, "augment", 0)
    shorter = augment.draw(NETWORK, 10, 1, "augment", 0)
    other = augment.draw(NETWORK, 64, 1, "augment", 1)
    for name in epoch.dtype.names[:-1]:
        whole = epoch[name]
        assert whole.shape == (64,)
        np.testing.assert_array_equal(whole[:10], shorter[name])
        assert not np.array_equal(whole, other[name])


@pytest.mark.parametrize(("input_px", "n_threads"), [(24, 1), (25, 2), (97, 1)])
def test_batch_size_changes_no_image(input_px, n_threads, monkeypatch):
    network = Network(name="test", input_px=input_px, shift_px=3, colour_jitter=0.4, blur_probability=0.4)
    images, parameters = patches(12, network.needed_px), augment.draw(network, 12, 1, "augment")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        whole = augment.augment(images, parameters, input_px)
        parts = [augment.augment(images[i : i + 5], parameters[i : i + 5], input_px) for i in (0, 5, 10)]
        monkeypatch.setattr(augment, "PIECE_PX", 1)
        singly = augment.augment(images, parameters, input_px)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(singly, whole)


def test_sampling_and_copying_agree(monkeypatch):
    """A GPU samples every image, a CPU only the rotated ones."""
    images, parameters = patches(12, NETWORK.needed_px), augment.draw(NETWORK, 12, 1, "augment")
    copied = augment.augment(images, parameters, 24)
    assert 0 < np.count_nonzero(parameters.angle) < 12
    turned = records(fields_of(parameters) | {"angle": np.where(parameters.angle == 0, 2 * np.pi, parameters.angle)})
    torch.testing.assert_close(augment.augment(images, turned, 24), copied, atol=1e-4, rtol=0)


def published(n_draws: int) -> dict[str, np.ndarray]:
    """Factors that torchvision's own transforms draw, with the published settings, float64 (n_draws,) each."""
    torch.manual_seed(4)
    jitter = transforms.ColorJitter(0.1, 0.1, 0.1, 0.1)
    limits = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    colours = np.array([transforms.ColorJitter.get_params(*limits)[1:] for _ in range(n_draws)])
    rotation, blur = transforms.RandomRotation(180), transforms.GaussianBlur(5)
    return {
        **dict(zip(("brightness", "contrast", "saturation", "hue"), colours.T, strict=True)),
        "angle": np.deg2rad([rotation.get_params(rotation.degrees) for _ in range(n_draws)]),
        "blur_px": np.array([blur.get_params(*blur.sigma) for _ in range(n_draws)]),
    }


def test_factors_are_distributed_as_the_published_transforms():
    n_draws = 5000
    always = dataclasses.replace(NETWORK, colour_probability=1, blur_probability=1, rotation_probability=1)
    drawn, expected = augment.draw(always, n_draws, 11, "published"), published(n_draws)
    for name, values in expected.items():
        own = getattr(drawn, name)
        assert stats.ks_2samp(own, values).pvalue > 1e-3, name
        spread = np.ptp(values)
        np.testing.assert_allclose(*(np.quantile(v, np.linspace(0, 1, 21)) for v in (own, values)), atol=0.04 * spread)
    correlated = abs(np.corrcoef([getattr(drawn, name) for name in expected]) - np.eye(len(expected)))
    assert correlated.max() < 0.05


def test_rates_are_those_of_the_published_transforms():
    """How often each transform acts: as often as torchvision's own, on an image that shows whether it did."""
    n_draws, network = 2000, Network(name="published")
    torch.manual_seed(5)
    image = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0))
    steps = {
        "angle": transforms.RandomApply([transforms.RandomRotation(180)], 0.5),
        "brightness": transforms.RandomApply([transforms.ColorJitter(0.1, 0.1, 0.1, 0.1)], 0.5),
        "blur_px": transforms.RandomApply([transforms.GaussianBlur(5)], 0.1),
        "flip_x": transforms.RandomHorizontalFlip(),
        "flip_y": transforms.RandomVerticalFlip(),
    }
    drawn, neutral_one = augment.draw(network, n_draws, 12, "rates"), neutral(1)
    for name, step in steps.items():
        acted = sum(not torch.equal(step(image), image) for _ in range(n_draws))
        own = np.count_nonzero(getattr(drawn, name) != getattr(neutral_one, name))
        assert stats.fisher_exact([[acted, n_draws - acted], [own, n_draws - own]]).pvalue > 1e-3, (name, acted, own)


def test_draws_follow_the_network():
    n_images = 20_000
    network = dataclasses.replace(NETWORK, colour_jitter=0.2, colour_probability=0.4, rotation_probability=0.7)
    drawn = augment.draw(network, n_images, 5, "rates")
    rates = {
        "coloured": (drawn.brightness != 1).mean(),
        "blurred": (drawn.blur_px > 0).mean(),
        "rotated": (drawn.angle != 0).mean(),
        "flipped in x": drawn.flip_x.mean(),
        "flipped in y": drawn.flip_y.mean(),
    }
    expected = [0.4, 0.1, 0.7, 0.5, 0.5]
    assert list(rates.values()) == pytest.approx(expected, abs=0.02), rates
    for factor in (drawn.brightness - 1, drawn.contrast - 1, drawn.saturation - 1, drawn.hue):
        assert -0.2 <= factor.min() < -0.19 and 0.19 < factor.max() <= 0.2
    for shift_px in (drawn.shift_x_px, drawn.shift_y_px):
        values, counts = np.unique(shift_px, return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-3, 4))
        assert counts.min() > 0.9 * n_images / 7
    sigmas = drawn.blur_px[drawn.blur_px > 0]
    assert 0.1 <= sigmas.min() < 0.15 and 1.95 < sigmas.max() <= 2
    assert -np.pi <= drawn.angle.min() < -3.1 and 3.1 < drawn.angle.max() <= np.pi
    assert abs(np.corrcoef([drawn.angle, drawn.hue, drawn.brightness, drawn.flip_x]) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize("stored_px", [34, 35, 40, 41])
def test_without_rotation_pixels_are_kept(stored_px):
    images = patches(1, stored_px)
    start = (stored_px - 24) // 2
    for flip_x, flip_y, shift_x, shift_y in [
        (False, False, 0, 0),
        (True, False, 2, 0),
        (False, True, 0, -3),
        (True, True, -1, 3),
    ]:
        done = neutral(1, flip_x=flip_x, flip_y=flip_y, shift_x_px=shift_x, shift_y_px=shift_y)
        crop = augment.augment(images, done, 24)
        top, left = start + shift_y, start + shift_x
        expected = images[:, :, top : top + 24, left : left + 24]
        expected = expected.flip([axis for axis, flipped in ((2, flip_y), (3, flip_x)) if flipped])
        assert torch.equal((crop * 255).round().to(torch.uint8), expected)


def test_rotation_against_torchvision():
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")
    image = torch.stack([rows / 41, columns / 41, (rows - columns).abs() / 41])[None]
    for degrees in (30.0, 90.0, -135.0, 180.0):
        crop = augment.augment(image, neutral(1, angle=np.deg2rad(degrees)), 25)
        turned = reference.rotate(image, degrees, interpolation=reference.InterpolationMode.BILINEAR)
        torch.testing.assert_close(crop, reference.center_crop(turned, [25, 25]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("input_px", "shift_px"), [(7, 0), (24, 0), (25, 3), (64, 2), (224, 22)])
def test_no_rotated_crop_has_fill(input_px, shift_px):
    network = Network(name="test", input_px=input_px, shift_px=shift_px, rotation_probability=1)
    stored_px = network.needed_px
    drawn = augment.draw(network, 4000, 9, "corners")
    angle = np.concatenate([drawn.angle, np.full(4, np.pi / 4), [0.0] * 4, [np.pi / 2] * 4])
    extremes = [np.tile([-1, -1, 1, 1], 3) * shift_px, np.tile([-1, 1, -1, 1], 3) * shift_px]
    never = np.zeros(len(angle), dtype=bool)
    shifts = [
        np.concatenate([getattr(drawn, f"shift_{axis}_px"), extreme]) for axis, extreme in zip("xy", extremes, strict=True)
    ]
    done = neutral(len(angle), angle=angle, shift_x_px=shifts[0], shift_y_px=shifts[1], flip_x=never)
    corners = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)])
    sampled = corners @ augment.affine(done, stored_px, input_px).transpose(0, 2, 1)  # (n, 4, 2)
    assert abs(sampled).max() <= 1 + 1e-9
    assert abs(sampled).max() > 1 - 2 / stored_px, "the stored patch is wider than need be"
    few = np.r_[0:20, len(angle) - 12 : len(angle)]
    ones = torch.ones(len(few), 3, stored_px, stored_px)  # grid_sample fills with zeros outside
    crops = augment.augment(ones, done[few], input_px)
    torch.testing.assert_close(crops, torch.ones_like(crops), atol=1e-4, rtol=0)


def test_marker_outside_the_reach_never_shows():
    """A crop at 45 degrees reaches to the middle of each side, never to the stored patch's corners."""
    network = Network(name="test", input_px=64, rotation_probability=1, colour_probability=0, blur_probability=0)
    image = torch.zeros(1, 3, 91, 91)
    image[..., :8, :8] = image[..., -8:, -8:] = image[..., :8, -8:] = image[..., -8:, :8] = 1
    drawn = augment.draw(network, 200, 2, "corners")
    assert augment.augment(image.expand(200, -1, -1, -1), drawn, 64).max() == 0


def test_too_narrow_a_patch_is_refused():
    with pytest.raises(ValueError, match=r"reaches outside its stored patch of 30 px; store patches of 34 px or more"):
        augment.augment(patches(1, 30), neutral(1, angle=np.pi / 4), 24)
    with pytest.raises(ValueError, match="stored patch of 24 px"):
        augment.augment(patches(1, 24), neutral(1, shift_x_px=1), 24)


def test_colour_against_torchvision():
    images = patches(16, 24).float() / 255
    drawn = augment.draw(dataclasses.replace(PLAIN, colour_probability=1, colour_jitter=0.4), 16, 7, "colour")
    done = neutral(16, **{name: drawn[name] for name in ("brightness", "contrast", "saturation", "hue")})
    expected = []
    for i, image in enumerate(images):
        image = reference.adjust_brightness(image, done.brightness[i])
        image = reference.adjust_contrast(image, done.contrast[i])
        image = reference.adjust_saturation(image, done.saturation[i])
        expected.append(reference.adjust_hue(image, done.hue[i]))
    torch.testing.assert_close(augment.augment(images, done, 24), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.skipif(not SLIDE.is_file(), reason="the real slide isn't beside the repository")
def test_order_of_the_colour_operations_hardly_matters():
    """Torchvision draws it; on tissue the 24 give the pixels of our one, a quarter of a grey level apart on average."""
    tifffile = pytest.importorskip("tifffile")
    slide = torch.from_numpy(tifffile.imread(SLIDE, key=0)).permute(2, 0, 1)
    factors, apart = np.random.default_rng(6).uniform(-0.1, 0.1, (4, 4)), []
    names = ("brightness", "contrast", "saturation", "hue")
    places = ((1800, 6800), (3600, 1400), (3600, 2000), (4600, 1800))
    for factor, (y_px, x_px) in zip(factors, places, strict=True):
        image = slide[:, y_px : y_px + 96, x_px : x_px + 96] / 255
        assert image.std() > 0.05, "tissue, not glass"
        values = dict(zip(names, factor + np.array([1, 1, 1, 0]), strict=True))
        own = augment.jitter_colour(image[None], *(torch.tensor([v], dtype=torch.float32) for v in values.values()))[0]
        for order in itertools.permutations(names):
            other = image
            for name in order:
                other = getattr(reference, f"adjust_{name}")(other, values[name])
            apart.append(255 * float((own - other).abs().mean()))
    assert np.mean(apart) < 0.25 and max(apart) < 2, (np.mean(apart), max(apart))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_operation_alone(name):
    images = patches(4, 24).float() / 255
    values = np.array([-0.4, -0.1, 0.1, 0.4]) + (name != "hue")
    crops = augment.augment(images, neutral(4, **{name: values}), 24)
    expected = [getattr(reference, f"adjust_{name}")(image, value) for image, value in zip(images, values, strict=True)]
    torch.testing.assert_close(crops, torch.stack(expected), atol=1e-5, rtol=0)
    assert not torch.allclose(crops, images, atol=0.01)


def test_blur_against_torchvision():
    images, sigmas = patches(5, 24).float() / 255, np.array([0.1, 0.5, 0.0, 1.3, 2.0])
    crops = augment.augment(images, neutral(5, blur_px=sigmas), 24)
    for crop, image, sigma in zip(crops, images, sigmas, strict=True):
        expected = reference.gaussian_blur(image, [5, 5], [sigma, sigma]) if sigma else image
        torch.testing.assert_close(crop, expected, atol=1e-5, rtol=0)


def test_input_is_left_alone_and_output_stays_in_range():
    for images in (patches(40, NETWORK.needed_px), patches(40, NETWORK.needed_px).float() / 255):
        before = images.clone()
        strong = dataclasses.replace(NETWORK, colour_jitter=0.5, colour_probability=1, blur_probability=1)
        crops = augment.augment(images, augment.draw(strong, 40, 1, "range"), 24)
        assert crops.shape == (40, 3, 24, 24) and crops.dtype == torch.float32
        assert crops.min() >= -1e-5 and crops.max() <= 1 + 1e-5
        assert torch.equal(images, before)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="3 images with parameters of 2"):
        augment.augment(patches(3, 34), neutral(2), 24)
    with pytest.raises(ValueError, match=r"images are \(1, 34, 34, 3\)"):
        augment.augment(torch.zeros(1, 34, 34, 3), neutral(1), 24)


# ---- as the released training scripts do ----


def test_released_crops_are_turned_last_by_nearest_neighbour_with_black_corners():
    """As PIL's rotate, which torchvision's RandomRotation calls, turns what all else has made of the crop."""
    network = dataclasses.replace(NETWORK, rotation_probability=1.0, blur_probability=0.5)
    images, drawn = patches(12, network.needed_px), augment.draw(network, 12, 4, "released", released=True)
    crops = augment.augment(images, drawn, 24)
    rest = augment.augment(images, records(fields_of(drawn) | {"last_angle": np.zeros(12)}), 24)
    n_other = 0
    for crop, before, angle in zip(crops.numpy(), rest.numpy(), drawn.last_angle, strict=True):
        for channel, plane in zip(crop, before, strict=True):
            expected = np.asarray(Image.fromarray(plane).rotate(np.degrees(angle), Image.Resampling.NEAREST))
            n_other += (channel != expected).sum()  # PIL computes places in steps of 1 / 65,536 px
    assert n_other < 0.002 * crops.numel()
    corners = crops[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners[np.abs(np.sin(2 * drawn.last_angle)) > 0.3] == 0).all() and (rest > 0).float().mean() > 0.9
    singly = torch.cat([augment.augment(images[i : i + 1], drawn[i : i + 1], 24) for i in range(12)])
    assert torch.equal(singly, crops)


def test_released_blur_is_narrower_and_all_else_is_drawn_alike():
    always = dataclasses.replace(NETWORK, blur_probability=1.0)
    own, released = (augment.draw(always, 4000, 3, "blur", released=as_released) for as_released in (False, True))
    assert released.blur_px.min() >= 0.1 and released.blur_px.max() <= 1.0 and released.blur_px.max() > 0.99
    assert own.blur_px.max() > 1.98
    np.testing.assert_array_equal(own.angle, released.last_angle)
    assert not released.angle.any() and not own.last_angle.any()
    for name in set(own.dtype.names) - {"angle", "last_angle", "blur_px"}:
        np.testing.assert_array_equal(own[name], released[name])
