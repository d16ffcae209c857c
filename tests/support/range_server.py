"""A real HTTP server of a folder that understands byte ranges and misbehaves where it is told to."""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
import struct
import threading
import zlib
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class RangeServer:
    """Use as ``with RangeServer(folder) as server``, and read from ``server.url``.

    Args:
        ranges: answer with ranges at all; else every answer is the whole file.
        sizes: tell the size of the file beside a range.

    Attributes:
        requests: (name, first, last) of each GET, in order; (name, None, None) for a whole file.
        faults: for a file's name, what goes wrong in its next requests, one after another: a status such as ``503``;
            ``"reset"``, the connection breaks; ``"stall"``, no answer comes; ``"early"``, the body ends early;
            ``"less"``, a smaller range than was asked for is sent, as if it were right; ``"endless"``, the body never
            ends; ``"gzip"``, it is a compressed one; ``"total"``, the file is said to be larger. A fault in a list that
            ends with ``...`` goes on for ever.
        queries, authorizations: of all requests, what stood behind a question mark and in the header of that name.
        headers: of all requests.
        etags: tell the version of the file beside it.
        redirect: what every request is sent on to, followed by its path, unless it is there already; None to answer it
            here.
        sent: bytes of bodies that were sent.
        barrier: what each answer waits at.
        peak: requests that were under way at once.
    """

    def __init__(self, folder: Path, ranges: bool = True, sizes: bool = True):
        self.folder, self.ranges, self.sizes = folder, ranges, sizes
        self.requests: list[tuple[str, int | None, int | None]] = []
        self.faults: defaultdict[str, list] = defaultdict(list)
        self.queries: set[str] = set()
        self.authorizations: set[str | None] = set()
        self.headers: list[dict[str, str]] = []
        self.etags, self.redirect = False, None
        self.sent: Counter[str] = Counter()
        self.barrier: threading.Barrier | None = None
        self.busy = self.peak = 0
        self.lock, self.ended = threading.Lock(), threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> RangeServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, name: str) -> int:
        """Requests for a file so far."""
        return sum(request[0] == name for request in self.requests)

    def next_fault(self, name: str) -> object:
        with self.lock:
            faults = self.faults[name]
            return None if not faults else faults[0] if faults[1:2] == [...] else faults.pop(0)


class _Server(ThreadingHTTPServer):
    # A client that opens many connections at once would wait seconds for those that a short queue drops.
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: RangeServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = parts.path.rpartition("/")[2]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = map(int, asked.groups()) if asked else (None, None)
        with self.owner.lock:
            self.owner.requests.append((name, first, last))
            self.owner.queries.add(parts.query)
            self.owner.authorizations.add(self.headers.get("Authorization"))
            self.owner.headers.append(dict(self.headers))
            self.owner.busy += 1
            self.owner.peak = max(self.owner.peak, self.owner.busy)
        if self.owner.barrier is not None:
            self.owner.barrier.wait()
        with self.owner.lock:
            self.owner.busy -= 1
        fault = self.owner.next_fault(name)
        if fault == "stall":
            self.owner.ended.wait()
        if fault in ("stall", "reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif isinstance(fault, int):
            self._send(fault, {}, b"")
        elif self.owner.redirect is not None and not self.path.startswith(urlsplit(self.owner.redirect).path or "//"):
            self._send(302, {"Location": self.owner.redirect + self.path}, b"")
        elif not (self.owner.folder / parts.path.lstrip("/")).is_file():
            self._send(404, {}, b"")
        else:
            self._send_file((self.owner.folder / parts.path.lstrip("/")).read_bytes(), name, first, last, fault)

    def do_HEAD(self) -> None:
        path = self.owner.folder / urlsplit(self.path).path.lstrip("/")
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()

    def _send_file(self, data: bytes, name: str, first: int | None, last: int | None, fault: object) -> None:
        size = len(data) + (fault == "total") if self.owner.sizes else "*"
        if first is None or not self.owner.ranges:
            self._send(200, {}, data, name, fault)
        elif first >= len(data):
            self._send(416, {"Content-Range": f"bytes */{size}"}, b"", name)
        else:
            last = min(last, len(data) - 1) - (1 if fault == "less" else 0)
            self._send(206, {"Content-Range": f"bytes {first}-{last}/{size}"}, data[first : last + 1], name, fault)

    def _send(self, status: int, headers: dict[str, str], body: bytes, name: str = "", fault: object = None) -> None:
        self.send_response(status)
        if self.owner.etags and name:
            headers = {**headers, "ETag": f'"{zlib.crc32((self.owner.folder / name).read_bytes())}"'}
        if fault == "gzip":
            headers, body = {**headers, "Content-Encoding": "gzip"}, gzip.compress(body)
        for key, value in headers.items():
            self.send_header(key, value)
        if fault == "endless":
            self._send_endless()
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "early":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        for start in range(0, len(body), 1 << 16):
            self.wfile.write(body[start : start + (1 << 16)])
            with self.owner.lock:
                self.owner.sent[name] += len(body[start : start + (1 << 16)])

    def _send_endless(self) -> None:
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.owner.ended.is_set():
                self.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")

    def log_message(self, *_: object) -> None:
        """Quiet."""
