"""The compiled part: `ringbuf` (load, attach, drain), `httpparse` (decode), `elfscan` (find functions), and the BPF object.

The extensions are built from native/ and stand beside this file only in an installed package. Importing this package from a
source tree raises an ImportError that says what to do.
"""

from importlib.util import find_spec
from pathlib import Path


def bpf_object() -> bytes:
    """The BPF programs as an ELF file, to be loaded from memory. FileNotFoundError where the package was built without it."""
    return Path(__file__).with_name("agentsight.bpf.o").read_bytes()


if find_spec(__name__ + ".httpparse") is None:
    raise ImportError(
        f"agentsight's compiled part is missing beside {__file__}. Either this is the source tree (run `make build` in it, then "
        "use .venv/bin/agentsight or start from another directory), or the package was installed for another version of Python, "
        "or the installation was cut short (reinstall it)."
    )
