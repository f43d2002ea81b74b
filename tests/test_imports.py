"""Rooms depend one way, and importing the package or asking for help loads no more than it must."""
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import igczoo

PACKAGE = Path(igczoo.__file__).parent
REPOSITORY = Path(__file__).parents[1]          # holds pyproject.toml; the package may be installed elsewhere


def run(code: str) -> str:
    command = [sys.executable, '-W', 'error', '-c', code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=PACKAGE.parent).stdout


def test_rooms_import_one_way():
    linter = 'from importlinter.cli import lint_imports_command; lint_imports_command(["--no-cache"])'
    done = subprocess.run([sys.executable, '-c', linter], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0 and 'Contracts: 2 kept, 0 broken.' in done.stdout, done.stdout + done.stderr


def test_help_loads_neither_torch_nor_timm():
    code = 'import sys\nfrom igczoo.cli import main\ntry: main(["--help"])\nexcept SystemExit: print({"torch", "timm"} & set(sys.modules))'
    assert run(code).endswith('set()\n')


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, '-m', 'igczoo', 'list'], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0 and 'igcnet18.tinyimagenet' in done.stdout


IMPORTS = [
    'import igczoo, timm',
    'import timm, igczoo',
    'import igczoo\nfrom timm.models import create_model\nimport timm',
    'import igczoo, importlib.util\nimportlib.util.find_spec("timm")\nimport timm',         # as transformers does
    'import igczoo, importlib.util\nimportlib.util.find_spec("timm")\nimport importlib\nimportlib.reload(igczoo)\nimport timm',
    'import igczoo.nets.igcnet, timm',
    'import igczoo.deployment.forms, timm',
    'import igczoo.inference.classifier, timm',
    'import igczoo.checkpoints.convert, timm',
    'import igczoo.registry, timm',
    'import igczoo, timm, sys\nfor name in [name for name in sys.modules if name.partition(".")[0] == "timm"]: del sys.modules[name]\n'
    'import timm',
    'import igczoo, importlib.util, sys\nspec = importlib.util.find_spec("timm")\nspec.loader = importlib.util.LazyLoader(spec.loader)\n'
    'timm = sys.modules["timm"] = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(timm)',
]


@pytest.fixture(scope='module')
def registered() -> dict[str, str]:
    """What a fresh process finds after each of them; two at a time, for each takes seconds."""
    asked = 'timm.models.model_entrypoint("igcnet18").__module__, timm.create_model("igc_resnet20_l4m8").num_classes'
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(IMPORTS, threads.map(lambda imports: run(f'{imports}\nprint({asked})'), IMPORTS), strict=True))


@pytest.mark.timm_suite     # half a minute
@pytest.mark.parametrize('imports', IMPORTS)
def test_models_are_registered_however_timm_is_imported(registered, imports):
    assert registered[imports] == 'igczoo.registry 10\n'


def test_what_is_asked_of_a_loader_is_answered_for_timm():
    assert run('import igczoo, importlib.util\nloader = importlib.util.find_spec("timm").loader\n'
               'print("create_model" in loader.get_source("timm"), loader.is_package("timm"))') == 'True True\n'


def test_threads_that_come_at_once():
    code = '''
import threading, igczoo
found, start = [], threading.Barrier(4)
def work(name):
    start.wait()
    found.append(getattr(igczoo, name))
threads = [threading.Thread(target=work, args=(name,)) for name in ("load", "finetune", "convert_checkpoint", "IGCNet")]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found))
'''
    assert run(code) == '4\n'


def test_every_public_name_is_there():
    for name in igczoo.__all__:
        assert getattr(igczoo, name) is not None
    assert set(igczoo.__all__) <= set(dir(igczoo))
    with pytest.raises(AttributeError, match='nonesuch'):
        igczoo.nonesuch  # noqa: B018
