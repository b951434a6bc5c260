"The grid as a whole: plain Snakemake and `msmix grid` do the same, and only what changed is made again"
import subprocess, sys
from pathlib import Path
import pytest
import yaml
from conftest import ROOT

BIN = Path(sys.executable).parent


@pytest.fixture
def write(tmp_path):
    "Write the configuration, after changes to one of its experiments"
    def call(**other):
        config = {'results': str(tmp_path/'results'), 'datasets': {'synth-mosi': {'synth': 'mosi', 'fraction': .01}}, 'backbones': ['lmf'],
                  'mixers': ['msmix'], 'seeds': [1], 'variants': {'main': {'max_epochs': 1}}, 'device': 'cpu',
                  'experiments': {'main': {'figures': ['table_main']}, 'rate': {'variants': {'fast': {'max_epochs': 1, 'lr': 1e-3}}, **other}}}
        (tmp_path/'grid.yaml').write_text(yaml.safe_dump(config))
        return tmp_path/'grid.yaml'
    return call


def call(*argv):
    import os
    env = {**os.environ, 'PATH': f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    found = subprocess.run([str(o) for o in argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return found.returncode, found.stdout, found.stderr


def test_plain_snakemake_and_msmix_grid_do_the_same(write, tmp_path):
    config = write()
    plain  = (BIN/'snakemake', '--configfile', config, '--cores', 2, '--directory', tmp_path)
    code, _, err = call(*plain, '-np')
    assert code == 0 and not (tmp_path/'results').exists(), err
    code, _, err = call(*plain)
    assert code == 0, err
    runs, figure = sorted((tmp_path/'results'/'runs').rglob('*.h5')), tmp_path/'results'/'figures'/'main'/'table_main.csv'
    assert [o.parts[-2] for o in runs] == ['fast', 'main'] and figure.is_file()
    fast, main = (o.stat().st_mtime_ns for o in runs)

    config = write(variants={'fast': {'max_epochs': 1, 'lr': 2e-3}})
    code, _, err = call(*plain)
    assert code == 1 and '1 run files hold a run of another configuration' in err and runs[0].stat().st_mtime_ns == fast
    code, out, err = call(BIN/'msmix', 'grid', config, '--rerun', '-j', 2)
    assert code == 0, out + err
    assert f'{runs[0]} holds a run of another configuration (different recipe)' in out and 'made 1, failed 0, not started 0' in out
    assert runs[0].stat().st_mtime_ns > fast and runs[1].stat().st_mtime_ns == main
    older, = (tmp_path/'results'/'stale').rglob('*.h5')
    assert older.relative_to(tmp_path/'results'/'stale').parent == runs[0].relative_to(tmp_path/'results'/'runs').parent
    drawn = figure.stat().st_mtime_ns
    code, out, err = call(BIN/'msmix', 'grid', config, '--only', 'main')
    assert code == 0 and '1 runs, 1 of them there already' in out and 'to draw' not in out and figure.stat().st_mtime_ns == drawn, out + err


def test_options_of_a_call_are_checked(write, refused):
    refused("unknown experiment of", 'grid', write(), '--only', 'man')
    refused('not allowed with argument', 'grid', write(), '--no-figures', '--figures-only')


def test_both_configurations_of_experiments_vary_the_same_settings():
    read = lambda name: yaml.safe_load((ROOT/'workflow'/'config'/f'{name}.yaml').read_text())['experiments']
    ours, paper = read('mosi_open'), read('paper')
    shared = ours.keys() & paper.keys()
    assert {'ablation', 'sensitivity', 'occlusion', 'limited'} <= shared
    assert {k: ours[k].get('variants') for k in shared} == {k: paper[k].get('variants') for k in shared}
