#!/usr/bin/env python3
"""What watching costs, and what gets lost: model calls over TLS on loopback, unobserved and under observers, interleaved.

Run, as root (a C compiler, OpenSSL's headers and the `openssl` program are needed; nothing is installed)::

    python bench/load/run.py                                        # agentsight: trace to a log, trace to a capture file
    python bench/load/run.py --seconds 20 --rounds 3 --connections 4
    python bench/load/run.py --observer 'client=agentsight trace --quiet -c load_client --log-file {log}'
    python bench/load/run.py --no-observers                         # the unobserved rates alone

`load_client` and `load_server` are built with cc and get a throw-away certificate. A call is a request of 80 KiB answered
with 200 server-sent events, one SSL_write each (load.h). For each number of connections the runs go A B C A B C: unobserved,
then under each observer. An observer is a command in which `{agentsight}`, `{log}`, `{capture}` and `{dir}` are filled in; it
is started first, has to write the marker to stderr when it watches, and is stopped with SIGINT when the load has ended.

Told for each observer: its rate against the unobserved runs between which it ran; complete `llm_call` events of calls made,
matched by the number that each call carries, with the right text (for a `{capture}` without `{log}`: of its replay); its CPU
time (wait4, with its children) per MB, from start to end and without what it used before the load began. MB are 10**6 bytes
on the sockets, ciphertext and handshakes, counted once ("once") or at both ends ("both"). Nothing is asserted; exit 1 only
when something did not run.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OBSERVERS = [
    "trace={agentsight} trace --quiet --log-file {log}",
    "capture={agentsight} trace --quiet --capture {capture}",
]
TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):  # noqa: N818
    """A run could not be made; one line says why."""


@dataclass
class Observer:
    """A command that watches, and its state while it runs."""

    name: str
    command: str
    marker: bytes
    directory: Path
    agentsight: str
    process: subprocess.Popen[bytes] | None = None
    before: float = 0.0
    files: dict[str, Path] = field(default_factory=dict)

    def _fill(self, command: str) -> list[str]:
        values = {"agentsight": self.agentsight, "dir": self.directory, **self.files}
        return [part.format(**values) for part in shlex.split(command)]

    def start(self, timeout: float) -> None:
        """Start it and wait for its marker."""
        self.files = {"log": self.directory / "log.jsonl", "capture": self.directory / "capture.bin"}
        for path in self.files.values():
            path.unlink(missing_ok=True)
        stderr = self.directory / "stderr.txt"
        command = self._fill(self.command)
        try:
            with open(stderr, "wb") as out, open(self.directory / "stdout.txt", "wb") as stdout:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=out)
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from error
        deadline = time.monotonic() + timeout
        while self.marker not in stderr.read_bytes():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}: {self._said()}")
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise Failed(f"{self.name} did not write {self.marker.decode()!r} in {timeout:.0f} s: {self._said()}")
            time.sleep(0.05)
        self.before = cpu_of_tree(self.process.pid)

    def _said(self) -> str:
        text = (self.directory / "stderr.txt").read_text(errors="replace").strip()
        return text[-400:] or "(nothing on stderr)"

    def stop(self, timeout: float) -> dict[str, Any]:
        """SIGINT, wait, and what it used."""
        assert self.process
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended during the load with {self.process.returncode}: {self._said()}")
        asked = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - asked > timeout:
                self.process.kill()
                self.process.wait()
                raise Failed(f"{self.name} did not end within {timeout:.0f} s of SIGINT")
            time.sleep(0.02)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        return {
            "exit": self.process.returncode,
            "stop_s": round(time.monotonic() - asked, 2),
            "cpu_s": round(cpu, 3),
            "cpu_load_s": round(max(0.0, cpu - self.before), 3),
            "cpu_user_s": round(usage.ru_utime, 3),
            "max_rss_mb": round(usage.ru_maxrss / 1000, 1),
            "stderr": self._said(),
        }

    def decoded(self, first: int, calls: int, reference: str) -> dict[str, Any]:
        """What its log holds of the calls `first` ... `first + calls - 1`."""
        log = self.files["log"]
        sizes = {f"{name}_mb": round(path.stat().st_size / 1e6, 1) for name, path in self.files.items() if path.exists()}
        if "{log}" not in self.command and "{capture}" in self.command:
            began = time.monotonic()
            command = self._fill("{agentsight} replay {capture} --quiet --log-file {log}")
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if done.returncode:
                raise Failed(f"{shlex.join(command)}: {done.stderr.decode(errors='replace').strip()[-400:]}")
            sizes["replay_s"] = round(time.monotonic() - began, 2)
        if not log.exists():
            return sizes
        return {**sizes, **count_calls(log, first, calls, reference)}


def count_calls(log: Path, first: int, calls: int, reference: str) -> dict[str, Any]:
    """Of `calls` calls numbered from `first`: how many complete, right `llm_call` events the log has, and what is odd."""
    numbers: set[int] = set()
    odd = {"incomplete": 0, "repeated": 0, "foreign": 0, "wrong_text": 0}
    requests: set[bytes] = set()
    sources: dict[str, int] = {}
    with open(log, "rb") as lines:
        for line in lines:
            begin = line[:200]
            source = begin.partition(b'"source":')[2].lstrip().split(b'"')[1:2]
            name = source[0].decode(errors="replace") if source else "?"
            sources[name] = sources.get(name, 0) + 1
            if name != "llm_call":
                continue
            data = json.loads(line)["data"]
            digits = str(data.get("response_id") or "").removeprefix("msg_")
            number = int(digits) if digits.isdigit() else -1
            requests.add(hashlib.sha256(json.dumps(data.get("messages")).encode()).digest())
            if not data.get("complete"):
                odd["incomplete"] += 1
            elif not first <= number < first + calls:
                odd["foreign"] += 1
            elif number in numbers:
                odd["repeated"] += 1
            elif data.get("text") != reference:
                odd["wrong_text"] += 1
            else:
                numbers.add(number)
    return {"decoded": len(numbers), **odd, "distinct_requests": len(requests), "events": sources}


def cpu_of_tree(pid: int) -> float:
    """CPU seconds used so far by a process, its living descendants and those that they waited for."""
    total = 0.0
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(value) for value in stat[11:15]) / TICK
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += cpu_of_tree(int(child))
    except FileNotFoundError:  # ended meanwhile: its time is its parent's now
        return total
    return total


class Load:
    """The two programs, built, with their certificate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        cc = os.environ.get("CC", "cc")
        for name in ("load_client", "load_server"):
            self._run(
                cc, "-std=gnu11", "-O2", "-o", str(directory / name), str(HERE / f"{name}.c"), "-lssl", "-lcrypto", "-pthread"
            )
        key, certificate = directory / "key.pem", directory / "ca.pem"
        self._run(
            *("openssl", "req", "-x509", "-nodes", "-sha256", "-days", "7", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        )
        (directory / "server.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
        self.calls_made = 0
        self.reference = self._reference()

    @staticmethod
    def _run(*command: str) -> None:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise Failed(f"{command[0]} is not installed") from error
        if done.returncode:
            raise Failed(f"{shlex.join(command)}: {done.stderr.strip()}")

    def _serve(self) -> tuple[subprocess.Popen[bytes], int]:
        command = [str(self.directory / "load_server"), str(self.directory / "server.pem")]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdout
        ready = server.stdout.readline().split()
        if ready[:1] != [b"ready"]:
            raise Failed("load_server did not start")
        return server, int(ready[1])

    def _reference(self) -> str:
        """The answer's text, as another client reads it."""
        server, port = self._serve()
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
        connection.request("POST", "/v1/messages", json.dumps({"metadata": {"user_id": "call-9999999999"}}).replace(" ", ""))
        answer = connection.getresponse().read().decode()
        connection.sock.unwrap()
        connection.close()
        server.communicate(timeout=10)
        events = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: ")]
        if len(events) != 200 or events[0]["message"]["id"] != "msg_9999999999" or events[-1]["type"] != "message_stop":
            raise Failed(f"load_server answers wrongly: {len(events)} events")
        return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")

    def run(self, connections: int, seconds: int) -> dict[str, Any]:
        """One run: the client's numbers with the server's beside them."""
        server, port = self._serve()
        first, self.calls_made = self.calls_made, self.calls_made + 10_000_000
        command = [str(self.directory / "load_client"), str(port), str(self.directory / "ca.pem"), str(connections), str(seconds)]
        client = subprocess.run([*command, str(first)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
        counted, _ = server.communicate(timeout=30)
        if client.returncode or server.returncode:
            raise Failed(f"the load failed: client {client.returncode}, server {server.returncode}")
        result, other = json.loads(client.stdout), json.loads(counted)
        if result["calls"] != other["calls"]:
            raise Failed(f"the client made {result['calls']} calls, the server answered {other['calls']}")
        once = result["socket_in"] + result["socket_out"]
        both = once + other["socket_in"] + other["socket_out"]
        return {**result, "mb_once": round(once / 1e6, 1), "mb_both": round(both / 1e6, 1)}


def measure(load: Load, observer: Observer | None, connections: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run under one observer, or none."""
    if not observer:
        return {"mode": "unobserved", **load.run(connections, options.seconds)}
    observer.start(options.ready_timeout)
    try:
        result = load.run(connections, options.seconds)
    except BaseException:
        if observer.process:
            observer.process.kill()
            observer.process.wait()
        raise
    used = observer.stop(options.stop_timeout)
    found = observer.decoded(result["first_call"], result["calls"], load.reference)
    for name, per in (("once", result["mb_once"]), ("both", result["mb_both"])):
        used[f"cpu_ms_per_mb_{name}"] = round(used["cpu_s"] * 1000 / per, 3)
        used[f"cpu_load_ms_per_mb_{name}"] = round(used["cpu_load_s"] * 1000 / per, 3)
    return {"mode": observer.name, **result, **used, **found}


def summarise(runs: list[dict[str, Any]], connections: list[int]) -> list[dict[str, Any]]:
    """One row for each number of connections and mode: means over the rounds, sums of calls."""
    rows = []
    for count in connections:
        here = [run for run in runs if run["connections"] == count]
        rates: dict[str, list[dict[str, Any]]] = {}
        for run in here:
            rates.setdefault(run["mode"], []).append(run)
        base = _mean(rates.get("unobserved", []), "calls_per_s")
        for mode, of_mode in rates.items():
            rate = _mean(of_mode, "calls_per_s")
            row = {"connections": count, "mode": mode, "calls_per_s": round(rate, 1), "rounds": len(of_mode)}
            row["ratio"] = round(rate / base, 3) if base else None
            if mode != "unobserved":  # round by round, for machines that are not quiet
                pairs = zip(of_mode, rates.get("unobserved", []), strict=False)
                row["ratios"] = [round(run["calls_per_s"] / bare["calls_per_s"], 3) for run, bare in pairs]
            row["calls"] = sum(run["calls"] for run in of_mode)
            row["mb_once"] = round(sum(run["mb_once"] for run in of_mode), 1)
            row["ms_p99"] = round(_mean(of_mode, "ms_p99"), 2)
            if mode != "unobserved":
                row["decoded"] = sum(run["decoded"] for run in of_mode) if "decoded" in of_mode[0] else None
                for name in ("cpu_ms_per_mb_once", "cpu_ms_per_mb_both", "cpu_load_ms_per_mb_once", "max_rss_mb"):
                    row[name] = round(_mean(of_mode, name), 3)
            rows.append(row)
    return rows


def _mean(runs: list[dict[str, Any]], name: str) -> float:
    return sum(run[name] for run in runs) / len(runs) if runs else 0.0


COLUMNS = {
    "connections": "conns", "mode": "mode", "calls_per_s": "calls/s", "ratio": "of unobs.", "ms_p99": "p99 ms", "calls": "made",
    "decoded": "decoded", "mb_once": "MB once", "cpu_ms_per_mb_once": "CPU ms/MB", "cpu_ms_per_mb_both": "(both ends)",
    "cpu_load_ms_per_mb_once": "(w/o start)", "max_rss_mb": "RSS MB",
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    cells = [list(COLUMNS.values())] + [["-" if row.get(name) is None else str(row[name]) for name in COLUMNS] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=10, help="length of each run (10)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each mode runs, interleaved (2)")
    parser.add_argument("--connections", default="1,4,50", help="numbers of connections (1,4,50)")
    parser.add_argument("--observer", action="append", metavar="NAME=COMMAND", help="in place of the usual ones; repeatable")
    parser.add_argument("--no-observers", action="store_true", help="only the unobserved rates")
    parser.add_argument("--agentsight", help="the program (the project's .venv/bin/agentsight, else the one on PATH)")
    parser.add_argument("--marker", default="agentsight: watching", help="what an observer writes to stderr when it watches")
    parser.add_argument("--ready-timeout", type=float, default=60.0)
    parser.add_argument("--stop-timeout", type=float, default=300.0)
    parser.add_argument("--dir", type=Path, help="where logs and captures go, a GB each (a temporary directory)")
    parser.add_argument("--keep", action="store_true", help="keep that directory")
    return parser.parse_args()


def observers(options: argparse.Namespace, directory: Path) -> list[Observer]:
    """Those asked for."""
    if options.no_observers:
        return []
    own = ROOT / ".venv/bin/agentsight"
    program = options.agentsight or (str(own) if own.exists() else shutil.which("agentsight") or "agentsight")
    made = []
    for text in options.observer or OBSERVERS:
        name, equals, command = text.partition("=")
        if not equals:
            raise Failed(f"--observer {text!r} is not NAME=COMMAND")
        place = directory / name
        place.mkdir(exist_ok=True)
        made.append(Observer(name, command, options.marker.encode(), place, program))
    return made


def main() -> int:
    """Build, run, tell."""
    options = arguments()
    directory = Path(options.dir or tempfile.mkdtemp(prefix="load-")).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    failed = False
    try:
        connections = [int(text) for text in options.connections.split(",")]
        load = Load(directory)
        modes: list[Observer | None] = [None, *observers(options, directory)]
        for count in connections:
            for number in range(options.rounds):
                for mode in modes:
                    name = mode.name if mode else "unobserved"
                    try:
                        runs.append(measure(load, mode, count, options))
                    except Failed as error:
                        failed = True
                        print(f"{count} connections, round {number + 1}, {name}: {error}", file=sys.stderr)
                        continue
                    run = runs[-1]
                    lost = f", {run['decoded']} of {run['calls']} decoded" if "decoded" in run else ""
                    print(f"{count} connections, round {number + 1}, {name}: {run['calls_per_s']} calls/s{lost}", file=sys.stderr)
                    if mode and not options.keep:
                        for path in mode.files.values():
                            path.unlink(missing_ok=True)
        rows = summarise(runs, connections)
        print(table(rows))
        print(json.dumps({"summary": rows, "runs": runs}))
    except Failed as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep and not options.dir:
            shutil.rmtree(directory, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
