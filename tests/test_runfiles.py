"Run files: what is refused, what stays, what older files may hold"
import os, shutil, subprocess, sys
from contextlib import contextmanager
from dataclasses import replace
import h5py
import numpy as np
import pytest
from msmix.data.load import check_dataset
from msmix.data.layout import write_dataset
from msmix.hdf5 import NotReadableNow
from msmix.names import UsageError
from msmix.runs.file import (check_target, example_run, file_identity, load_run, read_content, run_differences,
                             run_of, run_path, save_run)
from msmix.runs.frame import is_merged, iter_runs, load_runs, merge_runs, unmerge_runs
from msmix.runs.identity import sha256

ROOT_IS_READER = hasattr(os, 'geteuid') and os.geteuid()==0


@pytest.fixture
def results(tmp_path): return tmp_path/'res'


@pytest.fixture
def path(results):
    "Of a run file with weights, beside that of another run"
    save_run(example_run(mixer='msmix'), results)
    return save_run(replace(example_run(), state={'a.weight':np.eye(20, dtype=np.float32), 'b.n':np.int64(3)}, versions={'torch':'2'},
                            watched={'lam':np.arange(16).reshape(8,2)}, ranges={'lam':(0.,1.)}), results)


@contextmanager
def used_by_another(path, how="'r+'"):
    "Open in another process, for writing"
    code = f"import h5py; f = h5py.File({str(path)!r}, {how}); f.flush(); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        yield
        other.communicate('\n')


def change(path, do):
    with h5py.File(path, 'r+') as f: do(f)
    return path


def without_sums(path, do=lambda f: None):
    "The file as an older version wrote it, after a change"
    def older(f):
        for o in (f, f['measured'], f.get('state', f)): o.attrs.pop('sum', None)
        f['measured'].attrs.pop('setup', None)
        do(f)
    return change(path, older)


# ---- a file that cannot be read now

def test_a_run_file_open_elsewhere_is_read_and_kept(path, results, msmix):
    before = path.read_bytes()
    with used_by_another(path):
        assert load_run(path).key==('example','tfn','none','main',1111)
        assert len(load_runs(results))==4
        with pytest.raises(UsageError, match='another configuration'): check_target(path, sha256('other'))
        code, out, err = msmix('table', results)
        assert code==0 and 'skipped' not in err and 'none' in out
    assert path.read_bytes()==before


def test_what_may_be_good_is_never_replaced(path, results, monkeypatch, msmix):
    "In use in a way that nobody else can read, no permission, an error of the disk"
    before = path.read_bytes()
    new = results/'runs/example/tfn/none/main/2.h5'
    with used_by_another(new, "'w', libver='latest'"):
        for call in (load_run, file_identity, is_merged, lambda p: check_target(p, sha256('x')), lambda p: list(iter_runs(p)), lambda p: merge_runs(results, p),
                     lambda p: save_run(example_run(seed=2), results)):
            with pytest.raises(NotReadableNow, match='in use by another program'): call(new)
        with pytest.warns(UserWarning, match='in use by another program') as said: assert len(load_runs(results))==4
        assert len(said)==1 and 'delete' not in str(said[0].message)
    for error, says in ((PermissionError(13, 'x'), 'no permission'), (OSError(5, 'Input/output error'), 'just now'), (OSError('unable to lock file, errno = 37'), 'no locks')):
        def fail(*args, error=error, **kwargs): raise error
        monkeypatch.setattr('msmix.hdf5.h5py.File', fail)
        for call in (load_run, file_identity, lambda p: save_run(load_run(p), results)):
            with pytest.raises(NotReadableNow, match=says): call(path)
    assert path.read_bytes()==before


@pytest.mark.skipif(ROOT_IS_READER, reason='root may read everything')
def test_folders_that_nobody_may_read_are_named(path, results):
    folder = path.parent
    folder.chmod(0)
    try:
        with pytest.warns(UserWarning, match='cannot be read'): load_runs(results)
    finally: folder.chmod(0o755)


def test_train_refuses_what_another_program_has(path, results, refused):
    target = run_path(results, 'synth-mosi', 'lmf', 'none', 'main', 1)
    target.parent.mkdir(parents=True)
    with used_by_another(target, "'w', libver='latest'"):
        refused('in use by another program', 'train', '--data', 'synth:mosi:0.01', '--backbone', 'lmf', '--mixer', 'none', '--seed', 1, '--results', results, '--set', 'max_epochs=1')


# ---- what lies in a run's place

@pytest.mark.parametrize('make, says', [(lambda p: p.symlink_to('nowhere.h5'), 'link that leads nowhere'), (lambda p: p.symlink_to(p.name), 'link that leads nowhere'),
                                        (os.mkfifo, 'is a pipe'), (os.mkdir, 'is a folder')])
