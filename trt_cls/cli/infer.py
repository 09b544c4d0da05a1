"""`trt-cls infer`: labels for images, a video or a camera."""

from __future__ import annotations

import glob
import os
import sys
from codecs import BOM_UTF8
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from trt_cls.cli.options import (
    PATH,
    RunOptions,
    common_options,
    model_option,
    refuse_others,
    refuse_top_k,
    results_option,
    run_options,
    spec_options,
)
from trt_cls.cli.processes import fastest_engine, progress, run_on_each_gpu, take_gpu_for, with_progress
from trt_cls.cli.shard_jobs import label_shards, merge_labels
from trt_cls.errors import DataError, RequestError
from trt_cls.files import is_shards, results_folder
from trt_cls.terminal import echo
from trt_cls.text import FOREIGN, counted, printable
from trt_cls.urls import StorePath, location, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from trt_cls.contract import Contract
    from trt_cls.data.samples import Samples
    from trt_cls.distributed.processes import Processes
    from trt_cls.engines.backends import Provider
    from trt_cls.engines.engine import Engine
    from trt_cls.evaluation.evaluate import Predictions
    from trt_cls.evaluation.results import Form, Labeled

BATCH_SIZE, READERS, TOP_K = 32, 8, 5
STDIN = "-"
MOST_LIST = 2**30
"""Bytes of a list of paths on stdin: ten million paths of a hundred bytes."""
CAMERA = "camera:"


@click.command("infer")
@model_option(required=False, description="Model file (.engine, .onnx, .safetensors).")
@click.option(
    "-i",
    "--image",
    "-d",
    "--image-dir",
    "--image_dir",
    "given",
    multiple=True,
    metavar="SOURCE...",
    help="Images, folders of images or quoted patterns ('photos/*.jpg', ** for all sub-folders), several after one -i; "
    "shards as in 'DIR/{0000..0127}.tar'; or - for paths on stdin (one per line), a video, or camera:NUMBER.",
)
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl", "parquet"]),
    help="csv: path,label,confidence (the default), a row for each label of a set; jsonl: a JSON object per line with "
    "the --top-k likeliest labels; parquet: with -o.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT",
    help="Folder for labels of shards, a file for each. Shards that are labeled already are left out.",
)
@click.option(
    "--shard",
    metavar="K/N",
    help="With -o: label share K of N, K from 0.  [default: by torchrun or the SLURM array, else all]",
)
@click.option(
    "--merge",
    type=PATH,
    metavar="OUT",
    help="Check that the folder written with -o has each image once, and write OUT/result.csv (or .parquet).",
)
@spec_options(required=False)
@results_option(required=False)
@run_options("run on; one process on each, which share the images.")
@common_options
@click.pass_context
def command(
    context: click.Context,
    model: Path | None,
    given: tuple[str, ...],
    more: tuple[str, ...],
    form: Form | Literal["parquet"] | None,
    output: Path | None,
    shard: str | None,
    merge: Path | None,
    spec: Path | None,
    overrides: tuple[str, ...],
    results: Path | None,
    run: RunOptions,
) -> None:
    """Label images: files, folders, shards, a list, a video, a camera.

    Prints the labels, or with -r writes result.csv (or .jsonl). Frames are numbered from 0. A single image is printed
    with its likeliest labels. A multi-label model gives a row for each label that reaches its threshold; a model
    exported with --coverage gives a set of labels, with --reject-rate "unknown" where it is not sure.
    """
    sources = tuple(map(plain, (*given, *more)))
    if merge:
        refuse_others(context, "merge")
        return merge_labels(merge)
    if model is None:
        raise click.UsageError("Missing option '-m' / '--model' / '--model_path'.")
    if run.gpus > 1:
        run_on_each_gpu(context, run.gpus, "--provider", run.provider)
    contract_of = partial(_checked_contract, model, spec, overrides, run)
    if output:
        refuse_others(context, "output", "results", "top_k")
        contract_of()
        if form == "jsonl":
            raise RequestError("--format jsonl with -o; expected csv or parquet; leave one of them out")
        label_shards(model, sources, output, form or "csv", run, shard, READERS)
    elif form == "parquet" or shard:
        raise RequestError(
            f"{'--shard' if shard else '--format parquet'} without -o; expected a folder; name it with -o OUT"
        )
    else:
        _label(model, sources, contract_of, form, results, run)


