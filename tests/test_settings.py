"What is written behind an equals sign, a dataset's name, a device or a seed: right, or refused in one line"
import json, pickle
import h5py
import numpy as np
import pytest
from conftest import TRAIN

DATA = 'synth:mosi:0.01'


@pytest.fixture
def train(tmp_path):
    "Arguments of a short run; each value can be changed, and settings added"
    def call(*more, data=DATA, backbone='lmf', mixer='none', seed=1, device='cpu', threads=1):
        return ['train', '--data', data, '--backbone', backbone, '--mixer', mixer, '--seed', seed, '--results', tmp_path/'r', '--device', device,
                '--threads', threads, '--set', 'max_epochs=1', *(p for o in more for p in ('--set', o))]
    return call


def recipe_of(out):
    with h5py.File(out.split()[-1]) as f: return json.loads(f.attrs['config'])['recipe']


@pytest.mark.parametrize('spelling', ['False', 'false'])
def test_a_part_of_the_method_switches_off_in_every_spelling(msmix, train, spelling):
    code, out, err = msmix(*train(f'mixer.sass={spelling}', 'lr=.3e-2', 'clip_norm=None', "standardise=('audio',)", mixer='msmix'))
    assert code == 0, err
    r = recipe_of(out)
    assert r['mixer'] == {'sass': False} and (r['lr'], r['clip_norm'], r['standardise']) == (.003, None, ['audio'])


@pytest.mark.parametrize('setting, message', [
    ('mixer.sass=no', "option of mixer msmix: sass='no' is not possible: write true or false"), ('mixer.sass=1', 'write true or false'),
    ('mixer.sass=None', 'write true or false'), ('mixer.sass=off', 'write true or false'), ('mixer.delta="0.3"', 'write a number'),
    ('mixer.delta=Infinity', 'write a finite number'), ('mixer.delta=nan', 'write a number'), ('mixer.delta=true', 'write a number'),
    ('mixer.heads=2.0', 'write a whole number'), ('mixer.fallback=1', 'write a text'), ('mixer.=1', 'ends in a dot'),
    ('backbone.rank=0', 'a size, depth or number is 1 or more'), ('backbone.rank=' + '9'*30, 'up to 100000'), ('backbone.rank=1e3', 'write a whole number'), ('backbone.hidden={"vison":8}', "did you mean 'vision'?"),
    ('backbone.dropout={"text":"a"}', 'write a number'), ('backbone.lead=texts', "did you mean 'text'?"), ('backbone.average_padding=yes', 'write true or false'),
    ("lr='1e-3'", "setting lr='1e-3' is not possible: write a number"), ('lr=1e999', 'write a finite number'), ('batch_size=32.0', 'write a whole number'),
    ('batch_size=1000000000', 'less than or equal to 1000000'), ('horizon=9999999999', 'less than or equal'), ('bf16=yes', 'write true or false'),
    ('standardise=audio', 'write a list such as ["text"]'), ('standardise=["adio"]', "did you mean 'audio'?"), ('clip_norm=~', 'write a number'),
    ('train_share=10', 'less than or equal to 1'), ('text_encoder=5', 'write a text'), ('groups.factors.momentum=0.1', "'lr' or 'weight_decay'"),
    ('leave_out=["("]', 'not a regular expression'), ('aux_weights.sall=0.1', "did you mean 'sal'?"), ('warmup=3', 'has no effect without schedule=cosine'), ('text_frozen=true', 'has no effect without a text_encoder')])
def test_a_value_of_another_type_is_refused(refused, train, setting, message): refused(message, *train(setting, mixer='msmix'))


@pytest.mark.parametrize('seed', ['-1', '1.0', '01', '1e3', '9223372036854775808', '99999999999999999999', 'x', '1_0'])
def test_a_seed_is_a_whole_number_everywhere(refused, train, tmp_path, seed):
    refused('is not a whole number from 0 to 2**63-1', *train(seed=seed))
    refused('is not a whole number from 0 to 2**63-1', 'synth', tmp_path/'s.h5', '--like', 'mosi', '--fraction', .01, '--seed', seed)
    refused('is not a whole number from 0 to 2**63-1', *train(data=f'synth:mosi:0.01:{seed}'))


