"""Requests to the server: the JSON of the commands, limits, and bad requests."""

import base64
import io
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import fiber
from fiber.cli import main
from fiber.data import Tokenizer
from tests.models.xdecoder.small_model import small_model
from tests.published_keys import write_small_meter_file

PNG = io.BytesIO()
Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)).save(PNG, "png")
PNG = PNG.getvalue()


@pytest.fixture(scope="session")
def model_files(made_once, micro_models):
    """Models with every method: FIBER's two stages, a METER of SNLI-VE and an X-Decoder."""

    def make(folder):
        small_model().save(folder / "masks")
        tokenizer = Tokenizer.train(["what is the dog doing? two dogs play in the snow"] * 9, 290)
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer" / "tokenizer.json")
        name = "meter_clip16_288_roberta_snli.ckpt"
        write_small_meter_file(name, folder / "snli.ckpt", tokenizer.vocab_size)

    made = made_once("served_models", make)
    return {
        "both": micro_models["fine"].parent,
        "masks": made / "masks",
        "snli": made / "snli.ckpt",
    }


CASES = {
    "ground": ("both", ["IMAGE", "--phrases", "a red circle; the square"], {}),
    "detect": (
        "both",
        ["IMAGE", "--classes", "circle; star", "--threshold", "0", "--negatives", "ring"],
        {},
    ),
    "answer": ("both", ["IMAGE", "what color?", "--top-k", "2"], {"question": "what color?"}),
    "caption": ("both", ["IMAGE", "--num-beams", "2"], {}),
    "match": ("both", ["IMAGE", "a red circle"], {"text": "a red circle"}),
    "reason": ("both", ["IMAGE", "IMAGE", "both are red"], {"statement": "both are red"}),
    "search": ("both", ["a red circle", "IMAGE", "--no-rerank"], {"text": "a red circle"}),
    "entail": ("snli", ["IMAGE", "two dogs play"], {"hypothesis": "two dogs play"}),
    "segment": ("masks", ["IMAGE", "--phrases", "the red square; sky", "--alone"], {}),
}


@pytest.mark.parametrize("method", CASES)
def test_the_json_is_that_of_the_command(method, model_files, client, scene_picture, capsys):
    model, words, texts = CASES[method]
    path = model_files[model]
    settings = ["--tokenizer", str(path.parent / "tokenizer")] if model == "snli" else []
    image = str(scene_picture)
    line = [image if word == "IMAGE" else word for word in words]
    assert main([method, *line, "--model", str(path), "--device", "cpu", *settings, "--json"]) == 0
    printed = [json.loads(text) for text in capsys.readouterr().out.splitlines()]

    fields = dict(texts)
    for option, value in pairwise(words):
        if option.startswith("--") and option not in ("--no-rerank", "--alone"):
            fields[option[2:].replace("-", "_")] = value
    fields |= {"--no-rerank": {"rerank": "no"}, "--alone": {"alone": "true"}}.get(words[-1], {})
    names = {"reason": ["left", "right"], "search": ["images"]}.get(method, ["image"])
    loaded = fiber.load(path, *settings[1:], device="cpu")
    server = client(loaded, str(path))
    data = scene_picture.read_bytes()
    files = [(name, (image, data)) for name in names]
    reply = server.post(f"/v1/{method}", data=fields, files=files)
    assert reply.status_code == 200, reply.text
    assert reply.json() == (printed if method == "search" else printed[0])

    encoded = base64.b64encode(data).decode()
    texts_as_json = {name: [encoded] if name == "images" else encoded for name in names} | fields
    without_names = client(loaded, str(path)).post(f"/v1/{method}", json=texts_as_json).json()
    expected = json.loads(json.dumps(reply.json()).replace(json.dumps(image), "null"))
    assert without_names == expected


def test_the_model_is_described(client):
    server = client()
    about = server.get("/v1/model").json()
    assert set(about["methods"]) == {
        *("ground", "detect", "answer", "caption", "match", "reason", "search"),
    }
    assert "boxes_per_phrase" in about["methods"]["ground"]["fields"]["properties"]
    assert about["limits"]["max_queue"] == 64
    assert set(server.get("/openapi.json").json()["paths"]) >= {"/v1/ground", "/v1/search"}
    # Pages of FastAPI that load scripts from the web.
    assert server.get("/docs").status_code == server.get("/redoc").status_code == 404


def test_health_and_metrics(client, upload):
    server = client()
    assert server.get("/health/live").status_code == 200
    assert server.get("/health/ready").status_code == 200
    server.post("/v1/ground", files=upload, data={"phrases": "a red circle"})
    server.post("/v1/ground", files=upload)
    lines = server.get("/metrics").text.splitlines()
    assert 'fiber_requests_total{method="ground",status="200"} 1.0' in lines
    assert 'fiber_requests_total{method="ground",status="422"} 1.0' in lines
    assert "fiber_open_requests 0.0" in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


def encoded(data: bytes = PNG) -> str:
    return base64.b64encode(data).decode()


