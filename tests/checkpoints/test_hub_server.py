"""The fixture hub against huggingface_hub itself: what it uploads comes back from a download, a snapshot and the model's info."""
import json
import os
import subprocess
import sys
import textwrap

from hub_server import HubServer

CLIENT = """
    import json, pathlib, sys
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    api, folder, repo = HfApi(), pathlib.Path(sys.argv[1]), 'igczoo/net.data'
    api.create_repo(repo, exist_ok=True)
    api.create_repo(repo, exist_ok=True)
    commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message='first')
    again = api.upload_folder(repo_id=repo, folder_path=folder, commit_message='nothing new')
    (folder / 'README.md').write_text('# other words')
    second = api.upload_folder(repo_id=repo, folder_path=folder, commit_message='second', parent_commit=commit.oid)
    print(json.dumps({
        'first': commit.oid, 'again': again.oid, 'second': second.oid, 'info': api.model_info(repo).sha,
        'siblings': sorted(file.rfilename for file in api.model_info(repo).siblings),
        'downloaded': pathlib.Path(hf_hub_download(repo, 'model.safetensors', revision=commit.oid)).read_bytes().hex(),
        'snapshot': sorted([path.name, path.read_bytes().hex()] for path in pathlib.Path(snapshot_download(repo)).iterdir()),
    }))
"""


def test_uploads_come_back(tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    files = {'model.safetensors': bytes(range(256)) * 20, 'config.json': b'{"architecture": "net"}', 'README.md': b'---\nlicense: x\n---'}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with HubServer() as hub:
        given = {'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path), 'HF_TOKEN': 'hf_x', 'HF_HUB_DISABLE_XET': '1', 'NO_PROXY': '127.0.0.1'}
        command = [sys.executable, '-c', textwrap.dedent(CLIENT), folder]
        run = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        said = json.loads(run.stdout.splitlines()[-1])
        assert said['first'] == said['again'] != said['second'] == said['info'] == hub.repos['igczoo/net.data']['main']
        assert said['siblings'] == sorted(files)
        assert said['downloaded'] == files['model.safetensors'].hex()
        now = {**files, 'README.md': b'# other words'}
        assert said['snapshot'] == sorted([name, data.hex()] for name, data in now.items())
        assert hub.repos['igczoo/net.data'][said['first']] == files and hub.repos['igczoo/net.data'][said['second']] == now
        assert len([request for request in hub.requests if request.method == 'PUT']) == 1     # the weights, once
