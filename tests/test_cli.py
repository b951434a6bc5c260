"The command line: exit codes, one line for bad input, nothing half-written"
import json, os, pickle, subprocess, sys
from pathlib import Path
import h5py
import numpy as np
import pytest
from conftest import ROOT

LENGTHS, DIMS = {'text': 50, 'audio': 6, 'vision': 7}, {'text': 8, 'audio': 3, 'vision': 4}


class Hostile:
    def __reduce__(self): return os.system, ('touch hostile-was-here',)


def feature_split(n, seed):
    "One split as MMSA's feature pickles hold it"
    draw, L = np.random.default_rng(seed), LENGTHS
    text_length = draw.integers(3, L['text'], n)
    mask = (np.arange(L['text']) < text_length[:,None]).astype(float)
    labels = draw.uniform(-3, 3, n)
    return {'raw_text': np.array(['a clip']*n), 'id': np.array([f'clip$_${seed}_{i}' for i in range(n)]),
            'text_bert': np.stack([np.ones((n, L['text'])), mask, np.zeros_like(mask)], 1),
            **{m: draw.normal(size=(n, L[m], DIMS[m])).astype(np.float32) for m in L},
            'audio_lengths': [3]*n, 'vision_lengths': [4]*n, 'annotations': np.array(['Positive']*n),
            'classification_labels': np.zeros(n), 'regression_labels': labels}


@pytest.fixture
def features(prepare_in_this_process):
    "Three splits"
    return {'train': feature_split(8, 0), 'valid': feature_split(4, 1), 'test': feature_split(5, 2)}


def put(split, key, value): return lambda f: f[split].__setitem__(key, value(f[split][key]))
def first(value): return lambda a: np.concatenate([np.asarray(a[:1])*0+value, np.asarray(a[1:])])


BROKEN = {
    'a missing split': (lambda f: f.pop('valid'), "no split 'valid'"),
    'a missing key': (lambda f: f['train'].pop('regression_labels'), "lacks 'regression_labels'"),
    'modalities with different numbers of samples': (put('train', 'audio', lambda a: a[:-1]), "7 rows but 'label' has 8"),
    'features without a time axis': (put('test', 'vision', lambda a: a[:,0]), '(N,L,d)'),
    'a label out of range': (put('train', 'regression_labels', first(9.)), 'has the value 9 in row 0'),
    'a label that is not a number': (put('train', 'regression_labels', first(np.nan)), 'drop those clips'),
    'no samples': (lambda f: f.__setitem__('valid', {k: v[:0] for k,v in f['valid'].items()}), 'no clips'),
    'text in place of numbers': (put('test', 'audio', lambda a: np.full(a.shape, 'x')), 'numbers of shape'),
}


@pytest.mark.parametrize('fault', BROKEN)
def test_prepare_refuses_a_pickle_with(fault, refused, features, tmp_path):
    spoil, message = BROKEN[fault]
    spoil(features)
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(features))
    refused(message, 'prepare', tmp_path/'f.pkl', tmp_path/'new'/'d.h5', '--name', 'mosi')
    assert [o.name for o in tmp_path.iterdir()] == ['f.pkl']


@pytest.mark.parametrize('name, options, message', [
    ('mossi', [], "did you mean 'mosi'?"), ('a/b', ['--label-range', '-3', '3'], "'a/b' cannot be a folder's name"),
    ('mine', ['--label-range', '3', '-3'], 'the lower one first')])
def test_prepare_refuses_a_name_or_range(name, options, message, refused, features, tmp_path):
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(features))
    refused(message, 'prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', name, *options)
    assert [o.name for o in tmp_path.iterdir()] == ['f.pkl']


@pytest.mark.parametrize('kind, message', [('missing', "no file at 'f.pkl'"), ('empty', 'it has 0 bytes'), ('text', 'is not a feature pickle'),
                                           ('cut', 'ends after 5000 bytes'), ('hostile', 'nothing of it was run')])
