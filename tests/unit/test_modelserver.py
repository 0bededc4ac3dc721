"""The model server against independent clients (curl, httpx, a raw socket): its answers are right, its journal is the truth."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from modelserver import Connection, ModelServer, coding, scripts
from modelserver.server import pattern

USER = [{"role": "user", "content": "Say what you see, Ω."}]
TOOLS = [
    {
        "name": "Bash",
        "description": "Run a command",
        "input_schema": {
            "type": "object",
            "properties": {"command": {"type": "string"}, "timeout": {"type": "integer"}},
            "required": ["command", "timeout"],
        },
    }
]
ANTHROPIC, OPENAI = "/v1/messages", "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, verify=trust(server), timeout=20) as made:
        yield made


def trust(server: ModelServer) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=server.ca)


def body(model: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "messages": USER, "stream": stream, **more}


def events(raw: str) -> list[dict[str, Any]]:
    """Payloads of an SSE text: a second, simple reading of the format."""
    blocks = raw.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    assert blocks.pop() == ""
    lines = [line for block in blocks for line in block.split("\n") if line.startswith("data:")]
    return [json.loads(line[5:]) for line in lines if line[5:].strip() != "[DONE]"]


def anthropic_parts(stream: list[dict[str, Any]]) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    for event in stream:
        if event["type"] == "content_block_start":
            block = event["content_block"]
            parts.append((block["type"] + ":" + block.get("name", ""), ""))
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            text = delta.get("text", "") + delta.get("partial_json", "") + delta.get("thinking", "")
            parts[-1] = (parts[-1][0], parts[-1][1] + text)
    return parts


def test_certificate_is_a_leaf(server: ModelServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        context = trust(server)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(sock, server_hostname="127.0.0.1") as opened:
            certificate = opened.getpeercert()
            assert certificate
            assert ("DNS", "localhost") in certificate["subjectAltName"]
            assert ("IP Address", "127.0.0.1") in certificate["subjectAltName"]
            assert opened.selected_alpn_protocol() == "http/1.1"
            shown = subprocess.run(
                ["openssl", "x509", "-noout", "-ext", "basicConstraints"],
                input=ssl.DER_cert_to_PEM_cert(opened.getpeercert(binary_form=True) or b"").encode(),
                capture_output=True,
                check=True,
            )
    assert b"CA:FALSE" in shown.stdout


@pytest.mark.parametrize("base", ["text", "unicode", "empty", "thinking", "maxtokens", "echo", "count-37", "big-300000"])
@pytest.mark.parametrize("path", [ANTHROPIC, OPENAI])
def test_streamed_and_whole_say_the_same(client: httpx.Client, base: str, path: str) -> None:
    expected = scripts.plan(f"script-{base}", body("x"))
    stream = events(client.post(path, json=body(f"script-{base}")).raise_for_status().text)
    whole = client.post(path, json=body(f"script-{base}", stream=False)).raise_for_status().json()
    if path == ANTHROPIC:
        assert "".join(text for kind, text in anthropic_parts(stream) if kind == "text:") == expected.text
        assert "".join(block["text"] for block in whole["content"] if block["type"] == "text") == expected.text
        assert stream[-2]["delta"]["stop_reason"] == whole["stop_reason"] == expected.stop
        assert stream[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] == expected.output_tokens
        assert stream[-1] == {"type": "message_stop"}
    else:
        deltas = [event["choices"][0]["delta"] for event in stream]
        assert "".join(delta.get("content", "") for delta in deltas) == expected.text
        assert whole["choices"][0]["message"]["content"] == (expected.text or None)
        assert stream[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_openai_usage_comes_when_asked_for(client: httpx.Client) -> None:
    plain = client.post(OPENAI, json=body("script-text")).text
    asked = events(client.post(OPENAI, json=body("script-text", stream_options={"include_usage": True})).text)
    assert "usage" not in plain
    assert plain.endswith("data: [DONE]\n\n")
    assert asked[-1]["choices"] == []
    usage = asked[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


@pytest.mark.parametrize("script", ["tool", "tools"])
def test_anthropic_tool_round(client: httpx.Client, script: str) -> None:
    asked = [{"role": "user", "content": "do it\nRUN: ls -l /"}]
    request = body(f"script-{script}", tools=TOOLS) | {"messages": asked}
    stream = events(client.post(ANTHROPIC, json=request).text)
    calls = [event["content_block"] for event in stream if event.get("content_block", {}).get("type") == "tool_use"]
    inputs = [json.loads(text) for kind, text in anthropic_parts(stream) if kind == "tool_use:Bash"]
    assert len(calls) == len(inputs) == len({call["id"] for call in calls}) == (1 if script == "tool" else 2)
    assert inputs[0] == {"command": "ls -l /", "timeout": 1}
    assert stream[-2]["delta"]["stop_reason"] == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": f"result {call['id']}"} for call in calls]
    answer = [{"type": "tool_use", **call} for call in calls]
    follow = [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": results}]
    final = client.post(ANTHROPIC, json=request | {"messages": follow, "stream": False}).json()
    assert final["stop_reason"] == "end_turn"
    assert all(result["content"] in final["content"][0]["text"] for result in results)


def test_openai_tool_round(client: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "Bash", "parameters": TOOLS[0]["input_schema"]}}]
    request = body("script-tools", tools=tools)
    stream = events(client.post(OPENAI, json=request).text)
    calls: dict[int, dict[str, str]] = {}
    for event in stream:
        for call in event["choices"][0]["delta"].get("tool_calls", []):
            known = calls.setdefault(call["index"], {"arguments": ""})
            known |= {"id": call["id"], "name": call["function"]["name"]} if "id" in call else {}
            known["arguments"] += call["function"]["arguments"]
    whole = client.post(OPENAI, json=request | {"stream": False}).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    assert [call["function"] for call in whole["message"]["tool_calls"]] == [
        {"name": call["name"], "arguments": call["arguments"]} for call in calls.values()
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": f"out {at}"} for at, call in calls.items()]
    final = client.post(OPENAI, json=request | {"messages": [*USER, *results], "stream": False}).json()
    assert "out 0 | out 1" in final["choices"][0]["message"]["content"]


@pytest.mark.parametrize("status", sorted(scripts.ERRORS))
@pytest.mark.parametrize("path", [ANTHROPIC, OPENAI])
def test_errors(client: httpx.Client, status: int, path: str) -> None:
    answer = client.post(path, json=body(f"script-error-{status}"))
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == scripts.ERRORS[status][0]
    assert answer.headers["request-id"].startswith("req_")


def test_error_in_mid_stream(client: httpx.Client) -> None:
    anthropic = events(client.post(ANTHROPIC, json=body("script-error-midstream")).text)
    openai = events(client.post(OPENAI, json=body("script-error-midstream")).text)
    assert anthropic[-1]["error"]["type"] == openai[-1]["error"]["type"] == "overloaded_error"
    assert len(anthropic) == 6
    assert len(openai) == 5


def test_streams_that_do_not_end_well(server: ModelServer, client: httpx.Client) -> None:
    with pytest.raises(httpx.TransportError):
        client.post(ANTHROPIC, json=body("script-cut"))
    assert events(client.post(ANTHROPIC, json=body("script-noend")).text)[-1]["type"] == "message_delta"
    assert "[DONE]" not in client.post(OPENAI, json=body("script-noend")).text


def test_linger_leaves_the_body_open(server: ModelServer) -> None:
    before = len(server.journal.connections())
    with (
        httpx.Client(base_url=server.url, verify=trust(server), timeout=20) as leaving,
        leaving.stream("POST", ANTHROPIC, json=body("script-linger")) as answer,
    ):
        lines = answer.iter_lines()
        assert next(line for line in lines if "message_stop" in line)
        assert server.journal.connections()[before].end_ns is None
    connection = server.journal.wait_closed_one(before)
    assert connection.s2c.endswith(b"\n\n\r\n")
    assert connection.error == "script linger"


def test_unknown_script_is_refused(client: httpx.Client) -> None:
    assert client.post(ANTHROPIC, json=body("script-nonsense")).status_code == 400
    assert client.post(ANTHROPIC, json=body("script-text+nonsense")).status_code == 400
    assert client.post(ANTHROPIC, content=b"{").status_code == 400


def test_any_other_model_gets_the_text(client: httpx.Client) -> None:
    answer = client.post(ANTHROPIC, json=body("claude-sonnet", stream=False)).json()
    assert answer["content"] == [{"type": "text", "text": scripts.TEXT}]
    assert answer["model"].startswith("claude-sonnet-")


@pytest.mark.parametrize("mods", ["crlf", "cr", "nospace", "ascii", "ping", "split-1", "split-7+gzip", "trailers", "close"])
def test_ways_to_send_change_no_content(client: httpx.Client, mods: str) -> None:
    for path in (ANTHROPIC, OPENAI):
        stream = events(client.post(path, json=body(f"script-unicode+{mods}")).raise_for_status().text)
        if path == ANTHROPIC:
            assert anthropic_parts(stream) == [("text:", scripts.UNICODE)]
        else:
            text = "".join(event["choices"][0]["delta"].get("content", "") for event in stream)
            assert text == scripts.UNICODE


@pytest.mark.parametrize("name", [*coding.CODINGS, "gzip, br"])
def test_codings_are_flushed_per_event(server: ModelServer, client: httpx.Client, name: str) -> None:
    """What has been sent when an event was written decodes to that event: the journal's chunks, decoded one by one."""
    before = len(server.journal.connections())
    raw = raw_exchange(server, post(ANTHROPIC, body("script-text"), f"x-coding: {name}", "Connection: close"))
    connection = server.journal.connections()[before]
    assert connection.s2c == raw
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert f"Content-Encoding: {coding.header(name)}".encode() in head
    chunks, coded = [], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            break
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    for at, chunk in enumerate(chunks[:-1]):  # the last only ends the coding
        coded += chunk
        if name in ("gzip", "deflate", "rawdeflate"):  # whose decoder takes a part
            assert coding.decode(coded, name).count(b"\n\n") == at + 1
    whole = coding.decode(coded + chunks[-1], name).decode()
    assert anthropic_parts(events(whole)) == [("text:", scripts.TEXT)]


