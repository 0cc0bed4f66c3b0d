import pytest
import torch

from fiber.data import Tokenizer
from fiber.training.run_dir import RunFolder
from tests.evaluation.measured import new_models
from tests.training.micro_runs import make_data


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A dozen small pictures and a tokenizer."""
    folder = tmp_path_factory.mktemp("pictures")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(pictures):
    """The pictures' own."""
    return Tokenizer.from_file(str(pictures / "tokenizer.json"))


@pytest.fixture(scope="module")
def models(tokenizer):
    """A new coarse and a new fine model, by stage."""
    return new_models(tokenizer)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors are fastest on one thread, and sums then have one order.

    Also in the runs that a whole module shares, with which others are compared to the bit.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Leave the drawing out, which takes longer than a run; `curves` brings it back."""
    if "curves" not in request.fixturenames:
        monkeypatch.setattr(RunFolder, "draw", lambda folder, priors: None)


@pytest.fixture
def curves():
    """Draw curves.png at the end of runs."""