def test_prepare_refuses_a_file_that_is(kind, message, refused, features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {'empty': b'', 'text': b'not a pickle', 'cut': pickle.dumps(features)[:5000],
               'hostile': pickle.dumps({'train': Hostile()})}
    if kind in content: (tmp_path/'f.pkl').write_bytes(content[kind])
    refused(message, 'prepare', 'f.pkl', 'd.h5', '--name', 'mosi')
    assert [o.name for o in tmp_path.iterdir() if o.name != 'f.pkl'] == []


def test_prepare_writes_a_dataset_that_trains(msmix, features, tmp_path):
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(features))
    code, _, err = msmix('prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', 'mosi')
    assert code == 0, err
    with h5py.File(tmp_path/'d.h5') as f: assert f.attrs['name'] == 'mosi' and len(f['train/label']) == 8
    code, out, err = msmix('train', '--data', tmp_path/'d.h5', '--backbone', 'lmf', '--mixer', 'none', '--seed', 1,
                           '--results', tmp_path/'r', '--set', 'max_epochs=1', '--device', 'cpu')
    assert code == 0, err
    assert (tmp_path/'r'/'runs'/'mosi'/'lmf'/'none'/'main'/'1.h5').is_file()
    assert 'MAE' in out


def test_list_names_everything_without_loading_torch():
    code = ('import sys; from msmix.cli import main; main(["list", "--json"]); '
            'sys.exit(3 if {"torch", "numpy", "pandas"} & set(sys.modules) else 0)')
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0
    names = json.loads(found.stdout)
    assert list(names) == ['datasets', 'backbones', 'mixers', 'experiments']
    assert {'tfn', 'lmf'} <= set(names['backbones']) and {'none', 'mixup', 'msmix'} <= set(names['mixers'])


def test_every_listed_name_stands_for_a_class_or_a_configuration():
    from msmix.names import BACKBONES, MIXERS, EXPERIMENTS, resolve
    for table in (BACKBONES, MIXERS):
        for name in table: assert isinstance(resolve(name, table, 'name'), type)
    for name in EXPERIMENTS: assert (ROOT/'workflow'/'config'/f'{name}.yaml').is_file()


def test_the_installed_command_hands_on_its_exit_code():
    command = Path(sys.executable).parent/'msmix'
    found = subprocess.run([command, 'trian'], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, '')
    assert found.stderr.startswith("msmix: unknown command 'trian' (did you mean 'train'?)") and found.stderr.count('\n') == 1
    assert subprocess.run([command, 'train', '--help'], capture_output=True).returncode == 0


def test_synth_writes_a_dataset_and_the_same_one_again(msmix, tmp_path):
    for name in ('a.h5', 'b.h5'):
        assert msmix('synth', tmp_path/name, '--like', 'mosi', '--fraction', .01, '--seed', 3)[0] == 0
    with h5py.File(tmp_path/'a.h5') as a, h5py.File(tmp_path/'b.h5') as b:
        assert a.attrs['sum'] == b.attrs['sum'] and a.attrs['synthetic']
        assert a['train/text/features'].shape[1:] == (50, 768)


@pytest.mark.parametrize('options, message', [
    (['--like', 'mossi'], "did you mean 'mosi'?"), (['--like', 'mosi', '--fraction', '0'], 'fraction'),
    (['--like', 'mosi', '--fraction', '2'], 'fraction'), (['--like', 'mosi', '--seed', '-1'], 'seed'), ([], '--like')])
