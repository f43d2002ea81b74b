"""Photographs from files to labels: igczoo beside its former self, and transformers' pipeline and timm's loader with timm's resnet18.

    python benchmarks/end_to_end.py [--former COMMIT] [--megapixels 0.2 2 12] [--rounds 3]

Photographs are made of those in examples/, enlarged, with grain. Every figure is of a process of its own, without its start and the loading
of the net; the processes take turns. Prints one Markdown table: images a second, median (range), the cores' milliseconds for each, which
other work on the machine changes little, and the main process's peak memory.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from igczoo.deployment.bench import host

ROOT = Path(__file__).parents[1]
COUNTS = {.2: 96, 2: 48, 12: 24}    # photographs
START = """
import json, os, sys, time
from pathlib import Path
folder = sys.argv[1]
files = sorted(map(str, Path(folder).rglob('*.jpg')))
def report(run):
    run(files[:1])
    times = []
    for some in (files[:1], files):
        began, busy = time.perf_counter(), sum(os.times()[:4])      # the cores' seconds, those of ended children too
        run(some)
        times.append((time.perf_counter() - began, sum(os.times()[:4]) - busy))
    seconds, busy = ((whole - one) / (len(files) - 1) for one, whole in zip(*times))
    peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))
    print(json.dumps(dict(speed=1 / seconds, busy=1000 * busy, peak=int(peak) / 1024)))
"""
IGCZOO = START + """
import igczoo
classifier = igczoo.load('igcnet18', deploy=True)
report(lambda some: list(classifier.classify_each(some, k=1)))
"""
TRANSFORMERS = START + """
import transformers
transformers.logging.set_verbosity_error()
classify = transformers.pipeline('image-classification', model=sys.argv[2], device='cpu')
report(lambda some: classify(some, batch_size=8))
"""
TIMM = START + """
import timm, torch
from timm.data import ImageDataset, create_loader
net = timm.create_model('local-dir:' + sys.argv[2], pretrained=True).eval()
def run(some):
    dataset = ImageDataset(folder)
    dataset.reader.samples = dataset.reader.samples[:len(some)]
    with torch.inference_mode():
        for x, _ in create_loader(dataset, (3, 224, 224), 8, num_workers=torch.get_num_threads(), use_prefetcher=False, crop_pct=.95):
            net(x).softmax(1).topk(5)
report(run)
"""


def make_photographs(folder: Path, megapixels: float) -> None:
    """Copies of each example: a 4:3 crop, enlarged, with grain, saved at quality 90."""
    width = round((megapixels * 4e6 / 3) ** .5)
    size, examples = (width, round(width * 3 / 4)), sorted((ROOT / 'examples').glob('*.jpg'))
    (folder / 'photographs').mkdir(parents=True)
    for number, example in enumerate(examples):
        with Image.open(example) as image:
            box = (0, image.height / 8, image.width, image.height * 7 / 8)
            large = np.asarray(image.convert('RGB').resize(size, Image.Resampling.LANCZOS, box), np.float32)
        large = large + np.random.default_rng(number).normal(0, 3, (*large.shape[:2], 1)).astype(np.float32)
        for copy in range(COUNTS.get(megapixels, 24) // len(examples)):
            path = folder / 'photographs' / f'{example.stem}_{copy}.jpg'
            if copy == 0:
                first = path
                Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(path, quality=90)
            else:
                path.write_bytes(first.read_bytes())


def save_resnet18(folder: Path) -> None:
    """timm's resnet18 of random weights, as a checkpoint folder."""
    import timm
    timm.models.save_for_hf(timm.create_model('resnet18'), str(folder), safe_serialization=True)
    config = json.loads((folder / 'config.json').read_text())
    del config['model_args']        # transformers gives the number of classes itself
    (folder / 'config.json').write_text(json.dumps(config))


def export_commit(commit: str, folder: Path) -> Path:
    """The package as it was."""
    folder.mkdir()
    archive = subprocess.run(['git', 'archive', commit, 'igczoo', 'weights'], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(['tar', '-x', '-C', folder], input=archive, check=True)
    return folder


def measure(code: str, package: Path, *arguments: Path) -> dict[str, float]:
    environment = os.environ | dict(PYTHONPATH=str(package), HF_HUB_OFFLINE='1')
    command = [sys.executable, '-c', code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True)    # Python looks in cwd first
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--former', help='a commit of this repository to compare with')
    parser.add_argument('--megapixels', type=float, nargs='+', default=list(COUNTS))
    parser.add_argument('--rounds', type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        save_resnet18(folder / 'resnet18')
        contenders = {'igczoo, igcnet18 at 96 pixels': (IGCZOO, ROOT)}
        if arguments.former:
            contenders[f'the same at {arguments.former}'] = IGCZOO, export_commit(arguments.former, folder / 'former')
        contenders["transformers' pipeline, timm resnet18 at 224 pixels"] = TRANSFORMERS, ROOT
        contenders["timm's loader, timm resnet18 at 224 pixels"] = TIMM, ROOT
        for megapixels in arguments.megapixels:
            make_photographs(folder / f'{megapixels:g}', megapixels)
        found: dict[tuple[str, float], list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for megapixels in arguments.megapixels:
                for name, (code, package) in contenders.items():
                    result = measure(code, package, folder / f'{megapixels:g}', folder / 'resnet18')
                    found.setdefault((name, megapixels), []).append(result)
        print(f'{host("cpu")}. Images a second: median (range) of {arguments.rounds} rounds; core milliseconds an image; memory.\n')
        print('|', ' | '.join(['', *(f'{megapixels:g} megapixels' for megapixels in arguments.megapixels)]), '|')
        print('| ---', '| ---:' * len(arguments.megapixels), '|')
        for name in contenders:
            print('|', ' | '.join([name, *(cell(found[name, megapixels]) for megapixels in arguments.megapixels)]), '|')


def cell(results: list[dict[str, float]]) -> str:
    speeds = [result['speed'] for result in results]
    busy, peak = (median(result[key] for result in results) for key in ('busy', 'peak'))
    return f'{median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f}), {busy:.0f} ms, {peak:,.0f} MiB'


if __name__ == '__main__':
    main()
