"""TensorFlow talks on standard error while it is imported; here it does not, and the user's environment stays as it was."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_CHATTER = re.compile(rb"WARNING: All log messages|[IW]\d{4} \d\d:|\d{4}-\d\d-\d\d .*: [IW] |To enable the following")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what is written to file descriptor 2; afterwards let through what is not TensorFlow's chatter.

    TF_CPP_MIN_LOG_LEVEL alone does not silence the lines that come before its logging is set up.
    """
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
                held.seek(0)
                for line in held:
                    if not _CHATTER.match(line):
                        os.write(2, line)
    finally:
        os.close(kept)
        if level is None:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]
