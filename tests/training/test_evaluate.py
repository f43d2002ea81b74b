"""Accuracy is counted right, and classes are matched by what they are called."""
import csv
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn
from torchvision.transforms import Compose, Resize

from igczoo.inference.classifier import Classifier
from igczoo.inference.photograph import open_image
from igczoo.training.evaluate import _calibration_error, count_correct, evaluate, evaluate_set, wilson_interval
from igczoo.training.images import open_split
from igczoo.training.report import write_report

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


def test_evaluate_opens_photographs_as_the_classifier_does(tmp_path, monkeypatch):
    (tmp_path / 'val' / 'red').mkdir(parents=True)
    Image.new('RGB', (640, 480), COLOURS['red']).save(tmp_path / 'val' / 'red' / '0.jpg')
    sizes = []
    preprocess = Compose([Resize(8), lambda image: to_tensor(image)])
    monkeypatch.setattr(Resize, 'forward', lambda self, image: sizes.append(image.size) or image)
    for exact, size in ((False, (10, 8)), (True, (640, 480))):
        classifier = Classifier(MeanColour(), preprocess, ['red', 'green', 'blue'], exact=exact)
        for workers in (0, 2):
            assert evaluate(classifier, tmp_path, workers=workers).accuracy.top1 == 100.
        assert sizes == [size] * 2
        sizes.clear()


def test_classes_confusion_and_guesses(data):
    classifier = Classifier(MeanColour(), to_tensor, ['red', 'green', 'blue'])
    result = evaluate(classifier, data)
    scores = {one.label: (one.n, one.recall, one.precision) for one in result.classes}
    assert scores == {'red': (3, 66.67, 100.), 'green': (3, 100., 60.), 'blue': (3, 66.67, 100.)}
    assert result.confusion == {'red': {'red': 2, 'green': 1}, 'green': {'green': 3}, 'blue': {'blue': 2, 'green': 1}}
    assert len(result.guesses) == 9
    wrong = [guess for guess in result.guesses if guess.predictions[0].label != guess.label]
    assert sorted(guess.image.removeprefix(f'{data}/val/') for guess in wrong) == ['blue/0.png', 'red/0.png']
    logits = torch.tensor([[0., 200 / 255, 0.], [1., 0., 0.]])
    sure, surer = logits.softmax(1).amax(1).tolist()     # of the green images of 200 and of the pure ones: (0, 200, 0) is 3 of the 9
    green = [guess.predictions[0].score for guess in result.guesses if guess.predictions[0].label == 'green']
    assert min(green) == pytest.approx(sure) and max(guess.predictions[0].score for guess in result.guesses) == pytest.approx(surer)


def test_calibration_error_by_hand():
    """Three bins: scores .1 (all wrong), .5 (half right), .95 (all right)."""
    scores = torch.tensor([.1, .1, .5, .5, .95, .95, .95, .95])
    right = torch.tensor([False, False, True, False, True, True, True, True])
    assert _calibration_error(scores, right) == pytest.approx((2 * .1 + 0 + 4 * .05) / 8)


def test_equal_logits_are_no_success(data):
    class Undecided(MeanColour):
        def forward(self, x):
            return 0 * super().forward(x)

    result = evaluate(Classifier(Undecided(), to_tensor, ['red', 'green', 'blue']), data)
    assert result.accuracy.top1 == 33.33 and result.accuracy.top5 == 100.


def test_classes_of_one_name_are_kept_apart(data, tmp_path):
    """red, green and blue, of which the last two are called crane, as are a bird and a machine in ImageNet."""
    classifier, dataset = Classifier(MeanColour(), to_tensor, ['red', 'crane', 'crane']), open_split(data, train=False)
    dataset.classes = list(classifier.labels)
    dataset.targets = [{0: 2, 1: 1, 2: 0}[target] for target in dataset.targets]        # of blue, green and red
    result = evaluate_set(classifier, dataset, 'x')
    assert result.confusion == {
        'red': {'red': 2, 'crane (1)': 1}, 'crane (1)': {'crane (1)': 3}, 'crane (2)': {'crane (2)': 2, 'crane (1)': 1}}
    assert [one.label for one in result.classes] == ['red', 'crane (1)', 'crane (2)']
    assert sum(guess.is_right for guess in result.guesses) == 7
    write_report(tmp_path / 'report', result, dataset, 'from $5 to $10')
    with open(tmp_path / 'report' / 'predictions.csv', newline='') as file:
        assert sum(row['correct'] == '1' for row in csv.DictReader(file)) == 7


