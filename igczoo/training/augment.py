"""Augmentation of images that lie in memory: random windows and mirror images, drawn a batch at a time on the images' device."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipes import Recipe

__all__ = ['Augmentation']

MAX_ASPECT = 4 / 3      # of a resized window: width by height from its inverse to this, as torchvision's RandomResizedCrop
DRAWS = 10              # of a resized window until one fits into the image, likewise


class Augmentation:
    """The network's inputs, made of stored images: augmented for training, or as they are for evaluation.

    Every process of a run draws the same numbers for the whole batch and uses its share of them.

    Args:
        recipe: says which windows are drawn: shifted ones of the stored size, or with a ``min_area`` below 1 resized ones.
        images: uint8 (n, 3, side, side), the training images.
    """

    def __init__(self, recipe: Recipe, images: Tensor):
        self.mean, self.std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (recipe.mean, recipe.std))
        self.flip, self.min_area = recipe.flip, recipe.min_area
        self.shifts, side = 2 * recipe.crop_padding + 1, images.shape[-1]
        self.images = self._pad(images, recipe.crop_padding)
        self.windows = self.images.unfold(2, side, 1).unfold(3, side, 1)    # (n, 3, shifts, shifts, side, side), a view

    def __call__(self, batch: Tensor, rank: int, size: int) -> Tensor:
        """Image numbers (processes, n) -> this process's normalised windows, float32 (n, 3, size, size), channels_last."""
        return self._resized_windows(batch, rank, size) if self.min_area < 1 else self._shifted_windows(batch, rank, size)

    def whole(self, images: Tensor, size: int) -> Tensor:
        """uint8 (n, 3, H, W) -> the whole images normalised, float32 (n, 3, size, size), channels_last.

        They are resized as Pillow resizes: bilinear between pixel centres (``align_corners=False``), antialiased where they shrink.
        """
        return _resize(self._normalise(images), size)

    def _shifted_windows(self, batch: Tensor, rank: int, size: int) -> Tensor:
        down, right, mirrored = (torch.randint(high, batch.shape)[rank].to(self.mean.device) for high in (self.shifts, self.shifts, 2))
        x = self._normalise(self.windows[batch[rank].to(self.mean.device), :, down, right])
        return _resize(torch.where(mirrored.bool().view(-1, 1, 1, 1), x.flip(3), x) if self.flip else x, size)

    def _resized_windows(self, batch: Tensor, rank: int, size: int) -> Tensor:
        sides = _draw_sides(self.min_area, batch.shape)                                     # (2, processes, n), of an image from -1 to 1
        centres = torch.empty(2, *batch.shape).uniform_(-1, 1) * (1 - sides)
        sides[0] *= 1 - 2 * torch.randint(2, batch.shape) * self.flip                       # a negative width mirrors
        pixels = (2 * torch.arange(size) + 1) / size - 1
        across, down = (centres[:, rank, :, None] + sides[:, rank, :, None] * pixels).to(self.mean.device)      # (n, size) each
        grid = torch.stack([across[:, None, :].expand(-1, size, -1), down[:, :, None].expand(-1, -1, size)], 3)     # (n, size, size, 2)
        images = self._normalise(self.images[batch[rank].to(self.mean.device)])
        x = F.grid_sample(images, grid, mode='bilinear', padding_mode='border', align_corners=False)
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
