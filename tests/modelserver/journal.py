"""The journal of the model server: every plaintext byte of every connection, both ways, as on the (opened) wire.

Files, N counting accepted connections from 1: `N.c2s` bytes from client to server, `N.s2c` from server to client,
`N.json` what is known about the connection. Written unbuffered: bytes received before they are acted upon, bytes
sent before they are handed to the socket. So a client that has read its answer finds it in the journal. `N.json`
is there from the accept on and is replaced, whole, after the handshake and at the end, when `end_ns` is set.

This module also loads a journal. It parses no byte of it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Connection:
    """One connection as journalled. Times are ns since the epoch; `end_ns` is None while it is open.

    `s2c_sure`: so many bytes of `s2c` the server's socket took for certain (all, unless a send failed).
    """

    number: int
    c2s: bytes
    s2c: bytes
    peer: tuple[str, int]
    local: tuple[str, int]
    tls: bool
    version: str | None
    cipher: str | None
    sni: str | None
    alpn: str | None
    resumed: bool | None
    start_ns: int
    end_ns: int | None
    error: str | None
    requests: int
    s2c_sure: int


class Journal:
    """A journal directory, read anew at each call."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def connections(self) -> list[Connection]:
        """All connections so far, in order of accept."""
        found = []
        for path in self.directory.glob("*.json"):
            meta: dict[str, Any] = json.loads(path.read_bytes())
            meta["peer"] = tuple(meta["peer"])
            meta["local"] = tuple(meta["local"])
            c2s, s2c = path.with_suffix(".c2s").read_bytes(), path.with_suffix(".s2c").read_bytes()
            sure = meta.pop("s2c_sure")
            found.append(Connection(c2s=c2s, s2c=s2c, s2c_sure=len(s2c) if sure is None else sure, **meta))
        return sorted(found, key=lambda connection: connection.number)

    def wait_closed(self, timeout: float = 10.0, *, at_least: int = 0) -> list[Connection]:
        """Wait until `at_least` connections were accepted and all have ended; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.connections()
            if len(found) >= at_least and all(connection.end_ns is not None for connection in found):
                return found
            if time.monotonic() > deadline:
                open_ones = [connection.number for connection in found if connection.end_ns is None]
                raise TimeoutError(f"{len(found)} connections, still open: {open_ones}")
            time.sleep(0.01)

    def wait_closed_one(self, index: int, timeout: float = 10.0) -> Connection:
        """Wait until the connection at `index` (counted from 0, in order of accept) has ended, whatever the others do."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.connections()
            if len(found) > index and found[index].end_ns is not None:
                return found[index]
            if time.monotonic() > deadline:
                raise TimeoutError(f"connection {index} has not {'ended' if len(found) > index else 'come'}")
            time.sleep(0.01)


class Writer:
    """The server's side: one connection being written. Used by one thread."""

    def __init__(self, directory: Path, number: int, **meta: Any) -> None:
        self._path = directory / f"{number}.json"
        self._temporary = directory / f"{number}.json.new"
        self._c2s = open(directory / f"{number}.c2s", "wb", buffering=0)  # noqa: SIM115 - closed by close()
        self._s2c = open(directory / f"{number}.s2c", "wb", buffering=0)  # noqa: SIM115
        self._meta: dict[str, Any] = {
            "number": number,
            "version": None,
            "cipher": None,
            "sni": None,
            "alpn": None,
            "resumed": None,
            "start_ns": time.time_ns(),
            "end_ns": None,
            "error": None,
            "requests": 0,
            "s2c_sure": None,
            **meta,
        }
        self.update()

    def update(self, **meta: Any) -> None:
        """Set fields of the description and write it."""
        self._meta.update(meta)
        self._temporary.write_text(json.dumps(self._meta))
        self._temporary.replace(self._path)

    def request(self) -> None:
        """Count one request."""
        self._meta["requests"] += 1

    def received(self, data: bytes) -> None:
        """Bytes that the client sent."""
        _write_all(self._c2s, data)

    def sending(self, data: bytes) -> None:
        """Bytes that are about to be sent."""
        _write_all(self._s2c, data)

    def send_failed(self, sure: int) -> None:
        """A send failed: of all bytes journalled as sent, only the first `sure` are known to have gone."""
        self._meta["s2c_sure"] = sure

    def close(self, error: str | None = None) -> None:
        """The connection has ended."""
        self._c2s.close()
        self._s2c.close()
        self.update(end_ns=time.time_ns(), error=error)


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
