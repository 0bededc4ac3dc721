"""How fast a process's memory is searched for TLS secrets, beside a plain read of the same memory in the same run.

    python bench/memscan.py [--size MB]

The process is one of our own: it holds MB of zeros, text, pointers or random bytes, and one idle TLS 1.3 connection in itself.
Peer: the present pages of its writable mappings, read with os.preadv from /proc/PID/mem. Prints for each kind of content MB
present, MB/s of the search (CPU) and of the plain read, the ratio, keys derived, and our own growth in memory. Fails where a
secret is missed. Needs root.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from agentsight._native import memscan

PAGE = os.sysconf("SC_PAGESIZE")
HOLDER = r"""
import os, ssl, struct, subprocess, sys, tempfile
kind, size = sys.argv[1], int(sys.argv[2]) << 20
block = {
    "zeros": bytes(1 << 20),
    "text": (b"The quick brown fox jumps over the lazy dog; 0123456789 " * 20000)[: 1 << 20],
    "pointers": b"".join(struct.pack("<Q", 0x7f0000000000 + (i * 2654435761 & 0xfffffff0)) for i in range(1 << 17)),
    "random": os.urandom(1 << 20),
}[kind]
held = bytearray(size)
for at in range(0, size, 1 << 20):
    held[at : at + (1 << 20)] = block
with tempfile.TemporaryDirectory() as d:
    subprocess.run(["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout",
                    d + "/k", "-out", d + "/c", "-subj", "/CN=x", "-days", "2"], check=True, stderr=subprocess.DEVNULL)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(d + "/c", d + "/k")
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
bios = [ssl.MemoryBIO() for _ in range(2)]
ends = [client.wrap_bio(bios[0], bios[1]), server.wrap_bio(bios[1], bios[0], server_side=True)]
for _ in range(4):
    for end in ends:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
ends[0].write(b"x")
assert ends[1].read() == b"x"
print("ready", flush=True)
sys.stdin.read()
"""


def plain_read(pid: int) -> tuple[int, float]:
    """Bytes and seconds: all present pages of writable mappings, into one buffer."""
    buffer = bytearray(1 << 20)
    total, begin = 0, time.perf_counter()
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, perm, *_ = line.split()
            lo, hi = (int(x, 16) for x in span.split("-"))
            if not perm.startswith("rw"):
                continue
            pagemap.seek(lo // PAGE * 8)
            flags = pagemap.read((hi - lo) // PAGE * 8)
            at = lo
            for i in range(0, len(flags), 8):
                present = flags[i + 7] & 0x80
                here = lo + i // 8 * PAGE
                if not present or here + PAGE - at > len(buffer):
                    if here > at:
                        total += os.preadv(memory.fileno(), [memoryview(buffer)[: here - at]], at)
                    at = here if present else here + PAGE
            if hi > at:
                total += os.preadv(memory.fileno(), [memoryview(buffer)[: hi - at]], at)
    return total, time.perf_counter() - begin


def main() -> None:
    """One line per kind of content."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="MB held")
    size = parser.parse_args().size
    heads = f"{'content':10}{'MB':>8}{'search':>12}{'AES only':>12}{'plain read':>12}{'ratio':>8}{'AES only':>10}"
    print(f"{heads}{'tests':>12}{'grown':>9}")
    for kind in ("zeros", "text", "pointers", "random"):
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, kind, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert holder.stdout and holder.stdout.readline() == b"ready\n"
            seconds, tests = {}, 0
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for chacha in (True, False):
                begin = time.thread_time()
                result = memscan.search(holder.pid, max_bytes=8 << 30, max_seconds=300, chacha=chacha)
                seconds[chacha] = time.thread_time() - begin
                tests = max(tests, result.stats["tests"])
                if result.end != "done" or result.stats["secrets"] < 2:
                    raise SystemExit(f"missed a secret: {result}")
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            read, plain = plain_read(holder.pid)
            mb = result.stats["present"] / 1e6
            print(
                f"{kind:10}{mb:8.0f}{mb / seconds[True]:7.0f} MB/s{mb / seconds[False]:7.0f} MB/s{read / 1e6 / plain:7.0f} MB/s"
                f"{seconds[True] / mb / (plain / read * 1e6):7.1f}x{seconds[False] / mb / (plain / read * 1e6):9.1f}x{tests:12}"
                f"{grown / 1024:6.1f} MB"
            )
        finally:
            holder.kill()
            holder.communicate()


if __name__ == "__main__":
    main()
