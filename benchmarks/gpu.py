"""One visit to a machine with a GPU: its tests, inference, which form trains fastest, and as much of a training run as fits; one report.

    python benchmarks/gpu.py --split DATA PIECES                                # at home: a data set in pieces that travel
    PYTHONPATH=. python benchmarks/gpu.py --out OUT --data PIECES               # there
    python benchmarks/gpu.py --join OUT/run runs/RECIPE                         # at home: `igczoo train RECIPE --bf16` goes on from there

Each part takes the minutes it is given at most, 0 leaves it out, and training gets what is left; what did not fit is said in
OUT/report.md, which is written anew after each part. The run is kept in runs/gpu/RECIPE, from where it goes on, and comes home in
pieces of at most 16 MiB; put it there again for another visit to go on. With --device cpu it can be tried anywhere. Needs Python 3.11.
"""
import argparse
import csv
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import tomllib
from packaging.requirements import Requirement
from pieces import SUMS, join, read_sums, split

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / 'runs' / 'gpu'    # the data set joined, and the runs
RUN_MIB = 62                    # of a run; where there is more, the checkpoint of a finished one stays behind
PACKING, GRACE = 20, 20         # seconds kept for packing the run; that training may take beyond its time before it is ended
STEPS = ('igcnet18', 64, 200), ('igc_resnet20_l24m2', 32, 10), ('igcnet18', 96, 200)    # model, pixels and classes of training steps
FORMS = {   # of training.py: the function of igczoo.training.forms, and whether torch.compile follows
    'as written, channels_last': ('as_written', False),
    'as written, channels_last, compiled': ('as_written', True),
    'planar, by torch alone': ('planar_by_torch', False),
    'planar, by torch alone, compiled': ('planar_by_torch', True),
}


def missing() -> list[str]:
    """What a visit needs and does not find here."""
    def is_missing(requirement: str) -> bool:
        wanted = Requirement(requirement)
        try:
            return not wanted.specifier.contains(version(wanted.name), prereleases=True)
        except PackageNotFoundError:
            return True

    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    needed = [*project['dependencies'], *project['optional-dependencies']['train'], 'pytest>=8']
    return ([] if find_spec('igczoo') else ['igczoo on its path (PYTHONPATH=.)']) + [*filter(is_missing, needed)]


# Parts: each returns its outcome in a few words, and Markdown -------------------------------------------------------------------------

def run(command: list[str], seconds: float) -> tuple[str, str]:
    """'ok' or what went wrong, and what a Python command printed; with all its children it is ended when the time is over."""
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, cwd=ROOT, start_new_session=True)
        try:
            status = process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 'not done in time', ''
        except BaseException:       # Ctrl-C does not reach it
            os.killpg(process.pid, signal.SIGKILL)
            raise
        for file in (out, err):
            file.seek(0)
        printed, said = out.read(), err.read()
    return 'ok' if status == 0 else f'ended with {status}: {(said.strip() or printed.strip() or "silently").splitlines()[-1]}', printed


def run_tests(arguments: argparse.Namespace, seconds: float) -> tuple[str, str]:
    outcome, printed = run(['-m', 'pytest', '-q', '-rf', '-p', 'no:cacheprovider', 'tests/deployment/test_cuda.py'], seconds)
    lines = printed.strip().splitlines()
    failed = [f'- `{line}`\n' for line in lines if line.startswith(('FAILED', 'ERROR'))]
    return f'{outcome}: {lines[-1]}' if lines else outcome, ''.join(failed)


def run_inference(arguments: argparse.Namespace, seconds: float) -> tuple[str, str]:
    """First without torch.compile, so that there are figures if it takes too long."""
    ended, texts = time.monotonic() + seconds, []
    for compiled in ([], ['--compile']):
        for n in arguments.batch_sizes:
            command = ['benchmarks/inference.py', '--device', arguments.device, '--dtypes', 'bfloat16', '--batch-sizes', str(n),
                       '--against', 'resnet18', '--no-onnx', '--rounds', str(arguments.rounds), *compiled]
            outcome, printed = run(command, ended - time.monotonic())
            texts.append((outcome, f'`{shlex.join(command)}`: {outcome}\n\n{printed}'))
    return _joined(texts)


