"""Data sets: each layout gives the same images and labels; what is no data set is named."""
import io
import json
import os
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from igczoo.inference.photograph import Fit, ImageError
from igczoo.training.images import ListedImages, ParquetImages, Part, open_split, read_squares, stack_images

CLASSES = ['cat', 'dog']


@pytest.fixture
def pictures() -> list[tuple[Image.Image, int]]:
    rng = np.random.default_rng(0)
    return [(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)), i % 2) for i in range(6)]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def write_parquet(path, pictures, metadata=True):
    images = [{'bytes': png(image), 'path': None} for image, _ in pictures]
    table = pyarrow.table({
        'image': pyarrow.array(images, pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])),
        'label': pyarrow.array([label for _, label in pictures], pyarrow.int64())})
    if metadata:
        info = {'info': {'features': {'label': {'names': CLASSES, '_type': 'ClassLabel'}}}}
        table = table.replace_schema_metadata({'huggingface': json.dumps(info)})
    pyarrow.parquet.write_table(table, path)


def expected(pictures) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in pictures])


def test_parquet_in_several_files(tmp_path, pictures):
    for i in range(2):
        write_parquet(tmp_path / f'train-0000{i}-of-00002.parquet', pictures[3 * i:3 * i + 3])
    write_parquet(tmp_path / 'val-00000-of-00001.parquet', pictures[:2])
    train, val = open_split(tmp_path, train=True), open_split(str(tmp_path), train=False)
    images, labels = stack_images(train, 8)
    assert torch.equal(images, expected(pictures)) and images.dtype == torch.uint8
    assert labels.tolist() == train.targets == [label for _, label in pictures]
    assert train.classes == CLASSES
    assert len(val) == 2
    assert open_split(tmp_path / 'val-00000-of-00001.parquet', train=False)[1][1] == 1


def test_folders_of_classes(tmp_path, pictures):
    for i, (image, label) in enumerate(pictures):
        folder = tmp_path / 'test' / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f'{i}.png')
    dataset = open_split(tmp_path, train=False, transform=np.asarray)
    assert dataset.classes == CLASSES
    order = sorted(range(6), key=lambda i: pictures[i][1])
    for found, i in zip(dataset, order, strict=True):
        assert np.array_equal(found[0], np.asarray(pictures[i][0])) and found[1] == pictures[i][1]


