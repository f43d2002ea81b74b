"""A file is whole or as it was."""
import os
import stat

import pytest

from igczoo.files import replacing


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


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nonesuch'), replacing(tmp_path / 'nonesuch' / 'a'):
        pass