def run_steps(arguments: argparse.Namespace, seconds: float) -> tuple[str, str]:
    """Training steps; the fastest form of the recipe's model becomes the one to train in, where none was named."""
    from igczoo.training.recipes import find_recipe
    wanted, found = find_recipe(arguments.recipe).model, {}
    ended, texts = time.monotonic() + seconds, []
    for options in (['--dtypes', 'fp32', 'bf16'], ['--dtypes', 'bf16', '--compile']):
        for model, size, classes in STEPS:
            command = ['benchmarks/training.py', '--models', model, 'resnet18', '--size', str(size), '--num-classes', str(classes),
                       '--batch-size', str(arguments.batch_size), '--device', arguments.device, '--rounds', str(4 * arguments.rounds),
                       '--no-nchw', *options]
            outcome, printed = run([*command, '--json'], ended - time.monotonic())
            rows = json.loads(printed) if outcome == 'ok' else []
            found |= {row['form']: median(row['seconds']) for row in rows if (row['model'], row['dtype']) == (wanted, 'bf16')}
            texts.append((outcome, f'`{shlex.join(command)}`: {outcome}\n\n{steps_table(rows, arguments.batch_size)}'))
    arguments.form = arguments.form or min((form for form in found if form in FORMS), key=found.get, default=None)
    return _joined(texts)


def _joined(texts: list[tuple[str, str]]) -> tuple[str, str]:
    return f'{sum(outcome == "ok" for outcome, _ in texts)} of {len(texts)} measurements', '\n'.join(text for _, text in texts)


def steps_table(rows: list[dict], batch_size: int) -> str:
    """Images a second of the median step, the range, and how many times as fast as the net as written in the same type."""
    if not rows:
        return ''
    plain = {(row['model'], row['dtype']): median(row['seconds']) for row in rows if row['form'] == 'as written, channels_last'}
    cells = [('model', 'form', 'type', 'images/s (range)', 'ratio'), ('---', '---', '---', '---:', '---:')]
    for row in rows:
        middle, low, high = (batch_size / of(row['seconds']) for of in (median, max, min))
        ratio = plain[row['model'], row['dtype']] / median(row['seconds'])
        cells.append((row['model'], row['form'], row['dtype'], f'{middle:,.0f} ({low:,.0f} to {high:,.0f})', f'{ratio:.2f}x'))
    return _table(cells)


def _table(rows: list[tuple[str, ...]]) -> str:
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def run_training(arguments: argparse.Namespace, seconds: float) -> tuple[str, str]:
    from igczoo.training.recipes import find_recipe
    ended, data, folder = time.monotonic() + seconds - PACKING, arguments.data, WORK / arguments.recipe
    if (data / SUMS).is_file():
        digest, name = read_sums(data)[0]
        data = WORK / digest[:12] / Path(name).stem     # its name gets into the checkpoint's card
        if not data.exists():
            join(arguments.data, data)
    recipe = find_recipe(arguments.recipe)
    recipe = replace(recipe, epochs=arguments.epochs or recipe.epochs)
    form = arguments.form or next(iter(FORMS))
    outcome = train_for(recipe, data, folder, arguments.device, form, ended - time.monotonic() - GRACE, GRACE, arguments.teacher)
    return f'{form}: {outcome}', pack(folder, arguments.out / 'run')


def train_for(recipe, data: Path, folder: Path, device: str, form: str, seconds: float, grace: float, teacher: str | None = None) -> str:
    """Train in a process of its own to the last whole epoch that fits; a process that takes longer is ended within its epoch."""
    process = get_context('spawn').Process(target=_train, args=(recipe, data, folder, device, form, time.monotonic() + seconds, teacher))
    process.start()
    process.join(max(seconds, 0) + grace)
    late = process.is_alive()
    process.kill()
    process.join()
    epochs = len(_log(folder))
    done = f'{epochs} of {recipe.epochs} epochs'
    if epochs == recipe.epochs and not (folder / 'card.json').exists():
        return f'{done}, its checkpoint is not written; train again to finish it'
    return f'{done}, stopped within one' if late else done + f', ended with {process.exitcode}' * bool(process.exitcode)


def _train(recipe, data: Path, folder: Path, device: str, form: str, deadline: float, teacher: str | None) -> None:
    from igczoo.inference.classifier import load
    from igczoo.training import forms
    from igczoo.training.train import train
    name, compiled = FORMS[form]
    minutes = (deadline - time.monotonic()) / 60    # the start of this process has taken some
    train(recipe, data, folder, device, getattr(forms, name), bf16=True, compile=compiled, minutes=minutes,
          teacher=load(teacher) if teacher else None)


def _log(folder: Path) -> list[dict[str, str]]:
    file = folder / 'log.csv'
    return list(csv.DictReader(io.StringIO(file.read_text(encoding='utf-8')))) if file.exists() else []


