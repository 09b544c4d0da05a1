"""The command line: parse, call, print. One module per command, imported when it is run."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from importlib import import_module

import click

from trt_cls.errors import RequestError, SpecError, TrtClsError, did_you_mean
from trt_cls.version import __version__

COMMANDS = {
    "train": "Train a network from a spec file.",
    "import-tao": "Convert a TAO .hdf5 model to a checkpoint.",
    "evaluate": "Evaluate a model on a labeled folder: top-k, confusion matrix, per-class report.",
    "infer": "Label images: a file, a folder, a list, a video, a camera.",
    "prune": "Remove the weakest filters of a network, by TAO's rules.",
    "export": "Write a checked ONNX file and a TensorRT engine from a checkpoint.",
    "compare": "Compare two model files on the same images.",
    "benchmark": "Measure the speed of each stage from image files to predictions, and name the bottleneck.",
    "inspect": "Show contract, layers, precision, size and multiply-adds of a model file.",
    "preprocess": "Write the exact input tensor of the network.",
    "spec": "Check, print and write spec files, list all fields.",
    "models": "List the architectures: depths, sizes, freeze ids, options.",
    "doctor": "Check what this machine can run, and how to install or fix the rest.",
    "demo": "Train, export and evaluate real handwritten digits in a few minutes on a CPU.",
}
"""Command (its module is in this folder, with _ for -) → its line in --help."""


@dataclass
class State:
    """State of one call of the program."""

    arguments: list[str]
    """The command line after the program's name."""
    verbose: bool = False


class Commands(click.Group):
    """Imports a command's module only when the command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: D102
        if cmd_name not in COMMANDS:
            hint = did_you_mean(cmd_name, list(COMMANDS)) or "; trt-cls --help lists them"
            ctx.fail(f'no command "{cmd_name}"{hint}')
        from trt_cls import terminal

        terminal.prepare()
        command: click.Command = import_module(f"trt_cls.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="trt-cls")
def program() -> None:
    """From one spec file to a TensorRT engine, checked against the trained network."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 the run failed, 2 the request is wrong."""
    state = State(sys.argv[1:] if arguments is None else arguments)
    try:
        program.main(arguments, prog_name="trt-cls", standalone_mode=False, obj=state)
    except SpecError as error:
        return _fail([str(problem) for problem in error.problems], error.exit_code, state)
    except TrtClsError as error:
        # a lack of memory is no fault of the request
        lacking = _shortage(error.__cause__) if isinstance(error, RequestError) else None
        return _fail([lacking or str(error)], 1 if lacking else error.exit_code, state)
    except click.ClickException as error:
        from trt_cls.distributed.processes import is_first

        # all processes of one call have the same arguments, and the same mistake in them
        return _fail([" ".join(error.format_message().split())] if is_first() else [], error.exit_code, state)
    except (KeyboardInterrupt, click.Abort):
        return _fail(["interrupted"], 130, state)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if lacking := _shortage(error):
            return _fail([lacking], 1, state)
        if isinstance(error, OSError):
            return _fail([f"{error.filename or 'file system'}: {error.strerror or error}"], 1, state)
        raise
    return 0


def _shortage(error: BaseException | None) -> str | None:
    from trt_cls.cli.limits import shortage

    return shortage(error)


def _fail(messages: list[str], exit_code: int, state: State) -> int:
    from trt_cls.text import printable

    if state.verbose:
        for line in traceback.format_exc().splitlines():
            print(printable(line), file=sys.stderr)
    for message in messages:
        print(f"error: {printable(message)}", file=sys.stderr)
    return exit_code
