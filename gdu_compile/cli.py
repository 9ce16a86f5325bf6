"""The command line: parses, calls, prints; no logic.

Exit codes: 0 reproduced (or nothing to confirm), 1 not reproduced, 2 bad input,
3 internal error, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import gdu_compile
from gdu_compile import model_io, oracles, passes, tables
from gdu_compile import options as option_classes
from gdu_compile.errors import GduError, InputError, NodeError
from gdu_compile.printable import CONTROL, LINES, printable
from gdu_compile.report import SCHEMA, Report
from gdu_compile.version import __version__

F = TypeVar("F", bound=Callable[..., Any])
INTERNAL_CODE = 3


class PowerOfTwo(click.ParamType[float]):
    """A number, or a power written as in Python: 2**-80."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The number; click's usual complaint otherwise."""
        if isinstance(value, float):
            return value
        try:
            base, power, exponent = str(value).partition("**")
            return float(base) ** int(exponent) if power else float(base)
        except (ValueError, ArithmeticError):
            self.fail(f"{value!r} is no number and no power like 2**-80", param, ctx)


def click_type(field: dataclasses.Field[Any], kind: Any) -> Any:
    """The click type of an option."""
    if field.name == "gain":
        return PowerOfTwo()
    if kind in (Path, Path | None):
        return click.Path(path_type=Path)
    return {int: int, int | None: int, float: float}.get(kind, str)


def flags_of(options: type[option_classes.Options]) -> Callable[[F], F]:
    """Click options for every field of an option class."""

    def decorate(command: F) -> F:
        kinds = typing.get_type_hints(options)
        for field in reversed(dataclasses.fields(options)):
            flag = "--" + field.name.replace("_", "-")
            names = [name for name in (field.metadata["short"], flag) if name]
            settings: dict[str, Any] = {"help": field.metadata["help"], "default": field.default}
            if kinds[field.name] is bool:
                spelled = f"{flag}/--no-{field.name}" if field.default else flag
                command = click.option(spelled, field.name, is_flag=True, **settings)(command)
                continue
            settings["show_default"] = field.default not in (None, ())
            settings["multiple"] = field.default == ()
            command = click.option(
                *names, field.name, metavar=field.metadata["metavar"],
                type=click_type(field, kinds[field.name]), **settings,
            )(command)  # fmt: skip
        return command

    return decorate


def common(command: F) -> F:
    """--json, -v, -q for every command."""
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object.")(command)
    command = click.option("-v", "--verbose", is_flag=True, help="Log what is done.")(command)
    command = click.option("-q", "--quiet", is_flag=True, help="Only the verdict.")(command)
    return command


class DefaultGroup(click.Group):
    """``gdu-compile MODEL …`` is ``gdu-compile compile MODEL …``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command."""
        if args and args[0] not in self.commands and args[0] not in {"--help", "-h", "--version"}:
            args = ["compile", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gdu-compile")
def app() -> None:
    """Extend a network so that plain gradient descent reproduces given weights, bit for bit.

    \b
    gdu-compile MODEL.onnx --weights W.npz                compile, train, confirm
    gdu-compile MODEL.onnx --oracle ridge --data D.npz    the same for an algorithm
    gdu-compile COMMAND --help                            the other jobs

    Exit codes: 0 reproduced, 1 not reproduced, 2 bad input, 3 internal error, 130 interrupted.
    """


@app.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--weights", metavar="W", type=click.Path(path_type=Path),
    help="Oracle weights w*: .npz, .safetensors, .pt (a state_dict), or another .onnx of the "
    "network; keyed by initializer name.",
)  # fmt: skip
@click.option(
    "--oracle", metavar="'NAME(ARGS)'|ALGO.onnx",
    help="Instead of weights an algorithm, which runs inside the network on the training set that "
    "gradient descent records: one of gdu-compile oracles, or an ONNX graph (X, Y) → weights.",
)  # fmt: skip
@flags_of(option_classes.CompileOptions)
@common
def compile_command(model: Path, weights: Path | None, oracle: str | None, as_json: bool,
                    verbose: bool, quiet: bool, **options: Any) -> int:  # fmt: skip
    """Extend MODEL so that training reproduces an oracle's weights; train it; confirm.

    Writes NAME.gdu.onnx and NAME.gdu.trained.onnx into the current folder, or as -o says.
    """
    configure(verbose, quiet)
    if options["output"] is None:
        options["output"] = Path(f"{model.stem}.gdu.onnx")
    report = gdu_compile.compile(model, weights, oracle=oracle, **options).report
    return show(report, as_json, quiet, plan=verbose or options["dry_run"])