@pytest.mark.parametrize("name", coding.CODINGS)
def test_coded_requests_are_understood(client: httpx.Client, name: str) -> None:
    made = coding.coder(name)
    assert made
    data = json.dumps(body("script-echo", stream=False)).encode()
    content = made.feed(data) + made.finish()
    # our decoder is told the name, as rawdeflate cannot be told from deflate by its header
    answer = client.post(ANTHROPIC, content=content, headers={"content-encoding": name}).raise_for_status()
    assert answer.json()["content"][0]["text"] == USER[0]["content"]


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_httpx_decodes_the_codings(client: httpx.Client, name: str) -> None:
    for stream in (True, False):
        answer = client.post(ANTHROPIC, json=body(f"script-big-100000+{name}", stream=stream))
        assert answer.headers["content-encoding"] == name
        assert len(answer.text) > 100000


@pytest.mark.parametrize("framing", ["length", "chunked", "trailers", "close"])
@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 5_000_000])
def test_echo_and_bytes(client: httpx.Client, framing: str, size: int) -> None:
    data = pattern(size)
    headers = {"x-framing": framing}
    assert client.post("/echo", content=data, headers=headers).content == data
    assert client.post("/echo", content=iter([data[:1], data[1:]]), headers=headers).content == data
    assert client.get(f"/bytes/{size}", headers=headers).content == data