def test_run_paths_that_are_no_files_are_named(make, says, path, results):
    path.unlink()
    make(path)
    for call in (load_run, file_identity, lambda p: check_target(p, sha256('x')), lambda p: save_run(example_run(), results)):
        with pytest.raises(UsageError, match=says): call(path)
    with pytest.warns(UserWarning, match=says): assert len(load_runs(results))==2
    assert path.is_symlink() or path.is_dir() or path.is_fifo()


def test_a_linked_run_file_is_written_where_it_lies(path, results, tmp_path):
    kept = tmp_path/'kept.h5'
    shutil.move(path, kept)
    path.symlink_to(kept)
    save_run(example_run(), results, drop_weights=True)
    assert path.is_symlink() and load_run(kept).state is None


# ---- names and seeds

@pytest.mark.parametrize('key', [dict(variant=.5), dict(variant=True), dict(variant=1000), dict(seed='1'), dict(seed='01'), dict(seed=True), dict(seed=1.),
                                 dict(seed=2**63), dict(seed=-1), dict(variant='\x1b[31m'), dict(dataset='..'), dict(mixer='a/b')])
def test_names_and_seeds_that_would_be_ambiguous_are_refused(key, results):
    with pytest.raises(UsageError, match=next(iter(key))): save_run(replace(example_run(), **key), results)
    assert not list(results.rglob('*.h5'))


def test_older_files_with_numbers_for_names_are_read_as_texts(path, results, tmp_path, msmix):
    "Their folders are called as the numbers are written"
    odd = {0.5:'0.5', True:'True', 1000.:'1000.0', np.bytes_(b'half'):'half'}
    for value, name in odd.items():
        new = path.parent.parent/name/'1111.h5'
        new.parent.mkdir()
        without_sums(shutil.copy(path, new), lambda f: f.attrs.update(variant=value))
    without_sums(shutil.copy(path, path.with_name('8.h5')), lambda f: f.attrs.update(seed='8'))
    frame = load_runs(results)
    assert set(frame.variant)=={'main', *odd.values()} and frame.seed.dtype.kind=='i' and set(frame.seed)=={8, 1111}
    assert msmix('table', results)[0]==0
    assert merge_runs(results, tmp_path/'all.h5')==7
    assert load_runs(tmp_path/'all.h5').drop(columns='path').equals(frame.drop(columns='path'))


# ---- content

