"""Training from shards: the folder's weights in the folder's order, and the same numbers however a training is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGTERM, raise_signal
from typing import Any

import pytest
from safetensors.torch import load_file

from trt_cls.data import order
from trt_cls.data.folder import image_folder
from trt_cls.data.shard_writer import write_shards
from trt_cls.errors import RequestError
from trt_cls.spec.experiment import Experiment
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted

Make = Callable[..., Experiment]


def numbers(folder: Path) -> dict[str, Any]:
    weights = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in sorted((folder / "weights").iterdir())
        for name, tensor in load_file(path).items()
    }
    return {"curve": (folder / "training.csv").read_text(), **weights}


@pytest.fixture(scope="module")
def from_shards(experiment: Make, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The experiment on the same images in shards of a few."""
    out = tmp_path_factory.mktemp("shards")
    where = {}
    for name in ("train", "val"):
        index = write_shards(image_folder(images / name), out, name, 15_000)
        where[f"{name}_dataset_path"] = f"{out}/{name}-{{000000..{len(index.shards) - 1:06}}}.tar"
    assert len(index.shards) > 1

    def make(**given: Any) -> Experiment:
        found = experiment(**given)
        assert found.train_config
        return replace(found, train_config=replace(found.train_config, **where))

    return make


def test_the_folders_order_gives_the_folders_weights(
    experiment: Make, from_shards: Make, quiet: Any, tmp_path: Path
) -> None:
    train(experiment(), tmp_path / "folder", device="cpu", reporter=quiet())
    train(from_shards(), tmp_path / "shards", device="cpu", order="folder", reporter=quiet())
    assert numbers(tmp_path / "shards") == numbers(tmp_path / "folder")


def test_the_order_of_shards_gives_the_same_numbers_resumed_with_other_workers(
    from_shards: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW", 2)
    train(from_shards(), tmp_path / "one", device="cpu", reporter=quiet())
    with pytest.raises(Interrupted):
        train(from_shards(), tmp_path / "two", device="cpu", reporter=quiet(1, 2, partial(raise_signal, SIGTERM)))
    with pytest.raises(RequestError, match="--order: shards ≠ folder"):
        train(from_shards(), tmp_path / "two", device="cpu", reporter=quiet(), resume=True, order="folder")
    train(from_shards(n_workers=2), tmp_path / "two", device="cpu", reporter=quiet(), resume=True)
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one")


def test_shards_of_a_store_give_the_weights_of_the_files(
    from_shards: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pytest.importorskip("fsspec").filesystem("memory")
    monkeypatch.setenv("TRT_CLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(order, "WINDOW", 2)
    config = from_shards().train_config
    assert config
    where = {}
    for name in ("train_dataset_path", "val_dataset_path"):
        pattern = Path(getattr(config, name))
        for path in pattern.parent.iterdir():
            store.pipe_file(f"/of-training/{path.name}", path.read_bytes())
        where[name] = f"memory://of-training/{pattern.name}"
    train(from_shards(), tmp_path / "files", device="cpu", reporter=quiet())
    stored = replace(from_shards(), train_config=replace(config, **where))
    with pytest.raises(Interrupted):
        train(stored, tmp_path / "store", device="cpu", reporter=quiet(1, 2, partial(raise_signal, SIGTERM)))
    train(stored, tmp_path / "store", device="cpu", reporter=quiet(), resume=True)
    assert numbers(tmp_path / "store") == numbers(tmp_path / "files")
    shared = replace(stored, train_config=replace(config, **where, n_workers=2))
    with pytest.raises(RequestError, match="set n_workers: 0"):
        train(shared, tmp_path / "two", device="cpu", reporter=quiet())
    store.rm("/of-training", recursive=True)
