"""What every net here is: a stem, stages of blocks, global pooling and a linear classifier, with the methods timm expects of a model."""
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_classifier, get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

__all__ = ['Net', 'Paper', 'Printed', 'checkpoint_filter_fn', 'last_of_each_reduction']

CIFAR10_MEAN, CIFAR10_STD = (0.491400, 0.482157, 0.446529), (0.247031, 0.243486, 0.261588)      # train_model.py, divided by 255


class Paper(NamedTuple):
    """Where a family was published."""
    title: str
    authors: str    # 'Last, First and ...', as BibTeX has it
    venue: str
    year: int
    arxiv: str

    def timm_cfg(self, imagenet: bool, reduction: int, input_size: tuple[int, int, int] | None, **kwargs) -> dict[str, Any]:
        """What timm must know of a net for ImageNet or for CIFAR-10; the input size decides the size of the last map."""
        input_size = input_size or ((3, 224, 224) if imagenet else (3, 32, 32))
        return dict(
            num_classes=1000 if imagenet else 10, input_size=input_size, pool_size=tuple(-(-side // reduction) for side in input_size[1:]),
            crop_pct=0.875 if imagenet else 1.0, interpolation='bilinear', mean=IMAGENET_DEFAULT_MEAN if imagenet else CIFAR10_MEAN,
            std=IMAGENET_DEFAULT_STD if imagenet else CIFAR10_STD, first_conv='stem.conv', classifier='head',
            paper_ids=f'arXiv:{self.arxiv}', paper_name=self.title) | kwargs


class Printed(NamedTuple):
    """What others print of a variant that has no weights."""
    top1: float     # per cent, of ImageNet-1k's validation images
    by: str


class Steps(NamedTuple):
    """How a stage strides, or dilates in place of that."""
    stride: int             # of its first convolution
    first_dilation: int     # likewise
    dilation: int           # of all others
    reduction: int          # up to its output


class Net(nn.Module):
    """The methods; a family makes the parts, in the order they run in, for timm's feature extraction goes by it.

    Attributes:
        stem, pool, stages, final: what `forward_features` runs; ``pool`` and ``final`` are Identity where there is none.
        feature_info: of maps that a backbone may give: channels, reduction, the module whose output it is, and its ``stage``: 0 the stem,
            s + 1 stage s. Of nets whose stages do not all reduce, the last map of each reduction, as timm has them.
        num_features: channels of the last map.
    """

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

    def _steps(self, output_stride: int, reduction: int, strides: Iterable[int]) -> list[Steps]:
        """What becomes of the stages' strides: those by which the reduction, at first the stem's, would exceed output_stride dilate.

        Raises:
            ValueError: an impossible output_stride.
        """
        if output_stride < reduction or output_stride & (output_stride - 1):
            raise ValueError(f'{type(self).__name__}: output_stride is {output_stride}; it must be a power of two and at least '
                             f'{reduction}, the stem\'s')
        steps, dilation = [], 1
        for stride in strides:
            first_dilation = dilation
            if reduction * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reduction *= stride
            steps.append(Steps(stride, first_dilation, dilation, reduction))
        return steps

    @torch.jit.ignore
    def _create_head(self, pool_type: str, **dd) -> None:
        """Pooling, dropout and classifier for num_features and num_classes."""
        self.global_pool, self.head_drop, self.head = create_classifier(
            self.num_features, self.num_classes, pool_type=pool_type, drop_rate=self.drop_rate, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """The first authors' initialisation: convolutions N(0, sqrt(2 / fan_in)) with fan_in = in_channels / groups * kernel area."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='relu')
        self._init_head()

    @torch.jit.ignore
    def _init_head(self) -> None:
        """The authors' classifier: weight U(-1/sqrt(fan_in), 1/sqrt(fan_in)), bias 0."""
        if isinstance(self.head, nn.Linear):
            bound = self.head.in_features ** -0.5
            nn.init.uniform_(self.head.weight, -bound, bound)
            nn.init.zeros_(self.head.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameter names into layer groups: one a stage if ``coarse``, else one a block."""
        return dict(stem=r'^stem', blocks=r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)')

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier: nn.Linear, or nn.Identity where num_classes is 0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of ``num_classes`` outputs (0: none), and the pooling where ``global_pool`` is given."""
        self.num_classes = num_classes
        self._create_head(self.global_pool.pool_type if global_pool is None else global_pool, **get_device_dtype(self))
        self._init_head()
        for module in (self.global_pool, self.head_drop, self.head):
            module.train(self.training)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of chosen stages, and the last one.

        Args:
            x: (N, in_chans, H, W).
            indices: of `feature_info`; an int takes the last that many, None takes all.
            norm: accepted for timm's sake; there is no norm after the last stage.
            stop_early: run no stage beyond the last chosen one.
            output_fmt: 'NCHW', the only one.
            intermediates_only: leave out the final output.

        Raises:
            ValueError: another output_fmt.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"forward_intermediates: output_fmt is {output_fmt!r}; it must be 'NCHW'")
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        taken, last = {self.feature_info[index]['stage'] for index in take_indices}, self.feature_info[max_index]['stage']
        intermediates = []
        x = self.stem(x)
        if 0 in taken:
            intermediates.append(x)
        x = self.pool(x)
        for i, stage in enumerate(self.stages[:last] if stop_early else self.stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in taken:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return (x if stop_early and last < len(self.stages) else self.final(x)), intermediates

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """Drop what `forward_intermediates` of these ``indices`` does not need; returns the indices as a list from 0.

        ``prune_norm`` is accepted for timm's sake. Where a stage goes, the classifier goes with it.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        last = self.feature_info[max_index]['stage']
        cut = last < len(self.stages)
        self.stages = self.stages[:last]
        if last == 0:
            self.pool = nn.Identity()
        if cut:
            self.final = nn.Identity()
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or cut:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / reduction, W / reduction)."""
        x = self.forward_stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.final(checkpoint_seq(self.stages, x, flatten=True))
        return self.final(self.stages(x))

    def forward_stem(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, channels, H', W'), what the first stage takes."""
        return self.pool(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop out and classify; with ``pre_logits`` without the classifier."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def last_of_each_reduction(strides: Sequence[int]) -> list[int]:
    """Of the stem, 0, and the stages, from 1, with these strides, those after which the next one reduces, or nothing comes."""
    return [stage for stage, next_stride in enumerate((*strides[1:], 2)) if next_stride > 1]


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Refuse a checkpoint that is not this network's, also where timm does not look: with other num_classes, and for features_only.

    Raises:
        RuntimeError: a tensor other than the classifier's is missing, unknown or of another shape; the message lists both sides.
    """
    wanted, adaptable = model.state_dict(), ('head.weight', 'head.bias', 'stem.conv.weight')
    missing = [key for key in wanted if key not in state_dict and key not in adaptable[:2] and not key.endswith('.num_batches_tracked')]
    unknown = [key for key in state_dict if key not in wanted and key not in adaptable[:2]]
    misshapen = [f'{key} {tuple(state_dict[key].shape)} for {tuple(value.shape)}' for key, value in wanted.items()
                 if key in state_dict and key not in adaptable and state_dict[key].shape != value.shape]
    if missing or unknown or misshapen:
        raise RuntimeError(f'the checkpoint is not of this {type(model).__name__}: it lacks {missing}, has unknown {unknown} and other '
                           f'shapes in {misshapen}; load one of the same architecture')
    return state_dict