def pack(folder: Path, out: Path) -> str:
    """The run in pieces, without what its teacher has said, and its log."""
    rows, said = _log(folder), {file.name for file in folder.glob('teacher-*.npy')}
    if not rows:
        return 'No epoch is whole; there is nothing to bring home.\n'
    is_large = sum(file.stat().st_size for file in folder.iterdir() if file.name not in said) > RUN_MIB << 20
    stays = ('checkpoint.pt',) if is_large and (folder / 'card.json').exists() else ()
    count = split(folder, out, 16, (*stays, *said))
    lines = [tuple(rows[0]), ('---:',) * len(rows[0]), *(tuple(row.values()) for row in rows)]
    return (f'{count} pieces{", without " + stays[0] + ", for which there is no room" if stays else ""}; at home '
            f'`python benchmarks/gpu.py --join {out.name} runs/{folder.name}`\n\n{_table(lines)}')


# The visit ----------------------------------------------------------------------------------------------------------------------------

def visit(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    if lacking := missing():
        raise ValueError(f'this machine lacks {", ".join(lacking)}; bring wheels, or set the path')
    import torch

    from igczoo.deployment.placement import check_placement
    from igczoo.files import replacing
    from igczoo.training.recipes import find_recipe, teacher_fault
    check_placement(arguments.device, torch.bfloat16)
    recipe = find_recipe(arguments.recipe)
    if arguments.data and (fault := teacher_fault(recipe, arguments.teacher is not None)):
        raise ValueError(f'{arguments.recipe}: {fault}')
    arguments.out.mkdir(parents=True, exist_ok=True)
    if any(arguments.out.iterdir()):
        raise ValueError(f'{arguments.out}: is not empty; name another folder for the report')
    rows, texts = [('part', 'minutes given', 'taken', 'outcome'), ('---', '---:', '---:', '---')], []
    for name, part, minutes in (('tests', run_tests, arguments.tests), ('inference', run_inference, arguments.inference),
                                ('steps', run_steps, arguments.steps), ('training', run_training, math.inf if arguments.data else 0)):
        started = time.monotonic()
        seconds = min(60 * minutes, 60 * arguments.minutes + began - started)
        if minutes == 0:
            continue
        try:
            outcome, text = part(arguments, seconds)
        except (ValueError, OSError) as error:
            outcome, text = str(error), ''
        rows.append((name, f'{seconds / 60:.1f}', f'{(time.monotonic() - started) / 60:.1f}', outcome))
        texts.append(f'\n## {name.capitalize()}\n{text}' if text else '')
        with replacing(arguments.out / 'report.md') as file:
            file.write_text(f'# A visit to a GPU\n{machine(arguments.device)}\n\n{_table(rows)}{"".join(texts)}', encoding='utf-8')
        print(f'{name}: {outcome}', flush=True)


def machine(device: str) -> str:
    import torch

    from igczoo.deployment.bench import host
    text = f'{host(device)}, Python {sys.version.split()[0]}, {os.cpu_count()} processors'
    if torch.device(device).type == 'cuda':
        memory = torch.cuda.get_device_properties(device).total_memory
        text += f'; {memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--split', nargs=2, type=Path, metavar=('FOLDER', 'PIECES'))
    what.add_argument('--join', nargs=2, type=Path, metavar=('PIECES', 'FOLDER'))
    what.add_argument('--out', type=Path, help='an empty folder for the report and the run')
    parser.add_argument('--mib', type=int, default=40, choices=range(1, 61), metavar='N', help='of a piece, 1 to 60 (default: 40)')
    parser.add_argument('--minutes', type=float, default=9, help='for everything (default: %(default)s)')
    parser.add_argument('--tests', type=float, default=1, metavar='MINUTES', help='(default: %(default)s)')
    parser.add_argument('--inference', type=float, default=2.5, metavar='MINUTES', help='(default: %(default)s)')
    parser.add_argument('--steps', type=float, default=2.5, metavar='MINUTES', help='of training, in every form (default: %(default)s)')
    parser.add_argument('--data', type=Path, help='what to train on: pieces, or a data set; without it nothing is trained')
    parser.add_argument('--recipe', default='tinyimagenet_igcnet18')
    parser.add_argument('--teacher', metavar='MODEL', help='for recipes that have one, as for igczoo train')
    parser.add_argument('--epochs', type=int, help='other than the recipe says')
    parser.add_argument('--form', choices=FORMS, help='to train in (default: the fastest measured, else the first)')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[64, 256], help='of inference (default: 64 256)')
    parser.add_argument('--batch-size', type=int, default=128, help='of training steps (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='of inference, and a quarter of those of steps (default: %(default)s)')
    parser.add_argument('--device', default='cuda')
    arguments = parser.parse_args()
    try:
        if arguments.split:
            print(f'{split(*arguments.split, arguments.mib)} pieces in {arguments.split[1]}')
        elif arguments.join:
            join(*arguments.join)
        else:
            visit(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f'gpu.py: {error}')


if __name__ == '__main__':
    main()
