"""A hub on this machine: serves folders as repositories, refuses what it is told to, remembers who
asked for what.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "c" * 40
REQUEST = re.compile(
    r"(/api)?/(?:models/)?((?!api/)(?:datasets/)?[\w.-]+/[\w.-]+)(?:/([\w-]+)(?:/([^/]+))?(?:/(.*))?)?"
)


class HubServer:
    """`folders`: repository -> folder; `refused`: repository -> (status, code); `seen`: (path,
    Authorization).
    """

    def __init__(self):
        self.folders: dict[str, Path] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.seen: list[tuple[str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, body, headers = hub.answer(self.path, self.headers.get("Authorization"))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_POST = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, url: str, authorization: str | None) -> tuple[int, bytes, dict]:
        def refuse(status, code):
            return (
                status,
                b'{"error": "refused"}',
                {"X-Error-Code": code, "X-Error-Message": "refused"},
            )

        def say(value):
            return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}

        path = unquote(urlparse(url).path)
        if not (match := REQUEST.fullmatch(path)):
            return refuse(404, "Unknown")
        api, repo, action, revision, file = match.groups()
        self.seen.append((path, authorization))
        if repo in self.refused:
            return refuse(*self.refused[repo])
        if repo not in self.folders:
            return refuse(401, "RepoNotFound")
        if revision not in (None, "main", COMMIT):
            return refuse(404, "RevisionNotFound")
        root = self.folders[repo]
        files = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
        if api and action in (None, "revision", "auth-check"):
            siblings = [{"rfilename": name} for name in files]
            return say(
                {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            )
        if api and action == "tree":
            under = f"{file}/" if file else ""
            inside = [name for name in files if name.startswith(under)]
            folders = sorted(
                {under + name[len(under) :].split("/")[0] for name in inside} - set(files)
            )
            if "recursive=true" not in url:
                inside = [name for name in inside if "/" not in name[len(under) :]]
            entry = {"type": "directory", "oid": "0" * 40, "size": 0}
            listed = [{**entry, "path": name} for name in folders]
            listed += [
                {**entry, "type": "file", "path": p, "size": files[p].stat().st_size}
                for p in inside
            ]
            return say(listed)
        if not api and action == "resolve" and file in files:
            data = files[file].read_bytes()
            return (
                200,
                data,
                {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'},
            )
        return refuse(404, "EntryNotFound")
