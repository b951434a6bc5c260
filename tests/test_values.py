"What the values of a feature pickle say, and what prepare makes of it"
import hashlib, pickle
import h5py
import numpy as np
import pytest

LENGTHS, DIMS, CLIPS = dict(text=12, audio=20, vision=16), dict(text=5, audio=3, vision=4), dict(train=24, valid=8, test=10)
SPLITS = list(CLIPS)
pytestmark = pytest.mark.usefixtures('prepare_in_this_process')


def clips(n, seed, front=False):
    "Clips padded behind or in front, with true lengths and tokens"
    g = np.random.default_rng(seed)
    s = {'regression_labels': g.uniform(-3, 3, n), 'id': [f'v{seed}$_${k}' for k in range(n)], 'raw_text': ['words']*n}
    s['regression_labels'][:2] = -3, 3
    for m, L in LENGTHS.items():
        lens = g.integers(3, L+1, n)
        real = np.arange(L) >= L-lens[:,None] if front else np.arange(L) < lens[:,None]
        s[m], s[f'{m}_lengths'] = (g.normal(0, 1, (n, L, DIMS[m]))*real[...,None]).astype(np.float32), lens
    text = s['text'].any(2)
    s['text_bert'] = np.stack([np.cumsum(text, 1)*text + 100*text, text, 0*text], 1)
    return s


def data(front=False): return {s: clips(n, i, front) for i, (s, n) in enumerate(CLIPS.items())}


def changed(change, front=False):
    d = data(front)
    for s in d.values(): change(s)
    return d


@pytest.fixture
def prepare(msmix, tmp_path):
    "Prepare a pickle: exit code, what is printed, messages, dataset file"
    def call(d, *more, name='mine', label_range=('-3', '3')):
        (tmp_path/'f.pkl').write_bytes(pickle.dumps(d))
        with pytest.warns() as said:
            import warnings
            warnings.warn('one')
            code, out, err = msmix('prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', name, '--label-range', *label_range, *more)
        return code, out, err + ' '.join(str(o.message) for o in said), tmp_path/'d.h5'
    return call


def same(path, d, modalities=tuple(LENGTHS)):
    "Does the dataset hold the clips of `d` in front, with their lengths?"
    with h5py.File(path) as f:
        for s, o in d.items():
            for m in modalities:
                assert f[f'{s}/{m}/lengths'][:].tolist() == o[f'{m}_lengths'].tolist(), (s, m)
                np.testing.assert_array_equal(f[f'{s}/{m}/features'][:], o[m])


def no_lengths(s):
    for m in LENGTHS: s.pop(f'{m}_lengths')


def zero_sum(s):
    "MMSA's helper script: the first step that sums to zero ends the clip"
    for m in ('audio', 'vision'):
        z = s[m].sum(2) == 0
        s[f'{m}_lengths'] = np.maximum(np.where(z.any(1), z.argmax(1), z.shape[1]), 1)


def blank_first(s):
    for m in ('audio', 'vision'): s[m][:,0] = 0


def test_padding_in_front_is_moved_with_tokens_and_counted(prepare):
    for d in (data(True), changed(no_lengths, True), changed(lambda s: (no_lengths(s), s.pop('text_bert')), True)):
        code, out, _, path = prepare(d)
        assert code == 0 and 'audio: ' in out and 'padded in front, moved to the front' in out
        same(path, {s: clips(n, i) | {m: shift(d[s][m]) for m in LENGTHS} for i, (s, n) in enumerate(CLIPS.items())})
        with h5py.File(path) as f:
            if 'text_bert' not in d['train']: continue
            ids = f['train/text/token_ids'][:]
            assert (ids[:,0] == 101).all() and ((ids > 0) == f['train/text/token_mask'][:]).all()


def shift(x):
    "Clips padded in front, padded behind"
    return np.stack([np.roll(o, -int(o.any(1).argmax()), 0) for o in x])