def test_every_flipped_byte_is_noticed(path):
    "In a process of its own: a damaged file can end the process within the HDF5 library"
    code = f'''
import random, warnings
from pathlib import Path
from msmix.names import UsageError
from msmix.runs.file import load_run
path, rng = Path({str(path)!r}), random.Random(1)
good, want = path.read_bytes(), repr(load_run(path))
refused = 0
for _ in range(100):
    bad = bytearray(good)
    bad[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
    path.write_bytes(bad)
    try: assert repr(load_run(path))==want
    except UsageError: refused += 1
print(refused)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    if done.returncode<0: pytest.skip('the HDF5 library ended the process')
    assert done.returncode==0, done.stderr
    assert int(done.stdout)>20


def test_values_that_are_changed_on_purpose_are_refused(path):
    for do in (lambda f: f.attrs.update(epochs=9), lambda f: f['predictions/test/pred'].__setitem__(0, 1.), lambda f: f['state/a.weight'].__setitem__(0, 2.),
               lambda f: f['measured'].attrs.update(peak_memory=1), lambda f: f.attrs.update(note='mine'), lambda f: f.__delitem__('state')):
        bad = change(shutil.copy(path, path.with_name('2.h5')), do)
        with pytest.raises(UsageError, match='not what its sum says'): load_run(bad)


def test_weights_are_left_alone_where_they_are_not_asked_for(path):
    change(path, lambda f: f['state/a.weight'].__setitem__(0, 2.))
    assert load_run(path, state=False).state is None


@pytest.mark.parametrize('do, says', [
    (lambda f: f['state/a.weight'].__setitem__(0, np.nan), 'holds NaN'),
    (lambda f: f.attrs.update(config='[]'), 'config is no JSON object'),
    (lambda f: f.attrs.update(config='{"lengths":{"text":-1}}'), 'lengths'),
    (lambda f: f.attrs.update(label_range=[1., -1.]), 'lower one first'),
    (lambda f: f.attrs.update(dataset='\x1b[2J'), 'dataset'),
    (lambda f: f.attrs.update(identity=f.ref), "'identity' is no text"),
    (lambda f: f.attrs.update(extra=1), "no sum, but holds '@extra'"),
    (lambda f: f.__delitem__('predictions/test/id'), 'expected id, pred and true'),
    (lambda f: f.__setitem__('predictions/test/x', h5py.ExternalLink('/etc/passwd', 'x')), 'link to another file'),
    (lambda f: f.__setitem__('more', f['predictions']), 'lies in two places')])
def test_an_older_file_is_held_against_the_rules(do, says, path, refused):
    without_sums(path)
    assert load_run(path).state is not None
    change(path, do)
    with pytest.raises(UsageError, match='not a whole run file') as e: load_run(path)
    assert says in str(e.value) and '\x1b' not in str(e.value)


def test_sums_are_no_difference_between_runs(path, results):
    other = without_sums(shutil.copy(path, path.with_name('2.h5')))
    assert run_differences(path, other)==[]


# ---- merged files

def test_merged_files_carry_a_sum_for_each_run(path, results, tmp_path):
    merged = tmp_path/'all.h5'
    merge_runs(results, merged)
    assert len(load_runs(merged))==4
    change(merged, lambda f: f['example/tfn/none/main/1111/predictions/test/pred'].__setitem__(0, 1.))
    with pytest.warns(UserWarning, match='not what its sum says'): assert len(load_runs(merged))==2
    with pytest.raises(UsageError, match='1 runs that cannot be read and would be lost'): merge_runs(results, merged)


def test_two_places_of_a_merged_file_cannot_be_one_run(path, results, tmp_path):
    merged = tmp_path/'all.h5'
    merge_runs(results, merged)
    change(merged, lambda f: f.copy('example/tfn/none/main/1111', 'example/tfn/none/main/2'))
    with pytest.warns(UserWarning, match='says that it is example/tfn/none/main/1111'): assert len(load_runs(merged))==4


def test_merge_goes_to_no_place_that_is_not_its_own(path, results, tmp_path, refused):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'loop').symlink_to('loop')
    (tmp_path/'text.h5').write_text('mine')
    for name, says in (('pipe', 'is a pipe'), ('loop', 'symbolic links'), ('text.h5', 'no file of merged runs'), ('.', 'is a folder')):
        refused(says, 'merge', results, tmp_path/name)
    refused('no file of merged runs', 'merge', results, path)
    assert (tmp_path/'text.h5').read_text()=='mine'


def test_unmerge_leaves_what_another_program_has(path, results, tmp_path):
    merged = tmp_path/'all.h5'
    merge_runs(results, merged)
    path.unlink()
    with used_by_another(path, "'w', libver='latest'"):
        with pytest.raises(NotReadableNow): unmerge_runs(merged, results)


def test_the_runs_of_the_repository_are_read_as_they_are():
    from conftest import ROOT
    from msmix.hdf5 import open_h5
    with open_h5(ROOT/'results/mosi-open/runs.h5', 'file of runs', inside=False) as f:
        run = run_of(read_content(f['mosi-open/lmf/msmix/main/1111']))
    assert run.key==('mosi-open','lmf','msmix','main',1111) and run.modalities==('text','audio','pace')


# ---- datasets

def test_the_mark_of_made_up_data_cannot_be_changed_unseen(tmp_path):
    from msmix.data.synth import synth
    synth(tmp_path/'x.h5', 'mosi', fraction=.01)
    check_dataset(tmp_path/'x.h5')
    change(tmp_path/'x.h5', lambda f: f.attrs.update(synthetic=False))
    with pytest.raises(UsageError, match='content sum'): check_dataset(tmp_path/'x.h5')


def test_a_dataset_file_that_another_program_has_is_not_replaced(tmp_path):
    with used_by_another(tmp_path/'x.h5', "'w', libver='latest'"):
        with pytest.raises(NotReadableNow): write_dataset(tmp_path/'x.h5', {}, name='x', modalities=['text','audio'], label_range=(-1,1), language='')


def test_training_names_what_is_wrong_with_an_attribute(tmp_path, refused):
    from msmix.data.synth import synth
    synth(tmp_path/'x.h5', 'mosi', fraction=.01)
    for k,v,says in (('name', 5, 'a text is needed'), ('modalities', 3., 'a list of names'), ('label_range', '-3 3', 'two finite numbers'),
                     ('synthetic', 'no', 'true or false'), ('sum', 1, 'a text is needed'), ('language', np.bytes_(b'\xff'), 'cannot be read')):
        bad = change(shutil.copy(tmp_path/'x.h5', tmp_path/'bad.h5'), lambda f: f.attrs.update({k:v}))
        refused(says, 'train', '--data', bad, '--backbone', 'lmf', '--mixer', 'none', '--seed', 1, '--results', tmp_path/'res')
