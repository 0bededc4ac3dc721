"""Attached late: connections that were open before us are opened with what the memory search finds, from the first whole record on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kernel.harness import CLIENTS, Json, content, data, replay, wait_for, watching
from modelserver import Connection, ModelServer

from agentsight._native import memscan

PYTHON = sys.executable
SLOW = "script-count-60+slow-50"  # three seconds of answer
SUITES = {
    "aes256": ["--ciphersuites", "TLS_AES_256_GCM_SHA384"],
    "aes128": ["--ciphersuites", "TLS_AES_128_GCM_SHA256"],
    "chacha": ["--ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
    "tls12": ["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES256-GCM-SHA384"],
}


@pytest.fixture(params=SUITES)
def server(request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    with ModelServer(*SUITES[request.param], "--keylog") as running:
        yield running


@contextlib.contextmanager
def running(command: Sequence[str | Path], server: ModelServer) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **server.environment()},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def call(process: subprocess.Popen[str], model: str) -> None:
    assert process.stdin is not None
    process.stdin.write(model + "\n")
    process.stdin.flush()
    told(process)


def told(process: subprocess.Popen[str]) -> Json:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the client ended"
    found: Json = json.loads(line)
    return found


def opened(capture: Path) -> tuple[bytes, bytes, list[Json]]:
    """What was opened, to and from the server, without a gap; and the account of the one connection."""
    found = replay(capture, "--ssl-http", "false")
    out = {"WRITE/SEND": b"", "READ/RECV": b""}
    for event in data(found, "ssl"):
        if not event["is_handshake"]:
            assert event["offset"] == len(out[event["function"]])
            out[event["function"]] += content(event)
    return out["WRITE/SEND"], out["READ/RECV"], data(found, "connection")


def memory_notes(capture: Path) -> list[Json]:
    return [note for note in data(replay(capture), "diagnostic") if note.get("kind") == "memory"]


def only(server: ModelServer) -> Connection:
    connections = [c for c in server.journal.connections() if c.c2s]
    assert len(connections) == 1
    return connections[0]


def test_idle_connection(server: ModelServer, tmp_path: Path) -> None:
    """Attached while nothing happens: the next call is whole, in both directions."""
    with running([PYTHON, CLIENTS / "keepalive.py", server.url], server) as client:
        call(client, "script-text")
        told(client)
        before = only(server)
        with watching("trace", "-q", "-p", str(client.pid), "--capture", tmp_path / "c"):
            time.sleep(1)
            call(client, "script-text")
            told(client)
        after = only(server)
    sent, received, connections = opened(tmp_path / "c")
    assert sent == after.c2s[len(before.c2s) :]
    assert received == after.s2c[len(before.s2c) :]
    (account,) = connections
    assert account["tls_not_opened"] == 0, account
    (llm,) = data(replay(tmp_path / "c"), "llm_call")
    assert llm["complete"] and llm["text"]


def test_in_mid_answer(server: ModelServer, tmp_path: Path) -> None:
    """Attached while an answer is streamed: from there on everything is opened, up to one record that had begun before."""
    with running([PYTHON, CLIENTS / "keepalive.py", server.url], server) as client:
        call(client, SLOW)
        time.sleep(0.3)
        before = only(server)
        with watching("trace", "-q", "-p", str(client.pid), "--capture", tmp_path / "c"):
            told(client)
            time.sleep(0.2)
        after = only(server)
    sent, received, connections = opened(tmp_path / "c")
    assert sent == b""
    assert received and after.s2c.endswith(received)
    assert len(received) > (len(after.s2c) - len(before.s2c)) // 4
    (account,) = connections
    assert account["tls_not_opened"] <= 16384 + 256 + 5, account


LATE = {
    "node": lambda s: ["node", CLIENTS / "node_fetch.mjs", s.url, "1", "1", SLOW],
    "curl": lambda s: ["curl", "-sSN", "--cacert", s.ca, "-H", "content-type: application/json", "-d",
                       json.dumps({"model": SLOW, "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "x"}]}),
                       f"{s.url}/v1/messages"],
}  # fmt: skip


@pytest.mark.parametrize("program", LATE)
def test_other_programs(program: str, server: ModelServer, tmp_path: Path) -> None:
    assert shutil.which(program), f"{program} has to be installed"
    with running(LATE[program](server), server) as client:
        wait_for(lambda: any(len(c.s2c) > 500 for c in server.journal.connections()))
        with watching("trace", "-q", "-p", str(client.pid), "--capture", tmp_path / "c"):
            client.communicate(timeout=30)
        assert client.returncode == 0
    _, received, connections = opened(tmp_path / "c")
    assert len(received) > 300 and only(server).s2c.endswith(received)
    assert sum(c["tls_not_opened"] for c in connections) <= 16384 + 256 + 5, connections


def secrets_of(result: Any) -> set[str]:
    """The traffic secrets in a search's records."""
    with memoryview(result.records) as view:
        size = len(view) // result.records.count if result.records.count else 1
        found = set()
        for at in range(0, len(view), size):
            record = bytes(view[at : at + size])
            label_len, secret_len = record[33], record[34]
            if record[72 : 72 + label_len] == b"TRAFFIC_SECRET":
                found.add(record[120 : 120 + secret_len].hex())
    return found


def test_all_live_secrets_and_no_other(server: ModelServer) -> None:
    """Compared with the key log: of each open connection both secrets are found, and nothing that the log has not."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(running([PYTHON, CLIENTS / "keepalive.py", server.url], server))
        call(client, "script-text")
        told(client)
        result = memscan.search(client.pid)
        log = [line.split() for line in (server.directory / "keylog.txt").read_text().splitlines() if line[0] != "#"]
    found = secrets_of(result)
    print(server.journal.connections()[0].cipher, result)
    assert result.end == "done" and result.stats["gone"] == 0
    assert found <= {secret for _, _, secret in log}
    live = {secret for label, _, secret in log if label.endswith("_TRAFFIC_SECRET_0")}
    assert live <= found
    if not live:  # TLS 1.2
        assert result.stats["keys"] >= 2


def test_nothing_where_nothing_is() -> None:
    """Programs that speak no TLS have no secrets, whatever else is in their memory."""
    noise = "import os,sys,ssl,hashlib; x = os.urandom(3 << 20); print(1, flush=True); sys.stdin.read()"
    for command in (["cat"], [PYTHON, "-c", noise], ["node", "-e", "console.log(1); process.stdin.resume()"]):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if command != ["cat"]:
                assert process.stdout and process.stdout.readline()
            result = memscan.search(process.pid, max_seconds=60)
            print(command[0], result)
            assert (result.stats["secrets"], result.end) == (0, "done")
        finally:
            process.kill()
            process.communicate()


def test_a_process_that_is_gone() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(OSError, match="No such"):
        memscan.search(process.pid)


def test_bounds() -> None:
    """Bytes, time and a stop are kept, and what was found by then is given."""
    process = subprocess.Popen([PYTHON, "-c", "import os; x = os.urandom(64 << 20); print(1, flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline()
        assert memscan.search(process.pid, max_bytes=1 << 20).end == "bytes"
        result = memscan.search(process.pid, max_seconds=0.2)
        assert result.end == "time"
        assert sum(result.stats["cpu_seconds"]) < 0.3
        stop = memscan.Stop()
        stop.set()
        assert memscan.search(process.pid, stop=stop).end == "stopped"
    finally:
        process.kill()
        process.communicate()
