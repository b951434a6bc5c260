"Every notebook runs from top to bottom, in its own folder, without the cells flagged slow, cuda or data"
import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook
from conftest import NOTEBOOKS, ROOT, name_of


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    import matplotlib.pyplot as plt
    plt.close('all')


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name_of)
def test_the_notebook_runs(notebook):
    passed, _ = run_notebook(notebook, skip_flags=get_config(path=ROOT).tst_flags.split(), basepath=ROOT)
    assert passed, 'the cell and its traceback are in the captured output'
