"""The evaluation images of a Parquet data set whose very bytes do not stand in its training split, as a data set for `igczoo evaluate`.

    python benchmarks/unseen.py DATA OUT && igczoo evaluate igcnet18 --data OUT
"""
import argparse
import hashlib
from pathlib import Path

import pyarrow.parquet as pq

from igczoo.training.images import open_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder with train-*.parquet and one val-*.parquet')
    parser.add_argument('out', type=Path, help='folder for the file of the images left')
    arguments = parser.parse_args()
    seen, found = (
        [hashlib.sha256(image.as_py()).digest() for images in open_split(arguments.data, train).encoded for image in images]
        for train in (True, False))
    known = set(seen)
    unseen = [number for number, digest in enumerate(found) if digest not in known]
    [file] = arguments.data.glob('val-*.parquet')
    arguments.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pq.read_table(file).take(unseen), arguments.out / file.name)
    print(f'{len(unseen)} of {len(found)} evaluation images are not among the {len(seen)} training images')


if __name__ == '__main__':
    main()