def test_the_largest_seed_trains(msmix, train):
    code, out, _ = msmix(*train(seed=2**63-1))
    assert code == 0 and out.split()[-1].endswith('9223372036854775807.h5')


@pytest.mark.parametrize('device', ['hpu', 'meta', 'cpu:5', 'CPU', 'gpu', '0', 'cuda:x', 'mps:a', ''])
def test_a_device_that_computes_nothing_is_refused(refused, train, device): refused(f"device '{device}' cannot be used here", *train(device=device))


@pytest.mark.parametrize('threads', ['0', '-2', '100000'])
def test_threads_beyond_reason_are_refused(refused, train, threads): refused('pass 1 or more', *train(threads=threads))


@pytest.mark.parametrize('asked, message', [
    ('save_weights=no', "parameter save_weights='no' of train.ipynb is not possible: write true or false"), ('save_weights=1', 'write true or false'),
    ('settings=max_epochs=1', 'write a dictionary such as {"max_epochs":1}'), ('settings=null', 'write a dictionary'), ('settings=[1]', 'write a dictionary'),
    ('seed=01', "seed '01' (str) is not a whole number"), ('seed=1.0', 'is not a whole number'), ('seed="1"', 'is not a whole number'), ('seed=null', 'is not a whole number'),
    ('seed=18446744073709551616', 'is not a whole number'), ('checkpoint=often', 'write a whole number'), ('capture=None', 'write true or false')])
def test_a_notebook_parameter_is_of_its_defaults_kind(refused, tmp_path, asked, message):
    refused(message, 'notebook', TRAIN, tmp_path/'o.ipynb', '-p', asked)
    assert not (tmp_path/'o.ipynb').exists()


def test_texts_of_a_notebook_stay_as_written_and_values_are_read():
    from msmix.grid.notebooks import check_parameters, read_parameters
    found = read_parameters(TRAIN, {'variant': '001', 'results': '1e3', 'data': 'null', 'mixer': '"msmix"', 'save_weights': 'False', 'settings': "{'lr': .1}", 'seed': '7'})
    assert found == {'variant': '001', 'results': '1e3', 'data': 'null', 'mixer': 'msmix', 'save_weights': False, 'settings': {'lr': .1}, 'seed': 7}
    check_parameters(TRAIN, {**found, 'threads': None})


@pytest.mark.parametrize('kw, message', [
    ({'settings': 'max_epochs=1'}, 'write a dictionary such as {"max_epochs": 1}'), ({'settings': {'mixer.sass': 'no'}}, 'write true or false'), ({'seed': '1'}, "seed '1' (str)"),
    ({'seed': True}, 'is not a whole number'), ({'seed': 2**63}, 'is not a whole number'), ({'checkpoint': -1}, 'checkpoint=-1 is not possible'), ({'capture': 'no'}, 'write true or false'),
    ({'save_weights': 'no'}, "save_weights='no' is not possible: write true or false"), ({'variant': 1}, 'write a text'),
    ({'rerun': 'no'}, "rerun='no' is not possible: write true or false"), ({'results': None}, 'the results folder None is a NoneType'),
    ({'threads': 1.}, 'pass 1 or more')])
def test_callers_from_python_get_the_same_checks(tmp_path, kw, message):
    from msmix.training.experiment import run_one
    from msmix.names import UsageError
    with pytest.raises(UsageError) as e: run_one(DATA, **{'backbone': 'lmf', 'mixer': 'msmix', 'device': 'cpu', 'results': tmp_path, **kw})
    assert message in str(e.value)


def test_settings_may_be_a_text_that_says_them(tmp_path):
    from msmix.training.experiment import Experiment
    e = Experiment(DATA, 'lmf', 'msmix', settings='{"max_epochs": 1, "mixer.sass": false}', device='cpu', results=tmp_path)
    assert e.recipe.max_epochs == 1 and e.mixer.sass is False


