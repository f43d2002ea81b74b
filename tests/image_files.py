"""Small photographs, as files and as rows of Parquet files, and a net that is quick on them."""
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MODEL = 'igc_resnet20_l24m2'


def photograph(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).resize((32, 32)).save(file, 'PNG')
    return file.getvalue()


def write_files(folder: Path, count: int, first: int = 0) -> list[str]:
    for number in range(first, first + count):
        file = folder / 'abc'[number % 3] / f'{number}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photograph(number))
    return sorted(map(str, folder.rglob('*.png')))


def write_rows(file: Path, images: list[bytes | None], rows_a_group: int = 4) -> None:
    column = pa.array([dict(bytes=image, path=None) for image in images], pa.struct(dict(bytes=pa.binary(), path=pa.string())))
    pq.write_table(pa.table(dict(image=column, label=range(len(images)))), file, row_group_size=rows_a_group)
