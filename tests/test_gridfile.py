"A grid file is right, or one line says what is wrong with it; and a good run file stays where it is"
import json, os, subprocess, sys
from pathlib import Path
import pytest
import yaml
from conftest import ROOT

BASE = {'results': 'res', 'datasets': '{synth-mosi: {synth: mosi, fraction: 0.01}}', 'backbones': '[lmf]', 'mixers': '[none]', 'seeds': '[1]',
        'variants': '{main: {max_epochs: 1}}', 'device': 'cpu'}


@pytest.fixture
def write(tmp_path, monkeypatch):
    "Write the small grid with some keys otherwise, in a folder of its own which becomes the current one"
    monkeypatch.chdir(tmp_path)

    def call(*lines, encoding='utf-8', **other):
        keys = {k.partition(':')[0] for o in lines for k in o.split('\n')}
        text = '\n'.join([*(f'{k}: {v}' for k,v in {**BASE, **other}.items() if k not in keys and v is not None), *lines, ''])
        (tmp_path/'g.yaml').write_bytes(text.encode(encoding))
        return 'g.yaml'
    return call


SETTINGS = 'expected a text, a finite number, true or false'
WRONG = [ # A line that takes the place of the one with its key -> what is said
    ('results:', "'results' in 'g.yaml' is None, expected the path of a folder"),
    ('results: ~', "'results' in 'g.yaml' is None"),
    ('results: ""', 'the path is empty'),
    ('results: 5', "'results' in 'g.yaml' is 5, expected the path of a folder"),
    ('results: [r]', "'results' in 'g.yaml' is ['r']"),
    ('results: ~nobody-of-this-name/r', 'unknown user'),
    ('results: "a\\0b"', 'NUL'),
    ('results: "a\\nb"', 'control characters'),
    ('results: s3://bucket/r', 'is an address'),
    ('results: ' + 'x/'*3000, 'has 6000 bytes'),
    ('results: ${}/r', "has a '$' without the name of a variable"),
    ('results: r<a>', 'Snakemake fills in what stands in {} or <>'),
    ('results: r # \x1b', 'special characters are not allowed'),
    ('results: /', 'root of the file system'),
    ('results: ' + 'x'*300, 'file names have at most 255'),
    ('results: ${NOT_SET_HERE}/r', 'needs the environment variable NOT_SET_HERE'),
    ('results: a$/r', "has a '$' without the name of a variable"),
    ('resultss: r', "unknown key of 'g.yaml' 'resultss' (did you mean 'results'?)"),
    ('datasets: 5', "'datasets' in 'g.yaml' is 5, expected a mapping"),
    ('datasets:', "'datasets' in 'g.yaml' is None, expected a mapping"),
    ('datasets: {}', 'expected a mapping with one entry or more'),
    ('datasets: [mosi]', "is ['mosi'], expected a mapping"),
    ('datasets: {mosi: x.h5}', "'datasets: mosi' in 'g.yaml' is 'x.h5', expected {file: PATH} or {synth: mosi}"),
    ('datasets: {mosi: {file: 5}}', "'datasets: mosi: file' in 'g.yaml' is 5, expected a path"),
    ('datasets: {mosi: {file: x.h5, fraction: 0.5}}', 'fraction and seed for the second alone'),
    ('datasets: {mosi: {path: x.h5}}', "unknown key of 'datasets: mosi' in 'g.yaml' 'path'"),
    ('datasets: {mosi: {file: x.h5}}', "no dataset file at 'x.h5': check the path of 'mosi'"),
    ('datasets: {mosi: {file: g.yaml}}', "'g.yaml' cannot be read as HDF5"),
    ('datasets: {mosi: {file: .}}', "'.' is a folder, not a dataset file"),
    ('datasets: {synth-mosi: {synth: mosi, fraction: .nan}}', 'a fraction above 0'),
    ('datasets: {synth-mosi: {synth: mosi, fraction: true}}', 'is True, expected a fraction above 0'),
    ('datasets: {synth-mosi: {synth: mosi, fraction: "0.1"}}', "is '0.1', expected a fraction"),
    ('datasets: {synth-mosi: {synth: mosi, seed: 1.0}}', 'is 1.0, expected a seed of 0 or more'),
    ('datasets: {mine: {synth: mosi}}', "the synthetic dataset 'mine' is named 'synth-mosi'"),
    ('datasets: {..: {synth: mosi}}', "'datasets' in 'g.yaml' is '..', expected a name that a folder can have"),
    ('datasets: {synth-mosi: {synth: mosi}, synth-mosi: {synth: mosi}}', "'synth-mosi' stands twice in one mapping"),
    ('backbones: [TFN]', "unknown backbone 'TFN' (did you mean 'tfn'?)"),
    ('backbones: lmf', "'backbones' in 'g.yaml' is 'lmf', expected a list"),
    ('backbones: [lmf, lmf]', "'backbones' in 'g.yaml': 'lmf' stands there twice, name it once"),
    ('mixers: none', "'mixers' in 'g.yaml' is 'none', expected a list"),
    ('mixers: [null]', "'mixers' in 'g.yaml' is None, expected a mixer: none,"),
    ('mixers: [~]', "'mixers' in 'g.yaml' is None, expected a mixer: none,"),
    ('mixers: [none, none]', "'none' stands there twice"),
    ('mixers: [no]', "unknown mixer 'no'"),
    ('seeds: 1', "'seeds' in 'g.yaml' is 1, expected a list"),
    ('seeds: 1-5', "'seeds' in 'g.yaml' is '1-5', expected a list"),
    ('seeds: ["1"]', "'seeds' in 'g.yaml' is '1', expected whole numbers of 0 or more"),
    ('seeds: [1.0]', "'seeds' in 'g.yaml' is 1.0, expected whole numbers"),
    ('seeds: [true]', "'seeds' in 'g.yaml' is True, expected whole numbers"),
    ('seeds: [-1]', "'seeds' in 'g.yaml' is -1, expected whole numbers"),
    ('seeds: [01]', "'01' in line 7 of 'g.yaml' is read by YAML as a number in base 8"),
    ('seeds: [1:30]', "'1:30' in line 7 of 'g.yaml' is read by YAML as a number in base 8 or 60"),
    ('seeds: [9223372036854775808]', 'expected whole numbers of 0 or more, below 2**63'),
    ('seeds: [1, 1]', "'seeds' in 'g.yaml': 1 stands there twice"),
    (f'seeds: {[*range(20000)]}\nbackbones: [tfn, lmf, mult, misa, almt, glomo]', "'g.yaml' asks for 120000 runs: 100000 are the most"),
    ('variants: []', "'variants' in 'g.yaml' is [], expected a mapping"),
    ('variants: {.: {}}', "'variants' in 'g.yaml' is '.', expected a name that a folder can have"),
    ('variants: {"..": {}}', "is '..', expected a name that a folder can have"),
    ('variants: {"a/b": {}}', "is 'a/b', expected a name"),
    ('variants: {"a\\u001b[31m": {}}', "is 'a\\x1b[31m', expected a name"),
    ('variants: {? : {}}', "is '', expected a name"),
    ('variants: {main: 5}', "'variants: main' in 'g.yaml' is 5, expected changes to the recipe by name"),
    ('variants: {main: {lr: .inf}}', SETTINGS),
    ('variants: {main: {lr: .nan}}', SETTINGS),
    ('variants: {main: {mixer.x: [1, .inf]}}', SETTINGS),
    ('variants: {main: {lr: !!binary aGk=}}', SETTINGS),
    ('variants: {main: {lr: -1}}', "setting lr=-1"),
    ('variants: {main: {batch_size: 1}}', 'setting batch_size=1 is not possible'),
    ('variants: {main: {aux_weights.sall: 1}}', "unknown loss in aux_weights 'sall' (did you mean 'sal'?)"),
    ('variants: {main: {lrr: 1}}', "unknown setting 'lrr' (did you mean 'lr'?)"),
    ('variants: {main: {standardise: [sound]}}', "unknown modality to standardise 'sound' (did you mean 'vision'?): choose one of text, audio, vision (in variant 'main')"),
    ('variants: {main: {backbone.hidden: {sound: 3}}}', "unknown modality in option hidden 'sound'"),
    ('variants: {main: {backbone.lead: txt}}', "did you mean 'text'?"),
    ('variants: {main: {groups: {front: {lr: 0.1}}}}', "unknown parameter group 'front'"),
    ('variants: {main: {text_encoder: ./no-folder}}', "text encoder './no-folder' is no folder"),
    ('variants: {main: {text_embedding: bert}}', "holds no features of 'bert'"),
    ('experiments: [main]', "'experiments' in 'g.yaml' is ['main'], expected a mapping"),
    ('experiments: {..: {}}', "'experiments' in 'g.yaml' is '..', expected a name that a folder can have"),
    ('experiments: {../../up: {}}', "is '../../up', expected a name"),
    ('experiments: {a: {seed: [1]}}', "unknown key of experiment 'a' in 'g.yaml' 'seed' (did you mean 'seeds'?)"),
    ('experiments: {a: {seeds: ["1"]}}', "'seeds' in experiment 'a' of 'g.yaml' is '1'"),
    ('experiments: {a: {seeds: }}', "'seeds' in experiment 'a' of 'g.yaml' is None, expected a list"),
    ('experiments: {a: {datasets: [synth-mosi, synth-mosi]}}', "'synth-mosi' stands there twice"),
    ('experiments: {a: {figures: [cost, cost]}}', "'figures' in experiment 'a' of 'g.yaml': 'cost' stands there twice"),
    ('figures: table_main', "'figures' in 'g.yaml' is 'table_main', expected a list"),
    ('figures: [table_main, table_main]', "'figures' in 'g.yaml': 'table_main' stands there twice, name it once"),
    ('name: ..', "'name' in 'g.yaml' is '..', expected a name that a folder can have"),
    ('name: .', "'name' in 'g.yaml' is '.'"),
    ('name: /tmp/x', "'name' in 'g.yaml' is '/tmp/x'"),
    ('name: "a\\tb"', "'name' in 'g.yaml' is 'a\\tb'"),
    ('name:', "'name' in 'g.yaml' is None"),
    ('device: 0', "'device' in 'g.yaml' is 0, expected auto, cpu, cuda or cuda:1"),
    ('device:', "'device' in 'g.yaml' is None"),
    ('threads: 0', 'expected a whole number of 1 or more, up to 1024'),
    ('threads: 100000', 'expected a whole number of 1 or more, up to 1024'),
    ('threads: "2"', "'threads' in 'g.yaml' is '2'"),
    ('threads: true', "'threads' in 'g.yaml' is True"),
    ('checkpoint: 1e9', "'checkpoint' in 'g.yaml' is 1000000000.0"),
    ('checkpoint: 1000000000', 'up to 1000000'),
    ('save_weights: 1', "'save_weights' in 'g.yaml' is 1, expected true or false"),
    ('resources: 5', "'resources' in 'g.yaml' is 5, expected a mapping"),
    ('resources: {memory: .inf}', "'resources: memory' in 'g.yaml' is inf, expected GB per run"),
    ('resources: {memory: 0.0001}', 'expected GB per run, a number from 0.01'),
    ('resources: {memory: true}', "'resources: memory' in 'g.yaml' is True"),
    ('resources: {retries: 1000000}', "'resources: retries' in 'g.yaml' is 1000000, expected a whole number of 0 or more, up to 100"),
    ('resources: {runs_per_gpu: 1000}', "'resources: runs_per_gpu' in 'g.yaml' is 1000"),
    ('only: [main]', "'g.yaml' has no experiments to choose 'main' from"),
    ('seeds: [1', 'cannot read the configuration'),
    ('seeds:\n\t- 1', 'indent with spaces, not with tabs'),
    ('a: &a [*a]', 'repeats a part of the file inside itself'),
    ('mixers: !!python/object/apply:os.system [ls]', 'cannot read the configuration'),
    ('? [a, b]\n: c', 'has a key that is a list or mapping'),
    ('seeds: [1]\n---\nseeds: [2]', 'cannot read the configuration'),
]


