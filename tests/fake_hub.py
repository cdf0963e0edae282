"""The part of the Hub's HTTP API that uploading a model takes, on this machine: a token's owner, repositories, small
files within a commit and large ones by LFS.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, READING, STRANGER = "hf_writes", "hf_reads", "hf_of_nobody"


class FakeHub:
    """repositories: by name, whether private; files: by repository and path, what is in them; asked: the requests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.full = False

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to take this for the Hub."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        self.asked.append(f"{method} {path}")
        if path.startswith("/large/"):
            self.large[path.removeprefix("/large/")] = body
            return 200, {}
        if token not in (TOKEN, READING):
            return 401, {"error": "Invalid user token."}
        if path == "/api/whoami-v2":
            role = "write" if token == TOKEN else "read"
            return 200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name = "/".join(path.removeprefix("/api/models/").removeprefix("/").split("/")[:2]).removesuffix(".git")
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.address}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.endswith("/commit/main"):
            return self._commit(name, body)
        return 404, {"error": f"no {path} here"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked.get("organization") or "me"
        if owner != "me":
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}
        name = f"{owner}/{asked['name']}"
        status = 409 if name in self.repositories else 200
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories.setdefault(name, private)
        return status, {"url": f"{self.address}/{name}", "error": "You already created this model repo"}

    def _commit(self, name: str, body: bytes) -> tuple[int, Any]:
        if self.full:
            return 413, {"error": "storage quota exceeded"}
        files = self.files.setdefault(name, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                held = self.large[value["oid"]]
                assert (hashlib.sha256(held).hexdigest(), len(held)) == (value["oid"], value["size"])
                files[value["path"]] = held
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}/{name}/commit/{'0' * 40}"}


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
    """A fake Hub while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, told = hub.answer(self.command, self.path.partition("?")[0], token, body)
            answer = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
