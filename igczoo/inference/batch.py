"""Very many images, on one machine or on a cluster, by Ray Data: a folder of Parquet files, with one row for each image.

1. `parts.plan_parts` cuts the images into parts by itself, and each part's name has its number and the digest of what it is made of.
2. Parts that are in the folder already are done. A part with another name is of other images or another model, and nothing is begun.
3. Ray Data streams the descriptions of the others, one a block, through a pool of actors, each with the model. What comes back is the bytes
   of a Parquet file, which this process puts in its place. A part whose worker dies is classified by another.

Ray Data's own readers and writers are not used: they cut the data where it suits the memory, so that no file of theirs could be told to be
there already, and a task of theirs that runs twice may write two files.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from timm.data import resolve_model_data_config
from tqdm import tqdm

from .. import __version__
from ..deployment.deploy import deploy as deployed
from ..files import alone_in, replacing
from .classifier import Classifier, deployed_as_asked, load
from .parts import Part, classify_part, plan_parts, read_notes, write_part

if TYPE_CHECKING:
    import pyarrow
    import ray

__all__ = ['PART_SIZE', 'Summary', 'classify_all']

PART_SIZE = 1000        # images


@dataclass(frozen=True)
class Summary:
    """What was done."""
    out: str
    images: int                         # rows in the folder, one for each image
    errors: int                         # of them, images that could not be opened
    classified: int                     # by this call
    seconds: float                      # that they took, with Ray's start and the loading of models
    images_per_second: float | None     # None where all had been done before
    workers: int
    cpus: int                           # of each worker
    machines: int


def classify_all(
        name: str | os.PathLike, data: str | os.PathLike, out: str | os.PathLike, k: int = 5, batch_size: int = 32,
        workers: int | None = None, deploy: bool | None = None, part_size: int = PART_SIZE, retry: bool = False,
) -> Summary:
    """Classify very many images by Ray Data, or go on where a call before was stopped.

    Joins the Ray that this process is connected to, or that RAY_ADDRESS names, or that runs on this machine; otherwise starts one for as
    long as it takes. On a cluster, every machine must have this version of igczoo and see ``data`` under the same path; the model and the
    results go through Ray.

    Args:
        name: of the checkpoint, as `classifier.load` takes it.
        data: as `parts.plan_parts` takes it.
        out: folder for the parts, with the columns of `parts.schema`; it may have parts of the same images, model, k and part_size.
        k: how many classes an image; all of them where there are fewer.
        batch_size: images that go through the model together.
        workers: processes that classify, each with an equal share of the CPUs; None for one a CPU.
        deploy: as `classifier.deployed_as_asked`.
        part_size: images a part. A worker is given one at a time, and what is lost with a worker or a stopped call are those begun.
        retry: do parts again in which a call before could not open an image, as where a server or a disk was not there.

    Raises:
        ImageError: there is no image in ``data``.
        ValueError: Ray or pyarrow is missing; ``data`` cannot be read; ``out`` has other files, or parts of something else; there are fewer
            CPUs than workers; or as `classifier.load`.
        RuntimeError: Ray cannot be started or joined, or gives up; or another call writes into ``out``.
        OSError: ``out`` cannot be written.
    """
    started = time.monotonic()
    _check_packages()
    classifier = load(name)
    if deploy:
        deployed(classifier.model)      # before anything begins: it may be a model that cannot be
    notes = dict(igczoo=__version__, data=str(Path(data)), model=os.fspath(name), weights=_digest(classifier), k=k, part_size=part_size)
    parts = plan_parts(data, part_size, f'{notes["weights"]} {k}')
    folder = Path(out).expanduser()
    with alone_in(folder):
        done = {name: found for name, found in _done(folder, parts, notes).items() if not (retry and found['errors'])}
        left = [part for part in parts if part.name not in done]
        found = list(done.values())
        share, classified = (0, 0, 0), sum(map(len, left))
        if left:
            with _connected() as terminal:
                share = _share(workers)
                bar = tqdm(desc='classify', total=sum(map(len, parts)), initial=_count(found, 'images'), file=terminal, disable=None)
                with bar, closing(_stream(left, classifier, *share[:2], k, batch_size, deploy, classified, notes)) as stream:
                    for part_name, content in stream:
                        with replacing(folder / part_name) as file:
                            file.write_bytes(content)
                        found.append(read_notes(folder / part_name))
                        bar.update(found[-1]['images'])
        if len(found) < len(parts):
            raise RuntimeError(f'{folder}: Ray gave back {len(found)} of {len(parts)} parts; give the same command again')
    seconds = time.monotonic() - started
    return Summary(str(out), _count(found, 'images'), _count(found, 'errors'), classified, seconds, classified / seconds if left else None,
                   *share)


def _count(notes: Sequence[dict[str, Any]], key: str) -> int:
    return sum(one[key] for one in notes)


def _check_packages() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ValueError(f"needs Ray and pyarrow ({error}); install them by pip install 'igczoo[ray]'") from None


def _digest(classifier: Classifier) -> str:
    """Of everything that an answer depends on but the image: weights, preprocessing, labels."""
    model = classifier.model
    facts = model.pretrained_cfg.get('architecture'), resolve_model_data_config(model), classifier.labels
    digest = hashlib.sha256(json.dumps(facts).encode())
    for key, value in model.state_dict().items():
        digest.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.numpy(force=True).tobytes())
    return digest.hexdigest()


# The folder of the parts --------------------------------------------------------------------------------------------------------------

def _done(folder: Path, parts: Sequence[Part], notes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts that are in the folder, by their names, with their notes."""
    for left in folder.glob('.part-*.part'):     # of a call that was killed
        left.unlink()
    names = {part.name for part in parts}
    done = {}
    for file in sorted(path for path in folder.iterdir() if not path.name.startswith('.')):     # the lock, and what Finder leaves
        if not file.match('part-*.parquet'):
            raise ValueError(f'{folder}: has other files, as {file.name}; give a new folder for the results')
        done[file.name] = read_notes(file)
        if file.name not in names:
            raise ValueError(f'{folder}: {_difference(done[file.name], notes)}; give another folder')
    return done


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    for key, what in (('data', 'of the images of'), ('model', 'of the model'), ('k', 'with k ='), ('part_size', 'of part size')):
        if found[key] != wanted[key]:
            return f'has results {what} {found[key]}, and this call is {what} {wanted[key]}'
    changed = 'the weights' if found['weights'] != wanted['weights'] else 'the images'
    return f'has results of {wanted["data"]} by {wanted["model"]}, and {changed} have changed since'


