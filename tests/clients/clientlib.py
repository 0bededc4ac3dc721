"""What the observed programs here share. Each takes the base URL of a model server first, prints one JSON line and exits 0.

They trust what SSL_CERT_FILE names, check what they get, and end with a traceback and status 1 when it is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

PATHS = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line: URL, and `--name value` for each default, of its type. A tuple is a choice, its first the default."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("url", help="for example https://localhost:8443")
    for name, value in defaults.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, tuple):
            parser.add_argument(flag, choices=value, default=value[0])
        elif isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(value), default=value)
    return parser.parse_args()


def report(**what: Any) -> None:
    """The one line."""
    print(json.dumps({"pid": os.getpid(), **what}), flush=True)


def body(model: str, text: str, *, stream: bool = True, pad: int = 0) -> dict[str, Any]:
    """A model call, good for both APIs; `pad` makes it so many characters longer."""
    system = "You are a test. " + "x" * pad
    messages = [{"role": "user", "content": text}]
    return {"model": model, "max_tokens": 256, "stream": stream, "messages": messages, "metadata": {"user_id": system}}


def text_of(answer: str, api: str) -> str:
    """The text in an answer, streamed or whole."""
    if not answer.lstrip().startswith(("event:", "data:", ":")):
        value = json.loads(answer)
        if api == "openai":
            return str(value["choices"][0]["message"]["content"] or "")
        return "".join(block.get("text", "") for block in value["content"])
    lines = [line.partition(":")[2].strip() for line in answer.splitlines() if line.startswith("data:")]
    events = [json.loads(line) for line in lines if line and line != "[DONE]"]
    if api == "openai":
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event.get("choices"))
    return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80)


def context() -> ssl.SSLContext:
    """A context that trusts SSL_CERT_FILE and offers http/1.1."""
    made = ssl.create_default_context()
    made.set_alpn_protocols(["http/1.1"])
    return made


def connect(url: str) -> socket.socket:
    """A connected socket, with TLS where the URL says so. An end without close_notify raises."""
    sock = socket.create_connection(address(url), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if url.startswith("https:"):
        return context().wrap_socket(sock, server_hostname=address(url)[0], suppress_ragged_eofs=False)
    return sock


def request(url: str, path: str, data: bytes, *fields: str) -> bytes:
    """A POST as bytes."""
    host, port = address(url)
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(data)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + data


def read_answer(sock: socket.socket, buffer: bytearray) -> bytes:
    """One answer with a Content-Length, off `buffer` and the socket: its body."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        fill(sock, buffer)
    head = bytes(buffer[:end]).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].split()[0])
    del buffer[: end + 4]
    while len(buffer) < length:
        fill(sock, buffer)
    data = bytes(buffer[:length])
    del buffer[:length]
    return data


def fill(sock: socket.socket, buffer: bytearray) -> None:
    """Read once more."""
    data = sock.recv(65536)
    if not data:
        raise EOFError("the server closed within an answer")
    buffer += data
