"Pickles made to do harm end in one line, whatever happens to the process that reads them; a full disk loses nothing"
import os, pickle, signal, struct, subprocess, sys, time
from pathlib import Path
import pytest
from conftest import ROOT
from test_cli import feature_split


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    "The current folder, empty but for the good pickle f.pkl"
    monkeypatch.chdir(tmp_path)
    sizes = {'train': 8, 'valid': 4, 'test': 5}
    (tmp_path/'f.pkl').write_bytes(pickle.dumps({s: feature_split(n, i) for i,(s,n) in enumerate(sizes.items())}))
    return tmp_path


PREPARE = ('prepare', 'f.pkl', 'new/d.h5', '--name', 'mine', '--label-range', '-3', '3')
NESTED = b')' + b'\x85'*2_000_000       # ((((…)))): too deep for hash()


@pytest.mark.parametrize('stream, message', [
    (b'}' + NESTED + b'K\1s', 'ended its process (signal 11, SIGSEGV): it is damaged or made to do harm'),
    (b'K\1r' + struct.pack('<I', 2**31), 'needs more than the 2.0 GB of memory')], ids=['crash', 'memory'])
def test_a_bomb_is_one_line_and_leaves_nothing(stream, message, refused, pickled):
    if 'memory' in message and sys.platform != 'linux': pytest.skip('no limit on memory')
    (pickled/'f.pkl').write_bytes(b'\x80\x04' + stream + b'.')
    refused(message, *PREPARE)
    assert [o.name for o in pickled.iterdir()] == ['f.pkl']


def test_a_pickle_that_takes_too_long_is_given_up(refused, pickled, monkeypatch):
    from msmix.data import prepare
    monkeypatch.setattr(prepare, 'limits_of', lambda n: {'memory': 10**9, 'seconds': .3})
    refused("'f.pkl' took longer than 0 seconds and was given up", *PREPARE)
    assert [o.name for o in pickled.iterdir()] == ['f.pkl']


def test_the_child_warns_through_its_parent_and_loads_nothing_from_the_current_folder(msmix, pickled):
    for name in ('json', 'numpy', 'h5py', 'msmix'): (pickled/f'{name}.py').write_text("raise SystemExit('from the current folder')")
    splits = pickle.loads((pickled/'f.pkl').read_bytes())
    splits['valid']['id'] = splits['train']['id'][:4]
    (pickled/'f.pkl').write_bytes(pickle.dumps(splits))
    with pytest.warns(UserWarning, match='4 of 17 ids appear more than once'): code, out, _ = msmix(*PREPARE)
    assert code == 0 and '8 / 4 / 5 clips' in out and (pickled/'new'/'d.h5').is_file()


@pytest.mark.parametrize('protocol', range(6))
def test_the_same_dataset_comes_out_of_every_protocol(protocol, pickled):
    from msmix.data.prepare import prepare_here
    splits = pickle.loads((pickled/'f.pkl').read_bytes())
    (pickled/'g.pkl').write_bytes(pickle.dumps(splits, protocol))
    sums = [prepare_here(o, 'd.h5', 'mine', (-3, 3), progress=False).sum for o in ('f.pkl', 'g.pkl')]
    assert sums[0] == sums[1]


def test_an_object_array_with_a_raw_buffer_is_refused(pickled):
    "NumPy's own constructor takes the bytes for addresses of objects"
    from msmix.names import UsageError
    from msmix.data.pickles import load_pickle
    name = lambda module, attr: f'c{module}\n{attr}\n'.encode()
    dtype = name('numpy', 'dtype') + b'X\2\0\0\0O8\x89\x88\x87R'
    array = name('numpy._core.multiarray', '_reconstruct') + name('numpy', 'ndarray') + b'K\0\x85C\1b\x87R'
    for stream in (name('numpy', 'ndarray') + b'K\1\x85X\1\0\0\0OC\x08' + bytes(8) + b'\x87R',
                   array + b'(K\1K\1\x85' + dtype + b'\x89C\x08' + bytes(8) + b'tb',
                   name('numpy._core.numeric', '_frombuffer') + b'(C\x08' + bytes(8) + dtype + b'K\1\x85X\1\0\0\0CtR',
                   name('numpy._core.multiarray', 'scalar') + dtype + b'C\x08' + bytes(8) + b'\x86R'):
        (pickled/'f.pkl').write_bytes(b'\x80\x04' + stream + b'.')
        with pytest.raises(UsageError, match='do not trust it'): load_pickle('f.pkl')


