"""Where the net looked: Grad-CAM over a photograph, by captum."""
from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor

from ..files import replacing
from .photograph import ImageError, open_image
from .pictures import MOST_PIXELS, thumbnail
from .prediction import Prediction

if TYPE_CHECKING:
    from .classifier import Classifier

__all__ = ['Explanation', 'check_picture', 'explain']

FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP'}


@dataclass(frozen=True)
class Explanation:
    """What made a net call a photograph something."""
    prediction: Prediction
    heat: Tensor            # float32 (H, W) of the photograph, 0..1; 0 also where the net does not look at all
    image: Image.Image      # the photograph, upright, RGB

    def picture(self, opacity: float = .55) -> Image.Image:
        """The photograph in grey with the heat over it, from blue to red; its longer side has 1024 pixels at most."""
        image = thumbnail(self.image, MOST_PIXELS)
        heat = F.interpolate(self.heat[None, None], (image.height, image.width), mode='bilinear')[0, 0]
        colours = Image.fromarray(_colours(heat))
        mask = Image.fromarray((255 * opacity * heat.clamp(0, 1).sqrt()).byte().numpy())
        return Image.composite(colours, image.convert('L').convert('RGB'), mask)

    def save(self, path: str | os.PathLike) -> None:
        """Write the picture; ValueError or OSError where `check_picture` says so."""
        kind = check_picture(path)
        with replacing(path) as file:
            self.picture().save(file, kind)


def check_picture(path: str | os.PathLike) -> str:
    """The format of a picture that can be written there; ValueError for another suffix or a folder that is not there."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f'{path}: ends in {path.suffix!r}; it must be {", ".join(FORMATS)}')
    if not path.parent.is_dir():
        raise ValueError(f'{path.parent}: there is no such folder; make it first')
    return FORMATS[path.suffix.lower()]


def explain(classifier: Classifier, image: Any, label: str | int | None = None) -> Explanation:
    """Where in an image the net found what speaks for a label.

    Grad-CAM (Selvaraju et al., 2017): the last feature map, each channel weighted by the mean gradient of the label's logit, where the sum
    is positive. It is as coarse as that map. A deployed classifier is explained by the net it was made of. Every pixel of the photograph is
    decoded, which the picture shows.

    Args:
        classifier: of a net whose last map is what `forward_features` gives.
        image: what `photograph.open_image` takes.
        label: a name or number of a class; None: the likeliest.

    Raises:
        ImageError: the image cannot be opened.
        ValueError: there is no such label, captum is not installed, the classifier's preprocessing is not a resize and a centre crop, or
            its net has no last map (N, C, H, W), as transformers have none.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise ValueError("an explanation needs captum; install it by pip install 'igczoo[explain]'") from None
    model = copy.deepcopy(classifier.model).eval()      # it gets hooks, which other threads must not run into
    photograph = open_image(image)
    x = classifier.preprocess(photograph)[None].to(next(model.parameters()))
    layer, channels = _last_map(model)
    maps: list[Tensor] = []
    with torch.no_grad(), layer.register_forward_hook(lambda *call: maps.append(call[-1])):
        logits = model(x).float().cpu()[0]
    if not (isinstance(maps[-1], Tensor) and maps[-1].ndim == 4 and maps[-1].shape[1] == channels):
        found = tuple(maps[-1].shape) if isinstance(maps[-1], Tensor) else type(maps[-1]).__name__
        raise ValueError(f'explain: the last map of {type(model).__name__} is {found}, where (1, {channels}, H, W) is needed; name a '
                         f'convolutional net')
    if not logits.isfinite().all():
        raise ImageError('the model gives no finite score for the image')
    index = _index(classifier.labels, label, logits)
    with torch.enable_grad():
        heat = LayerGradCam(model, layer).attribute(x.requires_grad_(), target=index, relu_attributions=True)
    heat = heat.detach().float().cpu()[0].mean(0)                   # (h, w) of the last map
    heat = heat / heat.max().clamp(min=1e-12)
    return Explanation(Prediction(classifier.labels[index], logits.softmax(0)[index].item(), index),
                       _over_photograph(heat, photograph.size, resolve_model_data_config(model)), photograph)


def _index(labels: tuple[str, ...], label: str | int | None, logits: Tensor) -> int:
    if label is None:
        return int(logits.argmax())
    if isinstance(label, int) or (label not in labels and label.isdecimal()):
        if not 0 <= int(label) < len(labels):
            raise ValueError(f'label {label}: there are classes 0 to {len(labels) - 1}')
        return int(label)
    if label not in labels:
        raise ValueError(f'{label!r} is none of the {len(labels)} labels, such as {", ".join(labels[:3])}')
    return labels.index(label)


def _last_map(model: torch.nn.Module) -> tuple[torch.nn.Module, int]:
    """The module whose output is the last feature map, and its channels."""
    if getattr(model, 'feature_info', None):
        return model.get_submodule(model.feature_info[-1]['module']), model.feature_info[-1]['num_chs']
    return list(model.children())[-3], model.num_features


def _over_photograph(heat: Tensor, size: tuple[int, int], cfg: dict[str, Any]) -> Tensor:
    """The map of what the net was shown, laid over the part of the photograph that this was."""
    width, height = size
    if cfg['crop_mode'] == 'squash':
        across, down = width * cfg['crop_pct'], height * cfg['crop_pct']
    elif cfg['crop_mode'] == 'center':
        across = down = min(width, height) * cfg['crop_pct']
    else:
        raise ValueError(f'explain: the checkpoint crops by {cfg["crop_mode"]!r}; it must be center or squash')
    across, down = max(1, round(across)), max(1, round(down))
    left, top = (width - across) // 2, (height - down) // 2
    whole = torch.zeros(height, width)
    shown = F.interpolate(heat[None, None], (down, across), mode='bicubic', align_corners=False)[0, 0].clamp(0, 1)
    whole[top:top + down, left:left + across] = shown
    return whole


def _colours(heat: Tensor) -> np.ndarray:
    """uint8 (H, W, 3): blue where it is 0, over green and yellow to red where it is 1."""
    stops = np.array([[0, 0, 160], [0, 150, 255], [80, 220, 100], [255, 220, 0], [220, 0, 0]], np.float32)
    place = heat.clamp(0, 1).numpy() * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    share = (place - low)[..., None]
    return ((1 - share) * stops[low] + share * stops[low + 1]).astype(np.uint8)
