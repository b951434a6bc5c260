"A grid on a Slurm cluster of one node: make test-slurm. It installs Debian's packages as root, so it runs only when asked for"
import os, subprocess, sys, time
from pathlib import Path
import pytest
import yaml
from conftest import ROOT

pytestmark = pytest.mark.slurm
HERE, MSMIX, LIMIT = ROOT/'tests'/'slurm', Path(sys.executable).parent/'msmix', 900


@pytest.fixture(scope='module')
def cluster():
    if os.geteuid(): pytest.skip('only root can install and start Slurm')
    found = subprocess.run([HERE/'cluster.sh', 'up'], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    yield
    subprocess.run([HERE/'cluster.sh', 'down'], check=True)


def grid(folder, *argv):
    "Start `msmix grid` on a small configuration in `folder`"
    config = {'results': 'results', 'datasets': {'synth-mosi': {'synth': 'mosi', 'fraction': .01}}, 'backbones': ['lmf'], 'mixers': ['none', 'msmix'],
              'seeds': [1], 'variants': {'main': {'max_epochs': 60, 'patience': 60, 'batch_size': 4}}, 'device': 'cpu', 'figures': ['table_main']}
    folder.mkdir(exist_ok=True)
    (folder/'grid.yaml').write_text(yaml.safe_dump(config))
    with open(folder/'said.txt', 'w') as f: return subprocess.Popen([MSMIX, 'grid', 'grid.yaml', *argv], cwd=folder, stdout=f, stderr=subprocess.STDOUT)


def running_job():
    "Id of a job that is at work, with the GPUs it was given"
    found = subprocess.run(['squeue', '-h', '-t', 'R', '-o', '%i %b'], capture_output=True, text=True, check=True).stdout.split()
    return found[:2]


def test_a_grid_on_slurm_survives_a_cancelled_job_and_equals_the_local_one(cluster, tmp_path):
    from msmix.runs.file import run_differences
    local, remote = tmp_path/'local', tmp_path/'remote'
    process, end = grid(remote, '--profile', HERE/'profile'), time.monotonic()+LIMIT
    log = remote/'results'/'logs'/'synth-mosi'/'lmf'/'none'/'main'/'1.txt'
    while not (log.exists() and '/60' in log.read_text(errors='replace')) and process.poll() is None and time.monotonic() < end: time.sleep(.2)
    job, gpu = running_job()
    assert 'gpu' in gpu
    subprocess.run(['scancel', job], check=True)
    code = process.wait(LIMIT)
    said = (remote/'said.txt').read_text()
    snakemake = (remote/'results'/'logs'/'grid.txt').read_text()
    assert code == 0, said + snakemake
    assert 'made 2, failed 0' in said and f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in snakemake and 'attempt=2' in snakemake
    assert grid(local, '-j', '2').wait(LIMIT) == 0, (local/'said.txt').read_text()
    runs = sorted(o.relative_to(local) for o in (local/'results'/'runs').rglob('*.h5'))
    assert len(runs) == 2 and {o: run_differences(local/o, remote/o) for o in runs} == dict.fromkeys(runs, [])
    assert (remote/'results'/'figures'/'table_main.csv').read_text() == (local/'results'/'figures'/'table_main.csv').read_text()
