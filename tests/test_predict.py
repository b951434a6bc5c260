"Predictions depend on the clip and the run file alone; a run that is there is left alone; nothing in a file is believed unseen"
import io, json, os, sys, warnings
from dataclasses import replace
import h5py
import numpy as np
import pandas as pd
import pytest
from unittest.mock import patch
from conftest import TRAIN

MODALITIES = ('text', 'audio', 'vision')


def clips(n, seed, unit=1.):
    "A split of clips whose label is written into every modality; the audio is in another unit"
    draw, L = np.random.default_rng(seed), {'text': 6, 'audio': 8, 'vision': 7}
    y, made = draw.uniform(-3, 3, n).astype(np.float32), {}
    for m in MODALITIES:
        lengths = draw.integers(2, L[m]+1, n)
        x = draw.normal(size=(n, L[m], 4)) + y[:,None,None]
        if m == 'audio': x = (500 + 200*x)*unit
        made[m] = {'features': (x*(np.arange(L[m]) < lengths[:,None])[...,None]).astype(np.float32), 'lengths': lengths}
    return {'label': y, 'id': [f'{seed}_{i}' for i in range(n)], **made}


SPLITS = {'train': clips(20, 0), 'valid': clips(6, 1), 'test': clips(8, 2)}


def write(path, splits, **kw):
    from msmix.data.layout import write_dataset
    write_dataset(path, splits, **{**dict(name='own', modalities=MODALITIES, label_range=(-3, 3), language='en', complete=False), **kw})
    return path


def command(data, results, *more):
    return ('train', '--data', data, '--backbone', 'lmf', '--mixer', 'none', '--seed', 1, '--results', results, '--threads', 1, '--device', 'cpu',
            '--set', 'max_epochs=2', '--set', 'standardise=["audio","vision"]', *more)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "The dataset file, and a run of it that standardises, with its weights"
    from msmix.cli import main
    folder = tmp_path_factory.mktemp('run')
    data = write(folder/'own.h5', SPLITS)
    assert main([str(o) for o in command(data, folder/'r', '--save-weights')]) == 0
    return data, folder/'r'/'runs'/'own'/'lmf'/'none'/'main'/'1.h5'


@pytest.fixture
def predicted(msmix, tmp_path):
    "What `msmix predict` says of some splits: the frame, and the warnings"
    def call(run, splits, **kw):
        (tmp_path/'new.h5').unlink(missing_ok=True)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            code, out, err = msmix('predict', run, '--data', write(tmp_path/'new.h5', splits, **kw), '-o', tmp_path/'p.csv')
        assert (code, out, err) == (0, '', '')
        return pd.read_csv(tmp_path/'p.csv'), ' '.join(str(o.message) for o in said)
    return call


def cut(split, index):
    "Some clips, without labels"
    return {'id': [split['id'][i] for i in index], **{m: {k: v[index] for k,v in split[m].items()} for m in MODALITIES}}


def test_a_clip_is_predicted_alone_as_among_others(made, predicted):
    from msmix.runs.file import load_run
    _, run = made
    wanted = load_run(run).predictions['test']['pred']
    for split in ('train', 'test'):
        frame, said = predicted(run, {split: cut(SPLITS['test'], [3])})
        np.testing.assert_allclose(frame.pred, wanted[[3]], atol=1e-5)
        assert list(frame.split) == [split] and frame.true.isna().all() and said == ''
    for train in (clips(20, 5), clips(20, 0, unit=3.)):
        frame, _ = predicted(run, {**SPLITS, 'train': train})
        np.testing.assert_allclose(frame.pred[frame.split == 'test'], wanted, atol=1e-5)
    some = {**SPLITS['test'], 'label': np.where(np.arange(8) < 5, np.nan, 1.)}
    frame, _ = predicted(run, {'test': some})
    assert frame.true.isna().sum() == 5
    np.testing.assert_allclose(frame.pred, wanted, atol=1e-5)


def test_what_differs_is_said_and_what_cannot_fit_is_refused(made, predicted, refused, tmp_path):
    _, run = made
    _, found = predicted(run, {'test': SPLITS['test']}, name='other', label_range=(-5, 5), modalities=('vision', 'audio', 'text'))
    for said in ('the run was trained on own', 'another order', 'lie between -5 and 5'): assert said in found
    two = {'test': {k: v for k,v in SPLITS['test'].items() if k != 'vision'}}
    refused('the run was trained on', 'predict', run, '--data', write(tmp_path/'two.h5', two, modalities=('text', 'audio')))


