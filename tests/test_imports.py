"A run loads what it needs and no more; told by the names of the modules, since times depend on the machine"
import json, os, subprocess, sys
import nbformat
import pytest
from conftest import ROOT, TRAIN

DRAWING   = {'matplotlib', 'seaborn'}
ANALYSIS  = {'pandas', 'scipy', 'sklearn', 'statsmodels'}
NOTEBOOKS = {'papermill', 'nbclient', 'nbformat', 'jsonschema', 'IPython', 'nbdev', 'nbconvert'}
WORKFLOW  = {'snakemake'}
TEXT      = {'transformers', 'tokenizers', 'huggingface_hub'}


def loaded(code, folder):
    "Top-level modules that a fresh process has loaded after `code`"
    last = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, '-c', last], cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'agg'},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {o.split('.')[0] for o in json.loads(done.stdout.splitlines()[-1])}


@pytest.fixture(scope='module')
def of_a_run(tmp_path_factory):
    "What a whole run loads"
    code = """from msmix.training.experiment import run_one
run, path = run_one('synth:mosi:0.02', 'lmf', 'msmix', results='.', device='cpu', progress=False, settings={'max_epochs': 1})
assert path.is_file()"""
    return loaded(code, tmp_path_factory.mktemp('run'))


def test_a_run_needs_no_drawing_no_tables_and_no_notebooks(of_a_run):
    assert {'torch', 'h5py', 'numpy', 'pydantic'} <= of_a_run
    assert of_a_run & (DRAWING | ANALYSIS | NOTEBOOKS | WORKFLOW | TEXT) == set()


def test_the_training_notebook_adds_scores_tables_and_one_plotting_library(of_a_run, tmp_path):
    cells = [c.source for c in nbformat.read(TRAIN, 4).cells if c.cell_type == 'code']
    added = loaded('\n'.join(cells), tmp_path) - of_a_run
    assert {'pandas', 'matplotlib', 'sklearn', 'scipy'} <= added
    assert added & ({'seaborn', 'statsmodels'} | NOTEBOOKS | WORKFLOW | TEXT) == set()


def test_the_process_that_waits_for_the_kernel_loads_papermill_alone(tmp_path):
    code = """from msmix.cli import main
notebook = {'cells': [{'cell_type': 'code', 'id': 'a', 'metadata': {'tags': ['parameters']}, 'source': 'a = 1', 'outputs': [], 'execution_count': None}],
            'metadata': {'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3'}}, 'nbformat': 4, 'nbformat_minor': 5}
__import__('json').dump(notebook, open('n.ipynb', 'w'))
assert main(['notebook', 'n.ipynb', 'out.ipynb', '--state', 'state', '-p', 'a=2']) == 0"""
    found = loaded(code, tmp_path)
    assert {'papermill', 'nbclient'} <= found
    assert found & ({'torch', 'numpy', 'rfc3987_syntax', 'lark'} | DRAWING | ANALYSIS | WORKFLOW | TEXT) == set()


def test_the_command_line_starts_without_them(tmp_path):
    found = loaded("from msmix.cli import main\nassert main(['list']) == 0", tmp_path)
    assert found & ({'torch', 'numpy', 'h5py', 'pydantic'} | DRAWING | ANALYSIS | NOTEBOOKS | WORKFLOW | TEXT) == set()
