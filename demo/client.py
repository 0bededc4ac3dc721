"""A small agent, the program that the demo records: asks a model, runs the command that it wants, asks again with the result.

Python on httpx, streamed Anthropic Messages over HTTPS, as any agent does it; it knows nothing of agentsight.
ANTHROPIC_BASE_URL says where the model is, SSL_CERT_FILE whom to trust. The model is scripted (tests/modelserver): a `RUN:`
line tells it what to want.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from typing import Any

import httpx

SYSTEM = "You are a system administrator. Answer briefly."
QUESTION = "Which kernel does this machine run?\nRUN: uname -sr"
BASH = {
    "name": "Bash",
    "description": "Runs a shell command and gives its output.",
    "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
}


def ask(client: httpx.Client, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One streamed call; prints the text as it comes and gives the answer's blocks."""
    request = {
        "model": "claude-demo",
        "max_tokens": 512,
        "stream": True,
        "system": SYSTEM,
        "tools": [BASH],
        "messages": messages,
    }
    blocks: list[dict[str, Any]] = []
    with client.stream("POST", "/v1/messages", json=request, headers={"x-script": "tool+slow-10"}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if event.get("type") == "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            elif event.get("type") == "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "text_delta":
                    blocks[-1]["text"] += delta["text"]
                    print(delta["text"], end="", flush=True)
                else:
                    blocks[-1]["json"] += delta["partial_json"]
    print()
    for block in blocks:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments)
    return blocks


def main() -> None:
    trusted = ssl.create_default_context()
    headers = {"x-api-key": "sk-ant-demo-0123456789", "anthropic-version": "2023-06-01"}
    messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    with httpx.Client(base_url=os.environ["ANTHROPIC_BASE_URL"], verify=trusted, headers=headers, timeout=60) as client:
        while True:
            answer = ask(client, messages)
            wanted = [block for block in answer if block["type"] == "tool_use"]
            if not wanted:
                return
            results = []
            for tool in wanted:
                print(f"$ {tool['input']['command']}", flush=True)
                done = subprocess.run(["/bin/sh", "-c", tool["input"]["command"]], capture_output=True, text=True, check=False)
                print(done.stdout, end="", flush=True)
                results.append({"type": "tool_result", "tool_use_id": tool["id"], "content": done.stdout.strip()})
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": results}]


main()