def test_files_for_prediction_are_not_trained_on(refused, tmp_path):
    refused("has no split 'train'", *command(write(tmp_path/'one.h5', {'test': SPLITS['test']}), tmp_path/'r'))
    bare = {k: {a: b for a,b in s.items() if a != 'label'} for k,s in SPLITS.items()}
    refused('a clip without a label cannot be used', *command(write(tmp_path/'bare.h5', bare), tmp_path/'r'))
    assert not (tmp_path/'r').exists()


def test_a_run_that_is_there_is_left_alone(made, msmix, tmp_path):
    data, _ = made
    path = tmp_path/'r'/'runs'/'own'/'lmf'/'none'/'main'/'1.h5'
    first = msmix(*command(data, tmp_path/'r'))[1]       # the recipe's line, then metrics and path
    content, age = path.read_bytes(), path.stat().st_mtime_ns

    def untouched(*more):
        code, out, _ = msmix(*command(data, tmp_path/'r', *more))
        assert code == 0 and out.splitlines()[-1] == str(path) and out.endswith(first.partition('\n')[2])
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, age)
        return out
    assert 'is there already' in untouched() and 'holds no weights' in untouched('--save-weights')
    weighed = lambda: 'state' in h5py.File(path)
    assert msmix(*command(data, tmp_path/'r', '--rerun'))[0] == 0 and not weighed()
    assert msmix(*command(data, tmp_path/'r', '--rerun', '--save-weights'))[0] == 0 and weighed()
    content, age = path.read_bytes(), path.stat().st_mtime_ns
    untouched()
    code, out, _ = msmix(*command(data, tmp_path/'r', '--rerun'))
    assert code == 0 and 'the new one does too' in out and weighed() and path.stat().st_mtime_ns != age


def test_a_run_that_is_there_needs_no_place_to_write(made, msmix, monkeypatch):
    from msmix.names import UsageError
    def refuse(path): raise UsageError('nobody may write here')
    for module in ('runs.file', 'training.experiment'): monkeypatch.setattr(f'msmix.{module}.check_writable', refuse)
    data, run = made
    again = command(data, run.parents[5])
    assert msmix(*again)[0] == 0
    code, _, err = msmix(*again, '--rerun')
    assert code == 2 and 'nobody may write here' in err


def test_a_run_needs_no_open_streams(made, tmp_path, monkeypatch):
    from msmix.cli import main
    for stream in ('stdout', 'stderr'): monkeypatch.setattr(sys, stream, None)
    assert main([str(o) for o in command(made[0], tmp_path/'r')]) == 0


def test_the_training_notebook_shows_a_run_that_is_there(made, tmp_path, monkeypatch):
    from msmix.training.experiment import Experiment
    data, run = made
    content = run.read_bytes()
    cells = [''.join(c['source']) for c in json.loads(TRAIN.read_text())['cells'] if c['cell_type'] == 'code']
    asked = dict(data=str(data), backbone='lmf', mixer='none', seed=1, results=str(run.parents[5]), device='cpu',
                 settings={'max_epochs': 2, 'standardise': ['audio', 'vision']})
    monkeypatch.setattr(Experiment, 'fit', None)
    space = {}
    exec(cells[0], space)
    space.update(asked)
    for o in cells[1:]: exec(o, space)
    assert space['path'] == run and run.read_bytes() == content


def changed(run, path, **changes):
    "A copy of a run file with other contents, as no check on writing would let it be"
    from msmix.runs.file import load_run, write_run
    other = replace(load_run(run), **changes)
    with patch('msmix.runs.file.run_of'), h5py.File(path, 'w') as f: write_run(f, other)
    return path


