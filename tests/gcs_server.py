"""A small Google Cloud Storage on loopback, as far as `pyarrow.fs` speaks its JSON API."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import serving

OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


class GcsServer:
    """Its objects by "bucket/name", and the query that makes a `gs://` URI point at it."""

    def __init__(self, port: int):
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.address = f"127.0.0.1:{port}"
        self.query = f"scheme=http&endpoint_override={self.address}&retry_limit_seconds=10"


@contextmanager
def gcs_server():
    """Run the server for the block."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.store = GcsServer(http.server_address[1])
    with serving(http):
        yield http.store


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: in two, the second waits for the first one's acknowledgement.
    wbufsize = 1 << 20

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        store, path, query = self._asked()
        listed = LIST.fullmatch(path)
        if listed:
            bucket, prefix = listed[1], query.get("prefix", [""])[0]
            items = [
                self._metadata(key)
                for key in sorted(store.objects)
                if key.startswith(f"{bucket}/{prefix}")
            ]
            return self._json({"kind": "storage#objects", "items": items})
        key = self._key(OBJECT.fullmatch(path))
        if key not in store.objects:
            return self._missing()
        if query.get("alt") != ["media"]:
            return self._json(self._metadata(key))
        data = store.objects[key]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, data)
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        part = data[first : last + 1]
        shown = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        return self._answer(206, part, {"Content-Range": shown})

    def do_POST(self):
        store, path, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        copied = REWRITE.fullmatch(path)
        if copied:
            source, target = self._key(copied), f"{copied[3]}/{unquote(copied[4])}"
            store.objects[target] = store.objects[source]
            size = str(len(store.objects[target]))
            done = {"done": True, "totalBytesRewritten": size, "objectSize": size}
            resource = self._metadata(target)
            return self._json({"kind": "storage#rewriteResponse", **done, "resource": resource})
        bucket = UPLOAD.fullmatch(path)[1]
        if query["uploadType"] == ["resumable"]:
            upload = f"upload-{len(store.uploads)}"
            store.uploads[upload] = (f"{bucket}/{query['name'][0]}", b"")
            session = f"http://{store.address}{path}?uploadType=resumable&upload_id={upload}"
            return self._answer(200, b"", {"Location": session})
        boundary = re.search(r"boundary=(\S+)", self.headers["Content-Type"])[1].strip('"')
        _, head, content, *_ = body.split(f"--{boundary}".encode())
        name = json.loads(head.partition(b"\r\n\r\n")[2])["name"]
        key = f"{bucket}/{name}"
        store.objects[key] = content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return self._json(self._metadata(key))

    def do_PUT(self):
        store, _, query = self._asked()
        (upload,) = query["upload_id"]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key, data = store.uploads[upload]
        data += body
        store.uploads[upload] = (key, data)
        if self.headers.get("Content-Range", "/0").endswith("/*"):
            received = {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
            return self._answer(308, b"", received)
        store.objects[key] = data
        return self._json(self._metadata(key))

    def do_DELETE(self):
        store, path, _ = self._asked()
        if store.objects.pop(self._key(OBJECT.fullmatch(path)), None) is None:
            return self._missing()
        return self._answer(204, b"")

    def _asked(self):
        parts = urlsplit(self.path)
        return self.server.store, parts.path, parse_qs(parts.query, keep_blank_values=True)

    def _key(self, match):
        return f"{match[1]}/{unquote(match[2])}"

    def _metadata(self, key):
        bucket, _, name = key.partition("/")
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.server.store.objects[key])),
            "generation": "1",
            "updated": "2025-01-01T00:00:00.000Z",
        }

    def _missing(self):
        self._answer(404, b'{"error": {"code": 404, "message": "No such object"}}')

    def _json(self, value):
        self._answer(200, json.dumps(value).encode())

    def _answer(self, status, data, headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
