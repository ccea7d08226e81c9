"""The `xcam` command: parses options, calls the public API, prints the result. Imports no framework."""

from xcam_cli.app import main

__all__ = ["main"]