@pytest.mark.parametrize('module, advice', [('torch', 'tensor.numpy()'), ('pandas', '.to_numpy()'), ('scipy.sparse', '.toarray()')])
def test_known_objects_come_with_advice(module, advice, pickled):
    from msmix.names import UsageError
    from msmix.data.pickles import load_pickle
    (pickled/'f.pkl').write_bytes(f'c{module}\nThing\n)R.'.encode())
    with pytest.raises(UsageError) as e: load_pickle('f.pkl')
    assert f"asks for '{module}.Thing'" in str(e.value) and advice in str(e.value)


def waiting(folder):
    "A process that waits for a guarded one, and the number of that one"
    code = "from msmix.guarded import guarded; guarded('signal:pause', {}, 'it', memory=10**9, seconds=60)"
    parent = subprocess.Popen([sys.executable, '-c', code], cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stderr=subprocess.DEVNULL)
    children = Path(f'/proc/{parent.pid}/task/{parent.pid}/children')
    within(lambda: children.read_text().strip())
    child = int(children.read_text())
    within(lambda: 'S' in Path(f'/proc/{child}/stat').read_text().split()[2] and len(list(Path(f'/proc/{child}/task').iterdir())) > 1)
    return parent, child


def within(true, seconds=30):
    "Wait until something is true"
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(.05)


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs /proc')
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_parent(how, tmp_path):
    parent, child = waiting(tmp_path)
    parent.send_signal(how)
    assert parent.wait(30) == -how
    within(lambda: not Path(f'/proc/{child}').exists() or Path(f'/proc/{child}/stat').read_text().split()[2] == 'Z')


FULL = """
import resource, sys
from pathlib import Path
from msmix.names import UsageError
from msmix.data.prepare import prepare_here
from msmix.runs.file import example_run, save_run
from msmix.data.synth import synth
from msmix.backbones.text import changed_copy
most = int(sys.argv[1])
def lots():
    with changed_copy(Path('old.h5').absolute()) as f: f['more'] = bytes(200_000)
work = {'synth': lambda: synth('old.h5', 'mosi', .001), 'prepare': lambda: prepare_here('f.pkl', 'new/d.h5', 'mine', (-3, 3), progress=False),
        'run': lambda: save_run(example_run(), 'results'), 'embed': lots}
synth('old.h5', 'mosi', .001)
before = Path('old.h5').read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
for name, do in work.items():
    try: do()
    except UsageError as e: print(name, e)
    else: print(name, 'written')
assert Path('old.h5').read_bytes()==before
"""


def test_a_disk_that_fills_up_is_one_sentence_and_loses_nothing(pickled):
    "Files may have a few bytes only, which the system refuses in the midst of writing as a full disk does"
    for most in (3, 3000):
        done = subprocess.run([sys.executable, '-c', FULL, str(most)], env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [o.split()[0] for o in lines] == ['synth', 'prepare', 'run', 'embed']
        assert all('cannot write' in o and '(File too large): choose a folder where files may be made and there is space' in o for o in lines), lines
        assert sorted(o.name for o in pickled.rglob('*')) == ['f.pkl', 'old.h5']


def test_too_little_room_is_found_before_anything_is_written(refused, msmix, pickled, monkeypatch):
    import shutil
    from msmix.data import prepare
    usage = shutil.disk_usage(pickled)
    monkeypatch.setattr(prepare, 'guarded', lambda name, arguments, *rest, **more: vars(prepare.prepare_here(**arguments)))
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=10_000))
    refused("cannot write 'new/d.h5': it will have 0.03 MB, and its disk has 0.01 MB free; make room", *PREPARE)
    refused("cannot write 's.h5': it will have", 'synth', 's.h5', '--like', 'mosi', '--fraction', '.01')
    assert [o.name for o in pickled.iterdir()] == ['f.pkl']
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(total=0, free=0))     # a drive that does not tell
    assert msmix(*PREPARE)[0] == 0
