"""A small S3 on loopback, as far as `pyarrow.fs` speaks it: objects in memory, path-style URLs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from loopback import serving


class S3Server:
    """Its objects by "bucket/key", and the query that makes an `s3://` URI point at it."""

    def __init__(self, port: int):
        self.objects: dict[str, bytes] = {}
        self.delay_s = 0.0
        self.refused: list[str] = []
        """Ends of keys that nobody may write (403)."""
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        self.endpoint = f"http://127.0.0.1:{port}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run the server for the block."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.store = S3Server(http.server_address[1])
    with serving(http):
        yield http.store


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: in two, the second waits for the first one's acknowledgement.
    wbufsize = 1 << 20

    def log_message(self, *arguments):
        pass

    def handle_expect_100(self):
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    def do_GET(self):
        store, key, query = self._asked()
        if "list-type" in query:
            return self._list(query, bucket=key.rstrip("/"))
        if key not in store.objects:
            return self._missing()
        data = store.objects[key]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, data)
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        part = data[first : last + 1]
        shown = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        return self._answer(206, part, {"Content-Range": shown})

    def do_HEAD(self):
        store, key, _ = self._asked()
        if "/" in key and key not in store.objects:
            return self._missing()
        return self._answer(200, store.objects.get(key, b""))

    def do_PUT(self):
        store, key, query = self._asked()
        copied = self.headers.get("x-amz-copy-source")
        data = self._body()
        if self._is_refused(key):
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        if copied:
            source = unquote(copied).lstrip("/")
            if source not in store.objects:
                return self._missing()
            store.objects[key] = store.objects[source]
            return self._answer(200, b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
        if "uploadId" in query:
            store.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = data
        else:
            store.objects[key] = data
        return self._answer(200, b"", {"ETag": '"x"'})

    def do_POST(self):
        store, key, query = self._asked()
        body = self._body()
        if self._is_refused(key):
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        if "uploads" in query:
            upload = f"upload-{len(store.uploads)}"
            store.uploads[upload] = {}
            result = f"<UploadId>{upload}</UploadId>"
            text = f"<InitiateMultipartUploadResult>{result}</InitiateMultipartUploadResult>"
            return self._answer(200, text.encode())
        if "delete" in query:
            for name in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                store.objects.pop(f"{key.rstrip('/')}/{name}", None)
            return self._answer(200, b"<DeleteResult/>")
        parts = store.uploads.pop(query["uploadId"][0])
        store.objects[key] = b"".join(parts[number] for number in sorted(parts))
        text = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        return self._answer(200, text)

    def do_DELETE(self):
        store, key, query = self._asked()
        if "uploadId" in query:
            store.uploads.pop(query["uploadId"][0], None)
        else:
            store.objects.pop(key, None)
        return self._answer(204, b"")

    def _list(self, query, *, bucket):
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        found, folders = [], set()
        for path, data in sorted(self.server.store.objects.items()):
            name = path.removeprefix(f"{bucket}/")
            if not path.startswith(f"{bucket}/") or not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                found.append((name, len(data)))
        found = found[: int(query.get("max-keys", ["1000"])[0])]
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size>"
            "<LastModified>2025-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, size in found
        )
        shared = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in sorted(folders)
        )
        head = f"<KeyCount>{len(found) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
        text = f"<ListBucketResult>{head}{contents}{shared}</ListBucketResult>"
        return self._answer(200, text.encode())

    def _asked(self):
        time.sleep(self.server.store.delay_s)
        parts = urlsplit(self.path)
        key = unquote(parts.path).lstrip("/")
        return self.server.store, key, parse_qs(parts.query, keep_blank_values=True)

    def _body(self):
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        # Each chunk: its size in hexadecimal, perhaps a signature, the bytes.
        whole = b""
        while data:
            line, _, rest = data.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            if not size:
                break
            whole += rest[:size]
            data = rest[size + 2 :]
        return whole

    def _is_refused(self, key):
        return key.endswith(tuple(self.server.store.refused))

    def _missing(self):
        self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _answer(self, status, data, headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.send_header("Content-Type", "application/xml")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
