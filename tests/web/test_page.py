"""The page in a browser, if one is installed."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect, sync_playwright

import fiber
from fiber.cli import main
from fiber.serve.app import ServeLimits
from fiber.serve.server import address_of, listen, make_server
from fiber.web.page import make_page, make_web_app
from fiber.web.uploads import delete_old, upload_folder

LIMITS = ServeLimits(max_body=200_000, max_pixels=400_000)
PHRASES = "a red circle; the square"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def asked_addresses():
    """Addresses to which this process, and so the server, has opened a connection."""
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        connect = socket.socket.connect

        def remember(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                asked.append(address[0])
            return connect(self, address)

        patch.setattr(socket.socket, "connect", remember)
        patch.setattr(socket.socket, "connect_ex", remember)
        yield asked


@pytest.fixture(scope="module")
def address(asked_addresses):
    """URL of a page of the model in the package, served by this process."""
    model = fiber.load("scenes", device="cpu")
    with upload_folder() as folder:
        page = make_page(model, "scenes", LIMITS, is_packaged=True)
        server = make_server(make_web_app(page, LIMITS, folder, loopback_only=True), LIMITS)
        opened = listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        yield address_of(opened)
        server.should_exit = server.force_exit = True
        thread.join(100)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of this machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed; expected one of " + ", ".join(BROWSERS))
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-background-networking"]
        )


@pytest.fixture
def page(browser, address):
    """The page in a new tab, of which all requests are checked to be to the loopback."""
    requests: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(address)
    opened.wait_for_selector("#run-ground")
    yield opened
    opened.close()
    assert len(requests) > 10
    outside = [url for url in requests if urlsplit(url).hostname not in (None, "127.0.0.1")]
    assert outside == []


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> Path:
    image = Image.new("RGB", (480, 360), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 60, 150, 170), fill="red")
    draw.rectangle((300, 200, 420, 320), fill="blue")
    path = tmp_path_factory.mktemp("drawing") / "drawing.png"
    image.save(path)
    return path


def upload(page: Page, method: str, *files: Path) -> None:
    panel = page.get_by_role("tabpanel").filter(has=page.locator(f"#run-{method}"))
    for index, file in enumerate(files):
        panel.locator("input[type=file]").nth(index).set_input_files(file)
    # The preview is shown when the file is on the server.
    expect(panel.locator("img").first).to_be_visible()


def json_of(page: Page, method: str) -> object:
    """Return the value that the page shows as JSON."""
    shown = page.locator(f"#json-{method}")
    expect(shown).to_contain_text("drawing.png", timeout=60_000)
    text = shown.inner_text().replace("\n", "")
    return json.loads(text[re.search(r"[\[{]", text).start() :])


def test_the_boxes_are_those_of_the_command(page, drawing, capsys):
    assert main(["ground", str(drawing), "--phrases", PHRASES, "--model", "scenes", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [found["label"] for found in printed["detections"]] == PHRASES.split("; ")

    upload(page, "ground", drawing)
    page.get_by_label("Phrases").first.fill(PHRASES)
    page.locator("#run-ground").click()
    assert json_of(page, "ground") == printed | {"image": "drawing.png"}
    lines_shown = page.locator("#lines-ground textarea")
    lines = lines_shown.input_value().splitlines()
    for line, found in zip(lines, printed["detections"], strict=True):
        box = " ".join(f"{edge:7.1f}" for edge in found["box_xyxy"])
        assert line == f"{found['score']:.2f}  {box}  {found['label']}"
    drawn = page.locator("#drawn-ground img")
    expect(drawn).to_be_visible()
    page.locator("#options-ground").get_by_text("Options").click()
    expect(page.get_by_label("Minimum score").first).to_have_value("")
    # No score is that good.
    page.get_by_label("Minimum score").first.fill("1")
    page.locator("#run-ground").click()
    expect(lines_shown).to_have_value("nothing found", timeout=60_000)
    # Small images are enlarged by a whole number.
    width, height = drawn.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert (width % 480, width * 360) == (0, height * 480)


def test_what_is_not_wanted_is_dropped(page, drawing):
    page.get_by_role("tab", name="Detect").click()
    upload(page, "detect", drawing)
    panel = page.get_by_role("tabpanel").filter(has=page.locator("#run-detect"))
    panel.get_by_label("Classes").fill("a large circle")
    panel.get_by_text("Options").click()
    lines = page.locator("#lines-detect textarea")
    for negatives, label in (("", "a large circle"), ("circle", "nothing found")):
        panel.get_by_label("not wanted").fill(negatives)
        page.locator("#run-detect").click()
        expect(lines).to_have_value(re.compile(rf"{label}$"), timeout=60_000)


def test_a_question_is_answered(page, drawing):
    page.get_by_role("tab", name="Ask").click()
    upload(page, "answer", drawing)
    page.get_by_label("Question").fill("what color is the square?")
    page.get_by_label("Question").press("Enter")
    assert json_of(page, "answer")["answers"][0]["answer"] == "blue"


def test_what_is_wrong_is_shown(page, drawing, tmp_path):
    page.locator("#run-ground").click()
    expect(page.get_by_text("Upload an image first")).to_be_visible()
    upload(page, "ground", drawing)
    page.locator("#run-ground").click()
    expect(page.get_by_text("expected phrases, a caption or both").first).to_be_visible()
    large = tmp_path / "large.png"
    Image.new("RGB", (700, 700)).save(large)
    page.get_by_role("tab", name="Detect").click()
    upload(page, "detect", large)
    page.locator("#run-detect").click()
    expect(page.get_by_text("large.png: image has 700 x 700 pixels").first).to_be_visible()


def test_an_example_is_asked(page):
    page.get_by_role("tab", name="Caption").click()
    panel = page.get_by_role("tabpanel").filter(has=page.locator("#run-caption"))
    images = panel.locator("img")
    shown = images.count()
    panel.locator("table img, .gallery img, .gallery-item img").first.click()
    # The preview is shown when the example is there.
    expect(images).to_have_count(shown + 1)
    page.locator("#run-caption").click()
    lines = page.locator("#lines-caption textarea")
    expect(lines).not_to_have_value("", timeout=60_000)
    assert re.search("circle|square|star|heart|cross|ring|triangle|diamond", lines.input_value())


def message(path: str) -> dict:
    return {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a star", ""]}


def test_messages_with_urls_and_paths_are_refused(address, drawing, asked_addresses):
    # An address of the documentation, to which nothing is sent.
    for path in ("http://192.0.2.1/a.png", "HTTPS://192.0.2.1/a.png", "ftp://192.0.2.1", 3):
        reply = httpx.post(f"{address}/gradio_api/call/ground", json=message(path))
        assert (reply.status_code, "URLs are not fetched" in reply.text) == (422, True)
    for path in (str(drawing), str(Path(__file__)), "/etc/passwd", "/a\0", "a.png", ""):
        reply = httpx.post(f"{address}/gradio_api/call/ground", json=message(path))
        assert reply.status_code == 422, path
        if "\0" not in path:
            assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404), path
    assert httpx.get(f"{address}/gradio_api/file=http://192.0.2.1/a.png").status_code == 403
    assert set(asked_addresses) <= {"127.0.0.1", "::1"}


def test_sizes_are_limited(address):
    long = httpx.post(f"{address}/gradio_api/call/ground", json=message("/" + "a" * (1 << 20)))
    assert long.status_code == 413
    files = {"files": ("a.png", b"0" * 1_000_000)}
    assert httpx.post(f"{address}/gradio_api/upload", files=files).status_code == 413
    files = {"files": ("a.png", b"0" * 300_000)}
    assert httpx.post(f"{address}/gradio_api/upload", files=files).status_code == 413
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 403


def test_old_uploads_are_deleted(tmp_path):
    example, old, new = (tmp_path / name / "a.png" for name in ("example", "old", "new"))
    for path in (example, old, new):
        path.parent.mkdir()
        path.write_bytes(b"a")
    now = old.stat().st_mtime
    os.utime(new, (now + 100, now + 100))
    delete_old(tmp_path, {example}, before=now + 50)
    assert sorted(tmp_path.rglob("*")) == sorted([example.parent, example, new.parent, new])


def test_uploads_are_gone_after_a_signal(tmp_path):
    command = [sys.executable, "-m", "fiber", "web", "scenes", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"http://\S+", line) for line in process.stderr)))
        upload = {"files": ("a.png", b"a")}
        paths = httpx.post(f"{found[0]}/gradio_api/upload", files=upload, timeout=60).json()
        assert Path(paths[0]).is_relative_to(tmp_path) and Path(paths[0]).exists()
        process.terminate()
        assert process.wait(100) == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("fiber")] == []