def test_synth_refuses(options, message, refused, tmp_path):
    refused(message, 'synth', tmp_path/'a.h5', *options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def train(tmp_path):
    "Arguments of a short training run, some replaced"
    def arguments(**other):
        options = {'data': 'synth:mosi:0.01', 'backbone': 'lmf', 'mixer': 'none', 'seed': 1, 'results': tmp_path/'r', 'device': 'cpu',
                   'set': 'max_epochs=1', **other}
        return ['train', *(o for k,v in options.items() for o in (f"--{k.replace('_', '-')}", v))]
    return arguments


@pytest.mark.parametrize('other, message', [
    ({'backbone': 'lmff'}, "unknown backbone 'lmff' (did you mean 'lmf'?)"),
    ({'mixer': 'msmx'}, "unknown mixer 'msmx' (did you mean 'msmix'?)"),
    ({'data': 'nowhere.h5'}, "no file at 'nowhere.h5'"),
    ({'data': 'synth:mossi'}, "did you mean 'mosi'?"),
    ({'set': 'max_epoch=1'}, "did you mean 'max_epochs'?"),
    ({'set': 'max_epochs'}, 'write --set NAME=VALUE'),
    ({'set': 'max_epochs=many'}, 'max_epochs'),
    ({'set': 'backbone.rnak=2'}, "unknown option of backbone lmf 'rnak' (did you mean 'rank'?)"),
    ({'set': 'mixer.delta=0.1'}, "unknown option of mixer none 'delta'"),
    ({'device': 'gpu'}, "device 'gpu' cannot be used here"),
    ({'seed': -1}, "seed '-1' is not a whole number"),
    ({'variant': 'a/b'}, "variant 'a/b' cannot be a folder's name"),
])
def test_train_refuses(other, message, refused, train, tmp_path):
    refused(message, *train(**other))
    assert list(tmp_path.rglob('*.h5*')) == []


@pytest.fixture
def dataset(msmix, tmp_path):
    "A synthetic dataset file"
    assert msmix('synth', tmp_path/'d.h5', '--like', 'mosi', '--fraction', .01)[0] == 0
    return tmp_path/'d.h5'


@pytest.mark.parametrize('key, value, message', [
    ('train/audio/lengths', 0, 'audio/lengths'), ('test/vision/lengths', 9999, 'vision/lengths'), ('valid/label', 9, 'label'),
    ('valid/label', np.nan, 'label'), ('train/text/features', np.inf, 'text/features')])
def test_train_refuses_a_dataset_file_with(key, value, message, refused, train, dataset):
    with h5py.File(dataset, 'r+') as f: f[key][0] = value
    refused(message, *train(data=dataset))


@pytest.mark.parametrize('key, change, message', [
    ('train/audio/features', lambda a: a[:,0], '(N,L,d) is needed'), ('valid/audio/features', lambda a: a[:-1], 'every array needs one row per clip'),
    ('test/vision/features', lambda a: np.full(a.shape, b'x'), 'numbers are needed'), ('valid/label', lambda a: a[:0], 'no clips'),
    ('train/text/features', lambda a: a+1, 'changed after it was written')])
def test_train_refuses_a_dataset_file_whose_array_is_another(key, change, message, refused, train, dataset):
    with h5py.File(dataset, 'r+') as f:
        a = f[key][:]
        del f[key]
        f[key] = change(a)
    refused(message, *train(data=dataset))


@pytest.mark.parametrize('key, message', [('valid', "has no split 'valid'"), ('train/label', "split 'train'"), ('test/audio', 'audio/features'),
                                          ('test/text/features', 'text/features')])
def test_train_refuses_a_dataset_file_without(key, message, refused, train, dataset):
    with h5py.File(dataset, 'r+') as f: del f[key]
    refused(message, *train(data=dataset))


def test_train_refuses_a_results_folder_it_cannot_write(refused, train, tmp_path):
    (tmp_path/'file').write_text('')
    refused('results cannot be written to', *train(results=tmp_path/'file'))
    assert (tmp_path/'file').read_text() == ''


def test_train_refuses_to_replace_a_run_of_another_configuration(msmix, refused, train, tmp_path):
    assert msmix(*train())[0] == 0
    path, = tmp_path.rglob('1.h5')
    before = path.read_bytes()
    refused('another configuration', *train(set='max_epochs=2'))
    assert path.read_bytes() == before and [o.name for o in path.parent.iterdir()] == ['1.h5']
    assert msmix(*train(set='max_epochs=2', variant='longer'))[0] == 0


def test_predict_gives_the_predictions_of_the_run(msmix, refused, train, dataset, tmp_path):
    import pandas as pd
    assert msmix(*train(data=dataset), '--save-weights')[0] == 0
    path = tmp_path/'r'/'runs'/'synth-mosi'/'lmf'/'none'/'main'/'1.h5'
    for name in ('p.csv', 'p.h5'): assert msmix('predict', path, '--data', dataset, '-o', tmp_path/name)[:2] == (0, '')
    frame = pd.read_csv(tmp_path/'p.csv')
    with h5py.File(path) as run, h5py.File(tmp_path/'p.h5') as p:
        np.testing.assert_allclose(p['test/pred'][:], run['predictions/test/pred'][:], rtol=1e-6)
        np.testing.assert_allclose(frame[frame.split == 'test'].pred, run['predictions/test/pred'][:], rtol=1e-6)
    assert msmix('predict', path, '--data', dataset)[1].startswith('split,id,pred')
    refused("no file at 'nowhere.h5'", 'predict', path, '--data', 'nowhere.h5')
    refused('there is no run file nowhere.h5', 'predict', 'nowhere.h5', '--data', dataset)
    before = path.read_bytes(), dataset.read_bytes()
    for o in (path, dataset): refused('would be replaced by its predictions', 'predict', path, '--data', dataset, '-o', o)
    assert (path.read_bytes(), dataset.read_bytes()) == before


def test_predict_needs_weights(msmix, refused, train, tmp_path):
    assert msmix(*train())[0] == 0
    refused('holds no weights', 'predict', tmp_path/'r'/'runs'/'synth-mosi'/'lmf'/'none'/'main'/'1.h5', '--data', 'synth:mosi:0.01')


def test_table_shows_what_is_there(msmix, refused, train, tmp_path):
    for seed in (1, 2): assert msmix(*train(seed=seed))[0] == 0
    code, out, _ = msmix('table', tmp_path/'r')
    assert code == 0
    header, row = out.splitlines()[-2:]
    assert 'MAE' in header and row.split()[:6] == ['synth-mosi', 'lmf', 'none', 'main', '2', 'yes'] and '±' in row
    refused('there are no results at', 'table', tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    refused('no run files in', 'table', tmp_path/'empty')


def test_embed_refuses_a_missing_file(refused, tmp_path):
    refused('no file at', 'embed', tmp_path/'nowhere.h5', '--model', 'nowhere')


def test_float16_halves_the_file_and_its_errors_are_printed_and_kept(msmix, features, tmp_path):
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(features))
    calls = [lambda dst, *more: msmix('prepare', tmp_path/'f.pkl', dst, '--name', 'mosi', *more),
             lambda dst, *more: msmix('synth', dst, '--like', 'mosi', '--fraction', .01, *more)]
    for call in calls:
        for o in tmp_path.glob('*.h5'): o.unlink()
        code, plain, _ = call(tmp_path/'whole.h5')
        assert code == 0 and 'is off by' not in plain
        code, out, _ = call(tmp_path/'half.h5', '--float16')
        said = [o.split(':')[0].strip() for o in out.splitlines() if 'float16 is off by at most' in o]
        assert code == 0 and said == ['text', 'audio', 'vision']
        with h5py.File(tmp_path/'whole.h5') as a, h5py.File(tmp_path/'half.h5') as b:
            for m in said:
                x, y = a[f'test/{m}/features'], b[f'test/{m}/features']
                assert (x.dtype, y.dtype) == (np.float32, np.float16)
                assert 2*y.id.get_storage_size() == x.id.get_storage_size()
                assert y.attrs['absolute_error'] == np.abs(y[:].astype(np.float32) - x[:]).max() > 0


def test_prepare_refuses_a_number_that_no_float16_holds(refused, msmix, features, tmp_path):
    features['valid']['audio'][2,1,0] = 1e5
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(features))
    refused("'audio/features' in split 'valid'", 'prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', 'mosi', '--float16')
    refused('has the value 100000 in row 2: float16 holds numbers from -65504 to 65504', 'prepare', tmp_path/'f.pkl', tmp_path/'d.h5',
            '--name', 'mosi', '--float16')
    assert [o.name for o in tmp_path.iterdir()] == ['f.pkl']
    assert msmix('prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', 'mosi')[0] == 0