def test_torchvision_cifar10(tmp_path, monkeypatch):
    """The official files' layout, with four images a batch; their digests are torchvision's business."""
    from torchvision.datasets import CIFAR10
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    for name in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']:
        (folder / name).write_bytes(pickle.dumps({'data': data, 'labels': [3, 1, 4, 1]}))
    (folder / 'batches.meta').write_bytes(pickle.dumps({'label_names': [f'class{i}' for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda *args: True)
    images, labels = stack_images(open_split(tmp_path, train=False), 32)
    assert torch.equal(images, torch.from_numpy(data.reshape(4, 3, 32, 32)))
    assert labels.tolist() == [3, 1, 4, 1]
    assert len(open_split(tmp_path, train=True)) == 20


def test_other_sizes_are_resized_and_cropped(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200     # the middle third, which the crop keeps
    write_parquet(tmp_path / 'test-0.parquet', [(Image.fromarray(wide), 0), (Image.fromarray(wide).convert('L'), 1)])
    images, _ = stack_images(open_split(tmp_path, train=False), 4)
    assert images.shape == (2, 3, 4, 4)
    assert (images[:, :, :, 1:3] > 190).all()


def test_every_set_opens_large_photographs_for_a_size(tmp_path):
    image, file = Image.effect_noise((800, 640), 60).convert('RGB'), io.BytesIO()
    image.save(file, 'JPEG')
    (tmp_path / 'val' / 'a').mkdir(parents=True)
    path = tmp_path / 'val' / 'a' / '0.jpg'
    path.write_bytes(file.getvalue())
    kind = pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])
    column = pyarrow.array([{'bytes': file.getvalue(), 'path': None}], kind)
    info = {'info': {'features': {'label': {'names': ['a']}}}}
    pyarrow.parquet.write_table(
        pyarrow.table({'image': column, 'label': [0]}).replace_schema_metadata({'huggingface': json.dumps(info)}), tmp_path / 'x.parquet')
    sets = [open_split(tmp_path, train=False), ParquetImages([tmp_path / 'x.parquet']), ListedImages([path], [0], ['a'])]
    for dataset in (*sets, *(Part(dataset, [0]) for dataset in sets)):
        assert [dataset.photograph(0, fit).size for fit in (None, Fit(40), Fit(600))] == [(800, 640), (50, 40), (800, 640)]
        assert dataset[0][0].size == (800, 640)
    squares = read_squares(sets[0], 80)
    assert squares.images.shape == (1, 3, 80, 80)
    assert squares.sums == read_squares(sets[1], 8, fit=Fit(80)).sums != read_squares(sets[1], 8).sums


def test_what_is_no_data_set_is_named(tmp_path, pictures):
    with pytest.raises(ValueError, match=r'found no training images; looked for train-\*\.parquet, train/ and cifar-10-batches-py/'):
        open_split(tmp_path, train=True)
    with pytest.raises(ValueError, match=r'nonesuch: found no evaluation images'):
        open_split(tmp_path / 'nonesuch', train=False)
    (tmp_path / 'train').mkdir()
    with pytest.raises(ValueError, match=r'train: '):
        open_split(tmp_path, train=True)
    write_parquet(tmp_path / 'bare.parquet', pictures, metadata=False)
    with pytest.raises(ValueError, match=r'bare\.parquet: is no Parquet file with columns image'):
        ParquetImages([tmp_path / 'bare.parquet'])
    (tmp_path / 'broken.parquet').write_bytes(b'PAR1 nothing else')
    with pytest.raises(ValueError, match=r'broken\.parquet: is no Parquet file'):
        open_split(tmp_path / 'broken.parquet', train=False)


def test_a_split_without_labels_is_passed_over(tmp_path, pictures):
    write_parquet(tmp_path / 'test-00000-of-00001.parquet', [(image, -1) for image, _ in pictures])
    with pytest.raises(ValueError, match=r'test-00000-of-00001.parquet, row 0: has label -1 .*; with \d+ classes it must be 0 to'):
        open_split(tmp_path, train=False)
    write_parquet(tmp_path / 'validation-00000-of-00001.parquet', pictures[:2])
    assert open_split(tmp_path, train=False).targets == [label for _, label in pictures[:2]]


@pytest.mark.parametrize(('label', 'found'), [(99, 'has label 99'), (None, 'has no label')])
def test_labels_that_are_none_of_the_classes(tmp_path, pictures, label, found):
    write_parquet(tmp_path / 'train-0.parquet', [pictures[0], (pictures[1][0], label)])
    with pytest.raises(ValueError, match=f'train-0.parquet, row 1: {found}; with'):
        open_split(tmp_path, train=True)


def test_no_rows(tmp_path):
    write_parquet(tmp_path / 'train-0.parquet', [])
    with pytest.raises(ValueError, match=r'train-0\.parquet: has no rows'):
        open_split(tmp_path, train=True)


def test_shards_of_other_classes(tmp_path, pictures, monkeypatch):
    write_parquet(tmp_path / 'train-0.parquet', pictures)
    monkeypatch.setitem(globals(), 'CLASSES', CLASSES[::-1])
    write_parquet(tmp_path / 'train-1.parquet', pictures)
    with pytest.raises(ValueError, match=r'train-1.parquet: has other classes than .*train-0.parquet, or the same in another order'):
        open_split(tmp_path, train=True)


def test_a_damaged_row_is_named(tmp_path, pictures, monkeypatch):
    write_parquet(tmp_path / 'train-0.parquet', pictures[:2])
    monkeypatch.setitem(globals(), 'png', lambda image: b'damaged')
    write_parquet(tmp_path / 'train-1.parquet', pictures[:2])
    dataset = open_split(tmp_path, train=True)
    assert dataset[1][1] == pictures[1][1]
    with pytest.raises(ImageError, match=r'train-1.parquet, row 1: .*is no image that Pillow can read'):
        dataset[3]


def test_pipes_and_loops_in_class_folders(tmp_path, pictures):
    folder = tmp_path / 'train' / 'a'
    folder.mkdir(parents=True)
    pictures[0][0].save(folder / '0.png')
    os.mkfifo(folder / '1.png')
    (folder / 'again').symlink_to(folder)
    assert len(open_split(tmp_path, train=True)) == 1
