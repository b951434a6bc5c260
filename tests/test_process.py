"Processes, terminals and places: nothing foreign runs or is replaced, and what goes wrong is said in the last line"
import json, os, subprocess, sys, zipfile
from contextlib import chdir
from pathlib import Path
import nbformat
import pytest
import yaml
from conftest import ROOT, TRAIN

MSMIX = Path(sys.executable).parent/'msmix'
LOUD  = "open({!r}, 'a').write(__name__ + ' '); raise SystemExit('a module of the current folder was run')"


def notebook(path, *cells, **metadata):
    "A notebook of code cells, the first being its parameters"
    cells = [nbformat.v4.new_code_cell(o) for o in cells]
    cells[0].metadata['tags'] = ['parameters']
    kernel = {'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3', **metadata}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def said(*argv, folder=None, **environment):
    "Exit code, output and messages of the command in a process of its own"
    env = {**os.environ, **environment}
    found = subprocess.run([MSMIX, *map(str, argv)], cwd=folder, env=env, capture_output=True, text=True)
    return found.returncode, found.stdout, found.stderr


@pytest.fixture
def trapped(tmp_path):
    "A folder whose modules have the names of packages, and the file in which they note that they were run"
    folder = tmp_path/'trapped'
    folder.mkdir()
    for name in ('yaml', 'json', 'torch', 'numpy', 'h5py', 'psutil', 'snakemake', 'papermill', 'ipykernel', 'msmix'):
        (folder/f'{name}.py').write_text(LOUD.format(str(tmp_path/'run')))
    return folder, tmp_path/'run'


@pytest.fixture
def foreign(tmp_path):
    "An environment of another project: a profile, a kernel of another Python, start files, folders that cannot be written"
    (tmp_path/'jp'/'kernels'/'python3').mkdir(parents=True)
    spec = {'argv': ['/bin/false', '-f', '{connection_file}'], 'display_name': 'another Python', 'language': 'python'}
    (tmp_path/'jp'/'kernels'/'python3'/'kernel.json').write_text(json.dumps(spec))
    (tmp_path/'start.py').write_text('import torch; torch.set_default_dtype(torch.float64)')
    (tmp_path/'ipython'/'profile_default'/'startup').mkdir(parents=True)
    (tmp_path/'ipython'/'profile_default'/'startup'/'a.py').write_text('started = 1')
    (tmp_path/'profile').mkdir()
    (tmp_path/'profile'/'config.yaml').write_text('executor: nonsense\n')
    return {'JUPYTER_PATH': str(tmp_path/'jp'), 'PYTHONSTARTUP': str(tmp_path/'start.py'), 'IPYTHONDIR': str(tmp_path/'ipython'),
            'SNAKEMAKE_PROFILE': str(tmp_path/'profile'), 'HOME': '/proc/nowhere', 'TMPDIR': '/proc/nowhere',
            'XDG_CACHE_HOME': str(tmp_path/'cache')}


@pytest.fixture
def grid(tmp_path):
    "Write the configuration of a grid of one short run, after changes"
    def call(path=tmp_path/'grid.yaml', **other):
        config = {'results': str(tmp_path/'res'), 'datasets': {'synth-mosi': {'synth': 'mosi', 'fraction': .01}}, 'backbones': ['lmf'],
                  'mixers': ['none'], 'seeds': [1], 'variants': {'main': {'max_epochs': 1}}, 'device': 'cpu', **other}
        path.write_text(yaml.safe_dump(config))
        return path
    return call


def test_a_grid_runs_nothing_of_the_folder_and_environment_it_is_called_from(trapped, foreign, grid, tmp_path):
    from msmix.runs.file import load_run
    folder, ran = trapped
    (folder/'profiles'/'default').mkdir(parents=True)
    (folder/'profiles'/'default'/'config.yaml').write_text('no-such-option: 1\n')
    (tmp_path/'in{a}').mkdir()
    grid(folder/'grid.yaml', results='res', datasets={'synth-mosi': {'file': '../in{a}/x.h5'}})
    assert said('synth', tmp_path/'in{a}'/'x.h5', '--like', 'mosi', '--fraction', .01)[0] == 0
    code, out, err = said('grid', 'grid.yaml', '-j', 1, folder=folder, **foreign)
    assert code == 0 and not ran.exists(), out + err
    run = load_run(folder/'res'/'runs'/'synth-mosi'/'lmf'/'none'/'main'/'1.h5')
    assert run.predictions['test']['pred'].dtype.itemsize == 4


