"Runs by papermill and the grid by Snakemake: other parameters give another run, the same ones the same run"
import os, re, signal, subprocess, sys, time
from pathlib import Path
import h5py
import nbformat
import numpy as np
import pytest
import yaml
from conftest import TRAIN

SHORT = {'data': 'synth:mosi:0.01', 'backbone': 'lmf', 'mixer': 'none', 'seed': 1, 'variant': 'main', 'device': 'cpu', 'threads': 1,
         'settings': {'max_epochs': 2}}
together = pytest.mark.xdist_group('runs')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Train by the notebook with some parameters changed; give the run file"
    from msmix.grid.notebooks import run_notebook
    from msmix.runs.file import run_path
    done = {}

    def call(where='a', **other):
        key = repr((where, sorted(other.items(), key=str)))
        if key not in done:
            folder = tmp_path_factory.mktemp('run')
            p = {**SHORT, **other, 'results': str(folder/'results')}
            run_notebook(TRAIN, folder/'executed'/'train.ipynb', p)
            done[key] = run_path(p['results'], 'synth-mosi', p['backbone'], p['mixer'], p['variant'], p['seed'])
        return done[key]
    return call


def test_pred(path):
    from msmix.runs.file import load_run
    return np.asarray(load_run(path).predictions['test']['pred'])


test_pred.__test__ = False


@together
def test_the_notebook_trains_what_its_parameters_say(run):
    from msmix.runs.file import load_run
    a, b = load_run(run()), load_run(run(backbone='tfn', settings={'max_epochs': 3, 'lr': 1e-4}, seed=2))
    assert (a.backbone, a.mixer, a.seed, a.epochs) == ('lmf', 'none', 1, 2)
    assert (b.backbone, b.mixer, b.seed, b.epochs) == ('tfn', 'none', 2, 3)
    assert a.identity != b.identity and a.config != b.config and a.data_sum == b.data_sum
    assert '0.0001' in str(b.config) and '0.0001' not in str(a.config)
    assert not np.allclose(a.predictions['test']['pred'], b.predictions['test']['pred'])


@together
def test_another_seed_gives_another_run_of_the_same_identity(run):
    from msmix.runs.file import load_run
    assert not np.allclose(test_pred(run()), test_pred(run(seed=2)))
    assert load_run(run()).identity == load_run(run(seed=2)).identity


@together
def test_the_same_seed_gives_the_same_run_file_apart_from_times(run):
    from msmix.runs.file import run_differences
    assert run('a', mixer='msmix') != run('b', mixer='msmix')
    assert run_differences(run('a', mixer='msmix'), run('b', mixer='msmix')) == []
    assert run_differences(run('a', mixer='msmix'), run()) != []


@together
@pytest.mark.parametrize('backbone, options', [('tfn', {}), ('almt', {'backbone.width': 16})])
def test_other_backbones_repeat_too(backbone, options, run):
    from msmix.runs.file import run_differences
    settings = {'max_epochs': 1, **options}
    a, b = (run(k, backbone=backbone, mixer='msmix', settings=settings) for k in 'ab')
    assert a != b and run_differences(a, b) == []


@together
def test_the_command_line_trains_the_same_run_as_the_notebook(run, msmix, tmp_path):
    from msmix.runs.file import run_differences
    code, _, err = msmix('train', '--data', SHORT['data'], '--backbone', 'lmf', '--mixer', 'none', '--seed', 1, '--results', tmp_path,
                         '--device', 'cpu', '--threads', 1, '--set', 'max_epochs=2')
    assert code == 0, err
    assert run_differences(run(), tmp_path/'runs'/'synth-mosi'/'lmf'/'none'/'main'/'1.h5') == []