# Ray ----------------------------------------------------------------------------------------------------------------------------------

class Worker:
    """What an actor of the pool does: a description of a part in, the bytes of its Parquet file out."""

    def __init__(self, shipped: list[ray.ObjectRef], cpus: int, k: int, batch_size: int, deploy: bool | None, images: int,
                 notes: dict[str, Any]):
        import ray
        if notes['igczoo'] != __version__:
            raise RuntimeError(f'this worker has igczoo {__version__}, not {notes["igczoo"]}; install the same on every machine')
        torch.set_num_threads(cpus)
        self.classifier = deployed_as_asked(ray.get(shipped[0]), deploy, images)
        self.k, self.batch_size, self.cpus, self.notes = k, batch_size, cpus, notes

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        import pyarrow as pa
        [text] = rows['part'].to_pylist()
        part = Part.from_json(text)
        content = write_part(classify_part(self.classifier, part, self.k, self.batch_size, self.cpus), self.notes)
        return pa.table(dict(name=[part.name], content=pa.array([content], pa.binary())))


@contextmanager
def _connected() -> Iterator[TextIO]:
    """Connected to Ray, whose errors become one line; gives what still leads to the terminal. A connection that was there is left alone."""
    import ray
    if ray.is_initialized():
        with _quiet_data(), _in_one_line():
            yield sys.stderr
        return
    with _silent_stderr() as terminal, _quiet_data(), _in_one_line():
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')       # nothing is reported to its makers
        address = os.environ.get('RAY_ADDRESS')
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            what = f'RAY_ADDRESS={address}: is no cluster that can be joined' if address else 'Ray cannot be started'
            asks = '; it asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN' if _is_of_a_token(error) else ''
            raise RuntimeError(f'{what} ({_last_line(error)}){asks}') from None
        try:
            yield terminal
        finally:
            ray.shutdown()


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith('ray.'):       # it has several families of them
            raise
        raise RuntimeError(f'Ray gave up ({_last_line(error)}); what is done is kept, and the same call goes on') from None


@contextmanager
def _silent_stderr() -> Iterator[TextIO]:
    """What this process writes to its standard error goes nowhere, as Ray's core writes there past Python; gives another way to it."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with open(terminal, 'w', closefd=False) as file:
            yield file
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextmanager
def _quiet_data() -> Iterator[None]:
    """Ray Data without messages and bars of its own."""
    import ray
    context = ray.data.DataContext.get_current()
    wanted = dict(enable_progress_bars=False, print_on_execution_start=False)
    before = {key: getattr(context, key) for key in wanted if hasattr(context, key)}    # older ones have fewer
    handlers = [handler for handler in logging.getLogger('ray.data').handlers if isinstance(handler, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for key in before:
        setattr(context, key, wanted[key])
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for key, value in before.items():
            setattr(context, key, value)
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _share(workers: int | None) -> tuple[int, int, int]:
    """Workers, the CPUs of each, and how many machines there are: the most CPUs of which as many workers have room."""
    import ray
    machines = [int(node['Resources'].get('CPU', 0)) for node in ray.nodes() if node['Alive']]
    machines = [cpus for cpus in machines if cpus]
    workers = workers or sum(machines)
    for cpus in range(max(machines, default=0), 0, -1):
        if sum(machine // cpus for machine in machines) >= workers:
            return workers, cpus, len(machines)
    raise ValueError(f'workers is {workers}, and Ray has {sum(machines)} CPUs; give that many or fewer')


def _stream(parts: Sequence[Part], classifier: Classifier, workers: int, cpus: int, *options: Any) -> Iterator[tuple[str, bytes]]:
    """The name and the content of each part's file, in the order in which they are done."""
    import ray
    shipped = [ray.put(classifier)]     # once; as an argument itself it would go through this process for each worker
    images = ray.data.from_items([dict(part=part.to_json()) for part in parts], override_num_blocks=len(parts))
    done = images.map_batches(Worker, fn_constructor_args=(shipped, cpus, *options), batch_size=1, batch_format='pyarrow',
                              compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=cpus)
    for row in done.iter_batches(batch_size=1, batch_format='pyarrow', prefetch_batches=0):     # or one that is done waits for the next
        yield row['name'][0].as_py(), row['content'][0].as_py()


def _is_of_a_token(error: BaseException) -> bool:
    """Whether a cluster has refused this process: Ray tells it in the cause of a cause, or in the text of one."""
    return 'AuthenticationError' in f'{error!r} {error.__cause__}'


def _last_line(error: BaseException) -> str:
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
