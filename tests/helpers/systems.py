"""Marks that skip tests on operating systems without the tested feature."""

import os
import sys

import pytest

named_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
sigkill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
names_of_any_bytes = pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode here")