@pytest.mark.parametrize('line,says', WRONG, ids=[o[:60] for o,_ in WRONG])
def test_a_wrong_grid_file_is_one_line(line, says, write, refused, tmp_path):
    refused(says, 'grid', write(line), '-n')
    assert [o.name for o in tmp_path.iterdir()] == ['g.yaml']


def test_files_that_are_no_grid_files(write, refused, tmp_path):
    write()
    for name, make, says in (('empty.yaml', Path.touch, 'is empty'), ('list.yaml', lambda o: o.write_text('[a]'), "holds ['a'], expected a mapping"),
                             ('folder.yaml', Path.mkdir, 'is a folder, not a configuration'), ('pipe.yaml', os.mkfifo, 'is a pipe, not a configuration'),
                             ('link.yaml', lambda o: o.symlink_to('nowhere'), 'is a link that leads nowhere'), ('loop.yaml', lambda o: o.symlink_to(o), 'is a link that leads nowhere'),
                             ('latin.yaml', lambda o: o.write_bytes('name: ä'.encode('latin1')), 'is not UTF-8'), ('long.yaml', lambda o: o.write_text('#'*1_100_000), 'more than 1000000 bytes')):
        make(tmp_path/name)
        refused(says, 'grid', name, '-n')
    laughs = ['a0: &a0 [x, x, x, x, x, x, x, x, x]'] + [f"a{k}: &a{k} [{', '.join([f'*a{k-1}']*9)}]" for k in range(1, 12)]
    refused('stands for more than 100000 values', 'grid', write(*laughs), '-n')
    refused('nested too deeply', 'grid', write('a: ' + '['*3000), '-n')
    for name, says in (('a\0b.yaml', 'NUL'), ('x'*300+'.yaml', 'at most 255'), ('~nobody-of-this-name/g.yaml', 'unknown user'), ('', 'is empty'), ('none.yaml', 'no configuration at')):
        refused(says, 'grid', name, '-n')
    refused('pass -j 100000 or less', 'grid', write(), '-n', '-j', 10**9)
    two = write('experiments: {a: {}, b: {}}')
    refused("'only' in 'g.yaml': 'a' stands there twice", 'grid', two, '-n', '--only', 'a', '--only', 'a')
    refused("unknown experiment of 'g.yaml' 'c'", 'grid', two, '-n', '--only', 'c')


