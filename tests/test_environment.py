"Requirements stand in several files and agree"
import configparser, re, tomllib
import pytest
import yaml
from packaging.requirements import Requirement
from conftest import ROOT

NBDEV_PINS = {'nbdev==2.4.14', 'execnb<0.2', 'fastcore<2', 'ghapi<2'}


@pytest.fixture(scope='module')
def environment(): return yaml.safe_load((ROOT/'environment.yml').read_text())


@pytest.fixture(scope='module')
def pip_lines(environment): return next(o['pip'] for o in environment['dependencies'] if isinstance(o, dict))


@pytest.fixture(scope='module')
def project(): return tomllib.loads((ROOT/'pyproject.toml').read_text())['project']


@pytest.fixture(scope='module')
def settings():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT/'settings.ini')
    return parser['DEFAULT']


@pytest.fixture(scope='module')
def constraints():
    lines = [o for o in (ROOT/'constraints.txt').read_text().splitlines() if o and not o.startswith('#')]
    assert [o for o in lines if not re.fullmatch(r'[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*', o)] == []
    found = [(plain(k), v) for k,v in (o.split('==') for o in lines)]
    assert len(dict(found)) == len(found), 'a package is pinned twice'
    return dict(found)


def plain(name): return re.sub('[-_.]+', '-', name).lower()
def parts(lines): return {(plain(o.name), str(o.specifier)) for o in map(Requirement, lines)}
def all_requirements(project): return [*project['dependencies'], *(o for v in project['optional-dependencies'].values() for o in v)]


def test_conda_brings_python_and_pip_alone(environment):
    assert environment['name'] == 'msmix'
    assert [o for o in environment['dependencies'] if isinstance(o, str)] == ['python=3.11', 'pip']


def test_the_conda_environment_installs_what_make_installs_and_what_slurm_needs(pip_lines, project):
    options = [o for o in pip_lines if o.startswith('-')]
    assert options == ['--constraint constraints.txt', '--editable .']
    extras = {o for names in re.findall(r"--editable '\.\[([a-z,]+)\]'", (ROOT/'Makefile').read_text()) for o in names.split(',')}
    assert extras == set(project['optional-dependencies'])
    assert parts(o for o in pip_lines if o not in options) == parts(all_requirements(project))


def test_nbdev_and_its_three_pins_stand_everywhere(pip_lines, project, settings):
    assert NBDEV_PINS <= set(pip_lines)
    assert NBDEV_PINS <= set(project['optional-dependencies']['dev'])
    assert NBDEV_PINS <= set(settings['dev_requirements'].split())


def test_settings_and_package_name_the_same_requirements(project, settings):
    assert parts(settings['requirements'].split()) == parts(project['dependencies'])
    assert parts(settings['dev_requirements'].split()) == parts(project['optional-dependencies']['dev'])
    assert project['requires-python'] == f">={settings['min_python']}"


def test_the_constraints_pin_every_requirement_within_its_range(project, constraints):
    assert constraints['torch'] == '2.13.0'
    for o in map(Requirement, all_requirements(project)):
        assert o.specifier.contains(constraints[plain(o.name)]), o


def test_the_constraints_are_what_is_installed_here(constraints):
    from importlib.metadata import distributions
    import sys
    if sys.version_info[:2] != (3, 11): pytest.skip('the constraints were tested with Python 3.11')
    found = {plain(o.name): o.version.split('+')[0] for o in distributions() if o.name}
    assert {k: (found[k], v) for k,v in constraints.items() if k in found and found[k] != v} == {}


def test_cleaning_keeps_the_parameters_tag(settings):
    assert settings['allowed_cell_metadata_keys'].split() == ['tags']
    assert settings['update_pyproject'] == 'False'


def test_one_version(settings):
    import msmix
    citation = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    assert msmix.__version__ == settings['version'] == citation['version']
