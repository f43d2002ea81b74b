"""Files of random values that stand in for others' checkpoints, which no test can fetch, and cards that pin those."""
import dataclasses
import hashlib
import io
import zipfile
from typing import Any
from urllib.parse import urlsplit

import torch
from hub_server import HubServer
from params_files import synthetic_params, write_params

from igczoo.checkpoints.card import Card, cards
from igczoo.nets.families import build

PYTORCHCV = {'igcv3_100': 'igcv3_w1', 'igcv3_075': 'igcv3_w3d4', 'igcv3_050': 'igcv3_wd2', 'igcv3_025': 'igcv3_wd4'}
PARTS = {'expand': 'conv1.conv', 'bn1': 'conv1.bn', 'depthwise': 'conv2.conv', 'bn2': 'conv2.bn', 'project': 'conv3.conv',
         'bn3': 'conv3.bn'}


def stand_in(server: HubServer, name: str, fmt: str = 'LEGACY') -> tuple[Card, dict[str, Any]]:
    """Serve random weights at the path of a checkpoint's origin; gives a card for them, and their arrays by the origin's names.

    Args:
        server: that IGCZOO_ORIGIN is to name.
        name: arch.tag, of a card with an origin.
        fmt: of a .params file.
    """
    card = cards()[name]
    if card.origin.converter == 'pytorchcv':
        arrays = pytorchcv_state(card.model)
        return serve_pth(server, card, to_pth(arrays)), arrays
    arrays, file = synthetic_params(card.model), io.BytesIO()
    write_params(file, arrays, fmt)
    data = file.getvalue()
    server.files[urlsplit(card.origin.url).path] = data
    digest = hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
    return dataclasses.replace(card, origin=dataclasses.replace(card.origin, size=len(data), git_blob_sha1=digest)), arrays


def serve_pth(server: HubServer, card: Card, data: bytes) -> Card:
    """Serve a .pth file in a zip at the path of the card's origin; gives a card that pins it."""
    server.files[urlsplit(card.origin.url).path] = to_zip({member_name(card): data})
    return dataclasses.replace(card, origin=dataclasses.replace(card.origin, unpacked_sha1=hashlib.sha1(data).hexdigest()))


def member_name(card: Card) -> str:
    return urlsplit(card.origin.url).path.rpartition('/')[2].removesuffix('.zip')


def to_zip(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w', method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def to_pth(found: Any, new: bool = False) -> bytes:
    """What torch.save writes, by default in the format it had when pytorchcv's files were made."""
    file = io.BytesIO()
    torch.save(found, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def pytorchcv_state(model: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights and statistics of a net by pytorchcv's names."""
    rng = torch.Generator().manual_seed(seed)
    shapes = build(model, device='meta').state_dict()
    return {theirs: torch.zeros((), dtype=torch.int64) if 'num_batches' in theirs else torch.rand(shapes[ours].shape, generator=rng) + .5
            if 'var' in theirs else torch.randn(shapes[ours].shape, generator=rng) / max(1, shapes[ours][:1].numel()) ** .5
            for ours, theirs in pytorchcv_names(list(shapes)).items()}


def pytorchcv_names(ours: list[str]) -> dict[str, str]:
    """Our key -> pytorchcv's: its stages begin where the stride does, at our stages 0, 1, 2, 3 and 5."""
    blocks = list(dict.fromkeys(tuple(map(int, key.split('.')[1:3])) for key in ours if key.startswith('stages')))
    begins = 0, 1, 2, 3, 5
    stage_of = {s: sum(s >= begin for begin in begins) for s, _ in blocks}
    members = {block: sum(stage_of[s] == stage_of[block[0]] for s, _ in blocks[:n + 1]) for n, block in enumerate(blocks)}
    table = {}
    for key in ours:
        first, *rest = key.split('.')
        if first == 'stages':
            s, b, part, tensor = int(rest[0]), int(rest[1]), rest[2], rest[3]
            table[key] = f'features.stage{stage_of[s]}.unit{members[s, b]}.{PARTS[part]}.{tensor}'
        else:
            table[key] = '.'.join([{'stem': 'features.init_block', 'final': 'features.final_block', 'head': 'output'}[first], *rest])
    return table
