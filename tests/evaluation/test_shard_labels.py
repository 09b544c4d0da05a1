"""Labels of shards: each image once, whatever was killed, and only of one model."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support import tiny_models
from trt_cls.cli import main
from trt_cls.contract import Conformal, Contract, Reject
from trt_cls.data.folder import image_folder
from trt_cls.data.samples import Samples
from trt_cls.data.shard_writer import write_shards
from trt_cls.data.shards import shard_by_shard
from trt_cls.data.stream import Skipped
from trt_cls.distributed.processes import own_rank
from trt_cls.engines.engine import Answered
from trt_cls.errors import DataError, RequestError, TrtClsError
from trt_cls.evaluation.results import labeled, lines
from trt_cls.evaluation.shard_labels import Labeling, merge
from trt_cls.preprocessing.images import read

CLASSES = ("dark", "light")
CONTRACT = replace(tiny_models.CONTRACT, classes=CLASSES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty images in five shards; one image is broken, one has a name that a spreadsheet would run."""
    root, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("shards")
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for index in range(20):
            Image.new("RGB", (8, 8), (200 * label + index,) * 3).save(root / name / f"{index:02}.png")
    (root / "dark" / "00.png").rename(root / "dark" / '=1+"é\n".png')
    (root / "light" / "07.png").write_bytes(b"broken")
    index = write_shards(image_folder(root), out, "s", 28_000)
    assert len(index.shards) == 5
    return [out / shard.name for shard in index.shards]


def bright(samples: Samples) -> Generator[Answered]:
    """A classifier by brightness, in batches of three."""
    for start in range(0, len(samples), 3):
        kept, rows, skipped = [], [], []
        for sample in samples[start : start + 3]:
            try:
                share = float(read(sample.source, 1).mean()) / 255
            except DataError:
                skipped.append(Skipped(sample.path, "broken"))
                continue
            kept.append(sample)
            rows.append((1 - share, share))
        yield Answered(tuple(kept), np.array(rows, np.float32).reshape(-1, 2), tuple(skipped), 0.0)


def work(
    labeling: Labeling,
    shards: list[Path],
    share: slice = slice(None),
    answer: Any = bright,
    contract: Contract = CONTRACT,
) -> list[str]:
    labeling.out.mkdir(exist_ok=True)
    labeling.begin(shards)
    samples_of = shard_by_shard(shards)
    left = [shard for shard in shards[share] if not labeling.is_done(shard)]
    for shard in left:
        labeling.label(answer, contract, shard, samples_of(shard), lambda images: None)
    return [shard.name for shard in left]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def undisturbed(shards: list[Path], tmp_path: Path) -> Labeling:
    labeling = Labeling(tmp_path / "one", "0" * 64, "csv", "cpu", 3)
    work(labeling, shards)
    return labeling


def test_each_image_has_one_row_with_its_place_and_path(undisturbed: Labeling, shards: list[Path]) -> None:
    path, count = merge(undisturbed.out)
    rows = rows_of(path)
    assert list(rows[0]) == ["shard", "index", "key", "path", "label", "confidence", "error"]
    assert count == len(rows) == 40 == len({row["path"] for row in rows}) == len({row["key"] for row in rows})
    for row in rows:
        if row["path"] == "light/07.png":
            assert (row["label"], row["confidence"], row["error"]) == ("", "", "broken")
        else:
            assert row["label"] == row["path"].partition("/")[0]
            assert 0.5 < float(row["confidence"]) <= 1
    assert 'dark/=1+"é\n".png' in {row["path"] for row in rows}
    for shard in shards:
        own = [int(row["index"]) for row in rows if row["shard"] == shard.name]
        described = json.loads((undisturbed.out / f"{shard.stem}.json").read_text())
        assert own == list(range(described["samples"]))
        assert described.keys() == {
            "model_sha256",
            "options",
            "samples",
            "rows",
            "skipped",
            "images_sha256",
            "output_sha256",
            "object_version",
        }


@pytest.mark.parametrize(
    ("change", "sizes", "first"),
    [
        ({"task": "multi", "thresholds": (0.3, 0.8)}, {1}, {"dark", "light", ""}),
        ({"task": "multi", "thresholds": (0.2, 0.79)}, {1, 2}, {"dark", "light"}),
        ({"conformal": Conformal(0.9, 0.8)}, {1, 2}, {"dark", "light"}),
        ({"reject": Reject(0.1, 0.8)}, {1}, {"dark", "light", "unknown"}),
    ],
    ids=["no label", "labels", "sets", "unknown"],
)
def test_rows_are_those_of_infer_for_labels_sets_and_unknown_images(
    shards: list[Path], tmp_path: Path, change: dict[str, Any], sizes: set[int], first: set[str]
) -> None:
    contract, labeling = replace(CONTRACT, **change), Labeling(tmp_path / "out", "0" * 64, "csv", "cpu", 3)
    work(labeling, shards, contract=contract)
    path, count = merge(labeling.out)
    expected = []
    for shard in shards:
        for batch in bright(shard_by_shard(shards)(shard)):
            for row in batch.probabilities:
                found = csv.reader(lines(labeled("", row, contract, 5), "csv").splitlines())
                expected.append([cells[1:] for cells in found])
    by_image: dict[tuple[str, str], list[list[str]]] = {}
    for row in rows_of(path):
        if not row["error"]:
            by_image.setdefault((row["shard"], row["index"]), []).append([row["label"], row["confidence"]])
    assert list(by_image.values()) == expected
    assert count == 40
    assert {len(rows) for rows in expected} == sizes
    assert {rows[0][0] for rows in expected} == first
    assert work(labeling, shards, contract=contract) == []


