"""One kept-alive connection: a streamed model call for each line on standard input, whose text is the model's name.

Prints a line {"pid", "calls", "bytes"} when a call begins to be answered and one when it has been, and ends with its input.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys

import clientlib
from clientlib import PATHS, address, body, report


def main() -> None:
    """Call until the input ends."""
    options = clientlib.options(__doc__, max_version="")
    context = ssl.create_default_context()
    if options.max_version == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = address(options.url)
    connection = http.client.HTTPSConnection(host, port, context=context)
    for calls, line in enumerate(sys.stdin, 1):
        request = json.dumps(body(line.strip(), f"call {calls}"))
        connection.request("POST", PATHS["anthropic"], request, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        report(calls=calls, bytes=len(answer.read1()))
        report(calls=calls, bytes=len(answer.read()))


if __name__ == "__main__":
    main()