@pytest.mark.parametrize('front', [True, False])
def test_lengths_that_end_at_the_first_zero_are_refused_unless_trusted(front, refused, prepare, tmp_path):
    d = data(front)
    for s in d.values():
        if not front: blank_first(s)
        zero_sum(s)
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(d))
    call = ('prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', 'mine', '--label-range', -3, 3)
    refused('lie outside the lengths', *call)
    refused('--lengths values', *call)
    refused('padded in front' if front else "'audio' in", *call)
    assert not (tmp_path/'d.h5').exists()
    truth = {s: clips(n, i) | {m: shift(d[s][m]) if front else d[s][m] for m in LENGTHS} for i, (s, n) in enumerate(CLIPS.items())}
    assert prepare(d, '--lengths', 'values')[0] == 0
    same(tmp_path/'d.h5', truth)
    assert prepare(d, '--lengths', 'file')[0] == 0
    same(tmp_path/'d.h5', d, ('audio', 'vision'))
    assert prepare(d, '--lengths', 'full')[0] == 0
    with h5py.File(tmp_path/'d.h5') as f:
        assert {m: set(f[f'test/{m}/lengths'][:]) for m in LENGTHS} == {m: {L} for m, L in LENGTHS.items()}


def test_a_published_file_goes_by_the_values_and_keeps_its_lengths(prepare, tmp_path, monkeypatch):
    from msmix.data import prepare as module
    from msmix.data.load import load_dataset
    d = changed(zero_sum, True)
    monkeypatch.setitem(module.PUBLISHED, ('mosi', 'unaligned_50'), hashlib.sha256(pickle.dumps(d)).hexdigest())
    monkeypatch.setattr(module, 'guarded', lambda function, asked, *rest, **kw: vars(module.prepare_here(**asked)))   # a child would not know the sum
    code, out, said, path = prepare(d, name='mosi')
    assert code == 0 and 'audio: the lengths of the file differ in' in out and 'kept as audio/file_lengths' in out
    same(path, {s: clips(n, i) | {m: shift(d[s][m]) for m in LENGTHS} for i, (s, n) in enumerate(CLIPS.items())})
    a, b = load_dataset(path), load_dataset(path, lengths='file')
    assert a.sum != b.sum
    for s, o in d.items():
        assert b.splits[s].lengths['audio'].tolist() == o['audio_lengths'].tolist()
        inside = np.arange(20) < o['audio_lengths'][:,None]
        np.testing.assert_array_equal(b.splits[s].x['audio'].numpy(), o['audio']*inside[...,None])


@pytest.mark.parametrize('front', [False, True])
@pytest.mark.parametrize('known', [False, True])
def test_padding_with_a_constant_is_recognised_at_either_end(front, known, prepare):
    def offset(s):
        for m in LENGTHS: s[m] = s[m] - np.float32([.25, *[0]*(DIMS[m]-1)])
        if not known: no_lengths(s)
    d = changed(offset, front)
    code, out, said, path = prepare(d)
    assert code == 0 and 'is taken for padding' in out and 'lie outside' not in out+said
    with h5py.File(path) as f:
        for s, o in data(front).items():
            for m in LENGTHS:
                n = f[f'{s}/{m}/lengths'][:]
                assert n.tolist() == o[f'{m}_lengths'].tolist(), (s, m)
                np.testing.assert_array_equal(f[f'{s}/{m}/features'][:][np.arange(LENGTHS[m]) < n[:,None]], d[s][m][o[m].any(2)])


@pytest.mark.parametrize('in_front', [['test'], ['train', 'valid']])
def test_splits_may_be_padded_at_different_ends(in_front, prepare):
    d = {s: clips(n, i, s in in_front) for i, (s, n) in enumerate(CLIPS.items())}
    code, out, said, path = prepare(d)
    assert code == 0 and 'moved to the front' in out and 'lie outside' not in out+said
    same(path, {s: o | ({m: shift(o[m]) for m in LENGTHS} if s in in_front else {}) for s, o in d.items()})


