"""Shard by shard: labels for `trt-cls infer -o` and `--merge`, probabilities for `evaluate -o`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trt_cls.cli.options import RunOptions
from trt_cls.cli.processes import progress, take_gpu_for
from trt_cls.errors import DataError, RequestError, StoreError, TrtClsError
from trt_cls.files import EXAMPLE, is_shards, shard_paths
from trt_cls.stores import LOOKED_FOR, output_folder, require_there
from trt_cls.terminal import echo
from trt_cls.text import counted

if TYPE_CHECKING:
    from trt_cls.data.samples import Samples
    from trt_cls.distributed.processes import Rank
    from trt_cls.evaluation.shard_labels import Labeling, TableFormat


def label_shards(
    model: Path, sources: Sequence[str], out: Path, form: TableFormat, run: RunOptions, shard: str | None, workers: int
) -> None:
    """Writes the labels of this process's share of the shards; those that are there are left.

    Raises:
        RequestError: a source names no shards, or `out` holds labels of another model or with other options.
        TrtClsError: shards can't be read; the others are labeled.
    """
    from trt_cls.artefacts.sidecar import file_sha256
    from trt_cls.data.shards import shard_by_shard
    from trt_cls.evaluation.shard_labels import Labeling

    paths = _shards(sources)
    labeling = Labeling(output_folder(out), file_sha256(model), form, run.provider, run.batch_size or 32)
    answer_shards(labeling, paths, lambda: shard_by_shard(paths), model, run, shard, workers)


def answer_shards(
    labeling: Labeling,
    paths: Sequence[Path],
    samples_by_shard: Callable[[], Callable[[Path], Samples]],
    model: Path,
    run: RunOptions,
    shard: str | None,
    workers: int,
    *,
    flips: bool = False,
) -> None:
    """Writes the outputs of this process's share of the shards; those that are there are left.

    Raises:
        RequestError: `labeling.out` holds outputs of another model or with other options.
        TrtClsError: shards can't be read; the others are done.
    """
    from trt_cls.data.shards import copied, one_ahead
    from trt_cls.distributed.failure import end_with_launcher
    from trt_cls.distributed.processes import own_rank
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.inference import WithFlips, answers

    end_with_launcher()
    own = own_rank(shard)
    mine = paths[own.rank :: own.size]
    labeling.begin(paths, [path for number, path in enumerate(paths) if number % own.size != own.rank])
    samples_of, broken = samples_by_shard(), []
    with ThreadPoolExecutor(LOOKED_FOR) as pool:
        finished = [*pool.map(partial(_is_done, labeling, samples_of), mine)]
    left = [path for path, is_done in zip(mine, finished, strict=True) if not is_done]
    echo(f"{counted(len(paths), 'shard')}, {len(mine)} {_of(own)}, {len(left)} to label")
    if not left:
        return
    _take_gpu(own, model, run)
    opened = open_engine(model, run.provider)
    with closing(WithFlips(opened) if flips else opened) as engine:
        labeling = replace(labeling, backend=engine.backend)
        answer = partial(answers, engine, batch_size=labeling.batch_size, workers=workers, executor=run.executor)
        for path, found in zip(left, one_ahead(lambda path: copied(samples_of(path)), left), strict=True):
            try:
                samples = found.result()
                if _is_done(labeling, samples_of, path):
                    echo(f"{path.name}: labeled by another process meanwhile")
                    continue
                with progress(len(samples)) as done:
                    made = labeling.label(answer, engine.contract, path, samples, done)
            except (DataError, StoreError) as error:
                broken.append(str(error))
                echo(f"not labeled: {error}", err=True)
                continue
            echo(f"{path.name}: {counted(made.samples, 'image')}, {made.skipped} skipped")
    if broken:
        raise TrtClsError(f"{len(broken)} of {len(left)} shards are not labeled, the first is {broken[0]}")


def _is_done(labeling: Labeling, samples_of: Callable[[Path], Samples], path: Path) -> bool:
    """Whether a shard has its output; that of other images is refused."""
    if not labeling.is_done(path):
        return False
    with suppress(DataError, StoreError):  # it was readable when it was labeled
        labeling.require_of(path, samples_of)
    return True


def merge_labels(out: Path) -> None:
    """Writes the labels of all shards as one table."""
    from trt_cls.evaluation.shard_labels import merge

    path, count = merge(out)
    echo(f"{counted(count, 'image')}, each once; written: {path}")


def _shards(sources: Sequence[str]) -> list[Path]:
    other = [source for source in sources if not is_shards(source)]
    if other or not sources:
        found = f"-i {other[0]}" if other else "no -i"
        raise RequestError(f"{found}: found with -o, expected tar shards, as in {EXAMPLE}; for images use -r")
    paths = [path for source in sources for path in shard_paths(source)]
    require_there(paths)
    return paths


def _of(own: Rank) -> str:
    return f"of process {own.rank} of {own.size} ({own.by})" if own.size > 1 else "of this process"


def _take_gpu(own: Rank, model: Path, run: RunOptions) -> None:
    """Under torchrun each process of a machine has a GPU of its own."""
    import os

    from trt_cls.distributed.processes import Processes

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > 1:
        take_gpu_for(Processes(own.rank, here, here, int(os.environ.get("LOCAL_RANK", "0"))), model, run.provider)
