#!/usr/bin/env python3
"""Writes recorded TLS connections with their secrets and their plaintext, made on this machine by OpenSSL.

    make_tls_cases.py OUTDIR

One file per connection, `NAME.tls`: little-endian items of `u8 kind, u8 flow, u64 ts, u32 length, bytes`. Kinds: 1 ciphertext
of a flow (0 client, 1 server); 2 the plaintext that the flow must give, in pieces; 3 a line as in an SSLKEYLOGFILE; 4 what the
connection must be told to be, as `name=value`. Most are made in memory by Python's ssl (two objects, exact interleaving);
what that module cannot do (KeyUpdate, early data, fragment sizes) by `openssl s_client` and `s_server` through a proxy.
Nothing outside the machine is contacted. Errors end the program with a traceback.
"""

from __future__ import annotations

import os
import pathlib
import random
import select
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DATA, PLAIN, KEY, EXPECT = 1, 2, 3, 4


class Recording:
    """Collects the items of one connection; key-log lines are taken from `keylog` as they appear."""

    def __init__(self, keylog: pathlib.Path) -> None:
        self.items: list[tuple[int, int, int, bytes]] = []
        self.keylog, self.keys_read, self.ts = keylog, 0, 1_000_000_000
        self.lock = threading.Lock()

    def add(self, kind: int, flow: int, data: bytes) -> None:
        with self.lock:
            self.ts += 100_000
            self.items.append((kind, flow, self.ts, bytes(data)))

    def keys(self) -> None:
        text = self.keylog.read_bytes() if self.keylog.exists() else b""
        end = text.rfind(b"\n") + 1
        for line in text[self.keys_read : end].splitlines():
            if line and not line.startswith(b"#"):
                self.add(KEY, 0, line)
        self.keys_read = end

    def expect(self, **values: object) -> None:
        for name, value in values.items():
            self.add(EXPECT, 0, f"{name}={value}".encode())

    def write(self, path: pathlib.Path) -> None:
        with path.open("wb") as out:
            for kind, flow, ts, data in self.items:
                out.write(struct.pack("<BBQI", kind, flow, ts, len(data)) + data)


