"""The command line: a few lines a command over the functions of the same names.

Exit status 0; 1 for an error, also of one photograph among others or one copy of wrong bytes; 2 for a wrong call; 130 when interrupted.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from . import __version__
from .checkpoints.card import Card, cards, find_card, list_models, read_card
from .pages import card_list, card_page, evaluation_page

if TYPE_CHECKING:
    from .checkpoints.store import Copy
    from .inference.labelling import Labeller
    from .inference.outputs import Output

__all__ = ['main']

DEFAULT_MODEL = 'igcnet18'


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:      # closed by the caller: whatever file is opened next would get its number
            return 1
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')       # a name that the terminal cannot show
    arguments = _parser().parse_args(argv)
    try:
        status = arguments.run(arguments) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:     # of `igczoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or Python complains at its end
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f'igczoo {arguments.command}: {_message(error)}', file=sys.stderr)
        return 1


def _message(error: Exception) -> str:
    """The error's, of a file after its name; of two files, that of the one written to."""
    name = isinstance(error, OSError) and error.strerror and (error.filename2 or error.filename)
    return f'{name}: {error.strerror}' if name else str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='igczoo', description='Interleaved Group Convolution networks with verified weights.')
    parser.add_argument('--version', action='version', version=f'igczoo {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name: str, run, summary: str, *examples: str) -> argparse.ArgumentParser:
        lines = '\n'.join(f'  igczoo {name} {example}'.rstrip() for example in examples)
        sub = commands.add_parser(name, help=summary, description=summary, epilog=f'examples:\n{lines}',
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(run=run, wrong=sub.error)
        return sub

    def add_batch_size(sub: argparse.ArgumentParser, default: int) -> None:
        sub.add_argument('--batch-size', type=_positive, default=default, help='images at a time (default: %(default)s)')

    def add_reading(sub: argparse.ArgumentParser) -> None:
        sub.add_argument('--workers', type=_count, help='threads that open photographs and compute (default: one per core, 16 at most)')
        sub.add_argument('--exact', action='store_true', help='decode every pixel also of large JPEG files, which takes longer')

    def add_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument('--json', action='store_true', help='print JSON')

    def add_device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument('--device', default='cpu', help='where to compute, such as cpu or cuda (default: %(default)s)')

    def add_model(sub: argparse.ArgumentParser) -> None:
        sub.add_argument('--model', default=DEFAULT_MODEL,
                         help='a name of igczoo list, with or without its tag, a folder or hf-hub:org/name (default: %(default)s)')

    def add_deploy(sub: argparse.ArgumentParser,
                   default: str = 'where it has one, for 16 images and more, and compiled for it only for 5,000 and more') -> None:
        sub.add_argument('--deploy', action=argparse.BooleanOptionalAction,
                         help=f'compute by the faster deployed form of the model (default: {default})')

    sub = command('list', _list, 'List the checkpoints.', '', '--json')
    add_json(sub)

    sub = command('info', _info, 'Say everything about a checkpoint: its card, and where copies of it are.', 'igcnet18', 'my_model')
    sub.add_argument('name', help='a name of igczoo list, with or without its tag, or a folder')
    add_json(sub)

    sub = command('classify', _classify, 'Say what photographs show.', 'bus.jpg', 'holiday/ -k 1 --json',
                  'holiday/ --csv labels.csv --save labelled/', '--model my_model bus.jpg')
    sub.add_argument('images', nargs='+', metavar='IMAGE', help='a file, a URL, or a folder of images')
    add_model(sub)
    sub.add_argument('-k', type=_positive, default=5, help='how many labels an image (default: %(default)s)')
    add_batch_size(sub, 8)
    add_reading(sub)
    add_device(sub)
    add_deploy(sub)
    sub.add_argument('--engine', choices=('torch', 'onnx'),
                     help="onnx: by ONNX Runtime (pip install 'igczoo[export]'), which for few photographs answers sooner; --model may be "
                          'an .onnx file of igczoo export then (default: onnx for such a file, else torch)')
    sub.add_argument('--csv', metavar='FILE', help='write a line for each image as it is done; - for standard output')
    sub.add_argument('--jsonl', metavar='FILE', help='likewise, one JSON object per line')
    sub.add_argument('--save', metavar='FOLDER', help='write the photographs with their labels drawn on, and contact sheets')
    add_json(sub)

    sub = command('batch', _batch, "Say what very many photographs show, with Ray, on a machine or a cluster (pip install 'igczoo[ray]').",
                  'photos/ -o results', 'photos.parquet -o results --model my_model -k 1', 'addresses.txt -o results --workers 8 --json')
    sub.add_argument('data', metavar='DATA', help='a folder of images; Parquet files or a folder of them, with a column image (bytes, '
                                                  'path); or a text or CSV file that lists paths or URLs')
    sub.add_argument('-o', '--out', required=True, metavar='FOLDER',
                     help='folder for Parquet files with a row for each image; after a call that was stopped, what is left is done')
    add_model(sub)
    sub.add_argument('-k', type=_positive, default=5, help='how many labels an image (default: %(default)s)')
    add_batch_size(sub, 32)
    sub.add_argument('--workers', type=_positive, help='processes that classify, which share the CPUs (default: one per CPU)')
    sub.add_argument('--retry', action='store_true', help='classify the images again that stand beside errors of a call before')
    sub.add_argument('--part-size', type=_positive, default=1000, help='images per file of results (default: %(default)s)')
    add_deploy(sub)
    add_json(sub)

    sub = command('explain', _explain, "Draw where the net looked (pip install 'igczoo[explain]').", 'bus.jpg -o heat.png',
                  '--model my_model --label church bus.jpg -o heat.png')
    sub.add_argument('image', metavar='IMAGE', help='a file or a URL')
    sub.add_argument('-o', '--out', required=True, metavar='FILE', help='picture to write: a .png, .jpg or .webp file')
    add_model(sub)
    sub.add_argument('--label', help='name or number of a class (default: the likeliest)')
    add_device(sub)
    add_json(sub)

    sub = command('demo', _demo, "Serve a page to drop photographs on (pip install 'igczoo[demo]').", '',
                  '--model my_model --model igcnet18 --examples photos/', '--model my_model --space my_space')
    sub.add_argument('--model', action='append', dest='models', metavar='NAME',
                     help='a name of igczoo list, a folder or hf-hub:org/name; may be given more than once, to choose from '
                          f'(default: {DEFAULT_MODEL})')
    sub.add_argument('--examples', metavar='FOLDER', help='photographs to click on')
    sub.add_argument('--host', default='127.0.0.1', help='address to listen on (default: %(default)s: this machine only)')
    sub.add_argument('--port', type=_port, help='(default: the first free one from 7860 on)')
    sub.add_argument('--space', metavar='FOLDER', help='serve nothing; write what a Space of the hub needs into a new folder')

    sub = command('verify', _verify, 'Read the weights of a checkpoint on this machine again, and compare their digests with the card.',
                  'igcnet18', 'my_model', '--all')
    names = sub.add_mutually_exclusive_group(required=True)
    names.add_argument('name', nargs='?', help='a name of igczoo list, with or without its tag, or a folder')
    names.add_argument('--all', action='store_true', help='every checkpoint that comes with igczoo')
    add_json(sub)

    sub = command('evaluate', _evaluate, 'Measure the accuracy on the evaluation split of a data set.',
                  'igcnet18 --data tiny-imagenet-200/', 'my_model --data other_photos/ --csv predictions.csv --report report/',
                  'my_model.onnx --data other_photos/')
    sub.add_argument('name', nargs='?', help='a name of igczoo list, a folder, hf-hub:org/name, or an .onnx file of igczoo export')
    sub.add_argument('--model', dest='model', help='NAME, given as an option')
    sub.add_argument('--csv', metavar='FILE', help='write a line for each image: its label, and the likeliest one with its score')
    sub.add_argument('--report', metavar='FOLDER', help="write a page with pictures (pip install 'igczoo[report]')")
    sub.add_argument('--data', required=True,
                     help='a folder of Parquet files, or one with test/ or val/ that has a folder for each class; or a Parquet file')
    add_batch_size(sub, 32)
    add_reading(sub)
    add_device(sub)
    add_deploy(sub, 'by the model as it is written')
    add_json(sub)

    sub = command('finetune', _finetune, 'Train a checkpoint further on your own photographs, or resume a run that was stopped.',
                  'igcnet18 --data photos/ -o my_model', 'igcnet18 --data photos.csv -o my_model --minutes 5',
                  'timm:resnet18 --scratch --data photos/ -o my_model')
    sub.add_argument('name', help="a name of igczoo list, a folder, hf-hub:org/name, or timm: and the name of one of timm's models")
    sub.add_argument('--data', required=True,
                     help='a folder of one folder a class, perhaps under train/ and val/; Parquet files; a CSV file with columns file, '
                          'label and perhaps split; or torchvision:NAME:ROOT')
    sub.add_argument('-o', '--out', required=True, metavar='FOLDER', help='folder to make: a checkpoint')
    length = sub.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=_positive, help='passes over the photographs (default: 30,000 / their number, within 5 and 100)')
    length.add_argument('--minutes', type=_above_zero, help='limit on reading, training and measuring together')
    sub.add_argument('--freeze', action='store_true', help='fit the classifier only')
    sub.add_argument('--scratch', action='store_true', help='start from random weights')
    sub.add_argument('--size', type=_positive,
                     help="pixels of the net's input (default: the checkpoint's, or up to twice as many, 160 at most, where the "
                          'photographs have them)')
    sub.add_argument('--seed', type=int, default=0, help='of the split, the order and the crops (default: %(default)s)')
    sub.add_argument('--device', help='where to compute (default: the first GPU, else the CPU)')
    add_json(sub)

    sub = command('train', _train, 'Train by a recipe, or resume a run that was stopped.',
                  'cifar10_igc_resnet20_l24m2 --data cifar10/ --bf16')
    sub.add_argument('recipe', help='its name; any other lists those there are')
    sub.add_argument('--data', required=True, help='a folder as for evaluate, with a training split too')
    sub.add_argument('--out', help='folder of the run (default: runs/RECIPE)')
    sub.add_argument('--epochs', type=_positive, help='other than the recipe says')
    sub.add_argument('--teacher', metavar='MODEL', help='for recipes that have one: a checkpoint of the same classes, as for classify')
    sub.add_argument('--device', help='where to compute (default: the first GPU, else the CPU)')
    sub.add_argument('--as-written', action='store_true', help='train the net as it is written, not by a faster form of equal results')
    sub.add_argument('--bf16', action='store_true', help='mixed precision, bfloat16')
    sub.add_argument('--compile', action='store_true', help='torch.compile the model')
    sub.add_argument('--minutes', type=_above_zero, help='end after the last whole epoch that fits; the same command resumes')
    sub.add_argument('--seed', type=int, default=0, help='of weights, order and augmentation (default: %(default)s)')

    sub = command('export', _export, 'Write the deployed form of a checkpoint for another engine, as ONNX or as a PyTorch program.',
                  'igcnet18 -o igcnet18.onnx', 'my_model -o my_model.pt2', 'my_model -o my_model.onnx --int8 --data photos/')
    sub.add_argument('name', nargs='?', help='a name of igczoo list, with or without its tag, a folder or hf-hub:org/name')
    sub.add_argument('--model', help='NAME, given as an option')
    sub.add_argument('-o', '--out', required=True, metavar='FILE', help="FILE.onnx, which needs pip install 'igczoo[export]', or FILE.pt2")
    sub.add_argument('--int8', action='store_true', help='weights and activations of eight bits, for ONNX Runtime; needs --data')
    sub.add_argument('--data', help='for --int8: a data set such as the checkpoint was trained on, as for finetune; 500 photographs of its '
                                    'training split are calibrated on and 500 compared')

    sub = command('bench', _bench, 'Time a model as it is written and in its faster forms, with random weights.',
                  'igcnet18', 'my_model --batch-size 1 --json')
    sub.add_argument('name', nargs='?', help='an architecture, or a folder for that of its checkpoint; any other name lists them')
    sub.add_argument('--model', help='NAME, given as an option')
    sub.add_argument('--size', type=_positive, help="height and width of the images in pixels (default: the model's)")
    sub.add_argument('--batch-size', type=_positive, nargs='+', default=[1, 8], metavar='N', help='images at a time (default: 1 8)')
    sub.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='(default: %(default)s)')
    sub.add_argument('--rounds', type=_positive, default=5, help='measurements of each form (default: %(default)s)')
    sub.add_argument('--compile', action='store_true', help='also by torch.compile, which takes minutes to build')
    add_device(sub)
    add_json(sub)

    sub = command('convert', _convert, "Convert an authors' MXNet checkpoint, or pytorchcv's, to a folder that timm and the hub take.",
                  'igcnet18.params --model igcnet18 -o converted', 'igcv3_w1-0920-12385791.pth --model igcv3_100 -o converted')
    sub.add_argument('file', help="a .params file, or a .pth file of pytorchcv's, unzipped")
    sub.add_argument('--model', required=True, help='its architecture; any other name lists those there are')
    sub.add_argument('-o', '--out', required=True, help='folder to write, which must not exist')

    sub = command('publish', _publish, 'Check a checkpoint and, with --upload, put it on the Hugging Face hub (HF_TOKEN).',
                  'my_model --to me', 'my_model --to me --upload')
    sub.add_argument('name', nargs='?', help='a folder, or arch.tag of this installation')
    sub.add_argument('--model', help='NAME, given as an option')
    sub.add_argument('--to', required=True, metavar='ORG', help='user or organisation on the hub')
    sub.add_argument('--upload', action='store_true', help='upload, fetch back, and write the commit into the card')
    add_json(sub)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no positive integer')
    return int(text)