def test_an_unknown_parameter_is_refused_with_the_nearest_one(refused, tmp_path):
    refused("unknown parameter of train.ipynb 'mixr' (did you mean 'mixer'?)", 'notebook', TRAIN, tmp_path/'o.ipynb', '-p', 'mixr=none')
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_that_lost_its_tag_is_refused(refused, tmp_path):
    nb = nbformat.read(TRAIN, 4)
    for c in nb.cells: c.metadata.pop('tags', None)
    nbformat.write(nb, tmp_path/'train.ipynb')
    refused("has 0 cells tagged 'parameters'", 'notebook', tmp_path/'train.ipynb', tmp_path/'out'/'o.ipynb', '-p', 'mixer=none')
    assert [o.name for o in tmp_path.iterdir()] == ['train.ipynb']


@pytest.mark.parametrize('parameter, message', [('backbone=tnf', "did you mean 'tfn'?"), ('data=nowhere.h5', 'nowhere.h5'),
                                                ('settings={"max_epoch":1}', "did you mean 'max_epochs'?")])
def test_bad_input_to_the_notebook_comes_back_as_one_line(parameter, message, refused, msmix, tmp_path):
    code, _, err = msmix('notebook', TRAIN, tmp_path/'o.ipynb', '-p', parameter, '-p', f'results={tmp_path/"r"}')
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith('msmix: ') and message in last
    assert (tmp_path/'o.ipynb').is_file() and list(tmp_path.rglob('*.h5*')) == []


@pytest.fixture
def grid(tmp_path):
    "A small grid: its configuration file, after changes"
    def call(**other):
        config = {'results': str(tmp_path/'results'), 'datasets': {'synth-mosi': {'synth': 'mosi', 'fraction': .01}}, 'backbones': ['lmf'],
                  'mixers': ['none', 'msmix'], 'seeds': [1], 'variants': {'main': {'max_epochs': 1}}, 'device': 'cpu', **other}
        (tmp_path/'grid.yaml').write_text(yaml.safe_dump(config))
        return tmp_path/'grid.yaml'
    return call


def msmix_in(folder, *argv):
    "The command line in a process of its own, in `folder`"
    command = [Path(sys.executable).parent/'msmix', *map(str, argv)]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return found.returncode, found.stdout, found.stderr


def test_the_grid_makes_every_run_once_and_takes_up_what_is_missing(grid, tmp_path):
    config = grid()
    code, out, err = msmix_in(tmp_path, 'grid', config, '--dry-run')
    assert code == 0, err
    assert '2 runs, 0 of them there already' in out and not (tmp_path/'results').exists()
    code, out, err = msmix_in(tmp_path, 'grid', config, '-j', 2)
    assert code == 0, out + err
    a, b = sorted((tmp_path/'results'/'runs').rglob('1.h5'))
    assert [o.parts[-3] for o in (a, b)] == ['msmix', 'none']
    assert len(list((tmp_path/'results'/'notebooks').rglob('1.ipynb'))) == 2
    times = [o.stat().st_mtime_ns for o in (a, b)]
    b.unlink()
    code, out, err = msmix_in(tmp_path, 'grid', config, '-j', 2)
    assert code == 0 and '2 runs, 1 of them there already' in out, out + err
    assert a.stat().st_mtime_ns == times[0] and b.stat().st_mtime_ns > times[1]
    grid(variants={'main': {'max_epochs': 2}})
    code, out, err = msmix_in(tmp_path, 'grid', config, '-j', 2)
    assert code == 2 and '2 run files hold a run of another configuration' in err.splitlines()[-1] and '--rerun' in err.splitlines()[-1]
    assert f'{a} holds a run of another configuration (different recipe)' in out and a.stat().st_mtime_ns == times[0]


def test_a_failed_run_is_listed_and_the_others_go_on(grid, tmp_path):
    config = grid(variants={'wild': {'max_epochs': 3, 'lr': 1e30}, 'main': {'max_epochs': 1}}, mixers=['none'])
    code, out, err = msmix_in(tmp_path, 'grid', config, '-j', 1)
    runs, notebooks = tmp_path/'results'/'runs'/'synth-mosi'/'lmf'/'none', tmp_path/'results'/'notebooks'/'synth-mosi'/'lmf'/'none'
    assert code == 1 and (runs/'main'/'1.h5').is_file() and not (runs/'wild'/'1.h5').exists()
    assert f"failed: {runs/'wild'/'1.h5'}" in out and 'nan' in out.lower() and str(notebooks/'wild'/'1.ipynb') in out
    assert (notebooks/'wild'/'1.ipynb').is_file()
    assert 'made 1, failed 1, not started 0' in out and '(done 1 · running 0 · failed 1 · left 0' in out
    assert '1 runs or figures are missing' in err.splitlines()[-1]


