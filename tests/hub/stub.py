"""A stand-in for the Hugging Face Hub on this machine: the requests of huggingface_hub, no more."""

import base64
import hashlib
import json
import os
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Commits of a repository: the newest, and one before it.
NEW, OLD = "b" * 40, "a" * 40


def add_to_cache(home, repo, folder, commit=NEW, revision="main"):
    """Lay a folder out in a cache of the Hub, as huggingface_hub does: blobs, links, a revision."""
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    (place / "blobs").mkdir(exist_ok=True)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        blob = place / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = place / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


class Hub:
    """Repositories, and what was asked of them."""

    def __init__(self):
        #: {repo: {revision: folder}}; a commit is a revision, too.
        self.repos = {}
        self.url = ""
        #: Number of times that each file was asked for, and what else was asked.
        self.asked, self.calls = Counter(), []
        #: Number of next downloads of a file that break off in its middle.
        self.breaks = Counter()
        #: Files of the last commit, and what made it.
        self.pushed, self.commit = {}, {}

    def add(self, repo, folder, commit=NEW, *names):
        """Add a repository or a revision of it."""
        for revision in (commit, *names):
            self.repos.setdefault(repo, {})[revision] = (commit, Path(folder))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value, status=200, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def find(self, repo, revision):
        revisions = self.server.hub.repos.get(repo)
        if revisions is None:
            self.answer(
                {}, 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository Not Found"
            )
        elif revision not in revisions:
            self.answer({}, 404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        else:
            return revisions[revision]
        return None

    def do_GET(self):
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            if at := self.find(*found.groups()):
                names = [{"rfilename": name} for name in files_of(at[1])]
                self.answer({"id": found[1], "sha": at[0], "siblings": names})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            if at := self.find(*found.groups()):
                self.answer(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                        for name, data in files_of(at[1]).items()
                    ]
                )
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if at := self.find(found[1], found[2]):
                self.send_file(found[1], found[3], at)
        else:
            self.answer({"error": path}, 404)

    do_HEAD = do_GET  # noqa: N815 (the name that http.server looks for)

    def send_file(self, repo, name, at):
        commit, folder = at
        data = (folder / name).read_bytes()
        hub, headers = self.server.hub, {"ETag": f'"{digest(data)}"', "X-Repo-Commit": commit}
        if self.command == "HEAD":
            self.answer(data, **headers)
            return
        hub.asked[f"{repo}/{name}"] += 1
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        ranges = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        for header, text in {**headers, **ranges, "Content-Length": len(data) - start}.items():
            self.send_header(header, str(text))
        self.end_headers()
        if hub.breaks[name]:
            hub.breaks[name] -= 1
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def do_POST(self):
        hub = self.server.hub
        data = self.rfile.read(int(self.headers["Content-Length"]))
        hub.calls.append((self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != "Bearer hf_writes":
            self.answer({"error": "You don't have the right"}, 403)
        elif self.path == "/api/repos/create":
            repo = json.loads(data)
            hub.created = repo
            self.answer({"url": f"{hub.url}/{repo.get('organization', '')}/{repo['name']}"})
        elif "/branch/" in self.path:
            self.answer({})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(data)["files"]]
            self.answer(
                {
                    "files": [
                        {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for name in names
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    hub.commit = entry["value"] | {"revision": self.path.rpartition("/")[2]}
                else:
                    value = entry["value"]
                    hub.pushed[value["path"]] = base64.b64decode(value["content"])
            url = f"{hub.url}/user/name/commit/{NEW}"
            self.answer({"commitUrl": url, "commitOid": NEW, "hookOutput": ""})
        else:
            self.answer({"errors": [], "warnings": []})


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def digest(data):
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def serve():
    """Run a stand-in until the block ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.hub = Hub()
        server.hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.hub
        server.shutdown()
        thread.join()