def _port(text: str) -> int:
    if _positive(text) > 65535:
        raise argparse.ArgumentTypeError(f'{text!r} is no port; there are 1 to 65535')
    return int(text)


def _count(text: str) -> int:
    return 0 if text == '0' else _positive(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is no number above 0')
    return number


def _name(arguments: argparse.Namespace) -> str:
    """The checkpoint, given as an argument or by --model."""
    if bool(arguments.name) == bool(arguments.model):
        arguments.wrong('name one checkpoint: as the argument, or by --model')
    return arguments.name or arguments.model


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _print_json(value: Any) -> None:
    print(_json(value))


def _list(arguments: argparse.Namespace) -> None:
    found = [cards()[name] for name in list_models()]
    if arguments.json:
        return _print_json([dict(name=card.name, params=card.params, macs=card.macs, default=card.default) for card in found])
    print(card_list(found))


def _info(arguments: argparse.Namespace) -> None:
    card, copies = _copies(arguments.name)
    if arguments.json:
        found = [copy._replace(path=str(copy.path))._asdict() for copy in copies]
        return _print_json(asdict(card) | dict(name=card.name, copies=found))
    print(card_page(card, copies, min(get_terminal_size().columns, 100)))


def _copies(name: str, rehash: bool = False) -> tuple[Card, list[Copy]]:
    """The card of a checkpoint or in a folder, and the copies of its weights on this machine; ``rehash`` as for `store.locate`."""
    from .checkpoints.folder import CARD, WEIGHTS, resolve
    from .checkpoints.store import Copy, locate
    _, folder = resolve(name)
    if folder:
        card = read_card(folder / CARD)
        return card, [Copy.found('folder', folder / WEIGHTS, card.sha256, rehash)]
    card = find_card(name)
    return card, locate(card, rehash=rehash)


def _classify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .inference.outputs import as_dict
    from .inference.photograph import ImageError, find_images
    if [bool(arguments.json), arguments.csv == '-', arguments.jsonl == '-'].count(True) > 1:
        arguments.wrong('only one of --json, --csv - and --jsonl - can go to standard output')
    if arguments.csv and arguments.jsonl and os.path.realpath(arguments.csv) == os.path.realpath(arguments.jsonl):
        arguments.wrong('--csv and --jsonl name the same file')
    images = [str(file) for image in arguments.images for file in (find_images(image) if os.path.isdir(image) else [image])]
    classifier = _labeller(arguments, len(images))
    width = min(max(map(len, images)), 48)
    failed = 0
    said_there = '-' in (arguments.csv, arguments.jsonl)    # on standard output, in place of the table
    mixed = not (arguments.json or said_there) and sys.stdout.isatty()      # the labels and the bar, on one terminal
    hidden = True if mixed or len(images) <= arguments.batch_size else None
    with ExitStack() as stack:
        outputs = [stack.enter_context(output) for output in _outputs(arguments)]
        outcomes = stack.enter_context(closing(classifier.classify_each(images, arguments.k, arguments.batch_size, arguments.workers)))
        for number, (image, outcome) in enumerate(tqdm(outcomes, 'classify', len(images), disable=hidden)):
            for output in outputs:
                output.write(image, outcome)
            if isinstance(outcome, ImageError):
                failed += 1
                print(f'igczoo classify: {outcome}', file=sys.stderr)
            if arguments.json:
                text = _json(as_dict(image, outcome)).replace('\n', '\n ')     # as far in as in an array
                print(',' if number else '[', f' {text}', sep='\n', end='', flush=True)
            elif not isinstance(outcome, ImageError) and not said_there:
                for rank, (label, score, _) in enumerate(outcome):
                    print(f'{image if rank == 0 else "":{width}}  {score:7.2%}  {label}')
                sys.stdout.flush()
    if arguments.json:
        print('\n]')
    return 1 if failed else 0


def _labeller(arguments: argparse.Namespace, images: int) -> Labeller:
    """What classifies so many images: by PyTorch, or, without importing it, by ONNX Runtime."""
    exported = arguments.model.endswith('.onnx')
    if arguments.engine == 'torch' or not (arguments.engine or exported):
        from .inference.classifier import deployed_as_asked, load
        return deployed_as_asked(load(arguments.model, arguments.device, exact=arguments.exact), arguments.deploy, images)
    from .inference.onnx import OnnxClassifier, cached_export

    def say() -> None:
        print(f'igczoo classify: exporting {arguments.model} for ONNX Runtime, once', file=sys.stderr, flush=True)

    _refuse_what_onnx_cannot(arguments)
    path = arguments.model if exported else cached_export(arguments.model, say)
    return OnnxClassifier(path, arguments.exact, threads=1 if images > 1 else 0)


def _refuse_what_onnx_cannot(arguments: argparse.Namespace) -> None:
    if arguments.device != 'cpu' or arguments.deploy is False:
        arguments.wrong('ONNX Runtime computes the deployed form, on the CPU; leave out --device and --no-deploy')


def _outputs(arguments: argparse.Namespace) -> Iterator[Output]:
    """What else `classify` writes, opened one by one."""
    from .inference.outputs import CsvOutput, JsonLinesOutput, PictureOutput
    if arguments.save:          # the only one that refuses what is there already: before the others begin theirs anew
        yield PictureOutput(arguments.save)
    if arguments.csv:
        yield CsvOutput(arguments.csv, arguments.k)
    if arguments.jsonl:
        yield JsonLinesOutput(arguments.jsonl)


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import serve, write_space
    models = arguments.models or [DEFAULT_MODEL]
    if not arguments.space:
        return serve(models, arguments.examples, arguments.host, arguments.port)
    for file in write_space(arguments.space, models, arguments.examples):
        print(file)


def _batch(arguments: argparse.Namespace) -> int:
    from .inference.batch import classify_all
    done = classify_all(arguments.model, arguments.data, arguments.out, arguments.k, arguments.batch_size, arguments.workers,
                        arguments.deploy, arguments.part_size, arguments.retry)
    status = 1 if done.errors == done.images else 0     # not one was opened
    if arguments.json:
        _print_json(asdict(done))
        return status
    found = f'{done.out}: {done.images:,} images, {done.errors:,} of them errors'
    if not done.classified:
        print(f'{found}; all had been done before')
        return status
    before = f', {done.images - done.classified:,} done before' if done.images > done.classified else ''
    print(f'{found}{before}; {done.images_per_second:,.1f} images/s, workers: {done.workers}, CPUs of each: {done.cpus}, machines: '
          f'{done.machines}')
    return status


def _verify(arguments: argparse.Namespace) -> int:
    checked = [_copies(name, rehash=True) for name in (list_models() if arguments.all else [arguments.name])]
    copies = [dict(name=card.name, source=copy.source, path=str(copy.path), state=copy.state)
              for card, found in checked for copy in found if copy.state != 'absent' or copy.source == 'folder']
    if arguments.json:
        _print_json(copies)
    else:
        for copy in copies:
            print(f'{copy["state"]:12}  {copy["name"]}  {copy["source"]}  {copy["path"]}')
        for name in sorted({card.name for card, _ in checked} - {copy['name'] for copy in copies}):
            print(f'{"not here":12}  {name}')
    return 1 if any(copy['state'] != 'ok' for copy in copies) else 0


def _explain(arguments: argparse.Namespace) -> None:
    from .inference.classifier import load
    from .inference.explain import check_picture
    check_picture(arguments.out)        # before anything is computed
    explanation = load(arguments.model, arguments.device).explain(arguments.image, arguments.label)
    explanation.save(arguments.out)
    label, score, index = explanation.prediction
    if arguments.json:
        return _print_json(dict(image=arguments.image, picture=arguments.out, label=label, score=score, index=index))
    print(f'{arguments.out}: where {score:.2%} {label} comes from')


def _evaluate(arguments: argparse.Namespace) -> None:
    from .inference.classifier import load
    from .inference.onnx import OnnxClassifier
    from .training.evaluate import evaluate_set
    from .training.images import open_split
    from .training.report import check_predictions, check_report, write_predictions, write_report
    name = _name(arguments)
    if arguments.report:        # before anything is computed
        check_report(arguments.report)
    if arguments.csv and Path(arguments.csv).parent != Path(arguments.report or arguments.csv):     # the report's folder will be there
        check_predictions(arguments.csv)
    if exported := name.endswith('.onnx'):
        _refuse_what_onnx_cannot(arguments)
    dataset = open_split(arguments.data, train=False)
    if exported:
        classifier = OnnxClassifier(name, arguments.exact, threads=1)
    else:
        classifier = load(name, arguments.device, deploy=bool(arguments.deploy), exact=arguments.exact)
    result = evaluate_set(classifier, dataset, arguments.data, arguments.batch_size, arguments.workers)
    if arguments.json:
        _print_json({key: value for key, value in asdict(result).items() if key != 'guesses'})
    else:
        print(evaluation_page(name, result), flush=True)
    if arguments.report:
        page = write_report(arguments.report, result, dataset, f'{name} on {result.accuracy.dataset}')
    if arguments.csv:
        write_predictions(arguments.csv, result)
    if not arguments.json:
        for path in filter(None, (arguments.csv, page if arguments.report else None)):
            print(f'written: {path}')


def _finetune(arguments: argparse.Namespace) -> None:
    from .checkpoints.folder import folder_card
    from .training.finetune import finetune
    finetune(arguments.name, arguments.data, arguments.out, epochs=arguments.epochs, minutes=arguments.minutes, freeze=arguments.freeze,
             size=arguments.size, seed=arguments.seed, pretrained=not arguments.scratch, device=arguments.device)
    card = folder_card(arguments.out)
    if arguments.json:
        return _print_json(asdict(card) | dict(name=card.name))
    if not card.accuracy:
        return print(f'{arguments.out}: there was one photograph a class, and none left to measure by')
    accuracy = card.accuracy[0]
    low, high = accuracy.top1_interval
    print(f'{arguments.out}: top-1 {accuracy.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}) of {accuracy.n} photographs that it was '
          f'not trained on\nNow: igczoo classify --model {arguments.out} PHOTOGRAPH')


def _train(arguments: argparse.Namespace) -> None:
    from .inference.classifier import load
    from .training.forms import as_written, training_form
    from .training.recipes import find_recipe, teacher_fault
    from .training.train import train
    recipe = find_recipe(arguments.recipe)
    if arguments.epochs:
        recipe = replace(recipe, epochs=arguments.epochs)
    out = arguments.out or f'runs/{arguments.recipe}'
    if fault := teacher_fault(recipe, arguments.teacher is not None):
        arguments.wrong(f'{arguments.recipe}: {fault}')
    teacher = load(arguments.teacher) if arguments.teacher else None
    last = train(recipe, arguments.data, out, device=arguments.device, form=as_written if arguments.as_written else training_form,
                 bf16=arguments.bf16, compile=arguments.compile, seed=arguments.seed, minutes=arguments.minutes, teacher=teacher)[-1]
    to_come = '' if last['epoch'] == recipe.epochs else '; give the command again to go on'
    if int(os.environ.get('RANK', 0)) == 0:     # of the processes that torchrun started
        print(f'{out}: top-1 {last["top1"]:.2f} %, top-5 {last["top5"]:.2f} % after {last["epoch"]} of {recipe.epochs} epochs{to_come}')


def _export(arguments: argparse.Namespace) -> None:
    from .deployment.export import check_target, export
    from .inference.classifier import load
    name = _name(arguments)
    if arguments.int8 != bool(arguments.data):
        arguments.wrong('--int8 and --data go together: photographs to calibrate on')
    if arguments.int8:
        return _export_int8(name, arguments.out, arguments.data)
    check_target(arguments.out)     # before minutes of loading
    deviation = export(load(name), arguments.out)
    print(f"{arguments.out}: its logits differ from PyTorch's by at most {deviation:.0e} of their spread")


def _export_int8(name: str, out: str, data: str) -> None:
    from .deployment.quantize import check_int8_target, export_int8
    from .inference.classifier import load
    from .training.calibration import calibration_batches
    check_int8_target(out)
    classifier = load(name)
    found = export_int8(classifier, out, *calibration_batches(classifier, data))
    print(f'{out}: {found.size / 1e6:.1f} MB, {found.float_size / 1e6:.1f} MB in float32; of {found.images} photographs that it was not '
          f'calibrated on, {found.equal} are called what float32 calls them')


def _bench(arguments: argparse.Namespace) -> None:
    import timm
    import torch

    from .checkpoints.folder import folder_card
    from .deployment.bench import bench, host, ratio, table
    name, size = _name(arguments), arguments.size
    is_architecture = '.' not in name and timm.is_model(name)       # a folder may be called so too
    if not is_architecture and (card := folder_card(name)):
        name, size = card.model, size or card.preprocess.input_size[-1]
    try:
        timings = bench([name], size, arguments.batch_size, [getattr(torch, arguments.dtype)], arguments.device, arguments.compile,
                        rounds=arguments.rounds)
    except AssertionError as error:     # of timm's nets that take images of one size only
        raise ValueError(f'{name}: {error}') from None
    if arguments.json:
        forms = [asdict(timing) | dict(images_per_second=timing.images_per_second, ratio=ratio(timing, timings)) for timing in timings]
        return _print_json(dict(host=host(arguments.device), timings=forms))
    height, width = timings[0].size
    print(f'{host(arguments.device)}: images of {height} x {width} pixels a second, median (range), against the faster plain form\n'
          f'{table(timings)}')
    for timing in timings:
        if timing.layers:
            counts = ', '.join(f'{count} {form}' for form, count in Counter(timing.layers.values()).items())
            print(f'{timing.form}, {timing.setting}: IGC layers {counts}')


def _convert(arguments: argparse.Namespace) -> None:
    from .checkpoints.convert import convert_folder
    print(f'{convert_folder(arguments.file, arguments.model, arguments.out)}: load it by igczoo.load or timm\'s local-dir:')


def _publish(arguments: argparse.Namespace) -> None:
    from .checkpoints.publish import publish
    publication = publish(_name(arguments), arguments.to, dry_run=not arguments.upload)
    if arguments.json:
        return _print_json(asdict(publication))
    for file in publication.files:
        print(f'{file.name:18} {file.size:12,} bytes  sha256 {file.sha256}')
    done = f'uploaded and verified at {publication.revision}' if publication.revision else 'nothing is uploaded without --upload'
    print(f'{publication.repo}: {done}')


if __name__ == '__main__':
    sys.exit(main())