def test_a_notebook_runs_in_this_python_without_files_of_the_user(trapped, foreign, tmp_path):
    folder, ran = trapped
    shows = 'print(json.dumps([sys.executable, "" in sys.path, "started" in globals(), os.getcwd()]))'
    notebook(tmp_path/'n.ipynb', 'a = 1', f'import json, os, sys, yaml\n{shows}')
    code, out, err = said('notebook', '../n.ipynb', 'o{a}.ipynb', folder=folder, **foreign)
    assert code == 0 and not ran.exists(), err
    assert json.loads(out.splitlines()[0]) == [sys.executable, False, False, str(folder)]
    assert (folder/'o{a}.ipynb').is_file() and out.splitlines()[-1] == 'o{a}.ipynb'


def test_modules_of_ones_own_are_found_by_pythonpath(tmp_path):
    (tmp_path/'mine.py').write_text('value = 7')
    source = notebook(tmp_path/'n.ipynb', 'a = 1', 'import mine\nprint(mine.value)')
    code, out, err = said('notebook', 'n.ipynb', 'o.ipynb', folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert (code, out.splitlines()[0]) == (0, '7'), err
    code, _, err = said('notebook', source, 'o.ipynb', folder=tmp_path)
    assert code == 1 and "No module named 'mine'" in err


def test_a_kernel_that_dies_is_named(msmix, tmp_path):
    source = notebook(tmp_path/'n.ipynb', 'a = 1', 'import os; os.kill(os.getpid(), 9)')
    code, _, err = msmix('notebook', source, tmp_path/'o.ipynb')
    assert code == 1 and f'(kernel: {sys.executable})' in err.splitlines()[-1]


def test_a_notebook_replaces_nothing_but_executed_notebooks(msmix, refused, tmp_path):
    source = notebook(tmp_path/'n.ipynb', 'a = 1')
    (tmp_path/'notes.txt').write_text('mine')
    (tmp_path/'to').symlink_to(tmp_path/'nowhere')
    os.mkfifo(tmp_path/'pipe')
    refused('is no notebook', 'notebook', source, tmp_path/'notes.txt')
    refused('is a folder, a pipe or a device', 'notebook', source, tmp_path)
    refused('is a folder, a pipe or a device', 'notebook', source, tmp_path/'pipe')
    refused('is a link that leads nowhere', 'notebook', source, tmp_path/'to')
    refused('only notebooks in Python', 'notebook', notebook(tmp_path/'r.ipynb', 'a = 1', language='R'), tmp_path/'o.ipynb')
    refused('is standard output to papermill', 'notebook', source, '-')
    for k,v in {'metadata': {'kernelspec': None}, 'cells': [{'cell_type': 'code', 'metadata': {'tags': ['parameters']}, 'source': 5, 'outputs': []}]}.items():
        (tmp_path/'bad.ipynb').write_text(json.dumps({**json.loads(source.read_text()), k: v}))
        refused('is not a notebook', 'notebook', tmp_path/'bad.ipynb', tmp_path/'o.ipynb')
    refused("no notebook at", 'notebook', tmp_path/'pipe', tmp_path/'o.ipynb')
    assert (tmp_path/'notes.txt').read_text() == 'mine'


def test_a_job_names_what_lies_in_its_way(refused, tmp_path):
    source = notebook(tmp_path/'n.ipynb', 'a = 1')
    (tmp_path/'to').symlink_to(tmp_path/'nowhere')
    (tmp_path/'loop').symlink_to(tmp_path/'loop')
    os.mkfifo(tmp_path/'pipe')
    for name in ('to', 'loop', 'pipe'):
        job = '--state', tmp_path/'s.state', '--makes', tmp_path/name
        refused('is in the way of a run', 'notebook', source, tmp_path/'o.ipynb', *job)


def test_home_folders_are_opened_behind_an_equals_sign(msmix, tmp_path, monkeypatch):
    home, folder = tmp_path/'home', tmp_path/'here'
    for o in (home, folder): o.mkdir()
    monkeypatch.setenv('HOME', str(home))
    with chdir(folder):
        assert msmix('synth', '--like=mosi', '--fraction=0.01', '~/x.h5')[0] == 0
        options = '--backbone=lmf --mixer=none --seed=1 --set=max_epochs=1 --device=cpu'.split()
        code, out, err = msmix('train', '--data=~/x.h5', '--results=~/res', *options)
        assert code == 0, err
        run = home/'res'/'runs'/'synth-mosi'/'lmf'/'none'/'main'/'1.h5'
        assert out.splitlines()[-1] == str(run) and run.is_file()
        source = notebook(folder/'n.ipynb', 'results = data = ""', 'print(results, data)')
        out = msmix('notebook', source, '~/o.ipynb', '-p', 'results=~/res', '-p', 'data="~/x.h5"')[1]
    assert out.splitlines()[0] == f"{home/'res'} {home/'x.h5'}" and (home/'o.ipynb').is_file()
    assert [o.name for o in folder.iterdir()] == ['n.ipynb']


@pytest.mark.parametrize('path, message', [('', 'is empty'), ('x'*300, 'file names have at most 255'), ('a\0b', 'NUL character'),
                                           ('~nobody-of-this-name/x', 'unknown user')])
def test_every_command_refuses_a_path_that_no_system_can_hold(path, message, refused):
    refused(message, 'table', path)
    refused(message, 'synth', path, '--like', 'mosi')
    refused(message, 'notebook', TRAIN, path)
    refused(message, 'train', '--data', 'synth:mosi:0.01', '--backbone', 'lmf', '--mixer', 'none', '--seed', 1, '--results', path)


def test_results_in_braces_are_refused_before_anything_starts(refused, grid, tmp_path):
    refused('fills in what stands in {} or <>', 'grid', grid(results=str(tmp_path/'res{a}')))
    assert [o.name for o in tmp_path.iterdir()] == ['grid.yaml']


def test_a_folder_that_snakemake_cannot_write_is_named(refused, grid, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', '/proc/nowhere')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    with chdir(tmp_path): refused("cannot write in '/proc/nowhere/.cache/snakemake'", 'grid', grid())
    assert not (tmp_path/'res').exists()


def test_no_temporary_folder_is_one_line(refused, tmp_path, monkeypatch):
    import tempfile
    def nowhere(*args, **kw): raise FileNotFoundError(2, 'No usable temporary directory found')
    source = notebook(tmp_path/'n.ipynb', 'a = 1')
    monkeypatch.setattr(tempfile, 'TemporaryDirectory', nowhere)
    refused('set TMPDIR to a folder', 'notebook', source, tmp_path/'o.ipynb')


def test_results_that_vanish_while_a_grid_runs_are_a_failure(tmp_path):
    from msmix.grid.drive import report
    from msmix.grid.jobs import Job
    from msmix.names import RunFailed
    job = Job(tmp_path/'gone.h5', tmp_path/'n.ipynb', tmp_path/'n.txt', {})
    (tmp_path/'grid.txt').write_text('WorkflowError:\nFailed to load the executor: no such module\n\n')
    for log, reason in (('grid.txt', 'Failed to load the executor: no such module'), ('none.txt', 'call the same command again to take')):
        with pytest.raises(RunFailed, match=f'1 runs or figures are missing.*{reason}'): report({}, [job], 0, tmp_path/log)


TERMINALS = [{'PYTHONIOENCODING': 'ascii'}, {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}]


@pytest.mark.parametrize('terminal', TERMINALS, ids=['ascii', 'locale C'])
def test_a_terminal_without_utf8_gets_a_spelt_out_table(terminal, tmp_path):
    code = """import pandas as pd, sys
from unittest.mock import patch
from msmix import cli
names = dict(dataset='größe', backbone='tfn', mixer='none', variant='main', split='test', synthetic=False)
frame = pd.DataFrame([dict(**names, seed=s, MAE=1.+s) for s in range(2)])
with patch('msmix.runs.frame.load_runs', return_value=frame): sys.exit(cli.main(['table', '.']))"""
    (tmp_path/'t.py').write_text(code, encoding='utf-8')
    found = subprocess.run([sys.executable, tmp_path/'t.py'], env={**os.environ, **terminal}, capture_output=True)
    assert found.returncode == 0, found.stderr
    assert b'1.500 +/- 0.707' in found.stdout and rb'gr\xf6\xdfe' in found.stdout


def test_a_reader_that_goes_ends_the_command_quietly():
    process = subprocess.Popen([MSMIX, 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 141
    with open('/dev/full', 'w') as full: found = subprocess.run([MSMIX, 'list'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1 and found.stderr.startswith('msmix: No space left on device: free some') and found.stderr.count('\n') == 1
    with open('/dev/full', 'w') as full: assert subprocess.run([MSMIX, 'nope'], stderr=full).returncode == 2


def test_closed_streams_lead_nowhere(tmp_path):
    source = notebook(tmp_path/'n.ipynb', 'a = 1', 'print(a)')
    call = lambda *argv: subprocess.run(['sh', '-c', '"$@" <&- >&- 2>&-', 'sh', MSMIX, *map(str, argv)]).returncode
    assert call('notebook', source, tmp_path/'o.ipynb') == 0
    assert call('synth', tmp_path/'x.h5', '--like', 'mosi', '--fraction', .01) == 0
    assert call('grid', tmp_path/'none.yaml') == 2


def test_names_that_a_locale_cannot_write(tmp_path):
    (tmp_path/'g.yaml').write_text('results: "数据"', encoding='utf-8')
    code, _, err = said('grid', tmp_path/'g.yaml', LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    assert code == 2 and err.count('\n') == 1 and 'this locale cannot write the path' in err and 'set LC_ALL=C.UTF-8' in err


def test_errors_about_files_say_what_to_do(msmix, monkeypatch):
    def fails(error):
        def call(args): raise error
        monkeypatch.setattr('msmix.cli.do_list', call)
        code, _, err = msmix('list')
        return code, err.removeprefix('msmix: ').strip()
    assert fails(PermissionError(13, 'Permission denied', 'x\x1b[31m.h5')) == (
        2, r"cannot use 'x\x1b[31m.h5' (Permission denied): check the path, and who may read and write there")
    assert fails(UnicodeEncodeError('ascii', 'größe', 2, 4, 'ordinal not in range(128)'))[0] == 2
    code, text = fails(OSError(28, 'No space left on device', 'x.h5'))
    assert code == 1 and text.startswith("No space left on device for 'x.h5': free some")
    assert fails(OSError(5, 'Input/output error'))[0] == 1


def test_text_files_are_utf8_whatever_the_locale_and_names_it_lacks_are_one_line(tmp_path):
    source = notebook(tmp_path/'n.ipynb', 'a = "größe"', 'print(len(a))')
    code, out, err = said('notebook', source, tmp_path/'o.ipynb', '--state', tmp_path/'s.state', **TERMINALS[1])
    assert code == 0 and out.splitlines()[0] == '5', err
    code, out, err = said('notebook', source, tmp_path/'größe.ipynb', **TERMINALS[1])
    assert (code, out) == (2, '') and err.endswith('set LC_ALL=C.UTF-8, or choose another name\n') and err.count('\n') == 1


def test_a_clone_does_not_shadow_its_editable_install(tmp_path):
    clone, site = tmp_path/'msmix', tmp_path/'site'
    (clone/'msmix').mkdir(parents=True)
    for o in ('pyproject.toml', 'LICENSE', 'README.md', 'msmix/__init__.py'): (clone/o).write_bytes((ROOT/o).read_bytes())
    build = f"import setuptools.build_meta as b; b.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, '-c', build], cwd=clone, check=True, capture_output=True)
    wheel, = tmp_path.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(site)
    code = f"import site, sys; site.addsitedir({str(site)!r}); import msmix; print(msmix.__file__)"
    found = subprocess.run([sys.executable, '-S', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == str(clone/'msmix'/'__init__.py'), found.stderr
