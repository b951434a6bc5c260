"Packages stand on floors: an import leads down, never up and never to a package beside"
import importlib, subprocess, sys
import pytest
from conftest import ROOT
from msmix.runs.identity import imported_by

FLOORS = [{'names'}, {'settings', 'hdf5', 'files', 'core', 'guarded', 'documented'}, {'mixers', 'data', 'runs'}, {'backbones', 'report'}, {'training'}, {'grid'},
          {'cli', 'bench', 'docs'}, {'results', 'metrics', 'reference', '__main__'}]
FLOOR = {name: k for k, names in enumerate(FLOORS) for name in names}
SOURCES = [o for o in (ROOT/'msmix').rglob('*.py') if o.name not in ('__init__.py', '_modidx.py')]


def module(path): return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


@pytest.mark.parametrize('path', SOURCES, ids=module)
def test_imports_lead_down(path):
    own = path.relative_to(ROOT/'msmix').with_suffix('').parts[0]
    others = {o.split('.')[1] for o in imported_by(module(path)) if o.startswith('msmix.')} - {own, '__version__'}
    free = FLOORS[1] if own in FLOORS[1] else set()  # modules at the root may use each other
    assert [o for o in sorted(others - free) if FLOOR[o] >= FLOOR[own]] == []


def test_no_circle_among_modules():
    names = {module(o) for o in SOURCES}
    below = {k: (imported_by(k) & names) - {k} for k in names}
    while found := [k for k, v in below.items() if not v]:
        below = {k: v - set(found) for k, v in below.items() if v}
    assert below == {}


def test_reports_need_no_torch():
    code = "import sys, msmix.report.plots, msmix.report.tables, msmix.report.gather; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_the_package_offers_its_names_and_loads_nothing():
    code = """import sys, msmix
assert {'MSMix', 'load_dataset', 'load_runs', 'score', 'check_mixer', 'check_backbone'} <= set(dir(msmix))
assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)
for name in msmix.__all__: assert getattr(msmix, name).__name__ == name"""
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize('module, names', [('results', ['load_runs']), ('metrics', ['score']), ('reference', ['load_reference', 'check_reference'])])
def test_documented_places_stay(module, names):
    for name in names: assert callable(getattr(importlib.import_module(f'msmix.{module}'), name))


def test_moving_a_module_leaves_the_code_sum(tmp_path):
    "A module of a copy of the package is renamed, given other comments and type hints: no run becomes stale; another line of code does it"
    import shutil
    code = """from msmix.training.experiment import training_modules
from msmix.runs.identity import code_sum
print(code_sum(training_modules('lmf', 'msmix')))"""

    def sum_of(): return subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    shutil.copytree(ROOT/'msmix', tmp_path/'msmix')
    before = sum_of()
    package = tmp_path/'msmix'
    (package/'mixers'/'pairs.py').write_text('# moved\n' + (package/'mixers'/'sass.py').read_text().replace('delta: float', 'delta: "float"'))
    (package/'mixers'/'sass.py').unlink()
    for o in package.rglob('*.py'): o.write_text(o.read_text().replace('.sass import', '.pairs import'))
    assert sum_of() == before
    (package/'mixers'/'pairs.py').write_text((package/'mixers'/'pairs.py').read_text() + '\nEXTRA = 1\n')
    assert sum_of() != before
