"What a grid survives: killed runs, kernels and grids, a full disk, a broken file, a second grid, want of memory. After a resume its results are those of an undisturbed one"
import os, random, re, subprocess, sys, time
from pathlib import Path
import psutil
import pytest
import yaml

SEED  = int(os.environ.get('MSMIX_FAULT_SEED', random.SystemRandom().randrange(10**6)))   # of the moments at which something is killed
MSMIX = Path(sys.executable).parent/'msmix'
WORK  = {'max_epochs': 40, 'patience': 40, 'batch_size': 4}
MIXERS, LIMIT = ('none', 'msmix'), 240 # seconds that anything may take


@pytest.fixture
def moment(request):
    "A random number of seconds up to its argument; the seed is shown if the test fails"
    print(f'MSMIX_FAULT_SEED={SEED}')
    draw = random.Random(f'{SEED} {request.node.name}')
    return lambda most: draw.uniform(0, most)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from msmix.data.synth import synth
    path = tmp_path_factory.mktemp('data')/'synth.h5'
    synth(path, 'mosi', fraction=.01, seed=0)
    return path


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, data):
    "The runs made one after the other in this process, without a grid: mixer to run file"
    from msmix.training.experiment import run_one
    results = tmp_path_factory.mktemp('undisturbed')
    return {k: run_one(data, 'lmf', k, 1, results=results, settings=WORK, device='cpu', threads=1, progress=False)[1] for k in MIXERS}


class Grid:
    "A grid in a folder of its own"
    def __init__(self, folder, data, results=None, **other):
        self.folder, self.results, self.calls = folder, Path(results or folder/'results'), 0
        config = {'results': str(self.results), 'datasets': {'synth-mosi': {'file': str(data)}}, 'backbones': ['lmf'], 'mixers': [*MIXERS],
                  'seeds': [1], 'variants': {'main': WORK}, 'device': 'cpu', **other}
        (folder/'grid.yaml').write_text(yaml.safe_dump(config))

    def start(self, *argv):
        "The grid in a process; what it says goes to `said`"
        self.calls += 1
        with open(self.folder/f'{self.calls}.txt', 'w') as f:
            return subprocess.Popen([MSMIX, 'grid', 'grid.yaml', '-j', '2', *argv], cwd=self.folder, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)

    def call(self, *argv):
        "Run it to its end: exit code and what it said"
        code = self.start(*argv).wait(LIMIT)
        return code, (self.folder/f'{self.calls}.txt').read_text()

    def run(self, mixer, variant='main'): return self.results/'runs'/'synth-mosi'/'lmf'/mixer/variant/'1.h5'
    def log(self, mixer, variant='main'): return self.results/'logs'/'synth-mosi'/'lmf'/mixer/variant/'1.txt'

    def equals(self, undisturbed):
        from msmix.runs.file import run_differences
        assert {k: run_differences(self.run(k), v) for k,v in undisturbed.items()} == dict.fromkeys(MIXERS, [])
        assert not [o for o in self.results.rglob('*') if o.suffix in ('.state', '.part') or '/checkpoints/' in str(o) and o.suffix == '.pt']


@pytest.fixture
def grid(tmp_path, data): return lambda **other: Grid(tmp_path, data, **other)


def wait_for(found, process=None):
    "What `found` gives as soon as it is true"
    end = time.monotonic() + LIMIT
    while not (o := found()):
        assert time.monotonic() < end and (process is None or process.poll() is None), 'waited in vain'
        time.sleep(.05)
    return o


def below(process, *words):
    "Processes below one, with all words in their command"
    def command(o):
        try: return ' '.join(o.cmdline())
        except psutil.Error: return ''
    try: return [o for o in psutil.Process(process.pid).children(recursive=True) if all(w in command(o) for w in words)]
    except psutil.Error: return []


def driver_of(process, mixer): return [o for o in below(process, 'notebook', f'/{mixer}/main/1.h5') if 'python' in o.name() or 'msmix' in o.name()]
def has_ended(o): return not o.is_running() or o.status() == psutil.STATUS_ZOMBIE
def trains(grid, mixer): return grid.log(mixer).exists() and re.search(r'[1-9]\d*/40', grid.log(mixer).read_text(errors='replace'))


def test_a_killed_run_and_a_killed_kernel_are_made_again(grid, undisturbed, moment):
    g = grid()
    process = g.start()
    run = wait_for(lambda: driver_of(process, 'none'), process)[-1]
    kernel_of_run = wait_for(lambda: run.children(recursive=True), process)[0]
    other = wait_for(lambda: [k for o in driver_of(process, 'msmix') for k in o.children() if 'ipykernel' in ' '.join(k.cmdline())], process)[0]
    time.sleep(moment(1.5))               # less than a kernel needs to start and to train
    for o in (run, other): o.kill()
    wait_for(lambda: has_ended(kernel_of_run))
    assert process.wait(LIMIT) == 0, (g.folder/'1.txt').read_text()
    failed = [o for o in (g.results/'logs'/'grid.txt').read_text().splitlines() if '--attempt 1 ' in o]        # Snakemake says which commands failed
    assert {k for k in MIXERS for o in failed if f'/{k}/main/1.h5' in o} == {*MIXERS}
    g.equals(undisturbed)


