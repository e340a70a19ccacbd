"""A stand-in of the Hugging Face Hub: the part of its HTTP API that uploading a folder and fetching
a snapshot call. Weights and videos go by Git LFS, other files inline, as on the Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0123456789" * 4
TOKEN = "hf_of_the_stand_in"
"""The only token that may write."""
BY_LFS = (".safetensors", ".mp4")


class Hub(BaseHTTPRequestHandler):
    """Repositories of files, in `server.repos`."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *words: Any) -> None:
        pass

    def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.reply({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[self.path.rpartition("/")[2]] = content
        self.reply({})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "InvalidToken")
        elif path == "/api/repos/create":
            wanted = json.loads(text)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.server.repos.setdefault(name, {})
            self.reply({"url": f"{self.server.url}/{name}"})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            names = [file["path"] for file in json.loads(text)["files"]]
            modes = ["lfs" if name.endswith(BY_LFS) else "regular" for name in names]
            self.reply(
                {
                    "files": [
                        {"path": name, "uploadMode": mode, "shouldIgnore": False}
                        for name, mode in zip(names, modes, strict=True)
                    ]
                }
            )
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(text)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
            self.reply({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, text.splitlines()):
                value, files = line["value"], self.server.repos[found[1]]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
            url = f"{self.server.url}/{found[1]}/commit/{SHA}"
            self.reply({"success": True, "commitOid": SHA, "commitUrl": url, "hookOutput": ""})
        else:
            self.refuse(404, "EntryNotFound")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            files = self.server.repos.get(found[1])
            if files is None:
                self.refuse(404, "RepoNotFound")
            elif "/tree/" in str(found[2]):
                self.reply(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                        for name, content in files.items()
                    ]
                )
            else:
                names = [{"rfilename": name} for name in files]
                self.reply({"id": found[1], "sha": SHA, "siblings": names})
        elif found := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{SHA}/(.+)", path):
            content = self.server.repos[found[1]][found[2]]
            self.reply(content, ETag=f'"{etag(content)}"', X_Repo_Commit=SHA)
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET


class HubServer(ThreadingHTTPServer):
    """Serves `repos`, the files of each repository by their paths; `objects` came by LFS."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub() -> Iterator[HubServer]:
    """A running stand-in."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
