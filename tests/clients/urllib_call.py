"""Model calls with urllib: a new connection each, closed by the client's `Connection: close`.

Prints {"calls", "texts": the different answers, "threads"}.
"""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from clientlib import PATHS, body, context, options, report, text_of


def main() -> None:
    wanted = options(__doc__, calls=1, threads=1, model="script-text", api=tuple(PATHS), whole=False, pad=0)

    def call(number: int) -> str:
        value = body(wanted.model, f"Say hi. ({number})", stream=not wanted.whole, pad=wanted.pad)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-test"}
        made = urllib.request.Request(wanted.url + PATHS[wanted.api], json.dumps(value).encode(), headers)
        with urllib.request.urlopen(made, timeout=60, context=context()) as answer:
            return text_of(answer.read().decode(), wanted.api)

    with ThreadPoolExecutor(wanted.threads) as pool:
        texts = list(pool.map(call, range(wanted.calls)))
    report(calls=len(texts), texts=sorted(set(texts)), threads=wanted.threads)


main()