def test_lengths_that_are_wrong_in_a_small_split_only_are_refused(refused, tmp_path):
    d = data()
    d['valid']['audio_lengths'] = d['valid']['audio_lengths']//2
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(d))
    refused("'audio' in split 'valid' of", 'prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', 'mine', '--label-range', -3, 3)


def test_features_of_one_length_are_aligned_only_where_the_values_are(prepare, monkeypatch):
    monkeypatch.setattr('test_values.LENGTHS', dict(text=12, audio=12, vision=12))
    d = data()
    same(prepare(changed(no_lengths))[3], d)
    for s in d.values():
        s['audio'] = np.random.default_rng(0).normal(0, 1, s['audio'].shape)*s['text'].any(2, keepdims=True)
        s['audio'][:,0] = 0
        s.pop('audio_lengths')
    code, out, _, path = prepare(d)
    assert 'audio: L=12, d=3, lengths from the text' in out
    with h5py.File(path) as f: assert f['test/audio/lengths'][:].tolist() == d['test']['text_lengths'].tolist()


def test_trailing_blank_frames_are_believed_and_a_few_values_outside_are_warned_of(prepare):
    def trailing(s): s['audio'][np.arange(len(s['audio'])), s['audio_lengths']-1] = 0
    code, out, said, path = prepare(changed(trailing))
    assert code == 0 and 'outside' not in out + said
    with h5py.File(path) as f: assert f['test/audio/lengths'][:].tolist() == data()['test']['audio_lengths'].tolist()
    def shorter(s): s['audio_lengths'] = np.maximum(s['audio_lengths']-1, 1)
    code, out, said, _ = prepare(changed(shorter))
    assert code == 0 and 'audio: 42 of' in out and '--lengths values' in said


def test_padding_other_than_zeros_leaves_the_lengths_as_the_only_witness(prepare):
    def noise(s): s['audio'] = np.random.default_rng(0).normal(0, 1, s['audio'].shape)
    code, _, said, path = prepare(changed(noise))
    assert code == 0 and 'no clip is padded with zeros' in said
    with h5py.File(path) as f: assert f['test/audio/lengths'][:].tolist() == data()['test']['audio_lengths'].tolist()


@pytest.mark.parametrize('change, words', [
    (lambda a: a[:,[0,2,1]], 'with mask and segment swapped'), (lambda a: a.transpose(0,2,1), 'stored as (N,L,3)'),
    (lambda a: np.concatenate([a, 0*a[...,:5]], 2), 'the mask of the tokens')])
def test_tokens_in_another_form_are_put_right(change, words, prepare):
    code, out, _, path = prepare(changed(lambda s: s.update(text_bert=change(s['text_bert']))))
    assert code == 0 and words in out
    same(path, data())
    with h5py.File(path) as f: assert f['train/text/token_mask'][:].sum(1).tolist() == data()['train']['text_lengths'].tolist()


@pytest.mark.parametrize('mask, words', [(lambda m: 0*m, 'a mask that is 0 everywhere in row 1'), (lambda m: m*(np.arange(12)<1), 'does not fit its ids in row 1'),
                                         (lambda m: m|1, 'does not fit its ids in row 1'), (lambda m: m*(np.arange(12)!=1), 'does not fit its ids in row 1')])
def test_a_mask_that_is_empty_or_contradicts_the_ids_is_refused(mask, words, refused, tmp_path):
    d = data()
    row = d['train']['text_bert'][1]
    row[:,11] = 0
    row[1] = mask(row[1].astype(int))
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(d))
    refused(words, 'prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', 'mine', '--label-range', -3, 3)


def test_word_vectors_beside_tokens_keep_their_own_lengths(prepare):
    def pieces(s):
        mask = np.arange(12) < 2*s['text_lengths'][:,None]
        s['text_bert'] = np.stack([100*mask, mask, 0*mask], 1)
    for more in (lambda s: None, lambda s: s.pop('text_lengths')):
        code, out, _, path = prepare(changed(lambda s: (pieces(s), more(s))))
        assert code == 0 and 'its steps are not the tokens' in out
        same(path, data())


