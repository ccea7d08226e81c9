"""A fresh virtual environment that also sees the packages of the environment in which the tests run."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

SCRIPT = """#!{python}
import sys
from {module} import main
sys.exit(main())
"""


class Fresh:
    """A virtual environment in which pip does not use the network."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.bin = folder / "bin"
        site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
        (site_packages / "outside.pth").write_text(
            f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        )
        for name, module in (("pip", "pip._internal.cli.main"), ("xcam", "xcam_cli")):
            (self.bin / name).write_text(SCRIPT.format(python=self.bin / "python", module=module))
            (self.bin / name).chmod(0o755)

    def run(self, command: str, folder: Path) -> str:
        """Return the output of a command, from both streams. Raises AssertionError if it fails."""
        offline = {
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON", "PIP_"))}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env=kept | offline | {"PATH": path, "VIRTUAL_ENV": str(self.bin.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        return done.stdout