def test_a_run_file_is_not_believed_unseen(made, refused, tmp_path, monkeypatch):
    from huggingface_hub import HfApi
    from msmix.runs.file import load_run
    monkeypatch.setattr(HfApi, 'model_info', lambda *args, **kw: pytest.fail('the hub was asked'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    data, run = made
    found = load_run(run)
    recipe = found.config['recipe']
    with_recipe = lambda **kw: {'config': {**found.config, 'recipe': {**recipe, **kw}}}
    weight = next(iter(found.state))
    cases = [(with_recipe(text_encoder='attacker/model'), "names the text encoder 'attacker/model'"), (with_recipe(fit='x'), 'is none of a run'),
             (with_recipe(backbone={'rank': 10**12}), 'larger than all of its weights'), ({'config': {}}, 'is none of a run'),
             ({'config': {**found.config, 'dims': {**found.config['dims'], 'text': 10**12}}}, 'is none of a run'),
             ({'config': {**found.config, 'dims': {**found.config['dims'], 'text': 10**5}}}, 'do not fit lmf'),
             ({'state': {**found.state, weight: found.state[weight]*np.nan}}, f"'state/{weight}' holds NaN"),
             ({'state': {k: v for k,v in found.state.items() if k != weight}}, 'do not fit lmf'),
             ({'scaling': {'audio': np.full((2, 4), np.nan), 'vision': np.ones((2, 4))}}, "'scaling/audio' holds NaN"),
             ({'scaling': {'audio': np.ones((2, 3)), 'vision': np.ones((2, 4))}}, 'mean and scale of audio')]
    for changes, message in cases: refused(message, 'predict', changed(run, tmp_path/'x.h5', **changes), '--data', data)


def test_an_older_run_file_predicts_its_own_data_alone(made, msmix, refused, tmp_path):
    data, run = made
    old = changed(run, tmp_path/'old.h5', scaling=None)
    assert msmix('predict', old, '--data', data) == msmix('predict', run, '--data', data)
    new = write(tmp_path/'new.h5', {**SPLITS, 'train': clips(20, 5)})
    refused('does not say by what audio was scaled', 'predict', old, '--data', new)


def test_predictions_replace_predictions_alone(made, msmix, refused, tmp_path):
    data, run = made
    (tmp_path/'notes.csv').write_text('mine\n')
    (tmp_path/'notes.h5').write_text('mine')
    other = write(tmp_path/'other.h5', SPLITS)
    for name in ('notes.csv', 'notes.h5', 'other.h5'): refused('is no file of predictions', 'predict', run, '--data', data, '-o', tmp_path/name)
    assert (tmp_path/'notes.csv').read_text() == 'mine\n' and other.stat().st_size > 10000
    os.mkfifo(tmp_path/'pipe.csv')
    refused('is a pipe', 'predict', run, '--data', data, '-o', tmp_path/'pipe.csv')
    for name in ('p.csv', 'p.csv', 'p.H5', 'p.H5'): assert msmix('predict', run, '--data', data, '-o', tmp_path/name)[:2] == (0, '')


def test_a_terminal_gets_no_escape_sequences_of_ids(made, tmp_path, monkeypatch):
    from msmix.cli import main
    class Terminal(io.StringIO):
        def isatty(self): return True
    ids = {'id': [f'\x1b[31m{i}' for i in range(8)]}
    data = write(tmp_path/'new.h5', {'test': {**SPLITS['test'], **ids}})
    for stream, shown in ((Terminal(), r'\x1b[31m0'), (io.StringIO(), '\x1b[31m0')):
        monkeypatch.setattr(sys, 'stdout', stream)
        assert main(['predict', str(made[1]), '--data', str(data)]) == 0
        assert f'test,{shown},' in stream.getvalue()


def test_nobody_is_asked_whether_code_of_a_folder_shall_run(refused, tmp_path, monkeypatch):
    from io import StringIO
    from msmix.data.synth import synth
    synth(tmp_path/'d.h5', 'mosi', .01)
    (tmp_path/'model').mkdir()
    (tmp_path/'model'/'evil.py').write_text(f"open({str(tmp_path/'was-here')!r}, 'w')")
    (tmp_path/'model'/'config.json').write_text(json.dumps({'model_type': 'evil', 'auto_map': {'AutoConfig': 'evil.C', 'AutoModel': 'evil.M'}}))
    monkeypatch.setattr('sys.stdin', StringIO('y\ny\n'))
    refused('brings code of its own', 'embed', tmp_path/'d.h5', '--model', tmp_path/'model')
    assert not (tmp_path/'was-here').exists()


def spoil(place, kind):
    "Something in the place of a checkpoint"
    import torch
    place.parent.mkdir(parents=True)
    if kind == 'folder': place.mkdir()
    elif kind == 'pipe': os.mkfifo(place)
    elif kind == 'link': place.symlink_to('nowhere')
    elif kind == 'bytes': place.write_bytes(b'junk')
    else: torch.save({'list': [1], 'no state': {'identity': 'x'}}[kind], place)


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'link', 'bytes', 'list', 'no state'])
def test_what_lies_in_the_place_of_a_checkpoint_is_a_warning(kind, made, msmix, tmp_path):
    from msmix.runs.file import run_differences
    data, run = made
    spoil(tmp_path/'r'/'checkpoints'/'own'/'lmf'/'none'/'main'/'1.pt', kind)
    with pytest.warns(UserWarning, match='starts from the beginning'): assert msmix(*command(data, tmp_path/'r', '--save-weights'))[0] == 0
    assert run_differences(run, tmp_path/'r'/'runs'/'own'/'lmf'/'none'/'main'/'1.h5') == []