def test_clips_without_a_label_are_left_out_and_labels_per_modality_may_be_missing(prepare, msmix, tmp_path):
    d = data()
    for s in d.values():
        s['regression_labels'] = s['regression_labels']/3
        s['regression_labels_T'] = np.where(np.arange(len(s['id'])) < 3, .5, np.nan)
    whole = d['train']
    keep = np.arange(24) % 2 == 0
    for empty in (0., np.nan):
        train = whole | {'mask': keep.astype(int), 'regression_labels': np.where(keep, whole['regression_labels'], empty)}
        code, out, _, path = prepare({**d, 'train': train, 'train_mix': train}, label_range=('-1', '1'))
        assert code == 0 and 'left out 12 unlabelled clips of 24 in train' in out and "left out 'train_mix'" in out
        assert 'text: 2 of 12 clips' in out
        with h5py.File(path) as f:
            assert f['train/id'].asstr()[:].tolist() == whole['id'][::2]
            np.testing.assert_array_equal(f['train/audio/features'][:], whole['audio'][::2])
            np.testing.assert_array_equal(f['train/text/token_ids'][:], whole['text_bert'][::2,0])
            assert np.isnan(f['train/text/label'][:]).sum() == 10
    assert msmix('train', '--data', path, '--backbone', 'lmf', '--mixer', 'msmix', '--seed', 1, '--results', tmp_path/'r', '--device', 'cpu',
                 '--set', 'max_epochs=1')[0] == 0


def test_a_label_range_much_wider_than_the_labels_is_said(prepare):
    def small(s): s['regression_labels'] = s['regression_labels']/3
    assert 'lie between -1 and 1, but the label range is -3 to 3' in prepare(changed(small))[2]
    assert 'label range' not in prepare(changed(small), label_range=('-1', '1'))[2] + prepare(data())[2]


def first(split, key, value): return lambda d: d[split].__setitem__(key, value(d[split][key]))


