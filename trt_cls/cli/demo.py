"""`trt-cls demo`: train, export and evaluate real handwritten digits, command by command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_cls.cli.options import PATH, common_options
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.evaluation.compare import Comparison
    from trt_cls.evaluation.evaluate import Evaluation

SPEC = Path(__file__).parents[1] / "demo" / "digits_resnet10.txt"
PRECISIONS = ("fp32", "fp16")


@click.command("demo")
@click.option(
    "-r",
    "--results-dir",
    "--results_dir",
    "results",
    type=PATH,
    default=Path("runs/demo"),
    help="Folder for everything that the demo writes.",
)
@common_options
def command(results: Path) -> None:
    """Train, export and evaluate real handwritten digits in a few minutes on a CPU.

    Each step is a command of its own, printed before it runs. A second call continues where the first one stopped.
    """
    from trt_cls.demo import write_digits
    from trt_cls.files import results_folder

    start = time.perf_counter()
    write_digits(results_folder(results) / "data")
    checkpoint = _train(results)
    evaluation = _evaluate(results, checkpoint)
    rows = [_row("network", checkpoint, evaluation)]
    for precision in PRECISIONS:
        onnx = _export(results, checkpoint, precision)
        rows.append(
            _row(
                f"ONNX {precision.upper()}",
                onnx,
                _evaluate(results, onnx),
                _run("compare", checkpoint, onnx, "--images", _test(results)),
            )
        )
    _print_table(rows, results, images=len(evaluation.predictions.samples))
    echo(f"The demo took {time.perf_counter() - start:.0f} s.")


def _train(results: Path) -> Path:
    """The best checkpoint; a finished training is used again, an interrupted one is resumed."""
    from trt_cls.spec import load

    folder = results / "training"
    checkpoint = folder / "weights" / "best.safetensors"
    config = load(SPEC, needs=("train_config",), paths=False).train_config
    if config and (folder / "weights" / f"resnet_{config.n_epochs:03}.safetensors").exists():
        echo(f"{folder} holds the finished training; to train again, remove {results}")
        return checkpoint
    resume = ("--resume",) if (folder / "train_state.pt").exists() else ()
    _run("train", *_spec(results), "-r", folder, *resume)
    return checkpoint


def _export(results: Path, checkpoint: Path, precision: str) -> Path:
    onnx = results / f"digits_{precision}.onnx"
    flags = ("--fp16",) if precision == "fp16" else ()
    _run("export", "-m", checkpoint, "-o", onnx, *flags, "--images", _test(results))
    return onnx


def _evaluate(results: Path, model: Path) -> Evaluation:
    evaluation: Evaluation = _run("evaluate", *_spec(results), "-m", model, "-r", results / "evaluation" / model.stem)
    return evaluation


def _test(results: Path) -> Path:
    return results / "data" / "test"


def _spec(results: Path) -> tuple[str | Path, ...]:
    """The flags that name the spec and the folders of images."""
    flags: list[str | Path] = ["-e", min(str(SPEC), os.path.relpath(SPEC), key=len)]
    for field, split in (
        ("train_config.train_dataset_path", "train"),
        ("train_config.val_dataset_path", "val"),
        ("eval_config.eval_dataset_path", "test"),
    ):
        flags += ["--set", f"{field}={results / 'data' / split}"]
    return tuple(flags)


def _run(*arguments: str | Path) -> Any:
    """Prints a command, runs it, and returns what it returns."""
    from trt_cls.cli import program

    words = [str(argument) for argument in arguments]
    click.secho(f"\n$ trt-cls {' '.join(words)}", bold=True)
    return program.main(words, prog_name="trt-cls", standalone_mode=False, obj=click.get_current_context().obj)


def _row(name: str, path: Path, evaluation: Evaluation, comparison: Comparison | None = None) -> tuple[str, ...]:
    return (
        name,
        f"{path.stat().st_size / 1e6:.1f} MB",
        f"{evaluation.metrics.top_1_accuracy:.2%}",
        f"{comparison.top1_agreement:.2%}" if comparison else "",
        f"{comparison.max_abs_difference:.1e}" if comparison else "",
        f"{evaluation.images_per_second:,.0f}",
    )


def _print_table(rows: list[tuple[str, ...]], results: Path, images: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"\n{images:,} digits that the network was not trained on", title_justify="left")
    table.add_column("")
    for column in ("size", "right", "same answer", "max |Δp|", "images/s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    for precision in PRECISIONS:
        engine = results / f"digits_{precision}.engine"
        if engine.exists():
            table.add_row(f"engine {precision.upper()}", f"{engine.stat().st_size / 1e6:.1f} MB")
    Console(width=80).print(table)
    echo("same answer: as the trained network; |Δp|: difference of a probability from the trained network's.")
    echo("An engine needs an NVIDIA GPU to run; TensorRT-RTX builds it without one.")
    echo("Written:")
    for path in (results / "training", *sorted(results.glob("digits_*"))):
        echo(f"  {path}")