@pytest.mark.parametrize('line,folder', [('results: r6/', 'r6'), ('results: ./r', 'r'), ('results: a//b', 'a/b'), ('results: ../r', '../r'), ('results: ~/r', '~/r'), ('results: .', '.')])
def test_the_results_folder_is_called_the_same_everywhere(line, folder, write, msmix, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    code, out, err = msmix('grid', write(line), '-n')
    if folder in ('.', '~/r'): folder = str(tmp_path if folder == '.' else tmp_path/'home'/'r')
    assert code == 0 and f'to do: {folder}/runs/synth-mosi/lmf/none/main/1.h5\n' in out, out + err


@pytest.mark.parametrize('name', ['0.5', '0.50', 'no', '1e3', '010', '2024-01-01', 'true', '~', 'a b', 'ä', '1_000'])
def test_names_are_texts_as_they_are_written(name, write, msmix):
    shown = f'"{name}"' if name[0] == '{' else name
    code, out, err = msmix('grid', write(f'variants:\n  {shown}: {{max_epochs: 1}}', f'experiments: {{{shown}: {{}}}}', f'name: {shown if name != "~" else "x"}'), '-n', '--only', name)
    assert code == 0 and f'to do: res/runs/synth-mosi/lmf/none/{name}/1.h5\n' in out, out + err


def test_what_works_goes_on_working(write, msmix, tmp_path):
    for lines, encoding in ((('seeds: [1]',), 'utf-8-sig'), (('seeds: [1]\r',), 'utf-8'), (('variants: {main: {lr: 1e-3, max_epochs: 1}}',), 'utf-8'),
                            (('variants:\n  main: &m {max_epochs: 1}\n  b: {<<: *m, lr: 0.1}',), 'utf-8'), (('variants: {main: {mixer.sass: no}}', 'mixers: [msmix]'), 'utf-8'),
                            (('name: 2024',), 'utf-8'), (('experiments: {a: , b: {figures: [cost]}}',), 'utf-8')):
        code, out, err = msmix('grid', write(*lines, encoding=encoding), '-n')
        assert code == 0 and 'to do: res/runs/synth-mosi/lmf/' in out, (lines, out + err)
    for text in ('results: ${GRID_RESULTS}/r', "results: '$GRID_RESULTS/r'"):
        os.environ['GRID_RESULTS'] = str(tmp_path)
        try: assert f'to do: {tmp_path}/r/runs/' in msmix('grid', write(text), '-n')[1]
        finally: del os.environ['GRID_RESULTS']


def test_plain_snakemake_reads_names_as_they_are_written(write, tmp_path):
    write('variants: {0.50: {max_epochs: 1}, no: {max_epochs: 2, lr: 1e-3}}', 'results: ./r6/')
    snakefile = Path(__file__).parent.parent/'workflow'/'Snakefile'
    command = [Path(sys.executable).parent/'snakemake', '-np', '--snakefile', snakefile, '--configfile', 'g.yaml', '--cores', '1', 'runs']
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and {f'r6/runs/synth-mosi/lmf/none/{o}/1.h5' for o in ('0.50', 'no')} <= set(found.stdout.replace(',', ' ').split()), found


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A results folder with the run of the small grid"
    from msmix.training.experiment import run_one
    results = tmp_path_factory.mktemp('made')/'res'
    return run_one('synth:mosi:0.01', 'lmf', 'none', 1, results=results, settings={'max_epochs': 1}, device='cpu', threads=1, progress=False)[1]


OPEN = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"


@pytest.mark.parametrize('figures', [(), ('--figures-only',)])
def test_a_run_that_is_open_elsewhere_stays_where_it_is(figures, made, write, msmix):
    before = made.stat().st_ino, made.read_bytes()
    other = subprocess.Popen([sys.executable, '-c', OPEN, made], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'open\n'
        config = write(f'results: {made.parents[5]}')
        for argv in (('-n',), ()):
            code, out, err = msmix('grid', config, '-j', 1, *argv, *figures)
            assert code == 0 and '1 runs, 1 of them there already' in out, out + err
            assert 'moved' not in out and 'cannot be read' not in out
    finally: other.communicate('')
    assert (made.stat().st_ino, made.read_bytes()) == before and not (made.parents[5]/'stale').exists()


@pytest.mark.parametrize('argv', [('-n',), ('--figures-only',), ('--rerun',), ()])
def test_a_run_that_cannot_be_read_just_now_stops_the_grid(argv, made, write, refused, monkeypatch):
    import h5py
    opened = h5py.File

    def fails(path, *args, **kw):
        if str(path).endswith('1.h5'): raise PermissionError(13, 'Permission denied')
        return opened(path, *args, **kw)
    config = write(f'results: {made.parents[5]}')
    monkeypatch.setattr(h5py, 'File', fails)
    refused(f"the run file '{made}' cannot be read (no permission)", 'grid', config, '-j', 1, *argv)
    assert made.is_file() and not (made.parents[5]/'stale').exists()


def test_a_broken_run_is_moved_aside(made, write, msmix, tmp_path):
    path = tmp_path/'res'/'runs'/'synth-mosi'/'lmf'/'none'/'main'/'1.h5'
    path.parent.mkdir(parents=True)
    path.write_bytes(made.read_bytes()[:5000])
    code, out, _ = msmix('grid', write(), '-n')
    assert code == 0 and 'res/runs/synth-mosi/lmf/none/main/1.h5 cannot be read' in out and path.stat().st_size == 5000
    from msmix.grid.config import read_config
    from msmix.grid.stale import settle_runs
    settle_runs(read_config('g.yaml'))
    assert not path.exists() and (tmp_path/'res'/'stale'/'synth-mosi'/'lmf'/'none'/'main'/'1-broken.h5').stat().st_size == 5000


@pytest.mark.parametrize('place', ['runs/synth-mosi/lmf/none/main/1.h5', 'logs/synth-mosi/lmf/none/main/1.txt', 'checkpoints/synth-mosi/lmf/none/main/1.pt',
                                   'figures/table_main.csv', 'logs/grid.txt', '.lock'])
def test_what_lies_in_the_way_of_a_file_is_named(place, write, refused, tmp_path):
    path, config = tmp_path/'res'/place, write('figures: [table_main]')
    path.parent.mkdir(parents=True)
    for make, says in ((os.mkfifo, 'is a pipe'), (lambda o: o.symlink_to('nowhere'), 'leads nowhere'), (lambda o: o.symlink_to(o), 'leads nowhere')):
        make(path)
        for argv in (('-n',), ()): refused(f"'res/{place}' is a {'link that ' if 'leads' in says else ''}{says.removeprefix('is a ')}", 'grid', config, '-j', 1, *argv)
        path.unlink()
    path.mkdir()
    refused(f"'res/{place}' is a folder, not a file of the grid: move it away", 'grid', config, '-j', 1)


def test_a_results_folder_that_is_none_or_cannot_be_written(write, msmix, refused, tmp_path, monkeypatch):
    config = write()
    (tmp_path/'res').write_text('')
    refused("the results folder 'res' cannot be used, since 'res' is no folder", 'grid', config, '-n')
    refused("since 'res' is no folder", 'grid', write('results: res/a/b'), '-n')
    (tmp_path/'res').unlink()
    (tmp_path/'res'/'runs').mkdir(parents=True)
    (tmp_path/'res'/'logs').symlink_to('nowhere')
    refused("since 'res/logs' is no folder", 'grid', write(), '-n')
    (tmp_path/'res'/'logs').unlink()
    allowed = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode, **kw: not (mode & os.W_OK and str(path) == 'res') and allowed(path, mode, **kw))
    refused("the results folder 'res' cannot be written in 'res' (no permission, or a read-only file system)", 'grid', write(), '-j', 1)
    assert msmix('grid', write(), '-n')[0] == 0 and [o.name for o in (tmp_path/'res').iterdir()] == ['runs']


def test_data_that_changes_while_a_grid_runs_is_said(write, msmix, tmp_path, monkeypatch):
    "Runs of before and after would stand in one table"
    assert msmix('synth', 'x.h5', '--like', 'mosi', '--fraction', .01)[0] == 0
    def run_snakemake(*args):
        os.utime('x.h5', (0, 0))
        run = tmp_path/'res'/'runs'/'synth-mosi'/'lmf'/'none'/'main'/'1.h5'
        run.parent.mkdir(parents=True)
        run.touch()
        return 0
    monkeypatch.setattr('msmix.grid.drive.run_snakemake', run_snakemake)
    code, _, err = msmix('grid', write(datasets='{synth-mosi: {file: x.h5}}'))
    assert code == 1 and "'x.h5' was changed while the grid ran" in err


def test_the_schema_for_editors_is_that_of_the_models_and_admits_the_configurations():
    import jsonschema
    from msmix.grid.config import grid_schema
    folder = ROOT/'workflow'/'config'
    assert json.loads((folder/'grid.schema.json').read_text(encoding='utf-8')) == grid_schema(), 'run `make schema`'
    for path in folder.glob('*.yaml'):
        assert path.read_text(encoding='utf-8').startswith('# yaml-language-server: $schema=grid.schema.json\n'), path
        jsonschema.validate(yaml.safe_load(path.read_text(encoding='utf-8')), grid_schema())
