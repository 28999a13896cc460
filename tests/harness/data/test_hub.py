"""A data set fetched by name over HTTP, as the hub serves it: a server on this machine stands in for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from harness.data.dataset import open_dataset

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "a" * 40
WORDS = [f"{a}{b}" for a in ("lo", "ra", "ti", "mu", "se") for b in ("na", "ro", "sting")]
TEXTS = [" ".join(WORDS[(i * 7 + j * j) % 15] for j in range(60)) + f" {i}" for i in range(300)]


class Hub(BaseHTTPRequestHandler):
    """Answer for the data set org/set at one commit: what it is, its files, and ranges of their bytes."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        wanted = re.match(rf"/datasets/org/set/resolve/{COMMIT}/(.+)", path)
        files = sorted(self.folder.iterdir())
        if path in ("/api/datasets/org/set", f"/api/datasets/org/set/revision/{COMMIT}"):
            siblings = [{"rfilename": file.name} for file in files]
            self._json({"_id": "1", "id": "org/set", "sha": COMMIT, "private": False, "siblings": siblings})
        elif path == f"/api/datasets/org/set/tree/{COMMIT}":
            self._json(
                [
                    {"type": "file", "oid": "1", "size": file.stat().st_size, "path": file.name}
                    for file in files
                ]
            )
        elif wanted and (self.folder / wanted[1]).is_file():
            self._bytes((self.folder / wanted[1]).read_bytes())
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _json(self, content):
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _bytes(self, content):
        about = {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return self._answer(200, content, about)
        first, last = int(asked[1]), int(asked[2])
        about["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], about)

    def _answer(self, code, content, headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A running hub; its files are those of `hub.folder`."""
    folder = tmp_path / "set"
    folder.mkdir()
    handler = type("OwnHub", (Hub,), {"folder": folder, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        handler.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield handler
        server.shutdown()
        thread.join()


def test_a_data_set_comes_by_name_through_the_hub(hub, tmp_path):
    for part in range(3):
        frame = pd.DataFrame({"text": TEXTS[100 * part : 100 * part + 100]})
        frame.to_parquet(hub.folder / f"train-{part:05}-of-00003.parquet")
    command = [
        *(sys.executable, str(ROOT / "loopscale.py"), "data", "data=huggingface", "data.repository=org/set"),
        *("data.max_documents=250", "data.validation_fraction=0.1", "data.vocabulary_size=300"),
        f"cache={tmp_path / 'cache'}",
    ]
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (digest,) = [path.name for path in (tmp_path / "cache").iterdir() if path.name != "keys"]
    data = open_dataset(tmp_path / "cache" / digest, checksums=True)
    index = json.loads((data.folder / "index.json").read_text())
    counts = index["splits"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == 250
    assert counts["train"]["bytes"] + counts["validation"]["bytes"] == sum(map(len, TEXTS[:250]))
    assert index["provenance"]["repository"] == "org/set"
    assert any(path.endswith("train-00002-of-00003.parquet") for path in hub.asked)
