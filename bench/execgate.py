"""What the exec gate adds to the start of a program, beside the same start without it, interleaved.

    python bench/execgate.py [--rounds N]                 (root)

A child of this program execs `true` (or a fresh copy of it), as posix_spawn does; measured from the spawn to the end. Cases:
`untracked` (a process outside of the tree, of a file that is unknown), `known` (tracked, looked at before), `unknown` (tracked, a
new file each time; its TLS search is the product's own: agentsight.capture.discovery). Prints microseconds (median) without and
with the gate and the ratio, with a 95 % interval from resampling; and how long execs wait after the gate was stopped (SIGSTOP).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable

from agentsight.capture.discovery import Discovery
from agentsight.capture.gate import Gate, available, name_of
from agentsight.tls import STACKS

NR_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
STARTER = r"""
import os, sys, time
for line in sys.stdin:
    path = line.strip()
    begin = time.perf_counter_ns()
    os.waitpid(os.posix_spawn(path, [path], {}), 0)
    print(time.perf_counter_ns() - begin, flush=True)
"""


class Targets:
    """A map like the kernel side's, of tracked processes; with nobody in it."""

    def __init__(self) -> None:
        room = ctypes.create_string_buffer(struct.pack("=IIIII", 1, 4, 8, 65536, 0).ljust(128, b"\0"))
        self.fd = int(ctypes.CDLL(None, use_errno=True).syscall(NR_BPF, 0, room, 128))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "bpf")


class Starter:
    """A process that starts programs and says how long each took. Its children are not ours, so they are held."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["python3", "-S", "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, path: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(path + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()) / 1e3

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def interval(off: list[float], on: list[float]) -> tuple[float, float, float]:
    """Ratio of the medians, and its 95 % interval."""
    rng = random.Random(1)
    ratios = sorted(
        statistics.median(rng.choices(on, k=len(on))) / statistics.median(rng.choices(off, k=len(off))) for _ in range(1000)
    )
    return statistics.median(on) / statistics.median(off), ratios[25], ratios[974]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=300)
    rounds = arguments.parse_args().rounds
    why = available()
    if why is not None:
        raise SystemExit(f"no exec gate here: {why}")
    discovery = Discovery(STACKS, cache_dir=None)
    starter, here = Starter(), tempfile.TemporaryDirectory()
    true = shutil.which("true") or "/bin/true"
    files: list[str] = []

    def fresh() -> str:
        files.append(shutil.copy(true, f"{here.name}/true-{len(files)}"))
        return files[-1]

    def same() -> str:
        return true

    def measure(name: str, pick: Callable[[], str], tracked: bool) -> None:
        off: list[float] = []
        on: list[float] = []
        wall = 0
        nobody = Targets()
        # None: whoever is no child of ours is tracked, and the starter's children are none
        targets = None if tracked else nobody.fd
        for block in range(10):  # the gate on and off in turn
            for gated in (block % 2 == 0, block % 2 == 1):
                gate = Gate(lambda fd, pid: discovery.file(name_of(fd)), targets=targets) if gated else None
                if gate is not None:
                    gate.start()
                try:
                    starter.start(true)
                    for _ in range(rounds // 10):
                        (on if gated else off).append(starter.start(pick()))
                finally:
                    if gate is not None:
                        gate.stop()
                        if gate.counters()["late"] or gate.problems:
                            raise SystemExit(f"late: {gate.counters()}, {gate.problems}")
                        wall += gate.counters()["asked"]
        os.close(nobody.fd)
        ratio, low, high = interval(off, on)
        print(
            f"{name:34} without {statistics.median(off):7.0f} us   with {statistics.median(on):7.0f} us   "
            f"ratio {ratio:.3f} [{low:.3f}, {high:.3f}]   asked {wall}"
        )

    measure("untracked, unknown file", fresh, tracked=False)
    measure("tracked, known file", same, tracked=True)
    measure("tracked, unknown file (no TLS)", fresh, tracked=True)

    gate = Gate(lambda fd, pid: None)
    gate.start()
    starter.start(true)
    os.kill(gate.counters()["gate_pid"], signal.SIGSTOP)
    begin = time.perf_counter()
    starter.start(fresh())
    print(f"{'an exec after SIGSTOP of the gate':34} {(time.perf_counter() - begin) * 1e3:.1f} ms")
    gate.stop()
    starter.close()
    here.cleanup()


if __name__ == "__main__":
    main()
