"""Compares what the demo recorded (a log of events) with what the model server journalled; exit 1 with one line when they differ.

Usage: check.py LOG JOURNAL_DIRECTORY. The journal is the server's own account of the bytes that it sent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    log, journal = Path(sys.argv[1]), Path(sys.argv[2])
    events = [json.loads(line) for line in log.read_text().splitlines()]
    calls = [event["data"] for event in events if event["source"] == "llm_call"]
    sent = b"".join(path.read_bytes() for path in sorted(journal.glob("*.s2c"))).decode()
    lines = [line.removeprefix("data: ") for line in sent.splitlines() if line.startswith("data: ")]
    answered = [json.loads(line) for line in lines]
    truth = "".join(event["delta"].get("text", "") for event in answered if event["type"] == "content_block_delta")
    number = sum(event["type"] == "message_start" for event in answered)
    whole = [call for call in calls if call.get("complete")]
    if len(calls) != number or len(whole) != number:
        print(f"Error: the server answered {number} calls; recorded: {len(calls)}, complete: {len(whole)}", file=sys.stderr)
        return 1
    recorded = "".join(call.get("text", "") for call in sorted(calls, key=lambda call: call["start_ns"]))
    if recorded != truth:
        print(f"Error: the server sent {truth!r}, recorded was {recorded!r}", file=sys.stderr)
        return 1
    print(f"yes: {number} model calls, each complete, with the same {len(truth)} characters of answer text")
    return 0


if __name__ == "__main__":
    sys.exit(main())
