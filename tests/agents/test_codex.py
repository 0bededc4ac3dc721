"""Programs with rustls on aws-lc against the model server's journal, byte for byte: Codex (SSE), uv, deno.

Codex asks for a WebSocket first; the server here has none, so it goes on with SSE, over TLS 1.3 like everything below.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import subjects
from agents.harness import Island, compare, island, recorded, subject
from kernel.harness import data, replay

pytestmark = [pytest.mark.agents, pytest.mark.kernel]

NEWEST = "0.169.0"
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
    file = "vendor/x86_64-unknown-linux-musl/bin/codex"
    return subject(subjects.npm, "@openai/codex", f"{version}-linux-x64", file)


def ask(place: Island, program: Path, prompt: str, model: str = "script-text") -> list[str]:
    home = place.home / ".codex"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(model=model, url=place.server.url))
    return place.command(program, "exec", "--skip-git-repo-check", prompt, CODEX_HOME=str(home), MOCK_KEY="x")


@pytest.mark.parametrize("script", ["text", "big-2000000"])
def test_codex_equals_journal(script: str, tmp_path: Path) -> None:
    program = codex(NEWEST)
    name = "Codex" if script == "text" else "Codex, 2 MB answer"
    with island(tmp_path) as place:
        command = ask(place, program, "say hi", f"script-{script}")
        capture, journal, printed = recorded(place, tmp_path, command)
        if script == "text":
            assert "The sockets told me everything" in printed
        compared = compare(capture, journal, agent=name, version=NEWEST, file=program)
    assert compared > (2_000_000 if script != "text" else 10_000)
    requests = [c.c2s for c in journal if c.c2s]
    assert any(b"POST /v1/responses" in sent and b"say hi" in sent for sent in requests)
    used = [c for c in data(replay(capture, "--ssl-http", "false"), "connection") if c["tls_opened"]]
    assert len(used) == len(requests)


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
