"""`trt-cls demo`: the whole product on real handwritten digits, command by command."""

from __future__ import annotations

import time
from pathlib import Path

import click

from trt_cls.cli.options import common_options

SPEC = Path(__file__).parents[1] / "demo" / "digits_resnet10.txt"


@click.command("demo")
@click.option(
    "-r", "--results-dir", "--results_dir", "results", type=click.Path(path_type=Path), default=Path("runs/demo"),
    show_default=True, help="Folder for everything that is made.",
)
@common_options
def command(results: Path) -> None:
    """Train, export and evaluate real handwritten digits in a few minutes on a CPU."""
    from trt_cls.demo.digits import write_digits
    from trt_cls.files import results_folder

    start = time.perf_counter()
    write_digits(results_folder(results) / "data")
    checkpoint, onnx = _train(results), {}
    for precision in ("fp32", "fp16"):
        onnx[precision] = results / f"digits_{precision}.onnx"
        _export(results, checkpoint, onnx[precision], precision)
    rows = [("network as trained", _evaluate(results, checkpoint, "torch"), None)]
    for precision, path in onnx.items():
        rows.append((f"ONNX {precision.upper()}", _evaluate(results, path, precision), _compare(results, checkpoint, path)))
    _print_table(rows)
    _print_paths(results, checkpoint, onnx)
    click.echo(f"\nAll of it took {time.perf_counter() - start:.0f} s.")


def _run(*arguments: str | Path) -> None:
    click.secho("\n$ trt-cls " + " ".join(str(argument) for argument in arguments), bold=True)
    click.get_current_context().find_root().command.main(
        [str(argument) for argument in arguments], prog_name="trt-cls", standalone_mode=False, obj=click.get_current_context().obj
    )
