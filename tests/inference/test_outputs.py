"""What `classify` writes beside its table."""
import csv
import json

import numpy as np
import pytest
from PIL import Image

from igczoo.inference.outputs import CsvOutput, JsonLinesOutput, PictureOutput
from igczoo.inference.photograph import ImageError
from igczoo.inference.pictures import INK, Tile, contact_sheet, labelled
from igczoo.inference.prediction import Prediction

FOUND = [Prediction('school bus', .75, 3), Prediction('trolley, "red"', .125, 9)]


def test_labels_are_drawn_on_a_copy():
    image = Image.new('RGB', (3000, 1500), 'orange')
    picture = labelled(image, [*FOUND, Prediction('x' * 500, .1, 1)])
    assert picture.size == (1024, 512) and image.size == (3000, 1500) and image.getpixel((5, 1495)) == (255, 165, 0)
    pixels = np.asarray(picture)
    assert (pixels[:300] == (255, 165, 0)).all()                        # the photograph is left alone
    assert pixels[505, 1].max() < 100 and (pixels[400:] == 255).all(-1).any()      # a dark band with white letters
    assert labelled(Image.new('RGB', (3, 3)), FOUND).size == (3, 3)


def test_a_contact_sheet_has_six_in_a_row():
    sheet = contact_sheet(Tile(Image.new('RGB', (400, 400), (20 * i, 0, 99)), [('a', INK), ('b', INK)]) for i in range(7))
    assert sheet.size == (6 * 168 + 8, 2 * 202 + 8)
    for i in range(7):
        assert sheet.getpixel((88 + i % 6 * 168, 88 + i // 6 * 202)) == (20 * i, 0, 99)
    assert sheet.getpixel((88 + 168, 88 + 202)) == (255, 255, 255)


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    with CsvOutput(str(tmp_path / 'a.csv'), 3) as table, JsonLinesOutput(str(tmp_path / 'a.jsonl')) as lines:
        for output in (table, lines):
            output.write('a, b.jpg', FOUND)
        rows = list(csv.reader((tmp_path / 'a.csv').read_text(encoding='utf-8').splitlines()))
        assert rows == [['image', 'error', 'label', 'score', 'label_2', 'score_2', 'label_3', 'score_3'],
                        ['a, b.jpg', '', 'school bus', '0.750000', 'trolley, "red"', '0.125000', '', '']]
        assert json.loads((tmp_path / 'a.jsonl').read_text(encoding='utf-8'))['predictions'][1] == FOUND[1]._asdict()
        for output in (table, lines):
            output.write('c.jpg', ImageError('c.jpg: is no image'))
    assert (tmp_path / 'a.csv').read_text(encoding='utf-8').splitlines()[2] == 'c.jpg,c.jpg: is no image,,,,,,'
    assert json.loads((tmp_path / 'a.jsonl').read_text(encoding='utf-8').splitlines()[1]) == dict(image='c.jpg', error='c.jpg: is no image')


def test_pictures_of_files_of_one_name_are_kept_apart(tmp_path):
    for folder in 'ab':
        (tmp_path / folder).mkdir()
        Image.new('RGB', (64, 48), 'green').save(tmp_path / folder / 'one.png')
    with PictureOutput(str(tmp_path / 'out')) as output:
        for folder in 'ab':
            output.write(str(tmp_path / folder / 'one.png'), FOUND)
        output.write('gone.jpg', ImageError('gone.jpg: is not there'))
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['00001_one.jpg', '00002_one.jpg', 'contact_sheet_001.jpg']
    with Image.open(tmp_path / 'out' / 'contact_sheet_001.jpg') as sheet:
        assert sheet.size == (3 * 168 + 8, 202 + 8)
    with pytest.raises(ValueError, match='is there already'):
        PictureOutput(str(tmp_path / 'out'))


def test_a_photograph_that_opens_no_second_time_stops_nothing(tmp_path):
    with PictureOutput(str(tmp_path / 'out')) as output:
        output.write(str(tmp_path / 'gone.png'), FOUND)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['contact_sheet_001.jpg']


def test_names_of_any_letters(tmp_path):
    """Line breaks are drawn as spaces; letters beyond ASCII by a font that has them; bytes that are no text are escaped."""
    def drawn(label: str) -> np.ndarray:
        sheet = contact_sheet([Tile(Image.new('RGB', (9, 9)), [(label, INK), ('two\nlines', INK)])])
        labelled(Image.new('RGB', (300, 300)), [Prediction(label, .5, 0)])
        return np.asarray(sheet)[168:185]

    assert not (drawn('\u00e9\u00e9') == drawn('\u0436\u0436')).all() and not (drawn('\u00e9\u00e9') == drawn('ee')).all()
    name = b'caf\xe9.jpg'.decode('utf-8', 'surrogateescape')
    with CsvOutput(str(tmp_path / 'a.csv'), 1) as table, JsonLinesOutput(str(tmp_path / 'a.jsonl')) as lines:
        for output in (table, lines):
            output.write(name, FOUND[:1])
    assert 'caf\\udce9.jpg,,school bus' in (tmp_path / 'a.csv').read_text(encoding='utf-8')
    assert 'caf\\udce9.jpg' in (tmp_path / 'a.jsonl').read_text(encoding='utf-8')
