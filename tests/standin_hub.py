"""A stand-in for the Hugging Face Hub on 127.0.0.1: serves folders as repositories, and remembers what was
asked for.

    python tests/standin_hub.py ROOT      then, elsewhere: HF_ENDPOINT=http://127.0.0.1:PORT make adapt

ROOT/models/gpt2/... is the model `gpt2`, ROOT/datasets/owner/name/... a data set. A repository whose folder
holds a file `.gated` answers as a gated one does."""

import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


class StandinHub:
    """with StandinHub(root) as hub: hub.url, hub.requests (method, path)."""

    def __init__(self, root):
        self.root, self.requests = Path(root), []
        self.retry_after = "0"  # seconds that it asks for then
        self.broken = None  # a file name: its download breaks off
        self.failing = {}  # {file name: [status, how often it is still given]}
        self.stuck = None  # a file name: half of it comes, and then nothing, and the connection stays
        self.stuck_often = None  # how often; None: each time
        self.ranges = []  # what was asked for in part: (path, from which byte)
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                outer._answer(self)

            do_GET = do_POST = do_HEAD

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, request) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path))
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if path == "/":
            return self._send(request, 200, b"a stand-in hub")
        api = path.startswith("/api/")
        parts = path.removeprefix("/api").strip("/").split("/")
        kind = parts[0] if parts[0] in ("models", "datasets") else "models"
        parts = parts[1:] if parts[0] == kind else parts
        verbs = [i for i, p in enumerate(parts) if p in ("resolve", "revision", "tree", "paths-info")]
        name, rest = ("/".join(parts[: verbs[0]]), parts[verbs[0] :]) if verbs else ("/".join(parts), [])
        repo = self.root / kind / name
        if not repo.is_dir():
            return self._send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if (repo / ".gated").exists():
            return self._send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        files = sorted(p for p in repo.rglob("*") if p.is_file())
        entries = [self._entry(repo, p) for p in files]
        if not api:
            file = repo / "/".join(rest[2:])
            if not file.is_file():
                return self._send(
                    request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
                )
            status, left = self.failing.get(file.name, (0, 0))
            if left:
                self.failing[file.name][1] -= 1
                return self._send(request, status, b"", {"Retry-After": self.retry_after})
            if file.name == self.stuck and request.command == "GET" and self.stuck_often != 0:
                self.stuck_often = self.stuck_often and self.stuck_often - 1
                self._send(
                    request,
                    200,
                    file.read_bytes()[: file.stat().st_size // 2],
                    {"Content-Length": str(file.stat().st_size)},
                )
                request.wfile.flush()
                self.over.wait(60)
                return request.connection.close()
            if file.name == self.broken and request.command == "GET":
                self._send(
                    request, 200, file.read_bytes()[:100], {"Content-Length": str(file.stat().st_size)}
                )
                request.close_connection = True
                return request.connection.close()
            headers, content = {"ETag": f'"{_sha(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
            if wanted:
                begin = int(wanted[1])
                self.ranges.append((path, begin))
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                return self._send(request, 206, content[begin:], headers)
            return self._send(request, 200, content, headers)
        if rest[:1] == ["tree"]:
            folder = repo / "/".join(rest[2:])
            if not folder.is_dir():
                return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            below = folder.rglob("*") if "recursive=true" in request.path.lower() else folder.iterdir()
            return self._send_json(request, [self._entry(repo, p) for p in sorted(below)])
        if rest[:1] == ["paths-info"]:
            wanted = json.loads(body)["paths"]
            return self._send_json(request, [e for e in entries if e["path"] in wanted])
        info = {"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
        return self._send_json(request, info | {"siblings": [{"rfilename": e["path"]} for e in entries]})

    @staticmethod
    def _entry(repo, file) -> dict:
        path = file.relative_to(repo).as_posix()
        if file.is_dir():
            return {"type": "directory", "path": path, "size": 0, "oid": COMMIT}
        return {"type": "file", "path": path, "size": file.stat().st_size, "oid": _sha(file)}

    def _send_json(self, request, value) -> None:
        self._send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def _send(request, status, body, headers=None) -> None:
        request.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def _sha(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    with StandinHub(sys.argv[1]) as hub:
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        threading.Event().wait()