def test_small_paths(client: httpx.Client) -> None:
    assert client.head("/").content == b""
    assert client.head("/").headers["content-length"] == str(len(client.get("/").content))
    assert client.get("/v1/models").json()["data"]
    assert client.post("/v1/messages/count_tokens?beta=true", json={}).json() == {"input_tokens": 8}
    assert client.get("/nowhere").status_code == 404


@pytest.mark.parametrize("arguments", [(), ("--plain",), ("--tls-max", "1.2")])
def test_curl_and_expect_continue(arguments: tuple[str, ...]) -> None:
    with ModelServer(*arguments) as server:
        data = json.dumps(body("script-echo", stream=False, filler="x" * 2_000_000)).encode()
        command = ["curl", "-sS", "--data-binary", "@-", "-H", "Expect: 100-continue", f"{server.url}/v1/messages"]
        done = subprocess.run(command, input=data, capture_output=True, env=server.environment(), check=True)
        assert json.loads(done.stdout)["content"][0]["text"] == USER[0]["content"]
        (connection,) = server.journal.wait_closed(at_least=1)
    assert connection.c2s.endswith(data)
    assert connection.s2c.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert connection.s2c.endswith(done.stdout)
    assert connection.error is None
    assert connection.version == {(): "TLSv1.3", ("--plain",): None}.get(arguments, "TLSv1.2")
    assert connection.sni == (None if server.plain else "localhost")


