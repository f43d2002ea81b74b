"""Images are cut into parts that follow from them alone, and each image has one row, whatever is wrong with it."""
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import MODEL, photograph, write_files, write_rows

import igczoo
from igczoo.cli import main
from igczoo.inference.parts import Part, classify_part, plan_parts, read_notes, schema, write_part
from igczoo.inference.photograph import ImageError, open_image


@pytest.fixture(scope='module')
def classifier():
    return igczoo.load(MODEL)


def rows_of(classifier, parts: list[Part]) -> list[dict]:
    return [row for part in parts for row in classify_part(classifier, part, 3, 4, 1).to_pylist()]


def check(rows: list[dict], predictions: list) -> None:
    """Rows without errors, and what `Classifier.classify` gives."""
    for row, expected in zip(rows, predictions, strict=True):
        assert row['error'] is None and row['labels'] == [one.label for one in expected] and row['label'] == expected[0].label
        assert row['indices'] == [one.index for one in expected] and row['index'] == expected[0].index
        np.testing.assert_allclose(row['scores'], [one.score for one in expected], rtol=1e-5)
        assert row['score'] == row['scores'][0]


def test_a_folder(classifier, tmp_path, monkeypatch):
    files = write_files(tmp_path / 'photos', 7)
    monkeypatch.chdir(tmp_path)
    parts = plan_parts('photos', 3, '')
    assert list(map(len, parts)) == [3, 3, 1] and [part.number for part in parts] == [0, 1, 2]
    monkeypatch.chdir('/')      # where a worker may be
    rows = rows_of(classifier, parts)
    assert [str(tmp_path / row['path']) for row in rows] == files and {row['row'] for row in rows} == {None}
    assert rows[0]['path'] == 'photos/a/0.png'
    check(rows, classifier.classify(files, 3, 4))


def test_parquet_files(classifier, tmp_path):
    images = [photograph(seed) for seed in range(23)]
    write_rows(tmp_path / 'a.parquet', images[:10])
    write_rows(tmp_path / 'b.parquet', [])
    write_rows(tmp_path / 'c.parquet', images[10:])
    for data, size in ((tmp_path, 6), (tmp_path, 1), (tmp_path, 100)):
        parts = plan_parts(data, size, '')
        assert set(map(len, parts[:-1])) <= {size}
        rows = rows_of(classifier, parts)
        places = [(str(tmp_path / 'a.parquet'), row) for row in range(10)] + [(str(tmp_path / 'c.parquet'), row) for row in range(13)]
        assert [(row['path'], row['row']) for row in rows] == places
        check(rows, classifier.classify(images, 3, 4))
    [part] = plan_parts(tmp_path / 'c.parquet', 100, '')
    check(rows_of(classifier, [part]), classifier.classify(images[10:], 3, 4))


@pytest.mark.parametrize(('name', 'text'), [
    ('list.txt', '\ufeff{0}\n{1}\n\n{1}\n'),
    ('list.csv', '{0}\r\n{1}\r\n{1}\r\n'),
    ('list.csv', 'label, file\ncat,{0}\ndog,"{1}"\ndog,{1}\n'),
    ('list.csv', 'url\n{0}\n{1}\n{1}'),
])
def test_lists(classifier, tmp_path, name, text):
    files = write_files(tmp_path, 2)
    listed = [os.path.relpath(files[0], tmp_path), files[1], files[1]]
    (tmp_path / name).write_text(text.format(*listed), encoding='utf-8')
    rows = rows_of(classifier, plan_parts(tmp_path / name, 2, ''))
    assert [row['path'] for row in rows] == listed
    check(rows, classifier.classify([files[0], files[1], files[1]], 3, 4))


def test_a_bad_image_is_a_row_that_says_why(classifier, tmp_path):
    files = write_files(tmp_path, 5)
    Path(files[1]).write_bytes(b'no image')
    Path(files[3]).write_bytes(photograph(3)[:100])
    rows = rows_of(classifier, plan_parts(tmp_path, 3, ''))
    assert [row['path'] for row in rows] == files and [bool(row['error']) for row in rows] == [False, True, False, True, False]
    assert 'no image that Pillow can read' in rows[1]['error'] and all(value is None for key, value in rows[1].items()
                                                                      if key not in ('path', 'error'))
    check([rows[0], rows[2], rows[4]], classifier.classify([files[0], files[2], files[4]], 3, 2))
    write_rows(tmp_path / 'some.parquet', [photograph(0), None, b'', photograph(1)])
    rows = rows_of(classifier, plan_parts(tmp_path / 'some.parquet', 3, ''))
    assert [bool(row['error']) for row in rows] == [False, True, True, False]


def test_a_file_that_goes_bad_costs_only_its_own_rows(classifier, tmp_path):
    images = [photograph(seed) for seed in range(12)]
    for name in ('a.parquet', 'b.parquet'):
        write_rows(tmp_path / name, images)
    parts = plan_parts(tmp_path, 7, '')
    group = pq.read_metadata(tmp_path / 'a.parquet').row_group(1).column(0)
    data = bytearray((tmp_path / 'a.parquet').read_bytes())
    data[group.data_page_offset:group.data_page_offset + 40] = bytes(40)
    (tmp_path / 'a.parquet').write_bytes(data)
    rows = rows_of(classifier, parts)
    assert [row['row'] for row in rows] == [*range(12), *range(12)]
    check(rows[:4] + rows[8:], classifier.classify(images[:4] + images[8:] + images, 3, 4))
    assert all('a.parquet, row' in row['error'] for row in rows[4:8])
    write_rows(tmp_path / 'b.parquet', images[:5])
    assert all('fewer rows' in row['error'] for row in rows_of(classifier, parts)[17:])


