"""Data sets: each layout gives the same images and labels; what is no data set is named."""
import io
import json
import os
import pickle
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from igczoo.inference.photograph import Fit, ImageError
from igczoo.training.images import ListedImages, ParquetImages, Part, open_photographs, open_split, read_squares, stack_images

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


def folders(root, *names) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(root / name / 'a.png')


def test_hidden_folders_are_no_classes(tmp_path):
    folders(tmp_path, 'cat', 'dog', '.thumbnails')
    (tmp_path / '.ipynb_checkpoints').mkdir()
    assert open_photographs(tmp_path)[0].classes == ['cat', 'dog']


def test_valid_is_a_split(tmp_path):
    folders(tmp_path, 'train/cat', 'train/dog', 'valid/cat', 'valid/dog')
    train, evaluation = open_photographs(tmp_path)
    assert (len(train), len(evaluation), len(open_split(tmp_path, train=False))) == (2, 2, 2)


@pytest.mark.parametrize(('names', 'message'), [
    (('Train/cat', 'Test/cat'), 'has the folder Test, which looks like a split and not like a class; splits are called train and test,'),
    (('train/cat', 'testing/cat'), 'has the folder testing, which looks like a split'),
    (('bus', 'car', 'train'), 'has the folders train and bus, so that train may be a split or a class; rename train if it is a class'),
    (('bus', 'train/steam', 'train/diesel'), 'has the folders train and bus'),
])
def test_a_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path, names, message):
    folders(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        open_photographs(tmp_path)


def test_other_folders_beside_the_splits_are_left_alone(tmp_path):
    folders(tmp_path, 'train/cat', 'val/cat', 'annotations', 'test', '__MACOSX')     # test/ of photographs without labels
    assert [part.classes for part in open_photographs(tmp_path)] == [['cat'], ['cat']]
    shutil.rmtree(tmp_path / 'val')
    with pytest.raises(ValueError, match='test: holds no folder of a class'):
        open_split(tmp_path, train=False)


def test_a_list_that_pandas_wrote_with_its_index(tmp_path):
    (tmp_path / 'a.csv').write_text(',file,label\n0,x.png,cat\n1,y.png,dog\n')
    train, evaluation = open_photographs(tmp_path / 'a.csv')
    assert train.files == [tmp_path / 'x.png', tmp_path / 'y.png'] and train.targets == [0, 1] and evaluation is None


def test_a_part_keeps_classes_of_one_name_apart(tmp_path):
    whole = ListedImages([tmp_path / 'a', tmp_path / 'b'], [0, 1], ['crane', 'crane'])
    assert Part(whole, [0, 1], ['crane', 'crane']).targets == [0, 1]
    assert Part(ListedImages([tmp_path / 'a'], [0], ['dog']), [0], CLASSES).targets == [1]


def test_images_in_chunks(tmp_path, pictures, monkeypatch):
    """They stay in chunks: one would have to be under 2 GiB."""
    write_parquet(tmp_path / 'a.parquet', pictures)
    table = pyarrow.parquet.read_table(tmp_path / 'a.parquet')
    monkeypatch.setattr(pyarrow.parquet, 'read_table', lambda file: pyarrow.concat_tables([table[:1], table[1:5], table[5:]]))
    dataset = ParquetImages([tmp_path / 'a.parquet'])
    assert dataset.encoded[0].num_chunks == 3 and torch.equal(stack_images(dataset, 8)[0], expected(pictures))


def test_folders_of_classes(tmp_path, pictures):
    for i, (image, label) in enumerate(pictures):
        folder = tmp_path / 'test' / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f'{i}.png')
    dataset = open_split(tmp_path, train=False)
    assert dataset.classes == CLASSES
    order = sorted(range(6), key=lambda i: pictures[i][1])
    for found, i in zip(dataset, order, strict=True):
        assert np.array_equal(np.asarray(found[0]), np.asarray(pictures[i][0])) and found[1] == pictures[i][1]


def test_a_test_split_without_labels_is_passed_over(tmp_path, pictures):
    """As in the authors' own Tiny-ImageNet."""
    for split, folder in (('train', 'cat/images'), ('train', 'dog/images'), ('test', 'images'), ('val', 'cat'), ('val', 'dog')):
        (tmp_path / split / folder).mkdir(parents=True)
        pictures[0][0].save(tmp_path / split / folder / 'a.png')
    assert open_split(tmp_path, train=False).classes == CLASSES and open_split(tmp_path, train=False).root == tmp_path / 'val'
    shutil.rmtree(tmp_path / 'val')
    with pytest.raises(ValueError, match=r"test: its folder 'images' is no class of .*train; sort its images into folders"):
        open_split(tmp_path, train=False)


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
