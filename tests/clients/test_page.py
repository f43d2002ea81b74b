"""The code of the page on use with others runs, where the others are installed."""
import warnings

import pytest
from docs_pages import blocks, check_code, make_photographs

pytestmark = pytest.mark.clients

PACKAGES = 'transformers', 'segmentation_models_pytorch', 'torchvision', 'lightning', 'fastai', 'captum', 'onnxruntime', 'openvino'


@pytest.mark.parametrize(('package', 'code'), list(zip(PACKAGES, blocks('with-others', 'python'), strict=True)), ids=PACKAGES)
def test_the_code_prints_what_its_comments_say(package, code, tmp_path, monkeypatch):
    assert package in code
    make_photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # what these libraries warn of is their own affair
        pytest.importorskip(package)
        check_code(code)
