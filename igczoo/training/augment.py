"""Augmentation of images that lie in memory: random windows and mirror images, drawn a batch at a time on the images' device."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipes import Recipe

__all__ = ['Augmentation', 'Windows']

MAX_ASPECT = 4 / 3      # of a resized window: width by height from its inverse to this, as torchvision's RandomResizedCrop
DRAWS = 10              # of a resized window until one fits into the image, likewise
SMOOTH = torch.tensor([[1., 1, 1], [1, 5, 1], [1, 1, 1]]) / 13      # Pillow's ImageFilter.SMOOTH


class Windows(NamedTuple):
    """Which windows of some images are taken, (*shape) of them."""
    sides: Tensor       # (2, *shape): width and height, as shares of the image's
    places: Tensor      # (2, *shape): their middles across and down, in an image from -1 to 1; of shifted ones, pixels down and right
    mirrored: Tensor    # bool (*shape)

    def at(self, index: Tensor | int) -> Windows:
        """Some of them, by the first axis of their shape."""
        return Windows(self.sides[:, index], self.places[:, index], self.mirrored[index])


class Augmentation:
    """The network's inputs, made of stored images: augmented for training, or as they are for evaluation.

    Every process of a run draws the same numbers for the whole batch and uses its share of them.

    Args:
        recipe: says which windows are drawn: shifted ones of the stored size, or with a ``min_area`` below 1 resized ones.
        images: uint8 (n, 3, side, side), the training images.
    """

    def __init__(self, recipe: Recipe, images: Tensor):
        self.mean, self.std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (recipe.mean, recipe.std))
        self.flip, self.min_area, self.sharpness = recipe.flip, recipe.min_area, recipe.sharpness
        self.shifts, side = 2 * recipe.crop_padding + 1, images.shape[-1]
        self.images = self._pad(images, recipe.crop_padding)
        self.windows = self.images.unfold(2, side, 1).unfold(3, side, 1)    # (n, 3, shifts, shifts, side, side), a view

    def __call__(self, batch: Tensor, rank: int, size: int) -> Tensor:
        """Image numbers (processes, n) -> this process's normalised windows, float32 (n, 3, size, size), channels_last."""
        return self.cut(batch[rank], self.draw(batch.shape).at(rank), size)

    def draw(self, shape: Sequence[int]) -> Windows:
        """Random windows, whose images are as many."""
        if self.min_area < 1:
            sides = _draw_sides(self.min_area, shape)
            places = torch.empty(2, *shape).uniform_(-1, 1) * (1 - sides)
        else:
            sides, places = torch.ones(2, *shape), torch.stack([torch.randint(self.shifts, shape) for _ in range(2)])
        return Windows(sides, places, self.mirror(shape))

    def mirror(self, shape: Sequence[int]) -> Tensor:
        """Which windows are mirrored, bool (*shape)."""
        return (torch.randint(2, shape) * self.flip).bool()

    def cut(self, numbers: Tensor, windows: Windows, size: int) -> Tensor:
        """The windows (n,) of the images of these numbers (n,), as `__call__` gives them."""
        return (self._resized_windows if self.min_area < 1 else self._shifted_windows)(numbers.to(self.mean.device), windows, size)

    def sharpen(self, x: Tensor, batch: Tensor, rank: int) -> Tensor:
        """Windows (n, 3, size, size) blurred and sharpened, each by another factor: Pillow's ImageEnhance.Sharpness, but
        at the border too, and values are not cut off."""
        if self.sharpness == 1:
            return x
        factors = torch.empty(batch.shape).uniform_(-1, 1).mul_(math.log(self.sharpness)).exp_()[rank].to(x.device)
        smooth = F.conv2d(F.pad(x, (1, 1, 1, 1), mode='replicate'), SMOOTH.to(x).expand(3, 1, 3, 3), groups=3)
        return torch.lerp(smooth, x, factors.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)

    def whole(self, images: Tensor, size: int) -> Tensor:
        """uint8 (n, 3, H, W) -> the whole images normalised, float32 (n, 3, size, size), channels_last.

        They are resized as Pillow resizes: bilinear between pixel centres (``align_corners=False``), antialiased where they shrink.
        """
        return _resize(self._normalise(images), size)

    def _shifted_windows(self, numbers: Tensor, windows: Windows, size: int) -> Tensor:
        down, right, mirrored = (values.to(self.mean.device) for values in (*windows.places, windows.mirrored))
        x = self._normalise(self.windows[numbers, :, down, right])
        return _resize(torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x) if self.flip else x, size)

    def _resized_windows(self, numbers: Tensor, windows: Windows, size: int) -> Tensor:
        width, height = windows.sides
        sides = torch.stack([torch.where(windows.mirrored, -width, width), height])         # a negative width mirrors
        pixels = (2 * torch.arange(size) + 1) / size - 1
        across, down = (windows.places[..., None] + sides[..., None] * pixels).to(self.mean.device)             # (n, size) each
        grid = torch.stack([across[:, None, :].expand(-1, size, -1), down[:, :, None].expand(-1, -1, size)], 3)     # (n, size, size, 2)
        x = F.grid_sample(self._normalise(self.images[numbers]), grid, mode='bilinear', padding_mode='border', align_corners=False)
        return x.contiguous(memory_format=torch.channels_last)

    def _normalise(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) -> float32, channels_last."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _pad(self, images: Tensor, pad: int) -> Tensor:
        """A border of mean colour; without one the images themselves, of which memory may not hold two."""
        if not pad:
            return images
        n, _, h, w = images.shape
        padded = self.mean.round().to(torch.uint8).repeat(n, 1, h + 2 * pad, w + 2 * pad)
        padded[:, :, pad:pad + h, pad:pad + w] = images
        return padded


def _draw_sides(min_area: float, shape: tuple[int, ...]) -> Tensor:
    """Width and height (2, *shape) of random windows as shares of a square image's side.

    The area is uniform in min_area..1, the logarithm of the aspect ratio is uniform, and what does not fit is drawn again, as in
    torchvision's RandomResizedCrop.
    """
    area = torch.empty(DRAWS, *shape).uniform_(min_area, 1)
    aspect = torch.empty(DRAWS, *shape).uniform_(-math.log(MAX_ASPECT), math.log(MAX_ASPECT)).exp()
    sides = torch.stack([area * aspect, area / aspect]).sqrt()                                          # (2, draws, *shape)
    first = (sides.amax(0) <= 1).int().argmax(0)                                                        # that fits
    return sides.gather(1, first.expand(2, 1, *shape)).squeeze(1).clamp(max=1)


def _resize(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False, antialias=True)
