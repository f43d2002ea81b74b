"""What a checkpoint folder is called."""
import pytest

from igczoo.checkpoints.folder import tag_for


@pytest.mark.parametrize(('name', 'tag'), [
    ('my_model', 'my_model'), ('My model (2)', 'My_model_2_'), ('my--photos-', 'my-photos'), ('-x', 'x'), ('--', 'mine'), ('a.b', 'a_b')])
def test_tags(tmp_path, name, tag):
    assert tag_for(tmp_path / name) == tag


def test_names_in_other_letters_are_kept_apart(tmp_path):
    tags = {tag_for(tmp_path / name) for name in ('\u82b1', '\u72ac', '\u0421\u043e\u0431\u0430\u043a\u0438', 'h\u00fcte', 'h\u00f6te')}
    assert len(tags) == 5 and all(tag.isascii() for tag in tags)
