"""A file is whole or as it was; a folder is written to by one at a time."""
import os
import stat
import subprocess
import sys

import pytest

from igczoo.files import LOCK, alone_in, cache_folder, replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_takes_the_place(tmp_path):
    (tmp_path / 'a').write_bytes(b'old')
    with replacing(tmp_path / 'a') as file:
        file.write_bytes(b'new')
        assert (tmp_path / 'a').read_bytes() == b'old'
    assert (tmp_path / 'a').read_bytes() == b'new' and names(tmp_path) == ['a']


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    (tmp_path / 'a').write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / 'a') as file:
        file.write_bytes(b'half')
        raise KeyboardInterrupt
    assert (tmp_path / 'a').read_bytes() == b'old' and names(tmp_path) == ['a']


@pytest.mark.skipif(os.name != 'posix', reason='modes are of POSIX')
@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_mode_is_what_the_umask_asks_for(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / 'a') as file:
            file.unlink()
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))    # as libraries do that write beside and rename
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == mode


def test_a_cache_is_never_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr('os.path.expanduser', lambda path: path)        # no HOME, and nobody of this number in the system's list
    with pytest.raises(OSError):
        cache_folder('kernels').mkdir(parents=True)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nonesuch'), replacing(tmp_path / 'nonesuch' / 'a'):
        pass


def test_a_second_one_is_kept_out_and_nothing_is_left(tmp_path):
    with alone_in(tmp_path / 'a'):
        (tmp_path / 'a' / 'mine').touch()
        with pytest.raises(RuntimeError, match=r'a: another igczoo writes there; wait for it, or name another folder'), \
                alone_in(tmp_path / 'a'):
            raise AssertionError
    with alone_in(tmp_path / 'a'):      # again
        assert names(tmp_path / 'a') == [LOCK, 'mine']
    assert names(tmp_path / 'a') == ['mine']


def test_a_lock_dies_with_its_process(tmp_path):
    code = 'import os, sys, pathlib, igczoo.files as f; alone = f.alone_in(pathlib.Path(sys.argv[1])); alone.__enter__(); os._exit(9)'
    assert subprocess.run([sys.executable, '-c', code, tmp_path]).returncode == 9
    assert names(tmp_path) == [LOCK]
    with alone_in(tmp_path):
        pass
    assert names(tmp_path) == []


def test_no_folder_can_be_made_of_a_file(tmp_path):
    (tmp_path / 'a').write_text('mine')
    with pytest.raises(ValueError, match='a: is a file; name a folder'), alone_in(tmp_path / 'a'):
        raise AssertionError
    assert (tmp_path / 'a').read_text() == 'mine'