def _checked_contract(model: Path, spec: Path | None, overrides: tuple[str, ...], run: RunOptions) -> Contract:
    from trt_cls.evaluation.inference import checked_contract
    from trt_cls.spec import load

    experiment = load(spec, overrides=overrides, paths=False) if spec else None
    contract = checked_contract(model, experiment, spec, run.classmap)
    refuse_top_k(contract, run.top_k)
    return contract


def _label(
    model: Path,
    sources: tuple[str, ...],
    contract_of: Callable[[], Contract],
    form: Form | None,
    results: Path | None,
    run: RunOptions,
) -> None:
    """Labels images or frames into one file, or on standard output."""
    from trt_cls.distributed.processes import joined
    from trt_cls.evaluation.evaluate import predict

    with joined(advice="start it again") as processes:
        _require_sources(sources)
        contract = contract_of()
        take_gpu_for(processes, model, run.provider)
        if _is_video(sources[0]):
            _require_one(processes, sources[0])
            _write(_video_labels(model, sources[0], run), form, results and results_folder(results))
            return
        images = processes.from_first(lambda: _images(sources))
        if results and processes.first:
            results_folder(results)
        fastest = _fastest(model, run.provider, images, contract, processes)
        with with_progress(fastest, images, run, run.batch_size or BATCH_SIZE, processes) as (engine, options):
            predictions = predict(engine, images, workers=READERS, **options)
        if processes.first:
            single = len(sources) == 1 and Path(sources[0]).is_file() and not is_shards(sources[0])
            _report(predictions, contract, run.top_k or TOP_K, form, results, single=single)


def _fastest(model: Path, provider: Provider, images: Samples, contract: Contract, processes: Processes) -> Engine:
    def first() -> NDArray[Any] | None:
        from trt_cls.export.int8_on_cpu import first_images

        return first_images(images, contract.preprocessing)

    say = partial(echo, err=True) if processes.first else lambda line: None
    return fastest_engine(model, provider, processes.threads, first, say)


def _is_video(source: str) -> bool:
    from trt_cls.evaluation.video import VIDEO_SUFFIXES

    return source.startswith(CAMERA) or source.lower().endswith(VIDEO_SUFFIXES)


def _require_sources(sources: tuple[str, ...]) -> None:
    """Refuses no source, an empty one, and a list, video or camera beside others."""
    if not all(sources or [""]):
        raise RequestError("no image to label; expected an image, a folder or a quoted pattern; name it with -i")
    alone = [source for source in sources if source == STDIN or _is_video(source)]
    if alone and len(sources) > 1:
        raise RequestError(
            f"-i {alone[0]}: {len(sources)} sources found; expected a list, a video or a camera alone; "
            "label it in a call of its own"
        )


def _images(sources: tuple[str, ...]) -> Samples:
    """The images of files, folders and patterns, each once, or those of the list on stdin."""
    from trt_cls.data.folder import listed_images
    from trt_cls.data.samples import files

    if sources != (STDIN,):
        paths = [path for source in sources for path in _matches(source)]
        if len(paths) == 1:
            return listed_images(paths[0])
        if shards := [path for path in paths if is_shards(path)]:
            raise RequestError(
                f"-i {shards[0]}: {len(paths)} sources found; expected shards alone, with a range such as "
                "train-{0..3}.tar; label them with -o OUT, or each in a call of its own"
            )
        names = (str(image.path) for path in paths for image in listed_images(path))
        return files(Path(), [(-1, list(dict.fromkeys(names)))])
    content = sys.stdin.buffer.read(MOST_LIST + 1).removeprefix(BOM_UTF8)
    if len(content) > MOST_LIST:
        raise DataError(f"more than {MOST_LIST:,} bytes on stdin; expected paths, one per line")
    lines = (line.removesuffix(b"\r") for line in content.split(b"\n"))
    images = files(Path(), [(-1, [os.fsdecode(line) for line in lines if line.strip()])])
    if not images:
        raise DataError("no path on stdin; expected one per line, as from find DIR -name '*.jpg'")
    return images