def test_a_killed_grid_is_taken_up_again(grid, tmp_path):
    # without checkpoints: a kill while one is written leaves its part until the run is finished (04_checkpoint), and here every file is looked at before that
    config = grid(mixers=['none'], variants={'main': {'max_epochs': 200, 'patience': 200}}, checkpoint=0)
    command = [Path(sys.executable).parent/'msmix', 'grid', config, '-j', '1']
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    log, deadline = tmp_path/'results'/'logs'/'synth-mosi'/'lmf'/'none'/'main'/'1.txt', time.monotonic()+120
    def trains(): return log.exists() and re.search('[1-9][0-9]*/200', log.read_text(errors='replace'))
    while not trains() and first.poll() is None and time.monotonic() < deadline: time.sleep(.1)
    assert trains()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert [o for k in ('*.part', '*.tmp') for o in (tmp_path/'results').rglob(k)] == [] and not list((tmp_path/'results'/'runs').rglob('*.h5'))
    grid(mixers=['none'], variants={'main': {'max_epochs': 1}})
    code, out, err = msmix_in(tmp_path, 'grid', config, '-j', 1)
    assert code == 0, out + err


def test_the_grid_refuses(grid, refused, tmp_path):
    refused("did you mean 'mixers'?", 'grid', grid(mixer=['none']))
    refused("unknown backbone 'tnf' (did you mean 'tfn'?)", 'grid', grid(backbones=['tnf']))
    refused('no dataset file at', 'grid', grid(datasets={'mosi': {'file': str(tmp_path/'nowhere.h5')}}))
    with h5py.File(tmp_path/'d.h5', 'w') as f: f.attrs['name'] = 'sims'
    refused("holds the dataset 'sims'", 'grid', grid(datasets={'mosi': {'file': str(tmp_path/'d.h5')}}))
    refused("did you mean 'reproduce'?", 'grid', 'reproduc')
    refused('pass -j 1 or more', 'grid', grid(), '-j', 0)
    refused("did you mean 'rank'?", 'grid', grid(variants={'main': {'backbone.rnak': 1}}))
    refused("device 'gpu'", 'grid', grid(device='gpu'))
    (tmp_path/'file').write_text('')
    refused('results folder', 'grid', grid(results=str(tmp_path/'file')))


@pytest.fixture
def batches(monkeypatch, tmp_path):
    "Weights before, and clips of every step of two epochs, by mixer"
    import torch
    from msmix.training import train
    from msmix.training.experiment import Experiment

    def call(mixer, seed=1):
        weights, seen, step = [], [], train.train_step

        def watched(backbone, mixer, batch, *args):
            if not weights: weights.append(torch.cat([p.detach().flatten().clone() for p in backbone.parameters()]))
            seen.append(torch.cat([batch.y, batch.x['text'].flatten(1)], 1))
            return step(backbone, mixer, batch, *args)
        with monkeypatch.context() as m:
            m.setattr(train, 'train_step', watched)
            Experiment(SHORT['data'], 'tfn', mixer, seed, settings={'max_epochs': 2, 'batch_size': 4}, device='cpu', results=tmp_path).fit(progress=False)
        return [*weights, *seen]
    return call


def test_runs_that_differ_in_the_mixer_alone_share_weights_and_batches(batches):
    import torch
    plain, other = batches('none'), batches('none', seed=2)
    assert len(plain) > 5 and not torch.equal(plain[1], plain[1+len(plain)//2])
    for mixer in ('mixup', 'msmix'): assert all(torch.equal(a, b) for a,b in zip(plain, batches(mixer), strict=True))
    assert not any(torch.equal(a, b) for a,b in zip(plain, other, strict=True))