def test_the_report_holds_everything(data, tmp_path):
    classifier = Classifier(MeanColour(), to_tensor, ['red', 'green', 'blue'])
    dataset = open_split(data, train=False)
    page = write_report(tmp_path / 'report', evaluate(classifier, data), dataset, 'colours & <more>')
    text = page.read_text()
    assert 'colours &amp; &lt;more&gt;' in text and '77.78 %' in text and text.count('data:image/png;base64,') == 3
    assert 'src="http' not in text and 'href=' not in text
    assert sorted(path.name for path in page.parent.iterdir()) == [
        'calibration.png', 'confusion.png', 'index.html', 'mistakes.png', 'predictions.csv']
    with open(page.parent / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and sum(row['correct'] == '1' for row in rows) == 7
    assert {row['prediction'] for row in rows if row['correct'] == '0'} == {'green'}
    with Image.open(page.parent / 'mistakes.png') as sheet:
        assert sheet.width > sheet.height / 2


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


def write(folder, names, size=4):
    for name in names:
        (folder / 'val' / name).mkdir(parents=True)
        Image.new('RGB', (size, size), COLOURS['red']).save(folder / 'val' / name / '0.png')


class Always(MeanColour):
    """Says one class of so many."""

    def __init__(self, index, classes):
        super().__init__()
        self.index, self.num_classes = index, classes

    def forward(self, x):
        return nn.functional.one_hot(torch.full((len(x),), self.index), self.num_classes).float() * self.one


def test_imagenet_by_wordnet_ids(tmp_path):
    labels = ImageNetInfo().label_descriptions()
    write(tmp_path, ['n01440764', 'n02012849'])     # a fish, a bird: classes 0 and 134
    for index in (0, 134):
        assert evaluate(Classifier(Always(index, 1000), to_tensor, labels), tmp_path).accuracy.top1 == 50.


def test_equal_names_are_told_apart_by_position(tmp_path):
    labels = ['crane', 'crane']
    classifier = Classifier(Always(1, 2), to_tensor, labels)
    data = tmp_path / 'val-0.parquet'
    file = io.BytesIO()
    Image.new('RGB', (4, 4)).save(file, 'PNG')
    kind = pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])
    row = pyarrow.array([{'bytes': file.getvalue(), 'path': None}] * 4, kind)
    for names, labels in ((['crane', 'crane'], [0, 1, 1, 1]), (['crane'], [0, 0, 0, 0])):
        info = {'info': {'features': {'label': {'names': names}}}}
        table = pyarrow.table({'image': row, 'label': labels}).replace_schema_metadata({'huggingface': json.dumps(info)})
        pyarrow.parquet.write_table(table, data)
        if len(names) == 2:
            assert evaluate(classifier, tmp_path).accuracy.top1 == 75.
        else:
            with pytest.raises(ValueError, match="its class 'crane' is the name of 2 of the classifier's classes"):
                evaluate(classifier, tmp_path)


def test_logits_that_are_no_numbers(data):
    classifier = Classifier(MeanColour(), lambda image: to_tensor(image) * float('nan'), ['red', 'green', 'blue'])
    with pytest.raises(RuntimeError, match='the model gives nan for a logit, which is no score'):
        evaluate(classifier, data)


@pytest.mark.parametrize('mode', ['I;16', 'RGBA', 'LA', 'P', 'CMYK'])
def test_photographs_are_opened_as_the_classifier_opens_them(tmp_path, mode):
    (tmp_path / 'val' / 'a').mkdir(parents=True)
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == 'I;16' else Image.fromarray(grey).convert(
        'RGB').convert('LA' if mode == 'LA' else mode)
    path = tmp_path / 'val' / 'a' / f'0.{"tif" if mode == "CMYK" else "png"}'
    image.save(path)
    found, _ = open_split(tmp_path, train=False)[0]
    assert np.array_equal(np.asarray(found), np.asarray(open_image(path)))
    if mode == 'I;16':
        assert np.array_equal(np.asarray(found)[..., 0], grey)
