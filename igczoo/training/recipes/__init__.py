"""Training recipes: one short file each, whose docstring states what it costs, the command and what to expect."""
from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

__all__ = ['Recipe', 'find_recipe', 'list_recipes', 'teacher_fault']


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what is learnt; nothing that only decides how fast.

    The optimiser is SGD with Nesterov momentum; the learning rate rises linearly, then falls as a cosine to zero.
    """
    model: str                          # architecture
    num_classes: int | None = None      # of the data; None: as many as the architecture has by itself
    stored_size: int | None = None      # pixels of the images kept in memory; None: input_size
    input_size: int                     # pixels that the net is for; the last epochs train at it or at mixed_sizes
    growth: tuple[tuple[float, int], ...] = ()      # (share of the epochs, pixels until then), rising; input_size afterwards
    mean: tuple[float, float, float]    # of R, G, B in 0..255, subtracted
    std: tuple[float, float, float]     # of R, G, B in 0..255, divided by
    epochs: int
    batch_size: int                     # images, over all processes
    lr: float                           # the highest
    warmup_epochs: float
    momentum: float
    weight_decay: float                 # on convolutions and the classifier's weight
    label_smoothing: float
    crop_padding: int                   # pixels of mean colour around the image, of which a random window is taken
    min_area: float = 1.                # smallest share of that area a window takes and is resized from; 1: the stored size, only shifted
    flip: bool                          # mirror half of the images
    sharpness: float = 1.               # windows are blurred and sharpened by a factor from its inverse to this; 1: they are not
    mixed_sizes: tuple[int, ...] = ()   # pixels, of which each batch draws one in epochs of input_size; (): input_size
    teacher_windows: int = 0            # of each image, whose logits a teacher gives; epochs take them in turn; 0: there is no teacher
    teacher_share: float = 0.           # of the loss, the rest is by labels
    temperature: float = 1.             # of the teacher's logits and those it is learnt by

    def sizes_at(self, epoch: int) -> tuple[int, ...]:
        """Pixels, one of which each batch of an epoch, counted from 0, is shown at."""
        size = self.size_at(epoch)
        return self.mixed_sizes if self.mixed_sizes and size == self.input_size else (size,)

    def size_at(self, epoch: int) -> int:
        """Pixels that an epoch, counted from 0, is evaluated at, and trains at where sizes are not mixed."""
        return next((size for share, size in self.growth if epoch < share * self.epochs), self.input_size)


def list_recipes() -> list[str]:
    """The names of the recipes that come with igczoo."""
    return sorted(module.name for module in iter_modules(__path__))


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in list_recipes():
        raise ValueError(f'recipe {name!r} is unknown; there are {", ".join(list_recipes())}')
    return import_module(f'{__name__}.{name}').RECIPE


def teacher_fault(recipe: Recipe, is_given: bool) -> str:
    """What is wrong with giving a teacher, or none, to train by this recipe; '' where nothing is."""
    if bool(recipe.teacher_windows) == is_given:
        return ''
    return 'the recipe has no teacher; leave it out' if is_given else 'the recipe has a teacher; name one (--teacher)'
