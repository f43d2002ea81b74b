"""Whether photographs that are decoded smaller are called what they are called at full size: one Markdown table, a row for each margin.

    python benchmarks/smaller_decoding.py DATA [DATA ...] [--models igcnet18] [--count 100] [--megapixels 0.2 2 12] [--margins 1 2 3 4]

Photographs are made of small ones of DATA, data sets as `igczoo evaluate` takes, each enlarged with texture laid over it, cropped to
various shapes and saved as JPEG of various qualities and subsamplings.
"""
import argparse
import io
import random

import numpy as np
import torch
from PIL import Image

import igczoo
from igczoo.inference import photograph
from igczoo.training.images import open_split

ASPECTS = 1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16
QUALITIES, SUBSAMPLINGS = (50, 75, 85, 90, 95), (0, 1, 2)


def enlarge(image: Image.Image, megapixels: float, aspect: float, rng: np.random.Generator) -> Image.Image:
    """A photograph of so many pixels, with the fine texture of the small one laid over it at its own scale, and grain."""
    width = round((megapixels * 1e6 * aspect) ** .5)
    height = round(width / aspect)
    across = min(image.width, image.height * aspect)
    left, top = (image.width - across) / 2, (image.height - across / aspect) / 2
    large = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + across, top + across / aspect)), np.int16)
    blurred = image.reduce(4).resize(image.size, Image.Resampling.BICUBIC)
    texture = np.asarray(image, np.int16) - np.asarray(blurred, np.int16)
    texture = np.tile(texture, (-(-height // image.height), -(-width // image.width), 1))[:height, :width]
    return Image.fromarray((large + texture // 3 + rng.integers(-5, 6, (height, width, 1), np.int16)).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', nargs='+')
    parser.add_argument('--models', nargs='+', default=['igcnet18'])
    parser.add_argument('--count', type=int, default=100, help='photographs of each data set and size')
    parser.add_argument('--megapixels', type=float, nargs='+', default=[.2, 2, 12])
    parser.add_argument('--margins', type=float, nargs='+', default=[1, 2, 3, 4])
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    classifiers, draw = [igczoo.load(name) for name in arguments.models], random.Random(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    print('| net | megapixels | margin | photographs | of them decoded smaller | top-1 equal | largest difference of a score |')
    print('| --- | ---: | ---: | ---: | ---: | ---: | ---: |')
    for megapixels in arguments.megapixels:
        rows = {}
        for data in arguments.data:
            dataset = open_split(data, train=False)
            for row in draw.sample(range(len(dataset)), arguments.count):
                large, file = enlarge(dataset[row][0], megapixels * draw.uniform(.7, 1.3), draw.choice(ASPECTS), rng), io.BytesIO()
                large.save(file, 'JPEG', quality=draw.choice(QUALITIES), subsampling=draw.choice(SUBSAMPLINGS))
                whole = photograph.open_image(file.getvalue())
                for classifier, name in zip(classifiers, arguments.models, strict=True):
                    opened = [whole]
                    for margin in arguments.margins:
                        photograph.MARGIN = margin
                        opened.append(photograph.open_image(file.getvalue(), classifier.fit))
                    expected, *found = classifier.logits(torch.stack([classifier.preprocess(image) for image in opened])).softmax(1)
                    for margin, image, scores in zip(arguments.margins, opened[1:], found, strict=True):
                        equal, difference = scores.argmax() == expected.argmax(), (scores - expected).abs().max()
                        rows.setdefault((name, margin), []).append((image.size != whole.size, equal.item(), difference.item()))
        for (name, margin), results in rows.items():
            smaller, equal, differences = zip(*results, strict=True)
            print(f'| {name} | {megapixels:g} | {margin:g} | {len(results)} | {sum(smaller)} | {sum(equal)} | '
                  f'{max(differences):.3f} |', flush=True)


if __name__ == '__main__':
    main()