REFUSED = {
    'two splits that are one': (lambda d: d.update(valid=d['train']), "splits 'train' and 'valid' of"),
    'three splits that are one': (lambda d: d.update(valid=d['train'], test=d['train']), 'are one and the same'),
    'ids as a mapping': (first('train', 'id', lambda a: dict(enumerate(a))), "'id' in split 'train' of"),
    'ids as a set': (first('train', 'id', set), 'is a set'),
    'a NUL in an id': (first('test', 'id', lambda a: ['a\0b', *a[1:]]), "'id' in split 'test' of"),
    'half a surrogate in an id': (first('test', 'id', lambda a: ['\ud800', *a[1:]]), 'in row 0'),
    'no id': (first('test', 'id', lambda a: [*a[:3], None, *a[4:]]), 'is empty in row 3'),
    'one-hot labels': (first('valid', 'regression_labels', lambda a: np.eye(2)[(a>0).astype(int)]), 'argmax'),
    'labels by class names': (first('valid', 'regression_labels', lambda a: np.where(a>0, 'Positive', 'Negative')), "texts such as 'Negative'"),
    'labels of true and false': (first('valid', 'regression_labels', lambda a: a>0), 'numbers are needed'),
    'no labelled clip': (lambda d: d['test'].update(mask=[0]*10), 'has no labelled clip'),
    'lengths in one split only': (lambda d: d['test'].pop('audio_lengths'), "'audio_lengths' in"),
    'negative lengths': (lambda d: [s.update(audio_lengths=s['audio_lengths']-100) for s in d.values()], 'lie outside the lengths'),
    'infinite lengths': (lambda d: d['test'].update(audio_lengths=[np.inf]*10), 'has inf in row 0: whole numbers are needed'),
    'a mask of other values': (lambda d: d['test'].update(mask=['1']*9+['0']), 'holds other values than 0 and 1'),
    'a mask of unequal parts': (lambda d: d['test'].update(mask=[[1],[1,2]]*5), 'is a list of unequal parts'),
    'no labels': (lambda d: d['test'].update(regression_labels=None), 'one number per clip is needed'),
    'labels of one modality of unequal parts': (lambda d: d['test'].update(regression_labels_A=[[1.],[1.,2.]]*5), "'regression_labels_A' in split 'test'"),
    'ids of thousands of digits': (lambda d: d['test'].update(id=[10**5000+k for k in range(10)]), 'holds a number of over 300 digits'),
    'token ids that are no whole numbers': (lambda d: d['test'].update(text_bert=d['test']['text_bert']+.5), 'whole numbers from 0 on'),
    'token ids below zero': (lambda d: d['test'].update(text_bert=-d['test']['text_bert']), 'whole numbers from 0 on'),
    'a key as text and as bytes': (lambda d: d['test'].update({b'audio': d['test']['audio']}), "has 'audio' twice"),
    'another scale of a label of one modality': (lambda d: d['train'].update(regression_labels_T=np.full(24, 7.)), "'text/label' in split 'train'"),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_prepare_refuses(kind, refused, tmp_path):
    spoil, words = REFUSED[kind]
    d = data()
    spoil(d)
    (tmp_path/'f.pkl').write_bytes(pickle.dumps(d))
    refused(words, 'prepare', tmp_path/'f.pkl', tmp_path/'d.h5', '--name', 'mine', '--label-range', -3, 3)
    assert [o.name for o in tmp_path.iterdir()] == ['f.pkl']


IDS = {
    'a column': (lambda a: np.array(a)[:,None], lambda a: a, ''),
    'columns of MulT': (lambda a: np.stack([a, ['0.0']*len(a), ['3.1']*len(a)], 1), lambda a: a, 'the first is taken'),
    'columns of one video': (lambda a: [['v', o] for o in a], lambda a: [f'v_{o}' for o in a], 'joined by _'),
    'bytes': (lambda a: [o.encode() for o in a], lambda a: a, ''),
    'Python 2': (lambda a: ['片段'.encode().decode('latin1')+o for o in a], lambda a: [f'片段{o}' for o in a], 'UTF-8 that Python 2 wrote'),
    'letters of latin1': (lambda a: [f'é{o}' for o in a], lambda a: [f'é{o}' for o in a], ''),
    'numbers': (lambda a: np.arange(len(a)), lambda a: [str(k) for k in range(len(a))], ''),
}


@pytest.mark.parametrize('kind', IDS)
def test_ids_are_read_from(kind, prepare):
    write, read, words = IDS[kind]
    d = data()
    for s in d.values(): s.update(id=write(s['id']), raw_text=write(s['raw_text']) if 'MulT' not in kind else None)
    code, out, _, path = prepare(d)
    assert code == 0 and words in out and (words or 'id:' not in out)
    with h5py.File(path) as f: assert f['test/id'].asstr()[:].tolist() == read(data()['test']['id'])


def test_numbers_written_as_text_and_nested_labels_are_read_and_raw_text_is_mended(prepare):
    d = data()
    d['train']['regression_labels'] = d['train']['regression_labels'].astype(str)
    d['valid']['regression_labels'] = d['valid']['regression_labels'][:,None,None]
    d['test']['raw_text'] = ['x\0y', '\ud800', None, float('nan'), *['ok']*6]
    code, out, _, path = prepare(d)
    assert code == 0 and 'numbers written as text' in out and 'replaced in 2 clips' in out
    with h5py.File(path) as f:
        np.testing.assert_allclose(f['train/label'][:], data()['train']['regression_labels'].astype(np.float32))
        assert f['test/raw_text'].asstr()[:4].tolist() == ['x\ufffdy', '?', '', '']


def test_clips_of_train_in_test_are_found_under_other_ids(prepare):
    d = data()
    d['test'] = {k: v[:10] for k, v in d['train'].items()} | {'id': [f'x{k}' for k in range(10)]}
    assert "10 of 10 clips of 'test' in" in prepare(d)[2]
    assert 'features of clips' not in prepare(data())[2]
