"""Model calls with httpx: keep-alive, from one thread or several that share the client's connections.

Prints {"calls", "texts": the different answers, "threads"}. `--stop-after N` leaves each stream after N lines.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
from clientlib import PATHS, body, context, options, report, text_of


def main() -> None:
    wanted = options(
        __doc__, calls=1, threads=1, model="script-text", api=tuple(PATHS), whole=False, pad=0, prompt="Say hi.", stop_after=0
    )
    verify = context() if wanted.url.startswith("https:") else False
    with httpx.Client(base_url=wanted.url, verify=verify, timeout=60, headers={"x-api-key": "sk-ant-test"}) as client:

        def call(number: int) -> str:
            value = body(wanted.model, f"{wanted.prompt} ({number})", stream=not wanted.whole, pad=wanted.pad)
            with client.stream("POST", PATHS[wanted.api], json=value) as answer:
                lines = []
                for line in answer.iter_lines():
                    lines.append(line)
                    if len(lines) == wanted.stop_after:
                        break
            return text_of("\n".join(lines), wanted.api) if answer.status_code == 200 else f"status {answer.status_code}"

        with ThreadPoolExecutor(wanted.threads) as pool:
            texts = list(pool.map(call, range(wanted.calls)))
    report(calls=len(texts), texts=sorted(set(texts)), threads=wanted.threads)


main()
