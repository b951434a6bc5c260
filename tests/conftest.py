"What several test files share"
import os
from pathlib import Path
import pytest

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')

ROOT  = Path(__file__).resolve().parent.parent
TRAIN = ROOT/'nbs'/'train'/'train.ipynb'
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if not any(p.startswith(('.', '_')) for p in o.relative_to(ROOT).parts))


def name_of(path): return str(path.relative_to(ROOT/'nbs').with_suffix(''))


@pytest.fixture
def msmix(capsys):
    "The command line in this process: arguments to exit code, output and messages"
    from msmix.cli import main

    def call(*argv):
        capsys.readouterr()
        code = main([str(o) for o in argv])
        return code, *capsys.readouterr()
    return call


@pytest.fixture
def refused(msmix):
    "A call that must end with code 2, no output and one line that says `message`"
    def call(message, *argv):
        code, out, err = msmix(*argv)
        lines = [o for o in err.splitlines() if o.startswith('msmix: ')]
        assert (code, len(lines)) == (2, 1), (code, out, err)
        assert err.splitlines()[-1] == lines[0] and 'Traceback' not in err
        assert message in lines[0]
    return call


@pytest.fixture
def prepare_in_this_process(monkeypatch):
    "`prepare` starts no child, which is quicker and sees what a test replaces: the child is tried in test_pickles.py"
    from msmix.data import prepare
    monkeypatch.setattr(prepare, 'guarded', lambda name, arguments, *rest, **more: vars(prepare.prepare_here(**arguments)))


def pytest_collection_modifyitems(config, items):
    "Tests marked `slurm` run only when asked for: pytest -m slurm"
    if 'slurm' in config.option.markexpr: return
    for o in items:
        if o.get_closest_marker('slurm'): o.add_marker(pytest.mark.skip(reason='make test-slurm'))
