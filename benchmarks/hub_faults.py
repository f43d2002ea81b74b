"""What `igczoo.checkpoints.store.fetch` makes of every fault of tests/hub_server.py, with its real limits, on this machine.

    PYTHONPATH=tests python benchmarks/hub_faults.py

Each fault lasts, or passes after one request; each fetch is a process of its own with an empty cache, and is made again after the fault.
"""
import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hub_server import FAULTS, HubServer

from igczoo.checkpoints.card import find_card
from igczoo.checkpoints.store import StoreError, fetch

PAYLOAD = bytes(range(250)) * 800
CARD = dataclasses.replace(find_card('igc_resnet20_l24m2'), sha256=hashlib.sha256(PAYLOAD).hexdigest(), size=len(PAYLOAD))
OPTIONS = {'other bytes': {'body': bytes(len(PAYLOAD))}, 'redirect': {'to': 'http://127.0.0.1:1/x'}, 'drip': {'interval': 1.}}


def fetch_once() -> None:
    """Print the seconds, what came of it, and the error's reason."""
    started = time.perf_counter()
    try:
        path = fetch(CARD, sources=['hub'])
        outcome, reason = 'right' if path.read_bytes() == PAYLOAD else 'WRONG', ''
    except StoreError as error:
        outcome, reason = 'error', str(error).partition('hub: ')[2].partition(': ')[2]
    print(f'{time.perf_counter() - started:5.1f} s  {outcome}  {reason[:90]}')


def run(endpoint: str, home: str) -> str:
    """`fetch_once` in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    environment = os.environ | {'HF_ENDPOINT': endpoint, 'HF_HOME': f'{home}/hf', 'HOME': home, 'TMPDIR': home, 'NO_PROXY': '127.0.0.1'}
    result = subprocess.run([sys.executable, __file__, 'once'], env=environment, capture_output=True, text=True, check=True)
    return result.stdout.rstrip()


class Tally:
    def __init__(self):
        self.tried = self.wrong = self.slow = self.bad_caches = self.outside = 0

    def report(self, name: str, endpoint: str, sound: str, heal) -> None:
        with tempfile.TemporaryDirectory() as home:
            line = run(endpoint, home)
            heal()
            again = run(sound, home)
            outside = [path for path in Path(home).rglob('*') if path.is_file() and Path(home, 'hf') not in path.parents]
        self.tried += 1
        self.wrong += 'WRONG' in line
        self.slow += float(line.split()[0]) > 60
        self.bad_caches += 'right' not in again
        self.outside += bool(outside)
        print(f'{name:32} {line}', flush=True)


def main() -> None:
    tally = Tally()
    with HubServer() as hub, socket.socket() as listener:
        hub.add_repo(f'igczoo/{CARD.name}', {'model.safetensors': PAYLOAD})
        listener.bind(('127.0.0.1', 0))     # before it listens it refuses; then it never accepts
        mute = f'http://127.0.0.1:{listener.getsockname()[1]}'
        tally.report('refused', mute, hub.url, hub.heal)
        listener.listen()
        tally.report('never accepts', mute, hub.url, hub.heal)
        for name in FAULTS:
            for times in (1, float('inf')):
                hub.fault(name, times, **OPTIONS.get(name, {}))
                tally.report(f'{name}, {"once" if times == 1 else "lasting"}', hub.url, hub.url, hub.heal)
    print(f'{tally.tried} faults: {tally.wrong} wrong files, {tally.bad_caches} caches bad afterwards, {tally.slow} waits over 60 s, '
          f'{tally.outside} with files outside the cache')


if __name__ == '__main__':
    fetch_once() if sys.argv[1:] == ['once'] else main()