class Pair:
    """A client and a server in memory; every byte that crosses is recorded."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, rec: Recording, session: object = None) -> None:
        self.rec = rec
        self.bio = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
        self.obj = [
            client.wrap_bio(*self.bio[0], server_hostname="agent.test", session=session),  # type: ignore[arg-type]
            server.wrap_bio(*self.bio[1], server_side=True),
        ]

    def move(self) -> bool:
        moved = False
        for flow in (0, 1):
            data = self.bio[flow][1].read()
            if data:
                self.rec.add(DATA, flow, data)
                self.bio[1 - flow][0].write(data)
                moved = True
            self.rec.keys()
        return moved

    def until(self, *steps: Callable[[], object]) -> None:
        todo = list(steps)
        while todo:
            for step in list(todo):
                try:
                    step()
                    todo.remove(step)
                except ssl.SSLWantReadError:
                    pass
            if not self.move() and todo:
                raise RuntimeError("connection stands still")

    def handshake(self) -> None:
        self.until(self.obj[0].do_handshake, self.obj[1].do_handshake)
        self.move()

    def send(self, flow: int, data: bytes) -> None:
        self.rec.add(PLAIN, flow, data)
        self.obj[flow].write(data)
        self.move()
        got = 0
        while got < len(data):
            got += len(self.obj[1 - flow].read(1 << 20))
        self.move()

    def close(self) -> None:
        self.until(self.obj[0].unwrap, self.obj[1].unwrap)


def run(*args: str, **kw: object) -> None:
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kw)  # type: ignore[call-overload]


def certificates(tmp: pathlib.Path) -> None:
    for name, new in (("rsa", ["-newkey", "rsa:2048"]), ("ec", ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])):
        run("openssl", "req", "-x509", "-nodes", *new, "-keyout", f"{tmp}/{name}.key", "-out", f"{tmp}/{name}.crt", "-days",
            "30", "-subj", "/CN=agent.test", "-addext", "subjectAltName=DNS:agent.test")  # fmt: skip


def contexts(tmp: pathlib.Path, keylog: pathlib.Path, cert: str = "rsa") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client = ssl.create_default_context(cafile=f"{tmp}/{cert}.crt")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(f"{tmp}/{cert}.crt", f"{tmp}/{cert}.key")
    client.keylog_filename = str(keylog)
    return client, server


def talk(pair: Pair, seed: str, sizes: tuple[int, ...]) -> None:
    rnd = random.Random(seed)
    for size in sizes:
        pair.send(0, rnd.randbytes(size))
        pair.send(1, rnd.randbytes(size // 2 + 7))


Made = tuple[ssl.SSLContext, ssl.SSLContext, ssl.SSLSession | None]
SIZES = (1, 2, 17, 300, 5000, 16384, 16385, 40000, 3)
V13 = {"aes128": 0x1301, "aes256": 0x1302, "chacha": 0x1303}
SUITE_NAME = {0x1301: "TLS_AES_128_GCM_SHA256", 0x1302: "TLS_AES_256_GCM_SHA384", 0x1303: "TLS_CHACHA20_POLY1305_SHA256"}
V12 = {
    "ECDHE-RSA-AES128-GCM-SHA256": 0xC02F,
    "ECDHE-RSA-AES256-GCM-SHA384": 0xC030,
    "ECDHE-RSA-CHACHA20-POLY1305": 0xCCA8,
    "AES256-GCM-SHA384": 0x9D,
    "ECDHE-RSA-AES128-SHA256": 0xC027,
}


def in_memory(out: pathlib.Path, tmp: pathlib.Path, suite: int) -> None:
    """All cases for one TLS 1.3 suite; the environment's OPENSSL_CONF chose it."""
    tag = next(name for name, value in V13.items() if value == suite)

    def make(
        name: str, setup: Callable[[ssl.SSLContext, ssl.SSLContext], None], sizes: tuple[int, ...], **expect: object
    ) -> Made:
        keylog = tmp / f"{tag}-{name}.keys"
        client, server = contexts(tmp, keylog)
        setup(client, server)
        rec = Recording(keylog)
        pair = Pair(client, server, rec)
        pair.handshake()
        rec.expect(version=0x0304, cipher=suite, sni="agent.test", **expect)
        talk(pair, name, sizes)
        pair.close()
        rec.write(out / f"t13_{tag}_{name}.tls")
        return client, server, pair.obj[0].session

    def alpn(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        client.set_alpn_protocols(["h2", "http/1.1"])
        server.set_alpn_protocols(["http/1.1"])

    def retry(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        server.set_ecdh_curve("secp384r1")

    def client_auth(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        client.load_cert_chain(f"{tmp}/ec.crt", f"{tmp}/ec.key")
        server.verify_mode = ssl.CERT_REQUIRED
        server.load_verify_locations(f"{tmp}/ec.crt")

    client, server, session = make("alpn", alpn, SIZES, alpn="http/1.1", resumed=0, hello_retry=0)
    rec = Recording(tmp / f"{tag}-alpn.keys")
    rec.keys()
    rec.items.clear()  # the first connection's secrets
    pair = Pair(client, server, rec, session)
    pair.handshake()
    rec.expect(version=0x0304, cipher=suite, alpn="http/1.1", resumed=1)
    talk(pair, "resume", SIZES)
    rec.write(out / f"t13_{tag}_resume.tls")  # no close_notify
    make("retry", retry, SIZES, hello_retry=1)
    make("auth", client_auth, SIZES, alpn="")
    make("tiny", alpn, tuple([1, 2, 3] * 100))
    make("big", alpn, (1_000_000,))
    make("long", alpn, (1,) * 5000)  # record numbers that have to be searched for


def tls12(out: pathlib.Path, tmp: pathlib.Path) -> None:
    for name, number in V12.items():
        for resume in (0, 1, 2) if name == "ECDHE-RSA-AES128-GCM-SHA256" else (0, 1):
            keylog = tmp / f"12-{name}.keys"
            if not resume:
                client, server = contexts(tmp, keylog)
                session = None
                for ctx in (client, server):
                    ctx.maximum_version = ssl.TLSVersion.TLSv1_2
                    ctx.set_ciphers(name + ":@SECLEVEL=0")
                client.set_alpn_protocols(["http/1.1"])
                server.set_alpn_protocols(["http/1.1"])
            rec = Recording(keylog)
            rec.keys()
            rec.items.clear()
            pair = Pair(client, server, rec, session)
            pair.handshake()
            rec.expect(version=0x0303, cipher=number, sni="agent.test", resumed=int(resume > 0), alpn="http/1.1")
            if number == 0xC027:
                rec.expect(dark=1)
            talk(pair, name, SIZES if resume < 2 else (1,) * 5000)
            pair.close()
            session = pair.obj[0].session
            rec.write(out / f"t12_{name}_{resume}.tls")


# ---- openssl s_client and s_server through a recording proxy ----


@contextmanager
def s_server(tmp: pathlib.Path, *args: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    proc = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", f"{tmp}/rsa.crt", "-key", f"{tmp}/rsa.key", *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 10
        while b"ACCEPT" not in (proc.stdout.readline() if proc.stdout else b""):
            if proc.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("s_server does not start")
        yield port, proc
    finally:
        proc.kill()
        proc.wait()


def proxy(port: int, rec: Recording) -> tuple[int, threading.Thread]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as near, socket.create_connection(("127.0.0.1", port)) as far:
            other = {near: (0, far), far: (1, near)}
            while True:
                for sock in select.select([near, far], [], [], 20)[0]:
                    data = sock.recv(1 << 16)
                    rec.keys()
                    if not data:
                        return
                    rec.add(DATA, other[sock][0], data)
                    other[sock][1].sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listener.getsockname()[1], thread


def s_client(port: int, rec: Recording, server: subprocess.Popen[bytes], script: list[tuple[str, bytes]], *args: str) -> None:
    """Runs the script: ("c", line) goes to the client's stdin, ("s", line) to the server's; pauses let each arrive alone."""
    via, thread = proxy(port, rec)
    proc = subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{via}", "-servername", "agent.test", "-keylogfile",
         str(rec.keylog), *args],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(0.4)
    for who, line in script:
        pipe = proc.stdin if who == "c" else server.stdin
        assert pipe
        pipe.write(line)
        pipe.flush()
        time.sleep(0.15)
    assert proc.stdin
    proc.stdin.close()
    proc.wait(10)
    thread.join(5)
    rec.keys()


def with_openssl(out: pathlib.Path, tmp: pathlib.Path, tag: str) -> None:
    suite = SUITE_NAME[V13[tag]]
    tls13 = ("-tls1_3", "-ciphersuites", suite)
    session = tmp / f"{tag}.session"

    def record(name: str) -> Recording:
        (tmp / f"{tag}-{name}.skeys").unlink(missing_ok=True)
        return Recording(tmp / f"{tag}-{name}.skeys")

    with s_server(tmp, *tls13) as (port, server):
        # "K", "k" at the start of a line are s_client's and s_server's commands for a KeyUpdate with and without an answer
        script = [("c", b"one\n"), ("c", b"K\n"), ("c", b"two\n"), ("s", b"three\n"), ("s", b"K\n"), ("s", b"four\n")]
        script += [("c", b"k\n"), ("c", b"k\n"), ("c", b"five\n"), ("s", b"k\n"), ("s", b"six\n"), ("c", b"seven\n")]
        rec = record("update")
        rec.add(PLAIN, 0, b"one\ntwo\nfive\nseven\n")
        rec.add(PLAIN, 1, b"three\nfour\nsix\n")
        rec.expect(version=0x0304, cipher=V13[tag], key_updates=1)
        s_client(port, rec, server, script, *tls13)
        rec.write(out / f"t13_{tag}_update.tls")
    with s_server(tmp, *tls13, "-max_send_frag", "512") as (port, server):
        rec = record("frag")
        answer = b"x" * 3000 + b"\n"
        rec.add(PLAIN, 0, b"ask\n")
        rec.add(PLAIN, 1, answer)
        rec.expect(version=0x0304, cipher=V13[tag], sni="agent.test")
        s_client(port, rec, server, [("c", b"ask\n"), ("s", answer)], *tls13, "-max_send_frag", "512")
        rec.write(out / f"t13_{tag}_frag.tls")
    early = tmp / "early"
    early.write_bytes(b"early data " * 40)
    resume = ("-sess_in", str(session), "-early_data", str(early))
    with s_server(tmp, *tls13, "-early_data", "-max_early_data", "16384") as (port, server):
        rec = record("ticket")
        s_client(port, rec, server, [("c", b"hello\n")], *tls13, "-sess_out", str(session))
        rec = record("early")
        rec.add(PLAIN, 0, early.read_bytes() + b"later\n")
        rec.add(PLAIN, 1, b"answer\n")
        rec.expect(version=0x0304, early_data=1, resumed=1)
        s_client(port, rec, server, [("c", b"later\n"), ("s", b"answer\n")], *tls13, *resume)
        rec.write(out / f"t13_{tag}_early.tls")
    for name, args in (("refused", ()), ("early_retry", ("-early_data", "-groups", "P-384"))):
        with s_server(tmp, *tls13, *args) as (port, server):
            rec = record(name)
            rec.add(PLAIN, 0, b"later\n")
            rec.add(PLAIN, 1, b"answer\n")
            rec.expect(version=0x0304, early_data=0, rejected=1, hello_retry=int(name == "early_retry"))
            s_client(port, rec, server, [("c", b"later\n"), ("s", b"answer\n")], *tls13, *resume)
            rec.write(out / f"t13_{tag}_{name}.tls")


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    if len(sys.argv) > 2:
        in_memory(out, pathlib.Path(sys.argv[2]), V13[sys.argv[3]])
        return
    out.mkdir(parents=True, exist_ok=True)
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="tls-cases-"))
    try:
        certificates(tmp)
        for tag, suite in V13.items():
            conf = tmp / f"{tag}.cnf"
            conf.write_text(
                "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nCiphersuites = " + SUITE_NAME[suite] + "\n"
            )
            env = dict(os.environ, OPENSSL_CONF=str(conf))
            subprocess.run([sys.executable, __file__, str(out), str(tmp), tag], check=True, env=env)
        tls12(out, tmp)
        workers = [threading.Thread(target=with_openssl, args=(out, tmp, tag)) for tag in V13]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        made = sorted(path.name for path in out.glob("*.tls"))
        wanted = len(V13) * 12 + 2 * len(V12) + 1
        if len(made) < wanted:
            raise SystemExit(f"only {len(made)} of {wanted} connections were recorded: {made}")
    finally:
        shutil.rmtree(tmp)


if __name__ == "__main__":
    main()