def test_a_killed_grid_ends_all_it_started_and_goes_on_later(grid, undisturbed, moment):
    g = grid()
    for k in range(2):
        process = g.start()
        if k: wait_for(lambda: trains(g, 'none') or g.run('none').exists(), process)
        else: wait_for(lambda: below(process, 'snakemake'), process)
        time.sleep(moment(2 if k else 8))
        started = below(process)
        process.kill()
        process.wait()
        wait_for(lambda: all(map(has_ended, started)))
        if not k: there = {o: o.stat().st_mtime_ns for o in g.results.rglob('runs/**/*.h5')}
    there |= {o: o.stat().st_mtime_ns for o in g.results.rglob('runs/**/*.h5')} | there
    code, said = g.call()
    assert code == 0, said
    g.equals(undisturbed)
    assert {o: o.stat().st_mtime_ns for o in there} == there


def test_a_killed_run_goes_on_from_its_checkpoint(grid, undisturbed):
    g = grid(mixers=['none'], resources={'retries': 1})
    process = g.start()
    wait_for(lambda: (g.results/'checkpoints'/'synth-mosi'/'lmf'/'none'/'main').is_dir() and list((g.results/'checkpoints').rglob('1.*')) and trains(g, 'none'), process)
    driver_of(process, 'none')[-1].kill()
    assert process.wait(LIMIT) == 0, (g.folder/'1.txt').read_text()
    assert re.search(r'goes on from epoch \d*[05]\b', g.log('none').read_text())
    from msmix.runs.file import run_differences
    assert run_differences(g.run('none'), undisturbed['none']) == []


def test_runs_that_outlive_snakemake_are_waited_for(grid, undisturbed):
    g = grid(mixers=['none'])
    process = g.start()
    wait_for(lambda: trains(g, 'none'), process)
    for o in below(process, '-m snakemake'): o.kill()
    assert process.wait(LIMIT) == 1
    code, said = g.call()
    assert code == 0, said
    from msmix.runs.file import run_differences
    assert run_differences(g.run('none'), undisturbed['none']) == []
    assert 'goes on from epoch' not in g.log('none').read_text()


def test_a_broken_file_is_made_again_and_two_grids_make_every_run_once(grid, undisturbed):
    g = grid()
    g.run('none').parent.mkdir(parents=True)
    g.run('none').write_bytes(undisturbed['none'].read_bytes()[:5000])
    both = [g.start(), g.start()]
    codes = sorted(o.wait(LIMIT) for o in both)
    said = [(g.folder/f'{k}.txt').read_text() for k in (1, 2)]
    assert codes in ([0, 0], [0, 2]), said
    assert codes == [0, 0] or any('another grid is at work' in o for o in said)
    assert sum(o.count('made: ') for o in said) == 2 and sum('moved aside: ' in o for o in said) == 1
    assert (g.results/'stale'/'synth-mosi'/'lmf'/'none'/'main'/'1-broken.h5').stat().st_size == 5000
    g.equals(undisturbed)


def test_a_full_disk_costs_a_call_and_no_run(tmp_path, data, undisturbed, moment):
    disk = tmp_path/'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk], capture_output=True).returncode: pytest.skip('nothing may be mounted here')
    try:
        g = Grid(tmp_path, data, disk/'results')
        (disk/'filler').write_bytes(b'0'*(4*2**20 - 4096*int(4+moment(20))))
        code, said = g.call()
        assert code == 1 and 'runs or figures are missing' in said, said
        assert not list(g.results.rglob('*.part'))
        (disk/'filler').unlink()
        code, said = g.call()
        assert code == 0, said
        g.equals(undisturbed)
    finally: subprocess.run(['umount', '-l', disk], check=True)


def test_want_of_memory_is_tried_again_with_more_and_nothing_else_is(grid):
    g = grid(mixers=['none'], variants={'main': {'max_epochs': 1}, 'wild': {'max_epochs': 3, 'lr': 1e30}}, resources={'memory': .3, 'retries': 2})
    code, said = g.call()
    snakemake, log = (g.results/'logs'/'grid.txt').read_text(), g.log('none').read_text()
    assert code == 1 and g.run('none').exists() and 'made 1, failed 1, not started 0' in said, said
    assert re.search('--attempt 1 --memory 300 ', snakemake) and re.search('--attempt 2 --memory 600 ', snakemake)
    assert log.count('its limit is 300 MB') == 1 and log.count('1/1') > 0
    wild = g.log('none', 'wild').read_text()
    assert said.count(f"failed: {g.run('none', 'wild')}: ") == 1 and 'nan after epoch 1' in said
    trained, again = wild.split('msmix: RunFailed: the validation loss is nan')[:2]
    assert wild.count('its limit is 300 MB') == 1 and '0/3' in trained and '0/3' not in again and wild.count('msmix: RunFailed') == 2
    assert 'the validation loss is nan' in (g.results/'notebooks'/'synth-mosi'/'lmf'/'none'/'wild'/'1.ipynb').read_text()
