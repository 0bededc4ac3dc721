"""Many connections at once, from several processes with several threads each; each connection makes several calls.

All are connected before the first call is made. Each call's prompt names its process, connection and number, `script-echo`
gives it back, and it is checked. Prints {"pids", "connections", "calls"}.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

from clientlib import address, body, context, options, report, text_of


def connection_calls(url: str, process: int, number: int, calls: int, gate: Any) -> int:
    host, port = address(url)
    if url.startswith("https:"):
        connection: HTTPConnection = HTTPSConnection(host, port, timeout=60, context=context())
    else:
        connection = HTTPConnection(host, port, timeout=60)
    connection.connect()
    gate.wait()
    for at in range(calls):
        prompt = f"process {process} connection {number} call {at}"
        value = body("script-echo", prompt, stream=at % 2 == 0, pad=number * 100)
        connection.request("POST", "/v1/messages", json.dumps(value), {"Content-Type": "application/json"})
        answer = connection.getresponse().read().decode()
        assert text_of(answer, "anthropic") == prompt
    connection.close()
    return calls


def process_calls(url: str, process: int, connections: int, calls: int, gate: Any, results: Any) -> None:
    inside = threading.Barrier(connections, action=gate.wait)  # one thread of each process waits for the other processes
    with ThreadPoolExecutor(connections) as pool:
        made = pool.map(lambda number: connection_calls(url, process, number, calls, inside), range(connections))
        results.put((os.getpid(), sum(made)))


def main() -> None:
    wanted = options(__doc__, connections=50, processes=5, calls=2)
    each = wanted.connections // wanted.processes
    fork = multiprocessing.get_context("fork")
    gate, results = fork.Barrier(wanted.processes), fork.SimpleQueue()
    started = [
        fork.Process(target=process_calls, args=(wanted.url, number, each, wanted.calls, gate, results))
        for number in range(wanted.processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * wanted.processes
    done = [results.get() for _ in started]
    report(pids=sorted(pid for pid, _ in done), connections=each * wanted.processes, calls=sum(calls for _, calls in done))


main()
