"""The command line: one command per file, each of which asks the library and prints what it says.

Nothing heavy is imported here or at the top of a command's file, so that `lorimer --help` is quick.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated

import typer

import lorimer
from lorimer.cli.analyse import analyse
from lorimer.cli.chat import chat
from lorimer.cli.check import check
from lorimer.cli.compose import compose
from lorimer.cli.control import control
from lorimer.cli.convert import convert
from lorimer.cli.demo import demo
from lorimer.cli.doctor import doctor
from lorimer.cli.extract import extract
from lorimer.cli.grid import grid
from lorimer.cli.inspect import inspect
from lorimer.cli.merge import merge
from lorimer.cli.plot import plot
from lorimer.cli.predict import predict
from lorimer.cli.resize import resize
from lorimer.cli.sample import sample
from lorimer.cli.train import train
from lorimer.errors import LorimerError

app = typer.Typer(
    name="lorimer",
    help="Low-rank adapters for frozen models, saved as other programs read them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(demo, train, check, control, plot, sample, grid, chat, predict, merge, convert),
    *(extract, resize, compose, analyse, inspect, doctor),
):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lorimer {lorimer.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="On an error, show where in the code it arose; may stand anywhere."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# Libraries that tell, whenever they are imported, of optional parts that lorimer makes no use of.
_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree")


def main() -> None:
    """The entry point of the `lorimer` command. Exit codes stand in `lorimer.errors`."""
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments)
    except (LorimerError, OSError) as error:
        if debug:
            traceback.print_exception(error)
        typer.echo(f"lorimer: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, LorimerError) else LorimerError.exit_code)
