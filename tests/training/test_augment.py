"""Augmentation: which windows are drawn, and that resizing is Pillow's, as in the preprocessing of a classifier."""
import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from timm.data import create_transform
from torchvision.transforms import RandomResizedCrop

from igczoo.training.augment import Augmentation, _draw_sides
from igczoo.training.recipes import Recipe

SHIFTED = Recipe(
    model='igc_resnet20_l24m2', input_size=8, mean=(0., 0., 0.), std=(1., 1., 1.), epochs=3, batch_size=8, lr=0.1,
    warmup_epochs=1, momentum=0.9, weight_decay=1e-3, label_smoothing=0.1, crop_padding=2, flip=True)
RESIZED = dataclasses.replace(SHIFTED, crop_padding=0, min_area=0.35)
SIDE = 64


def random_images(n: int, side: int) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def draw(recipe: Recipe, images: torch.Tensor, n: int, size: int) -> torch.Tensor:
    torch.manual_seed(0)
    return Augmentation(recipe, images)((torch.arange(n) % len(images))[None], 0, size)


def boxes(recipe: Recipe, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left, top, right and bottom (n, 4) of the windows drawn, and which are mirrored, as an image of its own coordinates shows them."""
    ramp = (3 * torch.arange(SIDE)).to(torch.uint8)
    coordinates = torch.stack([ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE), ramp.expand(SIDE, SIDE)])[None]
    x, y = (draw(recipe, coordinates, n, size)[:, :2].double() / 3 + 0.5).unbind(1)     # 0.5: from pixel numbers to edges
    steps, middle = size // 4, slice(size // 4, 3 * size // 4 + 1, size // 2)           # away from the image's border
    (left, right), (top, bottom) = x[:, 0, middle].unbind(1), y[:, middle, 0].unbind(1)
    corners = []
    for first, last in ((left, right), (top, bottom)):
        step = (last - first) / (2 * steps)
        corners.append((first - (steps + 0.5) * step, first - (steps + 0.5) * step + size * step))
    (left, right), (top, bottom) = corners
    return torch.stack([torch.minimum(left, right), top, torch.maximum(left, right), bottom], 1), right < left


def test_shifted_windows_stay_within_the_padding():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2))
    windows = [padded[0, :, i:i + 8, j:j + 8] for i in range(5) for j in range(5)]
    for flip in (True, False):
        allowed = {tuple(window.flatten().tolist()) for w in windows for window in ((w, w.flip(2)) if flip else (w,))}
        drawn = {tuple(image.flatten().tolist()) for image in draw(dataclasses.replace(SHIFTED, flip=flip), images, 400, 8)}
        assert drawn == allowed     # all 25 shifts, both ways round if they may be, and nothing else


def test_resized_windows_have_the_areas_and_shapes_that_are_asked_for():
    box, mirrored = boxes(RESIZED, 2000, 64)
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    area, aspect = width * height / SIDE ** 2, width / height
    assert box.min() > -1e-3 and box.max() < SIDE + 1e-3
    assert 0.35 - 1e-4 < area.min() < 0.37 and 0.98 < area.max() < 1 + 1e-4
    assert 3 / 4 - 1e-4 < aspect.min() < 0.77 and 1.3 < aspect.max() < 4 / 3 + 1e-4
    assert 0.45 < mirrored.double().mean() < 0.55
    free = SIDE - width > 10        # where there is room, the place in it is uniform
    assert abs((box[free, 0] / (SIDE - width[free])).mean() - 0.5) < 0.03
    assert not boxes(dataclasses.replace(RESIZED, flip=False), 100, 64)[1].any()


@pytest.mark.parametrize('size', [64, 96, 128])
def test_resized_windows_are_what_pillow_cuts_and_resizes(size):
    images = random_images(12, SIDE)
    box, mirrored = boxes(RESIZED, 12, size)
    for x, image, corners, mirror in zip(draw(RESIZED, images, 12, size), images, box.clamp(0, SIDE).tolist(), mirrored, strict=True):
        channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in image]
        expected = np.stack([np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR, corners)) for channel in channels])
        scaled_up = min(size / (corners[2] - corners[0]), size / (corners[3] - corners[1])) >= 1
        assert scaled_up    # Pillow smooths what shrinks
        np.testing.assert_allclose(x.numpy(), expected[:, :, ::-1] if mirror else expected, atol=0.05)


def test_window_sides_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    random.seed(0)
    width, height = _draw_sides(0.2, (1, 20_000))[:, 0]
    image = torch.empty(1, 2000, 2000)
    reference = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1], [3 / 4, 4 / 3])[2:] for _ in range(5000)]) / 2000
    tall, wide = reference.unbind(1)
    for ours, theirs in ((width * height, wide * tall), (width / height, wide / tall), (width, wide)):
        quantiles = torch.linspace(0.05, 0.95, 19)
        torch.testing.assert_close(ours.quantile(quantiles), theirs.quantile(quantiles), rtol=0, atol=0.02)


@pytest.mark.parametrize('recipe', [SHIFTED, RESIZED], ids=['shifted', 'resized'])
def test_processes_share_what_one_would_draw(recipe):
    images, numbers = random_images(5, 8), torch.tensor([[0, 3, 1, 1, 4, 2, 0, 2]])
    augment = Augmentation(recipe, images)
    windows = []
    for batch, rank in ((numbers, 0), (numbers.view(2, 4), 0), (numbers.view(2, 4), 1)):
        torch.manual_seed(3)
        windows.append(augment(batch, rank, 12))
    assert torch.equal(windows[0], torch.cat(windows[1:]))
    assert windows[0].shape == (8, 3, 12, 12) and windows[0].is_contiguous(memory_format=torch.channels_last)


def test_padding_has_the_mean_colour_for_both_kinds_of_window():
    images = torch.full((1, 3, 8, 8), 250, dtype=torch.uint8)
    for min_area in (1, 0.9999):
        recipe = dataclasses.replace(SHIFTED, mean=(100., 110., 120.), min_area=min_area)
        x = draw(recipe, images, 50, 12 if min_area < 1 else 8)
        assert x.amin((0, 2, 3)).tolist() == [0, 0, 0] and x.amax((0, 2, 3)).tolist() == pytest.approx([150, 140, 130])


def test_images_without_padding_are_not_copied():
    images = random_images(2, 8)
    assert Augmentation(RESIZED, images).images.data_ptr() == images.data_ptr()


def test_windows_are_sharpened_as_pillow_does_each_by_a_factor_of_its_own():
    images = random_images(6, 16)
    augment = Augmentation(dataclasses.replace(RESIZED, sharpness=4.), images)
    batch, x = torch.arange(6).view(2, 3), augment.whole(images, 16)
    shares = []
    for rank in (0, 1):
        torch.manual_seed(0)
        shares.append(augment.sharpen(x[3 * rank:3 * rank + 3], batch, rank))
    factors = []
    for image, found in zip(images, torch.cat(shares), strict=True):
        smooth = torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.SMOOTH))).permute(2, 0, 1)
        inner = (slice(None), slice(1, -1), slice(1, -1))       # Pillow leaves the border as it is
        detail, ours = (values[inner].flatten() for values in (image - smooth.float(), found - smooth))
        factors.append((ours @ detail / (detail @ detail)).item())
        assert (ours - factors[-1] * detail).abs().max() < 4    # Pillow rounds
    assert len({round(factor, 3) for factor in factors}) == 6 and .25 <= min(factors) < 1 < max(factors) <= 4
    assert Augmentation(RESIZED, images).sharpen(x, batch, 0) is x


@pytest.mark.parametrize(('side', 'size'), [(64, 64), (64, 96), (64, 128), (32, 20)])
def test_whole_images_are_what_a_classifier_would_see(side, size):
    """Up to Pillow's rounding to whole levels, twice."""
    recipe = dataclasses.replace(RESIZED, mean=(122.4, 114.2, 101.3), std=(70.5, 68.5, 71.8))
    images = random_images(4, side)
    preprocess = create_transform((3, size, size), is_training=False, interpolation='bilinear', crop_pct=1.,
                                  mean=[value / 255 for value in recipe.mean], std=[value / 255 for value in recipe.std])
    expected = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    x = Augmentation(recipe, images).whole(images, size)
    assert x.is_contiguous(memory_format=torch.channels_last)
    difference = (x - expected).abs() * torch.tensor(recipe.std).view(1, 3, 1, 1)       # levels of 255
    assert difference.max() < (1.01 if size != side else 1e-3)
    assert difference.mean() < 0.4
