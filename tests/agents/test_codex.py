"""Codex (its newest on rustls with aws-lc, SSE), uv and deno (the same) against the model server's journal, byte for byte.

Codex asks for a WebSocket first; the server here has none, so it goes on with SSE, over TLS 1.3 like everything below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import subjects
from agents.harness import Island, compare, island, recorded, subject
from kernel.harness import flows, replay
from modelserver import Connection

pytestmark = [pytest.mark.agents, pytest.mark.kernel]

NEWEST = "0.169.0"
VERSIONS = [NEWEST, "0.120.0"]  # 0.120 uses the OpenSSL in it; 0.140 uses ring
CONFIG = """
model = "{model}"
model_provider = "mock"
[model_providers.mock]
name = "mock"
base_url = "{url}/v1"
env_key = "MOCK_KEY"
wire_api = "responses"
"""


def codex(version: str) -> Path:
    file = "vendor/x86_64-unknown-linux-musl/*/codex"  # in `bin`, before in `codex`
    return subject(subjects.npm, "@openai/codex", f"{version}-linux-x64", file)


def ask(place: Island, program: Path, prompt: str, model: str = "script-text") -> list[str]:
    home = place.home / ".codex"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(model=model, url=place.server.url))
    return place.command(program, "exec", "--skip-git-repo-check", prompt, CODEX_HOME=str(home), MOCK_KEY="x")


LAST_CHUNK = b"\r\n0\r\n\r\n"


def read_by_codex(capture: Path, journal: Sequence[Connection]) -> list[Connection]:
    """The journal without a last chunk that Codex left in its socket: it goes at `response.completed`, read or not.

    The account of the connection, which `compare` looks at, still has to say that all bytes that it took are there.
    """
    captured = flows(replay(capture, "--ssl-http", "false"))
    read = []
    for c in journal:
        flow = captured.get(c.peer[1])
        unread = flow is not None and c.s2c.endswith(LAST_CHUNK) and flow.s2c == c.s2c[:-5]
        read.append(dataclasses.replace(c, s2c=c.s2c[:-5], s2c_sure=len(c.s2c) - 5) if unread else c)
    return read


@pytest.mark.parametrize("version", VERSIONS)
def test_codex_equals_journal(version: str, tmp_path: Path) -> None:
    program = codex(version)
    with island(tmp_path) as place:
        capture, journal, printed = recorded(place, tmp_path, ask(place, program, "say hi"))
        assert "The sockets told me everything" in printed
        assert compare(capture, read_by_codex(capture, journal), agent="Codex", version=version, file=program) > 10_000
    requests = [c.c2s for c in journal if c.c2s]
    assert any(b"POST /v1/responses" in sent and b"say hi" in sent for sent in requests)


def test_codex_with_a_long_answer(tmp_path: Path) -> None:
    program = codex(NEWEST)
    with island(tmp_path) as place:
        capture, journal, _ = recorded(place, tmp_path, ask(place, program, "say hi", "script-big-2000000"))
        compared = compare(capture, read_by_codex(capture, journal), agent="Codex, 2 MB answer", version=NEWEST, file=program)
    assert compared > 2_000_000


def test_codex_with_a_tool(tmp_path: Path) -> None:
    """The model asks for a shell command; its result is in a second request."""
    program = codex(NEWEST)
    with island(tmp_path) as place:
        command = ask(place, program, "Use the tool.\nRUN: echo from-$((40+2))-tool", "script-tool")
        capture, journal, _ = recorded(place, tmp_path, command)
        compare(capture, read_by_codex(capture, journal), agent="Codex, tool", version=NEWEST, file=program)
    sent = b"".join(c.c2s for c in journal)
    assert sent.count(b"POST /v1/responses") == 2
    assert b'"function_call_output"' in sent


def test_uv_equals_journal(tmp_path: Path) -> None:
    program = subject(subjects.pip, "uv", "0.13.9", "uv-*/scripts/uv")
    with island(tmp_path) as place:
        url = f"{place.server.url}/bytes/300000"
        words = (program, "pip", "install", "--no-cache", "--target", place.home / "t", "--index-url", url, "nothing-there")
        shell = ["sh", "-c", '"$@"; exit 0', "sh", *place.command(*words)]
        capture, journal, _ = recorded(place, tmp_path, shell)
        assert compare(capture, journal, agent="uv", version="0.13.9", file=program) > 100


def test_deno_equals_journal(tmp_path: Path) -> None:
    program = subject(subjects.npm, "@deno/linux-x64-glibc", "2.9.6", "deno")
    with island(tmp_path) as place:
        script = place.home / "fetch.js"
        script.write_text(f"console.log((await (await fetch('{place.server.url}/bytes/300000')).arrayBuffer()).byteLength)")
        words = (program, "run", "--no-check", "--allow-net", f"--cert={place.server.ca}", script)
        capture, journal, printed = recorded(place, tmp_path, place.command(*words, DENO_NO_UPDATE_CHECK="1"))
        assert "300000" in printed
        assert compare(capture, journal, agent="deno", version="2.9.6", file=program) > 300_000