BAD_JSON = [
    ({}, 422, "image is missing"),
    ([1], 422, "JSON object"),
    ({"image": encoded(), "phrase": "a"}, 422, "did you mean phrases"),
    ({"image": encoded(), "phrases": []}, 422, "phrases"),
    ({"image": encoded(), "phrases": "a;;b"}, 422, "a;;b"),
    ({"image": encoded(), "phrases": ["a", 3]}, 422, "phrases[1]"),
    ({"image": encoded(), "phrases": "a" * 5000}, 422, "phrases[0]"),
    ({"image": encoded(), "phrases": "a", "threshold": 2}, 422, "threshold"),
    ({"image": encoded(), "phrases": "a", "threshold": "nan"}, 422, "threshold"),
    ({"image": encoded(), "phrases": "a", "presence": 0.5}, 422, "was not calibrated"),
    ({"image": encoded(), "phrases": "a", "negatives": []}, 422, "negatives"),
    ({"image": encoded(), "caption": "a star", "spans": "2:12"}, 422, "spans"),
    ({"image": encoded(), "caption": "a star", "spans": [[2, 12]]}, 422, "2"),
    ({"image": encoded()}, 422, "expected phrases, a caption or both"),
    ({"image": encoded(), "phrases": "<s>"}, 422, "special tokens"),
    ({"image": encoded(b"no image"), "phrases": "a"}, 422, "6e 6f"),
    ({"image": encoded(PNG[:-40]), "phrases": "a"}, 422, "PNG"),
    ({"image": [encoded(), encoded()], "phrases": "a"}, 422, "one image"),
    ({"image": "/etc/passwd", "phrases": "a"}, 422, "paths of the server are not read"),
    ({"image": "http://127.0.0.1/a.png", "phrases": "a"}, 422, "URLs are not fetched"),
    ({"image": {"a": 1}, "phrases": "a"}, 422, "base64"),
    (b"{", 400, "JSON"),
    (b"[" * 100_000, 400, "JSON"),
    (b"\xff\xfe", 400, "JSON"),
]


def test_bad_json_ends_no_server(client):
    server = client()
    headers = {"content-type": "application/json"}
    for body, status, fragment in BAD_JSON:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = server.post("/v1/ground", content=content, headers=headers)
        assert (reply.status_code, set(reply.json())) == (status, {"error"}), (body, reply.text)
        assert fragment in reply.json()["error"] and len(reply.text) < 1000, (body, reply.text)
    good = {"image": encoded(), "phrases": "a"}
    assert server.post("/v1/ground", json=good).status_code == 200


def test_bad_forms_end_no_server(client, upload):
    server = client()
    form = {"content-type": "multipart/form-data; boundary=x"}
    for arguments, status, fragment in [
        ({"content": b"--x\r\nno form", "headers": form}, 400, "form"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"a", "headers": {"content-type": "image/png"}}, 415, "image/png"),
        ({"content": b"a"}, 415, "multipart/form-data"),
        ({"data": {"phrases": "a", "image": "/etc/passwd"}}, 415, "multipart/form-data"),
        ({"files": {"phrases": b"a", **upload}}, 422, "phrases"),
        ({"files": {"image": (None, "/etc/passwd")}}, 422, "not read"),
        ({"files": [*upload.items(), *upload.items()]}, 422, "one image"),
    ]:
        reply = server.post("/v1/ground", **arguments)
        assert (reply.status_code, set(reply.json())) == (status, {"error"}), reply.text
        assert fragment in reply.json()["error"], reply.text
    assert server.post("/v1/ground", files=upload, data={"phrases": "a"}).status_code == 200
    assert server.post("/v1/segment", files=upload).status_code == 404
    assert "/v1/ground" in server.post("/v1/grond", files=upload).json()["error"]
    assert server.get("/v1/ground").status_code == 405


def test_bodies_and_images_are_limited(client, upload):
    server = client(max_body=5_000, max_pixels=2_000)
    data = {"phrases": "a"}
    assert server.post("/v1/ground", files=upload, data=data).status_code == 422
    assert "90 x 70" in server.post("/v1/ground", files=upload, data=data).json()["error"]
    large = {"image": ("a.png", PNG + b"0" * 5_000)}
    reply = server.post("/v1/ground", files=large, data=data)
    assert (reply.status_code, "5,000" in reply.text) == (413, True)
    # Without a length, the body is counted as it comes.
    reply = server.post(
        "/v1/ground",
        content=(b"0" * 1_000 for _ in range(6)),
        headers={"content-type": "application/json"},
    )
    assert reply.status_code == 413


class FailingModel:
    """A model whose methods fail in ways that no method should."""

    heads = ("grounding",)

    def __init__(self, error: BaseException):
        self.error = error

    def ground(self, images, phrases, **options):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("a secret"), 500), (MemoryError(), 503), (KeyError(1), 500)]
)
def test_an_unexpected_error_ends_no_server(client, upload, error, status, caplog):
    server = client(FailingModel(error))
    for _ in range(2):
        reply = server.post("/v1/ground", files=upload, data={"phrases": "a"})
        assert reply.status_code == status
        assert "secret" not in reply.text
    assert server.get("/health/ready").status_code == 200
    assert ("secret" in caplog.text) == ("secret" in str(error))