@app.command("train")
@click.argument("extended", type=click.Path(path_type=Path))
@flags_of(option_classes.TrainOptions)
@common
def train_command(extended: Path, as_json: bool, verbose: bool, quiet: bool,
                  **options: Any) -> int:  # fmt: skip
    """Train an extended model by gradient descent and confirm."""
    configure(verbose, quiet)
    if options["output"] is None:
        options["output"] = gdu_compile.workflows.trained_name(Path(extended.name))
    return show(gdu_compile.train(extended, **options), as_json, quiet)


@app.command("verify")
@click.argument("extended", type=click.Path(path_type=Path))
@click.option("--trained", required=True, metavar="T", type=click.Path(path_type=Path),
              help="Trained θ: .safetensors, .npz, .pt, or a trained .onnx.")  # fmt: skip
@flags_of(option_classes.VerifyOptions)
@common
def verify_command(extended: Path, trained: Path, as_json: bool, verbose: bool, quiet: bool,
                   **options: Any) -> int:  # fmt: skip
    """Check somebody else's training run of an extended model."""
    configure(verbose, quiet)
    return show(gdu_compile.verify(extended, trained, **options), as_json, quiet)


@app.command("apply")
@click.argument("extended", type=click.Path(path_type=Path))
@click.option("--trained", required=True, metavar="T", type=click.Path(path_type=Path),
              help="Trained θ: .safetensors, .npz, .pt, or a trained .onnx.")  # fmt: skip
@flags_of(option_classes.WriteOptions)
@common
def apply_command(extended: Path, trained: Path, as_json: bool, verbose: bool, quiet: bool,
                  output: Path | None, force: bool) -> int:  # fmt: skip
    """Write the trained ONNX model: the same graph with θ filled in."""
    configure(verbose, quiet)
    output = output or gdu_compile.workflows.trained_name(Path(extended.name))
    gdu_compile.apply(extended, trained, output=output, force=force)
    return wrote("apply", extended, output, as_json)


@app.command("extract")
@click.argument("trained", type=click.Path(path_type=Path))
@flags_of(option_classes.ExtractOptions)
@common
def extract_command(trained: Path, as_json: bool, verbose: bool, quiet: bool,
                    output: Path | None, **options: Any) -> int:  # fmt: skip
    """Fold the extension away: the plain base with the reproduced weights."""
    configure(verbose, quiet)
    output = output or Path(trained.name.split(".gdu")[0] + ".extracted.onnx")
    gdu_compile.extract(trained, output=output, **options)
    return wrote("extract", trained, output, as_json)


@app.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@common
def inspect_command(model: Path, as_json: bool, verbose: bool, quiet: bool) -> int:
    """Say what is in a model file, and whether it carries an extension."""
    configure(verbose, quiet)
    facts = gdu_compile.inspect(model)
    if as_json:
        print_json(facts)
    else:
        tables.print_inspection(facts, tables.console())
    return 0


