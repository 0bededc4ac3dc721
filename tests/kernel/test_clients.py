"""Real clients against the model server's journal: what was captured is what was on the (opened) wire, byte for byte.

Each run is recorded (`record --capture`), replayed to raw events, and laid beside the journal; then the model calls and the
account are looked at. Needs root, curl, openssl and node.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.harness import CLIENTS, assert_equal_to_journal, data, record, replay
from modelserver import ModelServer

PYTHON = sys.executable


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def body(stream: bool, model: str = "script-text") -> str:
    return (
        f'{{"model":"{model}","max_tokens":64,"stream":{"true" if stream else "false"},'
        '"messages":[{"role":"user","content":"say hi"}]}'
    )


def curl(server: ModelServer, *more: str, path: str = "/v1/messages") -> list[str]:
    return ["curl", "-sS", "--max-time", "60", "--cacert", str(server.ca), *more, f"{server.url}{path}"]


COMMANDS = {
    "curl": lambda s: curl(s, "-H", "content-type: application/json", "-d", body(True)),
    "httpx": lambda s: [PYTHON, CLIENTS / "httpx_call.py", s.url],
    "urllib": lambda s: [PYTHON, CLIENTS / "urllib_call.py", s.url],
    "node": lambda s: ["node", CLIENTS / "node_fetch.mjs", s.url],
}


@pytest.mark.parametrize("client", COMMANDS)
def test_client_equals_journal(client: str, server: ModelServer, tmp_path: Path) -> None:
    program = COMMANDS[client](server)[0]
    assert shutil.which(program), f"{program} has to be installed"
    capture = tmp_path / "capture"
    record(capture, COMMANDS[client](server), env=server.environment())
    journal = server.journal.wait_closed(at_least=1)
    raw = replay(capture, "--ssl-http", "false")
    assert assert_equal_to_journal(raw, journal) > 300
    calls = data(replay(capture), "llm_call")
    assert len(calls) == sum(c.requests for c in journal)
    for call in calls:
        assert call["complete"], call
        assert call["provider"] == "anthropic"
        assert call["messages"] and call["text"] and call["usage"]["output_tokens"] > 0
        assert call["client"]["pid"] > 1


def test_s_client(server: ModelServer, tmp_path: Path) -> None:
    request = f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body(True))}\r\n\r\n{body(True)}"
    (tmp_path / "request").write_text(request)
    script = f"(cat {tmp_path}/request; sleep 1) | openssl s_client -quiet -no_ign_eof -connect localhost:{server.port} 2>/dev/null"
    record(tmp_path / "capture", ["sh", "-c", script])
    journal = server.journal.wait_closed(at_least=1)
    assert_equal_to_journal(replay(tmp_path / "capture", "--ssl-http", "false"), journal)
    assert [c["complete"] for c in data(replay(tmp_path / "capture"), "llm_call")] == [True]


def test_bodies_of_all_sizes(server: ModelServer, tmp_path: Path) -> None:
    record(tmp_path / "capture", [PYTHON, CLIENTS / "bodies.py", server.url], env=server.environment())
    journal = server.journal.wait_closed(at_least=1)
    compared = assert_equal_to_journal(replay(tmp_path / "capture", "--ssl-http", "false"), journal)
    assert compared > 10_000_000  # 5 MB went out and came back


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_content_codings(coding: str, server: ModelServer, tmp_path: Path) -> None:
    more = ("-H", f"x-coding: {coding}", "-H", "content-type: application/json", "-d", body(True, "script-count-50"))
    record(tmp_path / "capture", [*curl(server, *more), "-o", "/dev/null"])
    journal = server.journal.wait_closed(at_least=1)
    assert_equal_to_journal(replay(tmp_path / "capture", "--ssl-http", "false"), journal)
    [call] = data(replay(tmp_path / "capture"), "llm_call")
    assert call["complete"] and call["text"] and call["usage"]["output_tokens"] > 0


def test_fifty_connections_at_once(server: ModelServer, tmp_path: Path) -> None:
    record(tmp_path / "capture", [PYTHON, CLIENTS / "many.py", server.url], env=server.environment())
    journal = server.journal.wait_closed(30, at_least=50)
    assert_equal_to_journal(replay(tmp_path / "capture", "--ssl-http", "false"), journal, at_least=50)
    found = replay(tmp_path / "capture")
    calls = data(found, "llm_call")
    assert len(calls) == sum(c.requests for c in journal)
    assert all(c["complete"] for c in calls)
    assert len({c["client"]["pid"] for c in calls}) > 1


def test_pipelined_requests(server: ModelServer, tmp_path: Path) -> None:
    record(tmp_path / "capture", [PYTHON, CLIENTS / "pipelined.py", server.url], env=server.environment())
    journal = server.journal.wait_closed(at_least=1)
    assert_equal_to_journal(replay(tmp_path / "capture", "--ssl-http", "false"), journal)
    messages = data(replay(tmp_path / "capture"), "http_parser")
    bodies = {
        kind: [(m["exchange_id"], m["body"]) for m in messages if m["message_type"] == kind] for kind in ("request", "response")
    }
    assert bodies["request"] == bodies["response"]  # /echo gives back what it got
    assert [number for number, _ in bodies["request"]] == [0, 1]
    assert [body[:3] for _, body in bodies["request"]] == ["0:p", "1:p"]


def test_socket_passed_and_inherited(server: ModelServer, tmp_path: Path) -> None:
    record(tmp_path / "capture", [PYTHON, CLIENTS / "fork_inherit.py", server.url], env=server.environment())
    journal = server.journal.wait_closed(at_least=1)
    assert_equal_to_journal(replay(tmp_path / "capture", "--ssl-http", "false"), journal)


def test_both_ends_give_one_call(tmp_path: Path) -> None:
    """The server runs inside the recorded tree: one call with both processes named, and each byte once."""
    script = (
        f"{PYTHON} -m modelserver --dir {tmp_path}/s > {tmp_path}/out & server=$!; "
        f"while ! grep -q ready {tmp_path}/out; do sleep 0.05; done; "
        f"curl -sS --cacert {tmp_path}/s/ca.pem -d '{body(True)}' https://localhost:$(cat {tmp_path}/s/port)/v1/messages >/dev/null; "
        "sleep 0.3; kill $server; wait"
    )
    env = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    record(tmp_path / "capture", ["sh", "-c", script], env=env)
    found = replay(tmp_path / "capture")
    [call] = data(found, "llm_call")
    assert call["complete"]
    assert call["client"]["comm"] == "curl"
    assert call["server"]["pid"] not in (0, call["client"]["pid"])
    [connection] = [c for c in data(found, "connection") if c["protocol"] == "tls"]
    assert connection["missing"] == 0 and connection["tls_not_opened"] == 0
    assert connection["mirrored"] > 0
    raw = replay(tmp_path / "capture", "--ssl-http", "false")
    ends = {(e["function"], e["pid"]) for e in data(raw, "ssl") if not e["is_handshake"]}
    assert len(ends) == 4  # each end told: it wrote and it read


def test_without_openssl_the_bytes_are_counted_as_not_opened(server: ModelServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = curl(server, "-H", "content-type: application/json", "-d", body(True))
    done = subprocess.run(
        [Path(PYTHON).with_name("agentsight"), "record", "--no-openssl", "--log-file", log, "--", *command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    from kernel.harness import events

    found = events(log)
    assert not data(found, "llm_call")
    [connection] = data(found, "connection")
    journal = server.journal.wait_closed(at_least=1)
    plain = sum(len(c.c2s) + len(c.s2c) for c in journal)
    assert connection["tls_opened"] == 0
    assert connection["reasons"] == {"no-secret": connection["tls_not_opened"]}
    assert connection["tls_not_opened"] > plain  # the same bytes, encrypted: headers and tags added
    assert connection["seen"] == connection["tls_not_opened"] + connection["tls_handshake"]
    assert "not opened" in done.stderr and "curl" in done.stderr


@pytest.mark.parametrize("hook", ["sock", "sys_exit"])
def test_each_hook_gives_the_same(hook: str, server: ModelServer, tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    command = curl(server, "-H", "content-type: application/json", "-d", body(True, "script-count-200"), "-o", "/dev/null")
    done = subprocess.run(
        [Path(PYTHON).with_name("agentsight"), "record", "--io-hook", hook, "--capture", capture, "--quiet", "--", *command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    journal = server.journal.wait_closed(at_least=1)
    assert_equal_to_journal(replay(capture, "--ssl-http", "false"), journal)