def test_killed_anywhere_and_started_again_the_outputs_are_the_same(
    undisturbed: Labeling, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = replace(undisturbed, out=tmp_path / "two")
    images = 0

    def killed(samples: Samples) -> Generator[Answered]:
        nonlocal images
        for batch in bright(samples):
            images += 1
            if images % 5 == 0:
                stem = samples[0].path.parent.stem
                for name in (f".{stem}.csv.leftover.csv", ".shards.0123.json.left_0v3.json"):
                    (again.out / name).write_bytes(b"half")
                raise KeyboardInterrupt
            yield batch

    for _ in range(20):
        try:
            work(again, shards, answer=killed)
        except KeyboardInterrupt:
            continue
        break
    (again.out / f"{shards[2].stem}.json").unlink()  # killed between the two files
    others = again.out / f".{shards[0].stem}.csv.0ther_00.csv"  # of another machine, whose locks may not be seen
    others.write_bytes(b"half")
    again.begin(shards, shards[:1])
    others.unlink()
    assert work(again, shards) == [shards[2].name]
    assert files_in(again.out) == files_in(undisturbed.out)
    shared = replace(undisturbed, out=tmp_path / "three")
    for rank in (1, 2, 0):
        assert work(shared, shards, slice(rank, None, 3)) == [shard.name for shard in shards[rank::3]]
    assert files_in(shared.out) == files_in(undisturbed.out)
    assert work(shared, shards) == []


@pytest.mark.parametrize("change", [{"model_sha256": "1" * 64}, {"batch_size": 4}, {"provider": "openvino"}])
def test_labels_of_another_model_or_other_options_are_refused(
    undisturbed: Labeling, shards: list[Path], change: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="or another folder with -o"):
        work(replace(undisturbed, **change), shards)


def test_merge_names_what_is_missing_changed_or_twice(undisturbed: Labeling, shards: list[Path]) -> None:
    out, (one, two, three, *_) = undisturbed.out, shards
    (out / f"{one.stem}.json").unlink()
    with (out / f"{two.stem}.csv").open("a") as file:
        file.write("more")
    rows = (out / f"{three.stem}.csv").read_text().splitlines(keepends=True)
    four = shards[3]
    added = json.loads((out / f"{four.stem}.json").read_text())
    lines_of_four = (out / f"{four.stem}.csv").read_text().splitlines(keepends=True)
    other = lines_of_four[-1].replace(",dark,", ",?,").replace(",light,", ",?,")
    (out / f"{four.stem}.csv").write_text("".join([*lines_of_four, other]))
    added["output_sha256"] = hashlib.sha256((out / f"{four.stem}.csv").read_bytes()).hexdigest()
    (out / f"{four.stem}.json").write_text(json.dumps(added))
    described = json.loads((out / f"{three.stem}.json").read_text())
    (out / f"{three.stem}.csv").write_text("".join(rows[:-1] + rows[-2:-1]))
    described["output_sha256"] = hashlib.sha256((out / f"{three.stem}.csv").read_bytes()).hexdigest()
    (out / f"{three.stem}.json").write_text(json.dumps(described))
    with pytest.raises(TrtClsError) as caught:
        merge(out)
    text = str(caught.value)
    assert caught.value.exit_code == 1
    assert "4 of 5 shards" in text
    assert f"{four.name} with {added['samples']} of {added['samples']} samples, 0 twice, {added['rows'] + 1} of" in text
    assert f"{one.name} missing" in text
    assert f"{two.name} changed since" in text
    assert f"{three.name} with {described['samples'] - 1} of {described['samples']} samples, 1 twice" in text
    assert not (out / "result.csv").exists()


@pytest.mark.parametrize("content", ["{}", "[]", '{"model_sha256": 3}', "[" * 5000, "\x00"])
def test_foreign_descriptions_are_refused(undisturbed: Labeling, shards: list[Path], content: str) -> None:
    (undisturbed.out / f"{shards[0].stem}.json").write_text(content)
    with pytest.raises(RequestError, match=f"{shards[0].stem}.json"):
        undisturbed.is_done(shards[0])
    with pytest.raises(RequestError):
        merge(undisturbed.out)


@pytest.mark.parametrize("table", [b"a,b\n1,2\n", b"shard,index,label\ns,x,y\n", b"x" * 200_000, None])
def test_merge_names_a_table_of_others(undisturbed: Labeling, shards: list[Path], table: bytes | None) -> None:
    output, described = (undisturbed.out / f"{shards[0].stem}.{kind}" for kind in ("csv", "json"))
    made = json.loads(described.read_text())
    output.unlink()
    if table is None:
        os.mkfifo(output)
    else:
        output.write_bytes(table)
        described.write_text(json.dumps(made | {"output_sha256": hashlib.sha256(table).hexdigest(), "samples": 10**18}))
    with pytest.raises(TrtClsError, match=rf"{shards[0].name} (can't be read|with 0 of)"):
        merge(undisturbed.out)


def test_a_list_with_a_shard_twice_or_none_does_not_change_what_once_means(
    undisturbed: Labeling, shards: list[Path]
) -> None:
    table = merge(undisturbed.out)[0].read_bytes()
    (listed,) = undisturbed.out.glob("shards.*.json")
    listed.write_text(json.dumps({"shards": [shard.name for shard in shards] * 2}))
    assert merge(undisturbed.out)[0].read_bytes() == table
    listed.write_text('{"shards": []}')
    with pytest.raises(RequestError, match="no list of shards"):
        merge(undisturbed.out)


def test_jobs_with_other_shards_at_the_same_time_lose_none(shards: list[Path], tmp_path: Path) -> None:
    jobs = [Labeling(tmp_path / "out", "0" * 64, "csv", "cpu", 3) for _ in shards]
    (tmp_path / "out").mkdir()
    for labeling, shard in zip(jobs, shards, strict=True):
        labeling.begin([shard])
    for labeling, shard in zip(jobs, shards, strict=True):
        labeling.label(bright, CONTRACT, shard, shard_by_shard([shard])(shard), lambda images: None)
    assert merge(tmp_path / "out")[1] == 40


def test_a_job_of_another_model_is_refused_before_its_shards_are_expected(
    undisturbed: Labeling, shards: list[Path]
) -> None:
    with pytest.raises(RequestError, match="model_sha256 0000"):
        replace(undisturbed, model_sha256="1" * 64).begin([Path("more.tar")])
    assert merge(undisturbed.out)[1] == 40


def test_a_shard_of_other_images_with_the_name_of_one_that_is_done_is_refused(
    undisturbed: Labeling, shards: list[Path]
) -> None:
    samples_of = shard_by_shard(shards)
    undisturbed.require_of(shards[0], samples_of)
    with pytest.raises(RequestError, match=f"{shards[0].stem}.json: made of other images than"):
        undisturbed.require_of(shards[0], lambda shard: samples_of(shards[1]))


@pytest.mark.parametrize(
    "arguments", [["--merge", "x", "-m", "m"], ["--merge", "x", "i.tar"], ["-m", "m", "-o", "x", "-r", "y"]]
)
def test_flags_that_would_be_ignored_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", *arguments]) == 2
    assert "expected one of them" in capsys.readouterr().err


def test_names_that_would_meet_are_refused(undisturbed: Labeling) -> None:
    for names in (["a/x.tar", "b/x.tar"], ["result.tar"], ["shards.0.tar"], [".x.tar"]):
        with pytest.raises(RequestError, match=r"\.tar: "):
            undisturbed.begin([Path(name) for name in names])


def test_parquet_holds_the_rows_of_csv(undisturbed: Labeling, shards: list[Path], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    other = replace(undisturbed, out=tmp_path / "parquet", form="parquet")
    work(other, shards)
    found = parquet.read_table(merge(other.out)[0]).to_pylist()
    expected = rows_of(merge(undisturbed.out)[0])
    assert [{name: "" if value is None else value for name, value in row.items()} for row in found] == [
        row | {"index": int(row["index"]), "confidence": row["confidence"] and float(row["confidence"])}
        for row in expected
    ]


@pytest.mark.parametrize(
    ("flag", "environment", "expected"),
    [
        (None, {}, (0, 1)),
        ("2/5", {"RANK": "0", "WORLD_SIZE": "3"}, (2, 5)),
        (None, {"RANK": "1", "WORLD_SIZE": "3", "SLURM_ARRAY_TASK_ID": "9"}, (1, 3)),
        (None, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "7", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
        (None, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_ARRAY_TASK_STEP": "4"}, (2, 5)),
    ],
)  # fmt: skip
def test_the_share_of_a_process(flag: str | None, environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert own_rank(flag, environment)[:2] == expected


@pytest.mark.parametrize(
    ("flag", "environment"),
    [("3/3", {}), ("-1/3", {}), ("0", {}), ("0/0", {}), ("١/٣", {}), (None, {"RANK": "x", "WORLD_SIZE": "3"}),
     (None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"})],
)  # fmt: skip
def test_a_share_that_is_none_is_refused(flag: str | None, environment: dict[str, str]) -> None:
    with pytest.raises(RequestError, match=r"expected K/N, K from 0 on; the first of four|K of N from 0 on; name it"):
        own_rank(flag, environment)