def clips(n, seed, audio=1., label=3.):
    "A split of n clips"
    g, full = np.random.default_rng(seed), np.full(n, 4)
    y = g.uniform(-label, label, n).astype(np.float32)
    x = {m: g.normal(0, 1, (n, 4, d)).astype(np.float32) for m,d in (('text', 6), ('audio', 5), ('vision', 3))}
    x['audio'] *= audio
    return {**x, **{f'{m}_lengths': full for m in x}, 'regression_labels': y, 'id': np.array([f'{seed}_{k}' for k in range(n)]), 'raw_text': np.array(['w']*n)}


@pytest.fixture
def prepared(msmix, tmp_path):
    "A dataset file made of random clips"
    def call(name, *more, **kw):
        with open(tmp_path/'f.pkl', 'wb') as f: pickle.dump({s: clips(n, i, **kw) for i,(s,n) in enumerate((('train', 40), ('valid', 8), ('test', 8)))}, f)
        code, _, err = msmix('prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', name, *more)
        assert code == 0, err
        return tmp_path/'d.h5'
    return call


@pytest.mark.parametrize('name, more', [('mosi', []), ('MOSI', ['--label-range', '-3', '3']), ('cmu-mosi', []), ('mosi_aligned', [])])
def test_a_name_decides_recipe_metrics_and_range_in_any_spelling(msmix, train, prepared, name, more):
    code, out, _ = msmix(*train(data=prepared(name, *more), backbone='tfn'))
    assert code == 0 and out.startswith("recipe: tfn on mosi (published config, ours); metrics: MOSI's\n")
    assert 'Has0_acc_2' in out and f'/runs/{name}/tfn/' in out and recipe_of(out)['backbone']['hidden'] == {'text': 128, 'audio': 32, 'vision': 128}


def test_a_name_that_only_resembles_one_is_not_taken_for_it(msmix, train, prepared):
    code, out, _ = msmix(*train(data=prepared('simsv2', '--label-range', '-1', '1', label=1.), backbone='tfn'))
    assert code == 0
    assert out.startswith("recipe: general recipe of tfn, no row for 'simsv2'; metrics: SIMS's, by the label range; 'simsv2' is not taken for sims\n")


def test_a_known_name_with_another_label_range_is_refused(refused, tmp_path, prepared):
    prepared('mine', '--label-range', '-3', '3')
    refused('leave the label range out, or choose another name', 'prepare', tmp_path/'f.pkl', tmp_path/'e.h5', '--name', 'MOSI', '--label-range', '-1', '1')


def test_labels_of_another_scale_and_large_features_are_said(msmix, train, prepared):
    with pytest.warns(UserWarning) as said: msmix(*train(data=prepared('mine', '--label-range', '-3', '3', audio=1000., label=1.)))
    texts = [str(o.message) for o in said]
    assert any('reach from' in o and '--label-range' in o for o in texts)
    assert any("features of audio in 'mine' are large" in o and 'standardise=["audio"]' in o for o in texts)


def test_a_session_with_other_switches_gives_the_same_run_and_the_run_says_how_it_was_computed(msmix, train, tmp_path):
    import torch
    from msmix.runs.file import load_run, run_differences
    _, first, _ = msmix(*train(mixer='msmix'))
    plain = (tmp_path/'r').rename(tmp_path/'plain')
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision('medium')
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.set_default_device('meta')
    torch.backends.mkldnn.enabled = False
    try: _, again, _ = msmix(*train(mixer='msmix'))
    finally:
        torch.set_default_device(None)
        torch.backends.mkldnn.enabled = True
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision('highest')
        torch.use_deterministic_algorithms(False)
        torch.set_grad_enabled(True)
    place = first.split()[-1].replace(str(tmp_path/'r'), str(plain))
    assert run_differences(place, again.split()[-1]) == []
    setup = load_run(place).setup
    assert (setup['threads'], setup['dtype'], setup['deterministic'], setup['matmul_precision']) == (1, 'float32', False, 'highest')
    assert setup['cpu_capability'] and 'interop_threads' in setup


def test_a_run_file_of_before_has_no_setup(msmix, train):
    from msmix.runs.file import load_run
    path = msmix(*train())[1].split()[-1]
    with h5py.File(path, 'a') as f:
        del f['measured'].attrs['setup']
        for o in (f, f['measured']): del o.attrs['sum']
    assert load_run(path).setup == {}
