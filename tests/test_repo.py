"The tree is in step with itself: modules with notebooks, README with index, notebooks clean and small"
import json, os, shutil, subprocess, sys
from pathlib import Path
import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT, TRAIN, name_of

BIN = Path(sys.executable).parent
PARAMETERISED = [o for o in NOTEBOOKS if o.parent.name in ('train', 'figures', 'speed')]
# Folders and hosts of one machine, in pieces so that this file does not hold them
PRIVATE = ['/'.join(('', o, '')) for o in ('work', 'root', 'home', 'Users')] + [
    '.'.join(o) for o in (('pypi', 'org'), ('pythonhosted', 'org'), ('npmjs', 'org'), ('npmjs', 'com'), ('deb', 'debian'))]


def project_files():
    "Tracked files and those that would be"
    found = subprocess.run(['git', '-C', ROOT, 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
                           capture_output=True, text=True)
    if found.returncode: pytest.skip('not a git repository')
    return [o for o in (ROOT/n for n in set(found.stdout.split('\0')) if n) if o.is_file()]


def nbdev(command, folder):
    "One of nbdev's commands; it does nothing where IN_TEST is set, which running notebooks as tests leaves behind"
    env = {k: v for k,v in os.environ.items() if k != 'IN_TEST'}
    subprocess.run([BIN/command], cwd=folder, env=env, check=True, capture_output=True)


def contents(folder, pattern):
    return {str(o.relative_to(folder)): o.read_text(encoding='utf-8') for o in folder.rglob(pattern) if '.ipynb_checkpoints' not in o.parts}


@pytest.fixture
def copy(tmp_path):
    "The notebooks and nbdev's configuration in a folder of their own, without the modules"
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    (tmp_path/'msmix').mkdir()
    shutil.copy(ROOT/'msmix'/'__init__.py', tmp_path/'msmix')
    return tmp_path


def test_exporting_the_notebooks_gives_the_modules(copy):
    nbdev('nbdev_export', copy)
    exported, committed = contents(copy/'msmix', '*.py'), contents(ROOT/'msmix', '*.py')
    assert sorted(exported) == sorted(committed)
    assert [k for k in exported if exported[k] != committed[k]] == [], 'run `make export`'


def test_cleaning_the_notebooks_changes_nothing(copy):
    before = contents(copy/'nbs', '*.ipynb')
    nbdev('nbdev_clean', copy)
    after = contents(copy/'nbs', '*.ipynb')
    assert [k for k in before if before[k] != after[k]] == [], 'run `make clean-notebooks`'


def test_no_name_is_undefined_or_unused():
    found = subprocess.run([BIN/'ruff', 'check', '--no-cache', '--select', 'F'], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_there_is_a_training_notebook_and_a_figure_notebook():
    assert TRAIN in PARAMETERISED
    assert any(o.parent.name == 'figures' for o in PARAMETERISED)


@pytest.mark.parametrize('notebook', PARAMETERISED, ids=name_of)
def test_one_cell_is_tagged_parameters(notebook):
    tags = [c.metadata.get('tags', []) for c in nbformat.read(notebook, 4).cells]
    assert sum('parameters' in o for o in tags) == 1


def test_the_training_notebook_has_no_outputs_and_stays_short():
    code = [c for c in nbformat.read(TRAIN, 4).cells if c.cell_type == 'code']
    assert [c.source for c in code if c.outputs or c.execution_count] == []
    lines = [o for c in code for o in c.source.splitlines() if o.strip() and not o.startswith('#')]
    assert len(lines) < 60


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name_of)
def test_the_notebook_is_small_and_its_outputs_do_not_name_passing_things(notebook):
    assert notebook.stat().st_size <= 300_000
    code = [c for c in nbformat.read(notebook, 4).cells if c.cell_type == 'code']
    outputs = json.dumps([c.outputs for c in code])
    assert '/tmp/' not in outputs and 'Traceback' not in outputs
    assert [c.source for c in code if any(o.output_type == 'error' or o.get('name') == 'stderr' for o in c.outputs)] == []


def test_no_file_names_a_place_on_one_machine():
    found = []
    for path in project_files():
        try: text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        found += [f'{path.relative_to(ROOT)}: {o}' for o in PRIVATE if o in text]
    assert found == []


def test_the_readme_is_made_of_the_index():
    from msmix.docs import render_readme
    index = ROOT/'nbs'/'index.ipynb'
    if not index.exists(): pytest.skip('there is no index notebook')
    text, pictures = render_readme(index)
    assert (ROOT/'README.md').read_text(encoding='utf-8') == text, 'run `make readme`'
    assert [k for k,v in pictures.items() if (ROOT/k).read_bytes() != v] == []


def test_links_of_the_readme_lead_somewhere():
    import re
    readme = ROOT/'README.md'
    if not readme.exists(): pytest.skip('there is no README')
    text = re.sub(r'```.*?```', '', readme.read_text(encoding='utf-8'), flags=re.S)
    links = re.findall(r'(?:\]\(|src=")([^)\s"#]+)', text)
    local = [o for o in links if '://' not in o and not o.startswith('mailto:')]
    assert [o for o in local if not (ROOT/o).exists()] == []


def test_a_wheel_holds_the_package_alone_and_its_command_works(tmp_path):
    source = tmp_path/'source'
    source.mkdir()
    for name in ('pyproject.toml', 'LICENSE', 'README.md'): shutil.copy(ROOT/name, source)
    shutil.copytree(ROOT/'msmix', source/'msmix', ignore=shutil.ignore_patterns('__pycache__'))
    for other in ('nbs', 'tests', 'workflow', 'results'): (source/other).mkdir()
    installed = tmp_path/'installed'
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--target', installed, source],
                   check=True, capture_output=True)
    assert {o.name for o in installed.iterdir() if not o.name.endswith('.dist-info')} <= {'msmix', 'bin'}
    assert (installed/'msmix'/'mixers'/'msmix.py').is_file() and not (installed/'msmix'/'bench').exists()
    code = 'import msmix, sys; from msmix.cli import main; print(msmix.__file__, flush=True); sys.exit(main(["list", "--json"]))'
    found = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={'PYTHONPATH': str(installed)}, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith(str(installed))
    assert 'tfn' in json.loads(found.stdout.splitlines()[1])['backbones']


def test_the_map_of_the_readme_names_every_notebook():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    pages = [o.relative_to(ROOT).as_posix() for o in NOTEBOOKS if o.name != 'index.ipynb']
    assert [o for o in pages if f']({o})' not in text] == []