@pytest.mark.skipif(sys.platform != 'linux', reason='needs names of any bytes')
def test_a_name_of_any_bytes(classifier, tmp_path):
    for name in (b'caf\xe9.png', b'line\nbreak.png'):
        Path(os.fsdecode(os.fsencode(tmp_path) + b'/' + name)).write_bytes(photograph(0))
    [part] = plan_parts(tmp_path, 9, '')
    rows = classify_part(classifier, Part.from_json(part.to_json()), 1, 4, 1).to_pylist()
    assert [Path(row['path']).name for row in rows] == ['caf\\udce9.png', 'line\nbreak.png'] and not any(row['error'] for row in rows)


def test_a_tilde_means_a_home_only_where_no_file_is_called_so(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    for file in ('home/a.png', 'photos/~old.png', 'photos/~nobody/b.png'):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(photograph(0))
    (tmp_path / 'photos' / 'list.txt').write_text('~/a.png\n~old.png\n~nobody/b.png\n~nobody/gone.png')
    [part] = plan_parts(tmp_path / 'photos' / 'list.txt', 9, '')
    errors = [row['error'] for row in classify_part(classifier, part, 1, 4, 1).to_pylist()]
    assert errors[:3] == [None] * 3 and '~nobody/gone.png' in errors[3]
    monkeypatch.chdir(tmp_path / 'photos')
    assert open_image('~old.png').size == open_image('~/a.png').size


def test_parts_follow_from_the_images_alone(tmp_path):
    files = write_files(tmp_path, 6)
    names = [part.name for part in plan_parts(tmp_path, 2, 'x')]
    assert names == [part.name for part in plan_parts(tmp_path, 2, 'x')] and len(set(names)) == 3
    assert not set(names) & {part.name for part in plan_parts(tmp_path, 2, 'y')}
    Path(files[3]).write_bytes(photograph(99) + b' ')
    assert [a.name == b for a, b in zip(plan_parts(tmp_path, 2, 'x'), names, strict=True)] == [True, False, True]


def test_a_written_part(classifier, tmp_path):
    write_files(tmp_path, 2)
    (tmp_path / 'a' / 'bad.png').write_bytes(b'bad')
    [part] = plan_parts(tmp_path, 9, '')
    file = tmp_path / 'part.parquet'
    file.write_bytes(write_part(classify_part(classifier, part, 2, 4, 1), dict(model='m')))
    assert pq.read_schema(file).equals(schema()) and read_notes(file) == dict(model='m', images=3, errors=1)
    assert [(field.name, str(field.type)) for field in schema()] == [
        ('path', 'string'), ('row', 'int64'), ('label', 'string'), ('score', 'float'), ('index', 'int32'),
        ('labels', 'list<item: string>'), ('scores', 'list<item: float>'), ('indices', 'list<item: int32>'), ('error', 'string')]


@pytest.mark.parametrize(('make', 'said'), [
    (lambda path: None, 'no such file'),
    (lambda path: path.mkdir(), 'holds no image'),
    (lambda path: path.write_text(' \n'), 'lists no image'),
    (lambda path: path.write_bytes(photograph(0)), 'cannot be read as a list'),
    (lambda path: os.mkfifo(path), 'device or pipe'),
])
def test_no_images(tmp_path, make, said):
    make(tmp_path / 'data')
    with pytest.raises(ValueError, match=said) as caught:
        plan_parts(tmp_path / 'data', 10, '')
    assert '\n' not in str(caught.value)


def test_large_row_groups_are_told(tmp_path, capsys):
    write_rows(tmp_path / 'a.parquet', [photograph(0)] * 21)
    pq.write_table(pq.read_table(tmp_path / 'a.parquet'), tmp_path / 'a.parquet', row_group_size=21)
    plan_parts(tmp_path / 'a.parquet', 2, '')
    assert not capsys.readouterr().err
    plan_parts(tmp_path / 'a.parquet', 1, '')
    assert 'a.parquet: has 21 rows in a row group' in capsys.readouterr().err


def test_wrong_tables(tmp_path):
    (tmp_path / 'two.csv').write_text('a,b\nc,d\n')
    (tmp_path / 'semicolons.csv').write_text('id;file\n1;a.png\n')
    (tmp_path / 'tabs.csv').write_text('url\tid\na.png\t1\n')
    (tmp_path / 'gap.csv').write_text('file,label\na.png,x\n,y\n')
    pq.write_table(pa.table(dict(text=['a'])), tmp_path / 'text.parquet')
    (tmp_path / 'none.parquet').write_bytes(b'PAR1')
    write_rows(tmp_path / 'empty.parquet', [])
    for name, said in (('two.csv', 'and name a column file'), ('semicolons.csv', 'commas between columns'),
                       ('tabs.csv', 'commas between columns'), ('gap.csv', 'row 3 has no file'), ('text.parquet', 'column image'),
                       ('none.parquet', 'column image'), ('', 'no folder')):
        with pytest.raises(ValueError, match=said):
            plan_parts(name and tmp_path / name, 10, '')
    with pytest.raises(ImageError, match='holds no image'):
        plan_parts(tmp_path / 'empty.parquet', 10, '')
    write_files(tmp_path, 1)
    with pytest.raises(ValueError, match='both Parquet files and photographs'):
        plan_parts(tmp_path, 10, '')


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    write_files(tmp_path / 'photos', 1)
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert main(['batch', str(tmp_path / 'photos'), '-o', str(tmp_path / 'out'), '--model', MODEL]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and "pip install 'igczoo[ray]'" in err and not (tmp_path / 'out').exists()
