"""The kernel as a source: loads and arms the programs for some options, then gives batches until it is stopped.

`arm` does everything that can fail, in an order that leaves no gap: load, attach to TLS stacks, give the targets to the kernel,
start. Iterating gives a Batch, or None when nothing came for a moment; after `stop` it gives what the ring still holds and ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentsight.capture import audience, procfs, rights
from agentsight.capture.atexec import AtExec
from agentsight.capture.attach import Attacher
from agentsight.capture.launch import Child, programs
from agentsight.capture.memory import MemorySearcher
from agentsight.capture.priority import Priority
from agentsight.capture.targets import Targets, flags_of, is_program
from agentsight.errors import CaptureError, CaptureFileError, TargetError
from agentsight.events import Event, ProcessEvent
from agentsight.options import Options
from agentsight.sinks import files
from agentsight.tls import TlsStack, select

READ_SECONDS = 0.1
TICK_SECONDS = 1.0
MUCH_BYTES = 32 << 20  # waiting at the end: seconds of work


class LiveSource:
    """A capture of this machine. `arguments`: the command line, for messages and the capture file."""

    def __init__(self, options: Options, *, arguments: Sequence[str] = (), child: Child | None = None) -> None:
        self.options = options
        self.arguments = list(arguments)
        self.child = child
        self.counters: dict[str, Any] = {}
        self.recorded = 0  # bytes in the capture file
        self.tell: Callable[[str], None] = lambda line: None  # lines for the user while it runs
        self.priority = Priority(None)
        self.problems: list[str] = []  # to be told to the user
        self.decoder: Any = None  # of the pipeline that reads us: it gives hints
        self.done: threading.Event = threading.Event()
        self._capture: Any = None
        self._writer: Any = None
        self._attacher: Attacher | None = None
        self._memory: MemorySearcher | None = None
        self._at_exec: AtExec | None = None
        self._targets = Targets(options, own=[child.pid] if child else ())
        program = options.binary_path is not None and is_program(options.binary_path)
        self._named = bool(options.pids or options.comms or child or program)  # else every process (of a user) is watched
        self._ended = False

    def check(self) -> None:
        """What can be known before anything is loaded or written: rights, kernel, targets. Raises in one line."""
        rights.require(self.arguments)
        self._targets.check()

    def arm(self) -> None:
        """Load and attach everything; from its return on nothing is missed. CaptureError or TargetError in one line."""
        options = self.options
        rights.make_undumpable()
        from agentsight._native.ringbuf import Capture

        if options.capture is not None:
            self._writer = self._open_writer(options.capture)
        capture = self._capture = Capture(**self._capture_options())
        self.priority = Priority(capture)
        capture.exclude(os.getpid())
        stacks = select(without=options.without_tls) if options.tls_via != "memory" else ()
        if options.ssl and stacks:
            self._attach(capture, stacks)
        capture.start()
        if options.stdio and not self._named:
            for dev, ino in audience.objects():
                capture.exclude_stdio(dev, ino)
        self._begin_notes()
        if self._attacher is not None:
            self._attacher.open_notes()
        self._targets.arm(capture, self.child.pid if self.child else 0)
        self._snapshot()
        if self._attacher is not None:
            if options.binary_path is None:
                self._attacher.look(self._targets.pids)
                self._hold(capture)
            self._attacher.start()
        if options.search_memory:
            self._memory = MemorySearcher(capture)
            self._memory.attach(sorted(self._targets.pids))
            self._memory.start()

    def _hold(self, capture: Any) -> None:
        """While a tree is watched, its new programs wait until they were looked at. Of the host at large nobody is held."""
        if self._attacher is None or not self._named:
            return
        self._at_exec = AtExec(self._attacher)
        # whether a name is meant is known at the exec only: then whoever starts an unknown program waits
        self._at_exec.start(None if self.options.comms else capture.targets_fd, self._targets.pids)

    def _let_go(self) -> None:
        if self._at_exec is not None:
            self.problems += self._at_exec.stop()
            self._at_exec = None

    def _capture_options(self) -> dict[str, Any]:
        o = self.options
        return {
            "obj": bpf_object(),
            "want_io": o.ssl,
            "want_stdio": o.stdio,
            "want_process": True,
            "track_all": 0 if self._named else flags_of(o),
            "io_hook": o.io_hook,
            "stdio_all_fds": o.stdio_all_fds,
            "stdio_max": o.stdio_max_bytes,
            "uid": o.uid,
            "log_level": o.verbose,
        }

    def _attach(self, capture: Any, stacks: Sequence[TlsStack]) -> None:
        from agentsight.capture.discovery import Discovery

        attacher = self._attacher = Attacher(capture, Discovery(stacks))
        if self.options.binary_path is not None:
            if not attacher.file(self.options.binary_path):
                raise TargetError(f"no known TLS in {self.options.binary_path}: leave --binary-path out to look everywhere")
            return
        attacher.host()
        if self.child is not None:
            for path in programs(self.child.path, self.child.environ.get("PATH", os.defpath)):
                attacher.file(path)

    def _begin_notes(self) -> None:
        from agentsight import __version__

        o = self.options
        self._note(
            {
                "kind": "start",
                "version": __version__,
                "command": self.arguments,
                "ssl": o.ssl,
                "process": o.process,
                "stdio": o.stdio,
            }
        )

    def _note(self, note: dict[str, Any]) -> None:
        self._capture.note(msgspec.json.encode(note))

    def _snapshot(self) -> None:
        if self._named:
            everyone = [p for p in map(procfs.proc, sorted(self._targets.pids)) if p is not None]
        else:
            everyone = [p for p in procfs.all_procs() if p.pid != os.getpid()]
        uid_wanted = self.options.uid
        for p in everyone:
            if self.child is not None and p.pid == self.child.pid:
                continue  # it is about to become the command: its exec tells
            uid, gid, ns_pid = procfs.ids(p.pid)
            if uid_wanted is not None and uid != uid_wanted:
                continue
            self._capture.snapshot_process(
                p.pid,
                ppid=p.ppid,
                uid=uid,
                gid=gid,
                start_ns=p.start_ns,
                comm=p.comm,
                exe=procfs.exe(p.pid),
                cwd=procfs.cwd(p.pid),
                args=procfs.arguments(p.pid),
                ns_pid=ns_pid,
                cgroup=procfs.cgroup_id(p.pid),
                netns=procfs.netns(p.pid),
            )

    def _open_writer(self, path: Path) -> Any:
        from agentsight import __version__
        from agentsight._native.ringbuf import CaptureWriter

        os.close(files.create(path))  # as the user, where he may write; the writer then opens a file that is there
        return CaptureWriter(path, {"version": __version__, "command": self.arguments})

    def describe(self) -> str:
        """What is being watched, for the line that says so."""
        o = self.options
        parts = []
        if self.child is not None:
            parts.append(f"the command {self.child.argv[0]} and its children")
        if o.pids:
            parts.append("process " + ", ".join(map(str, o.pids)) + (" and descendants" if o.children else ""))
        if o.comms:
            parts.append("programs named " + ", ".join(o.comms))
        if o.binary_path:
            parts.append(f"what uses {o.binary_path}")
        if o.uid is not None:
            parts.append(f"user {o.uid}")
        sources = [name for name, on in (("TLS", o.ssl), ("processes", o.process), ("stdio", o.stdio)) if on]
        stacks = sorted(set(self._attacher.attached.values())) if self._attacher else []
        through = f" (probes: {', '.join(stacks)})" if stacks else ""
        return f"{', '.join(parts) or 'every process'}: {', '.join(sources)}{through}"

    @property
    def waiting(self) -> list[str]:
        """Names that no running process has yet."""
        return self._targets.waiting

    @property
    def pids(self) -> set[int]:
        """The processes that were targets when the capture began."""
        return self._targets.pids

    def observe(self, events: list[Event]) -> None:
        """Decoded events pass here: new programs are looked at for TLS."""
        if self._attacher is None or self.options.binary_path is not None:
            return
        execs = [e.pid for e in events if type(e) is ProcessEvent and e.event == "EXEC" and not e.snapshot]
        if execs:
            self._attacher.again(execs)

    def _follow_hints(self) -> None:
        """What the decoder would like to have: probes for processes that begin TLS, no copies of bytes that nobody can use."""
        decoder = self.decoder
        begins = decoder.needs_process()
        if begins and self._attacher is not None and self.options.binary_path is None:
            self._attacher.look(begins)
        if self._memory is not None:
            self._memory.dark(decoder.needs_memory())
        for cookie in decoder.skips():
            self._capture.skip_channel(cookie)

    def __iter__(self) -> Iterator[Any]:
        capture, priority = self._capture, self.priority
        tick = time.monotonic()
        while not self.done.is_set():
            batch = capture.read(READ_SECONDS)
            priority.look()
            if batch is not None:
                self._record(batch)
            yield batch
            if self.decoder is not None:
                self._follow_hints()
            if self.options.min_duration_ms and time.monotonic() - tick >= TICK_SECONDS:
                tick = time.monotonic()
                self._note({"kind": "tick"})  # time for those who wait for it, in the replay too
        yield from self._drain(capture)

    def _drain(self, capture: Any) -> Iterator[Any]:
        self._let_go()
        if self._attacher is not None:
            self._attacher.stop()
        if self._memory is not None:
            self._memory.stop()
        self._note({"kind": "end"})
        capture.stop()
        waiting = capture.counters()["arena_used"]
        if waiting > MUCH_BYTES:
            self.tell(f"agentsight: stopped; {waiting >> 20} MiB are still to be worked through (Ctrl-C again ends at once)")
        while (batch := capture.read(0)) is not None:
            self._record(batch)
            yield batch
        self._finish()

    def record(self) -> Iterator[None]:
        """Without decoding: batches go from the ring into the capture file, in C. Gives None now and then."""
        capture, writer = self._capture, self._writer
        while not self.done.is_set():
            execs = capture.write_to(writer, READ_SECONDS)
            self.priority.look()
            if execs and self._attacher is not None and self.options.binary_path is None:
                self._attacher.again(execs)
            yield None
        for batch in self._drain(capture):
            del batch

    def _record(self, batch: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(batch)
        except (CaptureFileError, OSError) as e:
            # what is shown and logged goes on; the file is good up to its last whole batch
            self.problems.append(f"{e}; the capture file ends here")
            self._close_writer()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.recorded = int(self._writer.bytes)
            self._writer = None

    def _finish(self) -> None:
        self.counters = dict(self._capture.counters())
        self._close_writer()
        self._ended = True

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler."""
        self.done.set()

    def close(self) -> None:
        """Detach everything. Harmless twice."""
        self._let_go()
        if self._memory is not None:
            self._memory.stop()
        if self._attacher is not None:
            self._attacher.stop()
        if self._capture is not None and not self._ended:
            self._capture.stop()
            self._ended = True
        self._close_writer()


def bpf_object() -> bytes:
    """The compiled kernel programs that the package carries."""
    from agentsight import _native

    try:
        return _native.bpf_object()
    except FileNotFoundError as e:
        raise CaptureError(f"the package has no kernel programs ({e.filename} is missing): build or install it again") from None
