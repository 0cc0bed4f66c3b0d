"""A server of small models in this process."""

import importlib.util
from pathlib import Path

import pytest

import fiber
from fiber.inference import Model

#: Packages of the extra `serve`; without one of them, there are no tests of it.
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
if not all(map(importlib.util.find_spec, PACKAGES)):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def both_stages(micro_models) -> Model:
    """The small models of both stages as one model."""
    return fiber.load(micro_models["fine"].parent, device="cpu")


@pytest.fixture
def client(both_stages):
    """A function that makes a client of a server with limits, and stops the server at the end."""
    from starlette.testclient import TestClient

    from fiber.serve.app import ServeLimits, Service, make_app

    open_clients = []

    def make(model=both_stages, name="model", **limits) -> TestClient:
        app = make_app(Service(model, name, ServeLimits(**limits)))
        opened = TestClient(app)
        opened.__enter__()
        open_clients.append(opened)
        return opened

    yield make
    for each in open_clients:
        each.__exit__(None, None, None)


@pytest.fixture
def upload(scene_picture: Path):
    """The image of a form."""
    return {"image": ("scene.jpg", scene_picture.read_bytes())}