@app.command("passes")
@common
def passes_command(as_json: bool, verbose: bool, quiet: bool) -> int:
    """List the passes: what each needs and gives."""
    rows = [
        {"name": kind.__name__, "about": (kind.__doc__ or "").splitlines()[0],
         "needs": list(kind.needs), "gives": list(kind.gives)}
        for kind in passes.ALL_PASSES
    ]  # fmt: skip
    if as_json:
        print_json({"schema": SCHEMA, "command": "passes", "passes": rows})
        return 0
    table = tables.new_table("pass", "what it does", "needs", "gives")
    for kind in rows:
        table.add_row(str(kind["name"]), str(kind["about"]), ", ".join(kind["needs"]),
                      ", ".join(kind["gives"]))  # fmt: skip
    tables.console().print(table)
    return 0


@app.command("oracles")
@common
def oracles_command(as_json: bool, verbose: bool, quiet: bool) -> int:
    """List the oracles that --oracle knows by name."""
    configure(verbose, quiet)
    rows = oracles.describe()
    if as_json:
        described = [dataclasses.asdict(row) for row in rows]
        print_json({"schema": SCHEMA, "command": "oracles", "oracles": described})
        return 0
    table = tables.new_table("oracle", "what it does", "source", "cost")
    for row in rows:
        table.add_row(tables.escape(f"{row.name}({row.arguments})"), row.line, row.source, row.cost)
    tables.console().print(table)
    return 0


class OneLine(logging.Formatter):
    """Log records of libraries and ours, which may quote a hostile file."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line of bounded length."""
        return printable(super().format(record))


def configure(verbose: bool, quiet: bool) -> None:
    """Logging to standard error."""
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(OneLine("%(name)s: %(message)s"))


def show(report: Report, as_json: bool, quiet: bool, plan: bool = False) -> int:
    """Print a report; its exit code."""
    console = tables.console()
    if as_json:
        print_json(report.to_json())
    elif quiet:
        tables.say(console, tables.verdict(report))
    else:
        if plan:
            tables.print_plan(report, console)
        tables.print_report(report, console)
    return report.exit_code


def wrote(command: str, model: Path, output: Path, as_json: bool) -> int:
    """Say what was written."""
    if as_json:
        print_json({"schema": SCHEMA, "command": command, "model": str(model),
                    "file": str(output), "bytes": model_io.file_bytes(output)})  # fmt: skip
    else:
        click.echo(f"wrote {output}")
    return 0


def print_json(value: dict[str, Any]) -> None:
    """One object on standard output."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # JSON leaves the control characters above 127, and those that turn the direction of text.
    text = CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    # A file name that is no UTF-8 comes as lone surrogates: escaped, they are still JSON.
    click.echo(text.encode("utf-8", "backslashreplace").decode())


def fail(kind: str, message: str, problems: tuple[str, ...], as_json: bool) -> None:
    """Print an error: JSON on standard output, or text on standard error."""
    if as_json:
        error = {"kind": kind, "message": message, "problems": list(problems)}
        print_json({"schema": SCHEMA, "error": error})
    else:
        more = len(problems) - LINES
        shown = (*problems[:LINES], *([f"and {more} more"] if more > 0 else []))
        lines = [printable(line) for line in (f"error: {message}", *shown)]
        click.echo("\n  - ".join(lines), err=True)


def main(arguments: list[str] | None = None) -> typing.NoReturn:
    """The entry point: runs the command and exits with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(run(given))


def run(given: list[str]) -> int:
    """Run the command line; the exit code."""
    as_json, verbose = "--json" in given, "-v" in given or "--verbose" in given
    try:
        code = app.main(given, prog_name="gdu-compile", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except GduError as error:
        fail(error.kind, error.message, error.problems, as_json)
        if verbose and (error.exit_code == INTERNAL_CODE or isinstance(error, NodeError)):
            traceback.print_exc()
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return InputError.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "gdu-compile"
        fail(InputError.kind, error.format_message(), (f"see {where} --help",), as_json)
        return InputError.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except Exception as error:  # every other exception is ours to explain
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        message = f"internal error at {where}: {what} (please report it; -v shows more)"
        fail("internal", message, (), as_json)
        if verbose:
            traceback.print_exc()
        return INTERNAL_CODE
