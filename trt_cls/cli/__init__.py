"""The command line: parse, call, print. One module per command, imported when it is run.

Knows flags, the order of commands in --help and exit statuses. Does not know: how anything is done. Begin with `main`
and `SECTIONS` here; flags that several commands share are in `options.py`.
"""

from __future__ import annotations

import errno
import gc
import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from trt_cls.errors import RequestError, SpecError, TrtClsError, causes, did_you_mean, one_line
from trt_cls.version import __version__

SECTIONS = {
    "Make a model": {
        "spec": "Check, print and write spec files, list all fields.",
        "train": "Train a network from a spec file.",
        "evaluate": "Evaluate a model on a labeled folder: top-k, confusion matrix, per-class report.",
        "shards": "Write a folder of images to tar files with an index, for training and labeling at scale.",
        "prune": "Remove the weakest filters of a network, by TAO's rules.",
        "import-tao": "Convert a TAO .hdf5 model to a checkpoint.",
    },
    "Ship it": {
        "export": "Write a checked ONNX file and a TensorRT engine from a checkpoint.",
        "choose": "Make a network in all precisions, and choose one within limits of accuracy, latency and size.",
        "infer": "Label images: a file, a folder, a list, a video, a camera.",
        "benchmark": "Measure the speed of each stage from image files to predictions, and name the bottleneck.",
    },
    "Look into it": {
        "inspect": "Show contract, layers, precision, size and multiply-adds of a model file.",
        "compare": "Compare two model files on the same images.",
        "preprocess": "Write the exact input tensor of the network.",
        "models": "List the architectures: depths, sizes, freeze ids, options.",
    },
    "Set up": {
        "doctor": "Check what this machine can run, and how to install or fix the rest.",
        "demo": "Train, export and evaluate real handwritten digits in a few minutes on a CPU.",
    },
}
"""Section of --help → command (its module is in this folder, with _ for -) → its line."""
COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}


LONGEST_LINE = 8000
"""Characters of an error."""


@dataclass
class Invocation:
    """State of one call of the program."""

    arguments: list[str]
    """The command line after the program's name."""
    verbose: bool = False


class CommandGroup(click.Group):
    """Prints its help when it is called alone, and suggests a name for an unknown command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # noqa: D102
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:  # noqa: D102
        names = self.list_commands(ctx)
        if args[0] not in names and not ctx.resilient_parsing:
            ctx.fail(self.unknown(ctx, args))
        return super().resolve_command(ctx, args)

    def unknown(self, ctx: click.Context, args: list[str]) -> str:
        """The message for arguments whose first is no command."""
        hint = did_you_mean(args[0], self.list_commands(ctx)) or f"; {ctx.command_path} --help lists them"
        return f'no command "{args[0]}"{hint}'


class Commands(CommandGroup):
    """Imports a command's module only when the command is run."""

    def unknown(self, ctx: click.Context, args: list[str]) -> str:  # noqa: D102
        from trt_cls.cli.tao_flags import instead_of_command

        return instead_of_command(args) or super().unknown(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        if cmd_name not in COMMANDS:
            return None
        from trt_cls import terminal

        terminal.prepare()
        command: click.Command = import_module(f"trt_cls.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", line) for name, line in commands.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="trt-cls")
def program() -> None:
    """From one spec file to a TensorRT engine, checked against the trained network."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 the run failed, 2 the request is wrong.

    Without `arguments` it is the program itself, with those of its command line, and the process ends after it.
    """
    state = Invocation(sys.argv[1:] if arguments is None else arguments)
    status = exit_status(lambda: run(state), state)
    if arguments is None:
        gc.freeze()  # Python would look for garbage in all modules before the process ends
    return status


def run(state: Invocation) -> None:
    """Runs the command line of `state`; errors are raised, and name what replaces a flag of TAO's."""
    try:
        program.main(state.arguments, prog_name="trt-cls", standalone_mode=False, obj=state)
    except click.UsageError as error:
        if error.ctx is None or error.ctx.parent is None:
            raise
        from trt_cls.cli.tao_flags import instead_of_flag

        command, unknown = error.ctx.command, getattr(error, "option_name", "")
        if not (line := instead_of_flag(command.name or "", state.arguments, flags_of(command), unknown)):
            raise
        raise click.UsageError(line, error.ctx) from error


def flags_of(command: click.Command) -> set[str]:
    """The flags of `command` as they are typed."""
    return {name for option in command.params for name in option.opts}


def exit_status(call: Callable[[], None], state: Invocation) -> int:
    """Calls `call`; prints its error, if it raises one, and returns the exit status."""
    try:
        call()
    except SpecError as error:
        return _fail([str(problem) for problem in error.problems], error.exit_code, state)
    except TrtClsError as error:
        # a lack of memory is no fault of the request
        lacking = shortage(error.__cause__) if isinstance(error, RequestError) else None
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
        if lacking := shortage(error):
            return _fail([lacking], 1, state)
        if isinstance(error, OSError):
            return _fail([f"{error.filename or 'file system'}: {error.strerror or error}"], 1, state)
        raise
    return 0


def _fail(messages: list[str], exit_code: int, state: Invocation) -> int:
    from trt_cls.text import printable
    from trt_cls.urls import redacted

    if state.verbose:
        for line in traceback.format_exc().splitlines():
            print(redacted(printable(line)), file=sys.stderr)
    for message in messages:
        print(f"error: {_short(redacted(printable(message)))}", file=sys.stderr)
    return exit_code


def _short(line: str) -> str:
    """`line` without its middle where it is longer than any screen: a name in it may come from a foreign file."""
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 4 :]}"


MEMORY = (
    "allocate memory", "failed to map segment", "bad_alloc", "bad allocation", "out of memory", "unable to mmap",
)  # fmt: skip
FILES = ("too many open files",)
PROCESSES = ("can't start new thread",)


def shortage(error: BaseException | None) -> str | None:
    """The message if `error` or one of its causes is a lack of some resource, else None."""
    for found in causes(error):
        line = one_line(found)
        number = getattr(found, "errno", None)
        if isinstance(found, MemoryError) or number == errno.ENOMEM or _mentions(line, MEMORY):
            return _line("memory", line, resource.RLIMIT_AS, "-v")
        if number in (errno.EMFILE, errno.ENFILE) or _mentions(line, FILES):
            return _line("open files", line, resource.RLIMIT_NOFILE, "-n")
        if _mentions(line, PROCESSES):
            return _line("memory or processes", line, resource.RLIMIT_AS, "-v and -u")
        if isinstance(found, SystemError) and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return _line("memory", line, resource.RLIMIT_AS, "-v")  # an extension module that lost its MemoryError
    return None


def _mentions(line: str, words: tuple[str, ...]) -> bool:
    return any(word in line.lower() for word in words)


def _line(what: str, line: str, kind: int, flag: str) -> str:
    limit = resource.getrlimit(kind)[0]
    shown = "" if limit == resource.RLIM_INFINITY else f"{limit:,}" + (" bytes" if kind == resource.RLIMIT_AS else "")
    found = f"limited to {shown}" if shown else "not limited here"
    return (
        f"too little {what} ({line[:200]}), {found}; expected enough for this command; raise the limit (ulimit "
        f"{flag}), or lower batch size and workers"
    )
