"""The page that `igczoo demo` serves: asked by Gradio's own client and used in a browser; and the folder of a Space."""
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from igczoo.checkpoints.card import weights_folder
from igczoo.cli import main
from igczoo.demo import _distinct, write_space
from igczoo.inference.prediction import Prediction

pytestmark = pytest.mark.demo

EXAMPLES = Path(__file__).parents[1] / 'examples'
PATIENCE = 120      # seconds


def free_port() -> int:
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def served(command: list[str], port: int, **kwargs) -> Iterator[str]:
    """The address of a page that a process serves."""
    url = f'http://127.0.0.1:{port}/'
    environment = os.environ | dict(HF_HUB_OFFLINE='1', GRADIO_SERVER_PORT=str(port))
    with subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True, **kwargs) as process:
        try:
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until and process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                    assert answer.status == 200
                    break
                time.sleep(.3)
            yield url
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 1, 130)
        finally:
            process.kill()


@pytest.fixture(scope='module')
def page() -> Iterator[str]:
    port = free_port()
    with served(['-m', 'igczoo', 'demo', '--examples', str(EXAMPLES), '--port', str(port)], port) as url:
        yield url


@pytest.fixture(scope='module')
def damaged(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp('damaged') / 'damaged.jpg'
    file.write_bytes((EXAMPLES / 'pizza.jpg').read_bytes()[:500])
    return file


def test_asked_by_the_client(page, damaged):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError
    client = Client(page, verbose=False)
    labels, heat, took = client.predict(handle_file(str(EXAMPLES / 'school_bus.jpg')), 'igcnet18', api_name='/classify')
    assert labels['label'] == 'school bus' and len(labels['confidences']) == 5
    assert Path(heat['path'] if isinstance(heat, dict) else heat).stat().st_size > 10_000 and 'ms from the file to its labels' in took
    with pytest.raises(AppError, match=r'^damaged\.jpg'):
        client.predict(handle_file(str(damaged)), 'igcnet18', api_name='/classify')
    labels, *_ = client.predict(handle_file(str(EXAMPLES / 'pizza.jpg')), 'igcnet18', api_name='/classify')
    assert labels['label'] == 'pizza'


@pytest.mark.skipif(not (shutil.which('chromium') and shutil.which('chromedriver')), reason='needs chromium and its driver')
def test_used_in_a_browser(page, damaged, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for option in ('headless', 'no-sandbox', 'disable-gpu', 'disable-background-networking', 'disable-sync', 'window-size=1200,1150',
                   f'user-data-dir={tmp_path / "profile"}'):
        options.add_argument(f'--{option}')
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    try:
        wait = WebDriverWait(browser, PATIENCE)
        browser.get(page)

        def upload(file: Path) -> None:
            wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, 'input[type=file]'))[0].send_keys(str(file))

        def clear() -> None:
            browser.find_element(By.CSS_SELECTOR, 'button[aria-label="Clear"], button[aria-label="Remove Image"]').click()

        def says(text: str) -> None:
            wait.until(lambda b: text in b.find_element(By.TAG_NAME, 'body').text)

        upload(EXAMPLES / 'school_bus.jpg')
        says('school bus')
        says('ms from the file to its labels')
        wait.until(lambda b: len(b.find_elements(By.CSS_SELECTOR, 'img')) >= 2)
        if picture := os.environ.get('IGCZOO_SCREENSHOT'):      # the picture in the documentation
            time.sleep(2)
            browser.save_screenshot(picture)
        clear()
        upload(damaged)
        says('damaged.jpg')
        clear()
        upload(EXAMPLES / 'pizza.jpg')
        says('pizza')
    finally:
        browser.quit()


def test_the_folder_of_a_space_serves_the_page(tmp_path, capsys):
    own = shutil.copytree(weights_folder() / 'igc_resnet20_l24m2.cifar10', tmp_path / 'mine')
    assert main(['demo', '--model', 'igcnet18', '--model', str(own), '--examples', str(EXAMPLES), '--space', str(tmp_path / 'space')]) == 0
    assert {Path(line).name for line in capsys.readouterr().out.splitlines()} >= {
        'app.py', 'requirements.txt', 'README.md', 'card.json', 'config.json', 'model.safetensors', 'pizza.jpg'}
    port = free_port()
    with served(['app.py'], port, cwd=tmp_path / 'space') as url:
        from gradio_client import Client, handle_file
        labels, *_ = Client(url, verbose=False).predict(handle_file(str(EXAMPLES / 'sports_car.jpg')), './mine', api_name='/classify')
        assert labels['label'] == 'automobile'


def test_a_space_keeps_photographs_of_one_name_and_folders_without_a_card(tmp_path):
    for folder in 'ab':
        (tmp_path / 'photos' / folder).mkdir(parents=True)
        shutil.copy(EXAMPLES / 'pizza.jpg', tmp_path / 'photos' / folder / 'one.jpg')
    mine = Path(shutil.copytree(weights_folder() / 'igc_resnet20_l24m2.cifar10', tmp_path / 'mine'))
    (mine / 'card.json').unlink()
    files = write_space(tmp_path / 'a "space"', [f'local-dir:{mine}'], tmp_path / 'photos')
    assert [file.name for file in files if file.suffix == '.jpg'] == ['2_one.jpg', 'one.jpg']
    assert {file.name for file in files if file.parent.name == 'mine'} == {'config.json', 'model.safetensors'}
    assert "'./mine'" in (tmp_path / 'a "space"' / 'app.py').read_text()
    assert 'title: "a \\"space\\""\n' in (tmp_path / 'a "space"' / 'README.md').read_text()


def test_classes_of_one_name_are_kept_apart():
    found = [Prediction('crane', .7, 134), Prediction('crane', .1, 517), Prediction('egret', .05, 132)]
    assert _distinct(found) == {'crane': .7, 'crane (517)': .1, 'egret': .05}


def test_what_is_refused(tmp_path, capsys, monkeypatch):
    for folder in ('a/mine', 'b/mine'):
        shutil.copytree(weights_folder() / 'igc_resnet20_l24m2.cifar10', tmp_path / folder)
    with pytest.raises(ValueError, match='another checkpoint is called mine too'):
        write_space(tmp_path / 'space', [str(tmp_path / 'a/mine'), str(tmp_path / 'b/mine')])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']
    assert main(['demo', '--space', str(tmp_path)]) == 1
    assert 'name a folder to make' in capsys.readouterr().err
    assert main(['demo', '--model', 'resnet18']) == 1
    assert 'resnet18' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert main(['demo']) == 1
    assert "pip install 'igczoo[demo]'" in capsys.readouterr().err
