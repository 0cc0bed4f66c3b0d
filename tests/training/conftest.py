import pytest
import torch
from micro_runs import make_data


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A dozen small pictures and a tokenizer."""
    folder = tmp_path_factory.mktemp("pictures")
    make_data(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are fastest on one thread, and sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
