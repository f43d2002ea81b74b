"""Files depend one way, and importing the package or asking for help loads no more than it must."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

import igczoo

PACKAGE = Path(igczoo.__file__).parent
ORDER = ['layers', 'card', 'download', 'store', 'planes', 'kernels', 'forms', 'igcnet', 'deployment', 'photograph', 'classifier', 'images',
         'evaluate', 'planar', 'recipes', 'augment', 'train', 'export', 'bench', 'convert', 'model_card', 'publish', 'cli']
ALLOWED_DOWN = {
    ('store', 'convert'),       # the store converts an origin's file, when it has fetched one
    ('igcnet', 'deployment'),   # timm has the blocks deploy themselves, when it is asked to
}


def imported(file: Path, name: str) -> set[str]:
    """The parts of igczoo that a file imports, anywhere in it."""
    package = file.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[:len(package) - node.level + 1]
            found |= {(*base, *(node.module or alias.name).split('.'))[0] for alias in node.names}
    return found - {name}


@pytest.mark.parametrize('name', ORDER)
def test_imports_point_up(name):
    files = list((PACKAGE / name).glob('*.py')) if (PACKAGE / name).is_dir() else [PACKAGE / f'{name}.py']
    assert files and all(file.exists() for file in files)
    for file in files:
        for other in imported(file, name):
            assert ORDER.index(other) < ORDER.index(name) or (name, other) in ALLOWED_DOWN, f'{file.name} imports {other}'


def test_the_order_names_every_file():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == '.py' or (path / '__init__.py').exists()}
    assert parts - {'__init__'} == set(ORDER)


def run(code: str) -> str:
    command = [sys.executable, '-W', 'error', '-c', code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=PACKAGE.parent).stdout


def test_help_loads_neither_torch_nor_timm():
    code = 'import sys\nfrom igczoo.cli import main\ntry: main(["--help"])\nexcept SystemExit: print({"torch", "timm"} & set(sys.modules))'
    assert run(code).endswith('set()\n')


@pytest.mark.parametrize('imports', [
    'import igczoo, timm', 'import timm, igczoo', 'import igczoo\nfrom timm.models import create_model\nimport timm'])
def test_models_are_registered_in_either_order(imports):
    assert run(f'{imports}\nprint(timm.models.model_entrypoint("igcnet18").__module__)') == 'igczoo.igcnet\n'


def test_every_public_name_is_there():
    for name in igczoo.__all__:
        assert getattr(igczoo, name) is not None
    assert set(igczoo.__all__) <= set(dir(igczoo))
    with pytest.raises(AttributeError, match='nonesuch'):
        igczoo.nonesuch  # noqa: B018
