"""A local, scripted model server that journals every byte both ways: the truth that a capture is compared with.

It speaks Anthropic Messages, OpenAI Chat and OpenAI Responses over HTTPS (its own CA) or plain HTTP. From the repository's
root `python -m tests.modelserver --dir DIR`, or from a test::

    from modelserver import ModelServer

    with ModelServer() as server:
        ...  # run clients against server.url
        connections = server.journal.wait_closed(at_least=1)

Needs the `openssl` program; the codings br and zstd need the packages brotli and zstandard.
"""

from .journal import Connection, Journal
from .process import ModelServer

__all__ = ["Connection", "Journal", "ModelServer"]
