"""How long `igczoo.checkpoints.store.fetch` takes to give up, with its real limits, against a server on this machine that misbehaves.

    PYTHONPATH=tests python benchmarks/download_waits.py
"""
import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time

from hub_server import HubServer

from igczoo.checkpoints.card import find_card
from igczoo.checkpoints.store import StoreError, fetch

PAYLOAD = bytes(200_000)
CARD = dataclasses.replace(find_card('igc_resnet20_l24m2'), sha256=hashlib.sha256(PAYLOAD).hexdigest(), size=len(PAYLOAD))
FAULTS = {'silence': {}, 'stall': {}, 'drip': {'interval': 1., 'step': 1}}


def fetch_once() -> None:
    """Print the seconds until the error, and the error."""
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        try:
            fetch(CARD, sources=['hub'], cache_dir=cache)
            reason = 'no error'
        except StoreError as error:
            reason = str(error).partition('hub: ')[2].partition(': ')[2]
    print(f'{time.perf_counter() - started:5.1f} s  {reason[:90]}')


def report(name: str, endpoint: str) -> None:
    """`fetch_once` in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    environment = os.environ | {'HF_ENDPOINT': endpoint}
    result = subprocess.run([sys.executable, __file__, 'once'], env=environment, capture_output=True, text=True, check=True)
    print(f'{name:14} {result.stdout}', end='', flush=True)


def main() -> None:
    with HubServer() as hub, socket.socket() as listener:
        hub.add_repo(f'igczoo/{CARD.name}', {'model.safetensors': PAYLOAD})
        listener.bind(('127.0.0.1', 0))     # before it listens it refuses; then it never accepts
        mute = f'http://127.0.0.1:{listener.getsockname()[1]}'
        report('refused', mute)
        listener.listen()
        report('never accepts', mute)
        for name, options in FAULTS.items():
            hub.fault(name, **options)
            report(name, hub.url)
            hub.heal()


if __name__ == '__main__':
    fetch_once() if sys.argv[1:] == ['once'] else main()
