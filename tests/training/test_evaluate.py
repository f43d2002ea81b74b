"""Accuracy is counted right, and classes are matched by what they are called."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from igczoo.inference.classifier import Classifier
from igczoo.training.evaluate import count_correct, evaluate, wilson_interval

COLOURS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}


class MeanColour(nn.Module):
    """Logits are the means of the channels: it calls an image by its strongest one."""
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {}

    def forward(self, x):
        return x.mean((2, 3)) * self.one


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture
def data(tmp_path):
    """Three images a class, of which one shows another class's colour."""
    for name, colour in COLOURS.items():
        folder = tmp_path / 'val' / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new('RGB', (4, 4), (0, 200, 0) if i == 0 else colour).save(folder / f'{i}.png')
    return tmp_path


def test_evaluate_counts_every_image_once(data):
    classifier = Classifier(MeanColour(), to_tensor, ['red', 'green', 'blue'])     # ImageFolder sorts: blue, green, red
    for batch_size in (1, 4, 100):
        result = evaluate(classifier, data, batch_size=batch_size)
        assert (result.accuracy.n, result.accuracy.top1, result.accuracy.top5) == (9, 77.78, 100.)
        assert result.accuracy.by == 'igczoo' and result.accuracy.dataset == data.name
        assert result.images_per_second > 0


def test_evaluate_refuses_other_classes(data):
    classifier = Classifier(MeanColour(), to_tensor, ['red', 'green', 'yellow'])
    with pytest.raises(ValueError, match=r"1 of its 3 classes, such as 'blue', are none of the classifier's 3 labels, such as 'red'"):
        evaluate(classifier, data)


def test_top5_is_among_the_first_five():
    logits = torch.arange(10.).repeat(4, 1)     # class 9 first, then 8, 7, 6, 5
    assert count_correct(nn.Identity(), [(logits, torch.tensor([9, 5, 4, 8]))]) == (1, 3)


def test_wilson_interval_against_the_quadratic_it_solves():
    """Its bounds are where (p - k/n)^2 = z^2 p (1 - p) / n."""
    for successes, n in ((0, 5), (3, 10), (8812, 10_000), (10, 10)):
        for p in wilson_interval(successes, n):
            assert (p - successes / n) ** 2 == pytest.approx(1.959964 ** 2 * p * (1 - p) / n, abs=1e-12)
