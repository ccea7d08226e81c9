"""The command group and the one-line error messages."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import click
from click_default_group import DefaultGroup

from xcam_cli.batch import batch
from xcam_cli.blame import blame
from xcam_cli.compare import compare
from xcam_cli.demo import demo
from xcam_cli.evaluate import evaluate
from xcam_cli.explain import explain
from xcam_cli.export import export
from xcam_cli.lists import backends, layers, methods
from xcam_cli.repair import repair


def _version(context: click.Context, _: click.Parameter, requested: bool) -> None:
    if requested and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"xcam {version('xcam-explain')}")
        context.exit()


@click.group(cls=DefaultGroup, default="explain", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def app() -> None:
    """Where did this network look? Class activation maps for Keras, PyTorch and ONNX.

    \b
    xcam --backend keras image.jpg      VGG16 with ImageNet weights; writes image.cam.jpg
    xcam -m model.keras image.jpg       your own model
    xcam demo                           the small network in the package

    `xcam explain` is the default command: `xcam explain --help` lists its options. `--debug` anywhere shows the
    traceback of an error.
    """


for command in (explain, demo, compare, blame, repair, batch, evaluate, export, layers, methods, backends):
    app.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: status 0; 1 for a failed check; 2 for bad usage or input; 130 when interrupted.

    Args:
        arguments: the command line without the program's name; default: `sys.argv[1:]`. With `--debug` an error is
            raised with its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not fail
    try:
        sys.exit(app.main(arguments, prog_name="xcam", standalone_mode=False) or 0)
    except click.ClickException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "xcam")
        click.echo(f"xcam: {error.format_message().rstrip('.')}; see {command} --help", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("xcam: stopped", err=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    """Print an error as one line and exit with status 2."""
    from xcam.errors import XcamError

    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"out of memory ({text or 'no details'}); give fewer images, a smaller --size, or a smaller model"
    elif isinstance(error, OSError) and not isinstance(error, XcamError):
        file = f": {error.filename}" if error.filename else ""
        text = f"{error.strerror or error}{file}; check the disk, the folder and the file name"
    elif not isinstance(error, XcamError | ImportError):
        text = f"{type(error).__name__}: {text}; this is a bug: please report it with the output of --debug"
    click.echo(f"xcam: {text}", err=True)
    sys.exit(2)
