"""Suppression of the messages that TensorFlow writes to standard error while it is imported."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_LOG_LINE = re.compile(
    rb"WARNING: All log messages|[IW]\d{4} \d\d:|\d{4}-\d\d-\d\d .*: [IW] |To enable the following"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Capture file descriptor 2; afterwards write out all lines except TensorFlow's log messages.

    TF_CPP_MIN_LOG_LEVEL alone does not suppress the lines that are written before TensorFlow has set up its logging.
    The environment is restored.
    """
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with tempfile.TemporaryFile() as captured:
            os.dup2(captured.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(stderr, 2)
                captured.seek(0)
                for line in captured:
                    if not _LOG_LINE.match(line):
                        os.write(2, line)
    finally:
        os.close(stderr)
        if level is None:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]