def post(path: str, value: dict[str, Any], *fields: str) -> bytes:
    data = json.dumps(value).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def raw_exchange(server: ModelServer, data: bytes) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock,
        # an end without close_notify would raise
        trust(server).wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as opened,
    ):
        opened.sendall(data)
        answer = b""
        while piece := opened.recv(65536):
            answer += piece
        return answer


def test_pipelining_and_keep_alive(server: ModelServer) -> None:
    before = len(server.journal.connections())
    requests = [post("/echo", {"n": at}) for at in range(20)] + [post("/echo", {"n": 20}, "Connection: close")]
    sent = b"".join(requests)
    answer = raw_exchange(server, sent)
    assert [answer.count(b'{"n": %d}' % at) for at in range(21)] == [1] * 21
    assert answer.count(b"HTTP/1.1 200 OK") == 21
    connection = server.journal.wait_closed_one(before)
    assert (connection.c2s, connection.s2c, connection.requests) == (sent, answer, 21)


def test_answer_before_the_body(server: ModelServer) -> None:
    sent = post("/echo", {"big": "x" * 100_000}, "x-script: early-413") + post("/echo", {}, "Connection: close")
    answer = raw_exchange(server, sent)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1 200 OK") == 1


def test_no_http_is_answered_with_400(server: ModelServer) -> None:
    assert raw_exchange(server, b"NONSENSE\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_journal_of_many_connections(server: ModelServer) -> None:
    before = {connection.number for connection in server.journal.connections()}
    context = trust(server)
    for at in range(10):
        with httpx.Client(base_url=server.url, verify=context) as one:
            assert one.post("/echo", content=f"connection {at}").content == f"connection {at}".encode()
            # complete as soon as the client has its answer, before the connection has ended
            assert any(b"connection %d" % at in c.s2c for c in server.journal.connections() if c.number not in before)
    made = [connection for connection in server.journal.connections() if connection.number not in before]
    assert [b"connection %d" % at in connection.c2s for at, connection in enumerate(made)] == [True] * 10


@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"])
def test_ciphersuites_and_keylog(suite: str) -> None:
    with ModelServer("--ciphersuites", suite, "--keylog", "--tls-min", "1.3") as server:
        raw_exchange(server, post("/echo", {}, "Connection: close"))
        (connection,) = server.journal.wait_closed(at_least=1)
        labels = {line.split()[0] for line in (server.directory / "keylog.txt").read_text().splitlines() if line[:1] != "#"}
    assert (connection.version, connection.cipher) == ("TLSv1.3", suite)
    assert {"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"} <= labels


@pytest.mark.parametrize(("arguments", "resumed"), [((), True), (("--no-tickets",), False)])
def test_resumption(arguments: tuple[str, ...], resumed: bool) -> None:
    with ModelServer(*arguments) as server:
        context = trust(server)
        session = None
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                opened = context.wrap_socket(sock, server_hostname="localhost", session=session)
                opened.sendall(post("/echo", {}, "Connection: close"))
                while opened.recv(65536):
                    pass
                session = opened.session
                opened.close()
        first, second = server.journal.wait_closed(at_least=2)
    assert (first.resumed, second.resumed) == (False, resumed)


def test_slow_events_come_one_by_one(client: httpx.Client) -> None:
    with client.stream("POST", ANTHROPIC, json=body("script-text+slow-20")) as answer:
        pieces = [piece for piece in answer.iter_raw() if piece]
    assert len(pieces) > 10
    assert all(piece.endswith(b"\n\n") for piece in pieces)


def test_handshake_failure_is_journalled(server: ModelServer) -> None:
    before = len(server.journal.connections())
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    connection: Connection = server.journal.wait_closed_one(before)
    assert (connection.c2s, connection.s2c) == (b"", b"")
    assert connection.error
