import pytest

from tests.models.xdecoder.small_model import small_model, some_images


@pytest.fixture(scope="session")
def model():
    return small_model()


@pytest.fixture(scope="session")
def images():
    return some_images()
