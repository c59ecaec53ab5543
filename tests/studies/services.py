"""The services that hold raw files, played on loopback: listings, ranges, broken connections, wrong bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Services:
    """Files by service: ``held["osf"][node][path]``, "figshare", "hub" and "s3" likewise; and what was asked for.

    ``drops[path]`` numbers of bytes after which the next answers for a file break off, ``wrong`` paths whose bytes are
    not those listed, ``status[path]`` HTTP statuses with which the next answers for a file or listing refuse,
    ``no_ranges`` whether every answer begins at the first byte, ``pieces`` paths that S3 got in several pieces.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.held: dict[str, dict[str, dict[str, bytes]]] = {"osf": {}, "figshare": {}, "hub": {}, "s3": {}}
        self.drops: dict[str, list[int]] = {}
        self.status: dict[str, list[int]] = {}
        self.wrong: set[str] = set()
        self.pieces: set[str] = set()
        self.no_ranges = False
        self.asked: list[tuple[str, str | None]] = []

    def sources(self, config: dict) -> None:
        """Send the sources of a study's ``configs/download/<study>.yaml`` here."""
        for source in config["sources"].values():
            service = source["_target_"].rpartition(".")[2]
            key, name = {"OSF": ("api", "osf"), "Figshare": ("api", "figshare"), "HuggingFace": ("endpoint", "hub"),
                         "S3": ("endpoint", "s3")}[service]
            source[key] = f"{self.address}/{name}"

    def fetched(self, path: str) -> list[str | None]:
        """Return the ranges in which a file was asked for."""
        return [asked for name, asked in self.asked if name == path]

    def listing(self, path: str, query: dict[str, list[str]]) -> bytes | None:
        """Return the listing that a URL asks for, None where it asks for a file."""
        service, *rest = path.split("/")
        if service == "osf" and rest[0] == "nodes":
            node, folder = rest[1], "/".join(rest[4:]).strip("/")
            return self._osf(node, folder, page=int(query.get("page", ["1"])[0]))
        if service == "figshare" and rest[0] == "articles":
            return json.dumps([
                {"id": i, "name": name, "size": len(data), "is_link_only": False, "supplied_md5": "",
                 "computed_md5": hashlib.md5(data).hexdigest(),
                 "download_url": f"{self.address}/figshare/files/{rest[1]}/{name}"}
                for i, (name, data) in enumerate(self.held["figshare"][rest[1]].items())]).encode()
        if service == "hub" and rest[0] == "api":
            return self._hub("/".join(rest[2:4]), unquote("/".join(rest[6:])), query["recursive"][0].lower() == "true")
        if service == "s3" and "list-type" in query:
            return self._s3(rest[0], query["prefix"][0])
        return None

    def content(self, path: str) -> tuple[str, bytes] | None:
        """Return the name and bytes of the file that a URL asks for."""
        service, *rest = path.split("/")
        skip = {"osf": 1, "figshare": 1, "hub": 1, "s3": 0}[service]
        width = 2 if service == "hub" else 1
        place, inner = "/".join(rest[skip:skip + width]), rest[skip + width:]
        name = "/".join(inner[2:] if service == "hub" else inner)  # resolve/<revision>/
        data = self.held[service].get(place, {}).get(name)
        return None if data is None else (name, data)

    def _osf(self, node: str, folder: str, *, page: int) -> bytes:
        prefix = folder + "/" if folder else ""
        names = dict.fromkeys(path[len(prefix):].split("/")[0] for path in self.held["osf"][node]
                              if path.startswith(prefix))
        url = f"{self.address}/osf/nodes/{node}/files/osfstorage/"
        data = []
        for name in names:
            content = self.held["osf"][node].get(prefix + name)
            if content is None:
                data.append({"attributes": {"kind": "folder", "name": name, "size": None}, "relationships": {
                    "files": {"links": {"related": {"href": f"{url}{prefix}{name}/"}}}}})
            else:
                hashes = {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}
                data.append({"attributes": {"kind": "file", "name": name, "size": len(content),
                                            "extra": {"hashes": hashes}},
                             "links": {"download": f"{self.address}/osf/files/{node}/{prefix}{name}"}})
        following = f"{url}{prefix}?page={page + 1}" if page < len(data) else None  # one entry a page
        return json.dumps({"data": data[page - 1:page], "links": {"next": following}}).encode()

    def _hub(self, repo: str, folder: str, recursive: bool) -> bytes:
        prefix = folder + "/" if folder else ""
        entries = []
        for path, data in self.held["hub"][repo].items():
            if not path.startswith(prefix) or (not recursive and "/" in path[len(prefix):]):
                continue
            entry = {"type": "file", "path": path, "size": len(data),
                     "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
            if len(data) > 100:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
            entries.append(entry)
        return json.dumps(entries).encode() if entries or not folder else b""

    def _s3(self, bucket: str, prefix: str) -> bytes:
        lines = [f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                 f"<ETag>{escape(self.etag(key, data))}</ETag></Contents>"
                 for key, data in sorted(self.held["s3"][bucket].items()) if key.startswith(prefix)]
        return (f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}'
                f"</Name><IsTruncated>false</IsTruncated>{''.join(lines)}</ListBucketResult>").encode()

    def etag(self, key: str, data: bytes) -> str:
        """Return the ETag of an object."""
        return f'"{hashlib.md5(data).hexdigest()}{"-2" if key in self.pieces else ""}"'


@contextmanager
def services() -> Iterator[Services]:
    """Run them on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path).strip("/")
            listing = played.listing(path, parse_qs(url.query, keep_blank_values=True))
            if listing is not None:
                if refused := played.status.get("listing"):
                    return self._answer(refused.pop(0), b"{}")
                status = 200 if listing else 404
                headers = {} if listing else {"X-Error-Code": "EntryNotFound"}
                return self._answer(status, listing or b"{}", **headers)
            found = played.content(path)
            if found is None:
                return self._answer(404, b"")
            name, data = found
            asked = self.headers.get("Range")
            played.asked.append((name, asked))
            if refused := played.status.get(name):
                return self._answer(refused.pop(0), b"")
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and not played.no_ranges else 0
            body = (b"\0" * len(data) if name in played.wrong else data)[start:]
            drop = played.drops[name].pop(0) if played.drops.get(name) else None
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}", "ETag": played.etag(name, data)}
            return self._answer(206 if asked and not played.no_ranges else 200, body, drop=drop, **headers)

        def _answer(self, status: int, body: bytes, drop: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            with suppress(ConnectionError):  # who asked has had enough
                self.wfile.write(body[:drop])
            self.close_connection = drop is not None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    played = Services(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield played
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
