"""`igczoo batch` beside `igczoo classify`, and what an image costs it as there are more of them: time and memory.

    python benchmarks/batch.py DATA.parquet [--model igc_resnet20_l24m2] [--workers 2] [--compare 4000] [--counts 1000 10000 100000]

DATA.parquet has a column image (bytes, path). Of its images, --compare are written as files, for both commands to classify; of each count,
as many rows are written as a Parquet file, for `igczoo batch`. Time is that of the whole command; "steady" is between the first part of
each worker and the last part. Memory is the largest sum over the command's processes, pages that several of them share counted once, and
the largest of a process that classifies.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path)
    parser.add_argument('--model', default='igc_resnet20_l24m2')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--part-size', type=int, default=250)
    parser.add_argument('--compare', type=int, default=4000)
    parser.add_argument('--counts', type=int, nargs='*', default=[1000, 10_000, 100_000])
    arguments = parser.parse_args()
    batch = ['batch', '--workers', str(arguments.workers), '--part-size', str(arguments.part_size)]
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        if arguments.compare:
            photos = write_files(arguments.data, arguments.compare, root / 'photos')
            for command in (['classify'], [*batch, '-o', str(root / 'of-photos')]):
                report(f'{command[0]}, {arguments.compare:,} files', arguments.compare, *run(arguments.model, photos, *command))
            report_steady(root / 'of-photos', arguments)
        for count in arguments.counts:
            out = root / f'of-{count}'
            rows = write_rows(arguments.data, count, root / f'{count}.parquet')
            report(f'batch, {count:,} rows', count, *run(arguments.model, rows, *batch, '-o', str(out)))
            report_steady(out, arguments)


def write_files(data: Path, count: int, folder: Path) -> Path:
    folder.mkdir()
    for number, row in enumerate(pq.read_table(data, columns=['image']).slice(0, count).to_pylist()):
        (folder / f'{number:06}.jpg').write_bytes(row['image']['bytes'])
    return folder


def write_rows(data: Path, count: int, file: Path) -> Path:
    table = pq.read_table(data)
    assert len(table) >= count, f'{data} has {len(table)} rows'
    pq.write_table(table.slice(0, count), file, row_group_size=2000, compression='zstd')
    return file


def run(model: str, data: Path, *command: str) -> tuple[float, int, int]:
    """Seconds, and bytes of memory: of all its processes together, and of the largest that classifies."""
    started = time.perf_counter()
    words = [sys.executable, '-m', 'igczoo', command[0], str(data), '--model', model, '--json', *command[1:]]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    together = largest = 0
    while process.poll() is None:
        sizes = memory(process.pid)
        workers = [size for line, size in sizes if b'MapWorker' in line] or [size for _, size in sizes[:1]]
        together, largest = max(together, sum(size for _, size in sizes)), max(largest, *workers, 0)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
    if process.returncode:
        sys.exit(f'{words} ended with {process.returncode}')
    return time.perf_counter() - started, together, largest


def memory(root: int) -> list[tuple[bytes, int]]:
    """The command line and the proportional set size in bytes of a process and of its descendants."""
    parents, found = {}, []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(')')[2].split()[1])
        except OSError:     # it has ended
            continue
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
        try:
            rollup = Path(f'/proc/{pid}/smaps_rollup').read_text()
            found.append((Path(f'/proc/{pid}/cmdline').read_bytes(), 1024 * int(rollup.partition('\nPss:')[2].split()[0])))
        except (OSError, IndexError):
            continue
    return found


def report(what: str, count: int, seconds: float, together: int, largest: int) -> None:
    print(f'{what:24} {seconds:7.1f} s  {1000 * seconds / count:7.2f} ms an image  {count / seconds:7.0f} images/s  '
          f'{together / 2**20:6.0f} MiB together  {largest / 2**20:6.0f} MiB a worker', flush=True)


def report_steady(out: Path, arguments: argparse.Namespace) -> None:
    """From the times at which parts were written."""
    times = sorted(part.stat().st_mtime for part in out.glob('part-*.parquet'))
    counted = times[arguments.workers:]
    if counted:
        seconds = counted[-1] - times[arguments.workers - 1]
        images = sum(pq.read_metadata(part).num_rows for part in out.glob('part-*.parquet')) - arguments.workers * arguments.part_size
        print(f'{"  steady":24} {seconds:7.1f} s  {1000 * seconds / images:7.2f} ms an image  {images / seconds:7.0f} images/s', flush=True)


if __name__ == '__main__':
    main()
