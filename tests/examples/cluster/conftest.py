"""Data and commands of the tests of examples/cluster."""

import pytest

from tests import kill_ranks
from tests.examples.cluster.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def data(made_once):
    return made_once("kill_ranks_data", kill_ranks.make_data)


@pytest.fixture
def cluster(tmp_path):
    cluster = LocalCluster(tmp_path)
    yield cluster
    cluster.close()