def _matches(source: str) -> list[Path]:
    """The path itself if it exists, else what matches it as a pattern, sorted."""
    path = location(source)
    if isinstance(path, StorePath) or os.path.lexists(source) or not glob.has_magic(source):
        return [path]
    found = sorted(glob.iglob(source, recursive=True))
    if not found:
        raise DataError(f"{source}: no file matches this pattern; expected an image, a folder or a pattern of them")
    return [Path(path) for path in found]


def _report(
    predictions: Predictions, contract: Contract, top_k: int, form: Form | None, folder: Path | None, *, single: bool
) -> None:
    """Prints or writes the labels; lists the images that can't be decoded on stderr."""
    from trt_cls.evaluation.results import labels_of, skipped_lines

    echo(skipped_lines(predictions.skipped), err=True, nl=False)
    labels = list(labels_of(predictions, contract, top_k))
    if single and form is None:
        _print_ranking(labels[0])
    if folder or form or not single:
        _write(labels, form, folder, f", {len(predictions.skipped)} skipped")


def _require_one(processes: Processes, source: str) -> None:
    if processes.size > 1:
        raise RequestError(
            f"-i {source}: frames can't be shared, and {processes.size} processes were started; expected one; "
            "leave out --gpus and torchrun"
        )


def _video_labels(model: Path, source: str, run: RunOptions) -> Iterator[Labeled]:
    """The label of each frame; a camera runs until Ctrl-C, which is not an error."""
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.results import labeled
    from trt_cls.evaluation.video import count_frames, frames, infer_frames

    camera = source.removeprefix(CAMERA) if source.startswith(CAMERA) else None
    if camera is not None and not camera.isdecimal():
        raise RequestError(f'-i {source}: "{camera}" is not a number; expected one, such as {CAMERA}0')
    taken = frames(int(camera) if camera is not None else Path(source))
    size = run.batch_size or (1 if camera is not None else BATCH_SIZE)
    number = 0
    with (
        closing(open_engine(model, run.provider)) as engine,
        progress(None if camera is not None else count_frames(Path(source)) or None) as done,
        suppress(KeyboardInterrupt),
    ):
        for batch in infer_frames(engine, taken, size):
            for row in batch:
                yield labeled(number, row, engine.contract, run.top_k or TOP_K)
                number += 1
            done(len(batch))


def _print_ranking(found: Labeled) -> None:
    if found.decides and found.decision.named != found.ranking:
        echo(printable(" or ".join(name for name, _ in found.decision.named)))
    if not found.ranking:
        echo("no label reaches its threshold")
        return
    ranking = [(printable(name), confidence) for name, confidence in found.ranking]
    width = max(len(name) for name, confidence in ranking)
    for name, confidence in ranking:
        echo(f"{name:{width}}  {confidence:.4f}")


def _write(labels: Iterable[Labeled], form: Form | None, folder: Path | None, skipped: str = "") -> None:
    """Writes result.csv or result.jsonl in `folder`, or prints each line at once."""
    from trt_cls.evaluation.results import lines, write_labels

    texts = (lines(labeled, form or "csv") for labeled in labels)
    if folder is None:
        for text in texts:
            if sys.stdout.isatty():
                echo(printable(text))
            else:
                click.echo(text.encode("utf-8", FOREIGN))  # noqa: TID251  a file or pipe takes names as they are
        return
    path = folder / f"result.{form or 'csv'}"
    count = write_labels(texts, path)
    echo(f"{counted(count, 'image')} labeled{skipped}; written: {path}")
