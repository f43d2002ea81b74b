"""A page to try checkpoints on: a photograph in; labels, and where the net looked, out. Made with Gradio."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

from . import __version__
from .checkpoints.folder import CARD, CONFIG, WEIGHTS, resolve
from .inference.classifier import Classifier, load
from .inference.photograph import ImageError, find_images
from .inference.prediction import Prediction

if TYPE_CHECKING:
    import gradio

__all__ = ['build_page', 'serve', 'write_space']

UPLOAD = '64mb'     # a file may have; `photograph.open_image` bounds its pixels
LABELS = 5          # shown
KEPT = 3600         # seconds that uploads and pictures stay on the disk, about
PHOTOGRAPHS = 'photographs'     # folder of the examples in a Space
SPACE_README = '''---
title: {title}
sdk: gradio
app_file: app.py
---
Say what a photograph shows, by Interleaved Group Convolution networks. Written by `igczoo demo --space`.
'''
SPACE_APP = '''"""Say what a photograph shows."""
from igczoo.demo import build_page
from igczoo.inference.photograph import find_images

page = build_page({models!r}, {examples})
page.launch(max_file_size='{upload}')
'''


def build_page(models: Sequence[str], examples: Sequence[str | os.PathLike] = ()) -> gradio.Blocks:
    """The page, not yet served.

    Args:
        models: what `igczoo.load` takes, the first one chosen at first; each is loaded when it is asked for.
        examples: photographs to click on.

    Raises:
        ValueError: Gradio or captum is not installed.
    """
    gradio = _gradio()

    @lru_cache
    def classifier_of(name: str) -> Classifier:
        return load(name, deploy=True)

    def answer(photograph: str | None, name: str):
        if photograph is None:
            return None, None, ''
        try:
            if not Path(photograph).is_file():      # a folder would be many photographs
                raise ImageError(f'{photograph}: is no file')
            classifier = classifier_of(name)
            began = perf_counter()
            found = classifier.classify(photograph, k=LABELS)
            seconds = perf_counter() - began
            heat = classifier.explain(photograph).picture()
        except (ImageError, ValueError, RuntimeError, OSError) as error:
            raise gradio.Error(str(error).replace(photograph, Path(photograph).name), duration=None) from None
        return _distinct(found), heat, f'{1000 * seconds:.0f} ms from the file to its labels, {_form(classifier)}'

    with gradio.Blocks(title='igczoo', analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gradio.Markdown(f'# igczoo {__version__}\nWhat does it show? By Interleaved Group Convolution networks.')
        with gradio.Row():
            with gradio.Column():
                photograph = gradio.Image(sources=['upload', 'clipboard', 'webcam'], type='filepath', label='photograph')
                photograph.preprocess = lambda upload: upload and upload.path       # as it is: `open_image` is the only reader
                model = gradio.Dropdown(list(models), value=models[0], label='checkpoint')
            with gradio.Column():
                labels = gradio.Label(num_top_classes=LABELS, label='labels')
                heat = gradio.Image(label='where the net looked', interactive=False, buttons=['fullscreen', 'download'])
                took = gradio.Markdown()
        if examples:
            gradio.Examples([[str(path)] for path in examples], photograph, label='examples')
        gradio.on([photograph.change, model.change], answer, [photograph, model], [labels, heat, took], api_name='classify')
    return page


def serve(models: Sequence[str], examples: str | os.PathLike | None = None, host: str = '127.0.0.1', port: int | None = None) -> None:
    """Serve the page until Ctrl-C.

    Args:
        models: as for `build_page`.
        examples: a folder of photographs.
        host: the address to listen on; others can reach the page where it is not 127.0.0.1.
        port: by default the first free one from 7860 on.

    Raises:
        ValueError: Gradio or captum is not installed, or the first checkpoint cannot be loaded.
        OSError: the port is taken.
    """
    page = build_page(models, find_images(examples) if examples else ())
    load(models[0])     # what is wrong with it is said here, not on the page
    page.launch(server_name=host, server_port=port, max_file_size=UPLOAD, footer_links=[], ssr_mode=False, quiet=True,
                prevent_thread_lock=True)
    print(f'{page.local_url} shows the page; Ctrl-C ends it', flush=True)
    page.block_thread()


def write_space(folder: str | os.PathLike, models: Sequence[str], examples: str | os.PathLike | None = None) -> list[Path]:
    """Write what a Space of the hub needs to serve the page: app.py, requirements.txt, README.md, and copies of folders and photographs.

    Args:
        folder: to make; it must not exist.
        models: as for `build_page`; a folder is copied.
        examples: a folder of photographs, copied too.

    Returns:
        The files written.

    Raises:
        ValueError: ``folder`` exists, or two folders have the same name.
    """
    folder, names = Path(folder).expanduser(), []
    if folder.exists():
        raise ValueError(f'{folder}: exists; name a folder to make')
    with TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as room:
        beside = Path(room, folder.name)
        beside.mkdir()
        for model in models:
            _, source = resolve(model)
            if not source:
                names.append(model)
                continue
            target = beside / source.resolve().name
            if target.exists():
                raise ValueError(f'{model}: another checkpoint is called {target.name} too; rename one')
            target.mkdir()
            for file in (CONFIG, WEIGHTS, *([CARD] if (source / CARD).exists() else [])):
                shutil.copy(source / file, target / file)
            names.append(f'./{target.name}')
        if examples:
            (beside / PHOTOGRAPHS).mkdir()
            for number, photograph in enumerate(find_images(examples), start=1):       # two folders may hold files of one name
                copy = beside / PHOTOGRAPHS / photograph.name
                shutil.copy(photograph, copy.with_name(f'{number}_{copy.name}') if copy.exists() else copy)
        app = SPACE_APP.format(models=names, examples=f"find_images('{PHOTOGRAPHS}')" if examples else '()', upload=UPLOAD)
        (beside / 'app.py').write_text(app if examples else app.replace('from igczoo.inference.photograph import find_images\n', ''),
                                       encoding='utf-8')
        (beside / 'requirements.txt').write_text(f'igczoo[demo]>={__version__}\n', encoding='utf-8')
        (beside / 'README.md').write_text(SPACE_README.format(title=json.dumps(folder.resolve().name)), encoding='utf-8')
        os.replace(beside, folder)
    return sorted(file for file in folder.rglob('*') if file.is_file())


def _distinct(found: Sequence[Prediction]) -> dict[str, float]:
    """Scores by label; of two classes of one name, as ImageNet's cranes, the second with its number."""
    scores: dict[str, float] = {}
    for one in found:
        scores[f'{one.label} ({one.index})' if one.label in scores else one.label] = one.score
    return scores


def _gradio():
    try:
        import captum  # noqa: F401  for `Classifier.explain`
        import gradio
    except ImportError as error:
        raise ValueError(f"the page needs {error.name}; install it by pip install 'igczoo[demo]'") from None
    return gradio


def _form(classifier: Classifier) -> str:
    """Which form of the net computed them."""
    from .deployment import kernels
    fast = kernels.takes(*classifier.network.parameters())
    return 'deployed, in the compiled kernel' if fast else 'deployed, in PyTorch\'s own operators'
