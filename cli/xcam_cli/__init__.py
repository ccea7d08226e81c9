"""The `xcam` command: words in, calls of the public API, words out. Imports no framework."""

from xcam_cli.app import main

__all__ = ["main"]
