"""Images in tar shards: the same images, order and pixels as from the folder, and faults named where they are."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import resource
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.pixel_reference import preprocessing_of
from trt_cls.cli import main
from trt_cls.data import order
from trt_cls.data.folder import image_folder, list_images, listed_images
from trt_cls.data.readahead import ReadAhead
from trt_cls.data.samples import Samples, files
from trt_cls.data.shard_index import ROW
from trt_cls.data.shard_writer import write_shards
from trt_cls.data.shards import shard_folder
from trt_cls.data.split import Dataset
from trt_cls.data.stream import stream
from trt_cls.errors import RequestError, TrtClsError
from trt_cls.files import shard_paths
from trt_cls.preprocessing import image_file
from trt_cls.preprocessing.images import read
from trt_cls.spec.experiment import Extensions

PREPROCESSING = preprocessing_of("rgb", "bilinear", "center", "16x24", "torch")
SIZES = {"cat": 9, "dog": 7, "emu": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four noisy images of three classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, count in SIZES.items():
        (root / name / "deep").mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (60, 50 + index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / ("deep" if index % 3 else "") / f"ä {index}.PNG")
    return root


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards; the pattern that names them."""
    out = tmp_path_factory.mktemp("shards")
    assert main(["shards", str(folder), "-o", str(out), "--size", "100kB"]) == 0
    last = len(list(out.glob("*.tar"))) - 1
    return out / f"train-{{000000..{last:06}}}.tar"


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(written.parent, tmp_path / "copy")
    return tmp_path / "copy" / written.name


def first(pattern: Path) -> Path:
    return shard_paths(pattern)[0]


def contents(samples: Any) -> list[tuple[bytes, bytes, int]]:
    return [
        (name, read(sample.source, 3).tobytes(), sample.label)
        for name, sample in zip(samples.names(), samples, strict=True)
    ]


def test_shards_hold_the_images_of_the_folder_in_its_order(folder: Path, written: Path) -> None:
    there, found = image_folder(folder), shard_folder(written, order="folder")
    assert found.classes == there.classes
    assert contents(found.samples) == contents(there.samples)
    physical = shard_folder(written)
    assert sorted(contents(physical.samples)) == sorted(contents(there.samples))
    places = [(sample.part.file, sample.part.offset) for sample in physical.samples if sample.part]
    assert places == sorted(places)
    assert len({file for file, _ in places}) > 2


def test_the_tars_and_index_are_laid_out_as_documented(folder: Path, written: Path) -> None:
    described = json.loads(written.with_name("train.json").read_text())
    rows = np.load(written.with_name("train.index.npy"))
    paths = written.with_name("train.paths").read_bytes()
    assert rows.dtype == ROW
    assert described["classes"] == list(SIZES)
    for number, shard in enumerate(described["shards"]):
        assert (written.parent / shard["name"]).stat().st_size == shard["bytes"] <= 100_000
        with tarfile.open(written.parent / shard["name"]) as archive:
            members = {member.name: member for member in archive.getmembers()}
            assert len(members) == 3 * shard["samples"] == 3 * int((rows["shard"] == number).sum())
            for row in np.flatnonzero(rows["shard"] == number):
                image = members[f"{row:08}.png"]
                assert (image.offset_data, image.size) == (rows["offset"][row], rows["length"][row])
                path = paths[rows["path_at"][row] :].partition(b"\0")[0].decode()
                assert json.load(archive.extractfile(f"{row:08}.json")) == {"path": path}  # type: ignore[arg-type]
                assert int(archive.extractfile(f"{row:08}.cls").read()) == rows["label"][row]  # type: ignore[union-attr]
                assert archive.extractfile(image).read() == (folder / path).read_bytes()  # type: ignore[union-attr]


def test_the_same_folder_gives_the_same_bytes(folder: Path, written: Path, tmp_path: Path) -> None:
    assert main(["shards", str(folder), "-o", str(tmp_path), "--size", "100kB"]) == 0
    for path in written.parent.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_list_of_shards_survives_the_way_to_another_process(written: Path) -> None:
    found = shard_folder(written)
    sent = pickle.dumps(found)
    assert len(sent) < 3000, "the index is mapped there, not copied"
    assert contents(pickle.loads(sent).samples) == contents(found.samples)


def test_the_parts_of_a_split_are_those_of_the_folder(folder: Path, written: Path) -> None:
    def names(root: Path, part: Any) -> set[bytes]:
        return set(Dataset(root, part, 0.3, 5).labeled().samples.names())

    assert names(written, "val") == names(folder, "val")
    assert names(written, "train") == names(folder, "train")
    assert len(names(written, "val")) == 7


def test_some_of_the_shards_and_other_classes(written: Path, copied: Path) -> None:
    one = listed_images(first(written))
    assert 0 < len(one) < 24
    assert {sample.part.file for sample in one if sample.part} == {first(written)}
    turned = shard_folder(written, ("emu", "fox", "cat", "dog"), allow_missing=True)
    assert turned.counts.tolist() == [8, 0, 9, 7]
    with pytest.raises(RequestError, match="no images of fox"):
        shard_folder(written, ("emu", "fox", "cat", "dog"))
    with pytest.raises(RequestError, match="emu is not among the 2 classes"):
        shard_folder(written, ("cat", "dog"))
    shutil.copy(first(copied), copied.with_name("train-000099.tar"))
    with pytest.raises(RequestError, match=r"train-000099\.tar: not among the"):
        shard_folder(copied.with_name("train-000099.tar"))
    assert list_images(first(written)) == [first(written)], "a list of files stays one"


def test_a_truncated_changed_or_missing_shard_is_named(copied: Path) -> None:
    shard = first(copied)
    sound = shard.read_bytes()
    samples = [sample for sample in shard_folder(copied).samples if sample.part and sample.part.file == shard]
    assert samples[2].part
    shard.write_bytes(sound[: samples[2].part.offset + 9])
    (batch,) = stream(samples[:4], PREPROCESSING, batch_size=4, workers=0)
    assert batch.samples == tuple(samples[:2])
    assert [loss.path for loss in batch.skipped] == [sample.path for sample in samples[2:4]]
    assert "truncated: it ends at byte" in batch.skipped[0].reason
    place = samples[2].part.offset + 50
    shard.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
    (batch,) = stream(samples[:4], PREPROCESSING, batch_size=4, workers=0)
    assert [loss.path for loss in batch.skipped] == [samples[2].path]
    assert "changed: CRC-32" in batch.skipped[0].reason
    shard.unlink()
    with pytest.raises(RequestError, match=rf"{shard.name}: no such file, 1 of \d+ shards are missing"):
        shard_folder(copied)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [("shard", 99, "shard 99 found"), ("offset", 2**63, "offset"), ("length", 2**31, "length"), ("label", 3, "label 3"),
     ("label", -2, "label -2"), ("path_at", 10**9, "path_at")],
)  # fmt: skip
def test_a_row_that_points_elsewhere_is_refused(copied: Path, column: str, value: int, named: str) -> None:
    path = copied.with_name("train.index.npy")
    rows = np.load(path)
    rows[column][5] = value
    np.save(path, rows)
    with pytest.raises(RequestError, match=f"row 5: {named}"):
        shard_folder(copied)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format": 2}', b"[" * 10000, b'{"format": 1, "classes": 3, "shards": []}']
)
def test_a_foreign_index_is_refused_in_one_line(copied: Path, content: bytes) -> None:
    copied.with_name("train.json").write_bytes(content)
    with pytest.raises(RequestError) as caught:
        shard_folder(copied)
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


HUGE = f"{{'descr': '<u4', 'fortran_order': False, 'shape': ({10**30},)}}"


@pytest.mark.parametrize("header", ['("""', "{[]: 1}", HUGE])
def test_a_header_that_numpy_breaks_on_is_refused_in_one_line(copied: Path, header: str) -> None:
    path = copied.with_name("train.index.npy")
    path.write_bytes(b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(RequestError, match="no array of numpy"):
        shard_folder(copied)
    path.write_bytes(b"PK\3\4 no archive either")
    with pytest.raises(RequestError, match="no array of numpy"):
        shard_folder(copied)


@pytest.mark.parametrize("name", ["../train-000000.tar", "/etc/train.tar", "train", "train-000001.tar"])
def test_an_index_names_files_of_its_folder_each_once(copied: Path, name: str) -> None:
    described = json.loads(copied.with_name("train.json").read_text())
    described["shards"][0]["name"] = name
    copied.with_name("train.json").write_text(json.dumps(described))
    with pytest.raises(RequestError, match=r"in the same folder|two shards of one name"):
        shard_folder(first(copied))


def test_an_index_with_objects_runs_no_code(copied: Path) -> None:
    np.save(copied.with_name("train.index.npy"), np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(RequestError, match="no array of numpy"):
        shard_folder(copied)


def test_ranges_are_counted_and_bounded(tmp_path: Path) -> None:
    for name in ("a-08", "a-09", "a-10", "b-7", "b-8"):
        (tmp_path / f"{name}.tar").touch()
    assert [path.name for path in shard_paths(tmp_path / "a-{08..10}.tar")] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [path.name for path in shard_paths(tmp_path / "b-{7..8}.tar")] == ["b-7.tar", "b-8.tar"]
    for wrong in ("a-{9..8}.tar", "a-{0..99999999}.tar", "{0..9999}-{0..9999}.tar"):
        with pytest.raises(RequestError, match="expected 1 to"):
            shard_paths(tmp_path / wrong)


def test_an_epoch_reads_few_shards_at_a_time_and_each_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "WINDOW", 2)
    size, shards = 600, 10
    generator = np.random.default_rng(3)
    table = files(Path(), [(label, [f"{label}/{index}" for index in range(200)]) for label in range(3)]).table
    table.groups = generator.integers(0, shards, size, dtype=np.uint32)

    def epoch(number: int, start: int = 0, rank: int = 0, world: int = 1, **extensions: Any) -> list[list[int]]:
        asked = Extensions(**extensions)
        orders = order.Orders(Samples(table), 20 * world, 1, rank, world, asked).of_epoch(number, start)
        return [[index for index, _ in found.samples] for found in orders]

    batches = epoch(1)
    assert sorted(chain.from_iterable(batches)) == list(range(size))
    seen = [set(table.groups[batch].tolist()) for batch in batches]
    assert max(map(len, seen)) <= 4, "a batch may end in the next window"
    assert sum(len(a | b) > 2 for a, b in pairwise(seen)) < 10
    assert batches != epoch(2)
    assert epoch(1, 7) == batches[7:]
    alone = order.Orders(Samples(table), 40, 1, 0, 1, Extensions()).of_epoch(1, 0)
    for whole, one, other in zip(alone, epoch(1, rank=0, world=2), epoch(1, rank=1, world=2), strict=True):
        indices = [index for index, _ in whole.samples]
        assert (indices[::2], indices[1::2]) == (one, other)
    balanced = list(chain.from_iterable(epoch(1, balanced_sampling=True)))
    assert len(balanced) == size
    windows = table.groups[np.array(balanced) % size]
    assert len(set(windows[:60].tolist())) <= 2


def test_shards_are_read_ahead_once_where_images_come_shard_by_shard(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, int]] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        asked.append((Path(f"/proc/self/fd/{descriptor}").readlink(), advice))

    monkeypatch.setattr("os.posix_fadvise", advise)
    sequential, mixed = shard_folder(written).samples, shard_folder(written, order="folder").samples
    for samples in (sequential, mixed, list(sequential)):
        with ThreadPoolExecutor(1) as thread, closing(ReadAhead(samples)) as shards:
            monkeypatch.setattr(shards, "_thread", thread)
            shards.expect(samples)
            shards.expect(samples)
            thread.submit(lambda: None).result()
    files_read = {sample.part.file for sample in sequential if sample.part}
    assert sorted(asked) == sorted((path, os.POSIX_FADV_WILLNEED) for path in files_read)


def test_shards_are_written_completely_or_not_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_folder(folder)

    def interrupted(count: int) -> Callable[[int], None]:
        left = iter(range(count))

        def progress(_: int) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        write_shards(images, tmp_path, "t", 100_000, interrupted(20))
    assert not list(tmp_path.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(TrtClsError, match=r"t-00000\d\.tar: can't be written, larger than allowed \("):
            write_shards(images, tmp_path, "t", 130_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    (tmp_path / "t-000000.tar").write_bytes(b"of another")
    assert main(["shards", str(folder), "-o", str(tmp_path), "--name", "t"]) == 2
    assert "t-000000.tar: found, expected no shards of this name" in capsys.readouterr().err
    assert (tmp_path / "t-000000.tar").read_bytes() == b"of another"


def test_a_thread_keeps_few_shards_open_and_sees_new_ones(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "OPEN_SHARDS", 2)
    samples = shard_folder(copied).samples

    def still_open() -> set[str]:
        links = (Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        return {str(link.readlink()) for link in links if link.is_symlink()} & set(map(str, shard_paths(copied)))

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(contents, samples).result() == contents(samples)
        assert 1 <= len(still_open()) <= 4, "two here, two in the thread"
        shard = first(copied)
        size = shard.stat().st_size
        shard.unlink()
        shard.write_bytes(bytes(size))
        with pytest.raises(RequestError, match="the shard was changed"):
            thread.submit(read, samples[0].source, 3).result()
        shard.rename(shard.with_suffix(".moved"))
        with pytest.raises(RequestError, match="no such file"):
            thread.submit(read, samples[0].source, 3).result()
    shard.with_suffix(".moved").rename(shard)
    image_file._thread.shards.clear()
    gc.collect()
    assert not still_open()


def test_an_index_of_no_images_is_refused(copied: Path) -> None:
    described = json.loads(copied.with_name("train.json").read_text())
    for shard in described["shards"]:
        shard["samples"] = 0
    copied.with_name("train.json").write_text(json.dumps(described))
    np.save(copied.with_name("train.index.npy"), np.zeros(0, ROW))
    with pytest.raises(RequestError, match="an index of no images"):
        listed_images(copied)


def test_an_index_whose_counts_or_arrays_are_missing_is_refused(copied: Path) -> None:
    path = copied.with_name("train.json")
    described = json.loads(path.read_text())
    described["shards"][0]["samples"] -= 1
    described["shards"][1]["samples"] += 1
    path.write_text(json.dumps(described))
    with pytest.raises(RequestError, match=r"samples of train-000000.tar, but .* rows in its .index.npy"):
        listed_images(copied)
    path.with_suffix(".index.npy").unlink()
    with pytest.raises(RequestError, match=r"train.index.npy: not there, expected beside train.json"):
        listed_images(copied)


# tars of others


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trt-cls" / "shards"


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def image(value: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(content, "png")
    return content.getvalue()


def foreign(path: Path) -> Path:
    members: list[tuple[str, bytes]] = [("readme", b"no sample")]
    for index in range(6):
        members += [(f"set/{index}.cls", b"%d\n" % (index % 2)), (f"set/{index}.png", image(index))]
    return tar_of(
        path, [*members, ("set/6.png", image(6)), ("set/6.json", b'{"path": "/etc/passwd"}'), ("set/6.cls", b"1")]
    )


def test_tars_of_others_are_scanned_once(tmp_path: Path, cache: Path) -> None:
    path = foreign(tmp_path / "x-0.tar")
    found = shard_folder(path)
    assert found.classes == ("0", "1")
    assert [sample.label for sample in found.samples] == [0, 1, 0, 1, 0, 1, 1]
    assert [int(read(sample.source, 3)[0, 0, 0]) for sample in found.samples] == list(range(7))
    assert list(found.samples.names())[5:] == [b"set/5.png", b"/etc/passwd"]
    assert str(found.samples[6].path) == f"{path}/set/6.png"
    (cached,) = cache.iterdir()
    before = cached.stat().st_mtime_ns
    assert contents(shard_folder(path).samples) == contents(found.samples)
    assert cached.stat().st_mtime_ns == before
    cached.write_bytes(b"damaged")
    assert contents(shard_folder(path).samples) == contents(found.samples)
    tar_of(path, [("a.png", image(9)), ("a.cls", b"0"), ("b.png", image(8)), ("b.cls", b"1")])
    assert [int(read(sample.source, 3)[0, 0, 0]) for sample in shard_folder(path).samples] == [9, 8]


def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path) -> None:
    path = foreign(tmp_path / "x-0.tar")
    for content in (b"PK\3\4 no archive", b"\x93NUMPY\x01\0\1\0(", b""):
        shard_folder(path)
        (kept,) = cache.glob("*.npz")
        kept.write_bytes(content)
        assert len(shard_folder(path).samples) == 7


def test_no_name_in_a_tar_becomes_the_path_of_a_file(tmp_path: Path, cache: Path) -> None:
    names = ["/etc/passwd.png", "../../up.png", "a/../../b.png", "x/./y.png", "\x1b[2J.png"]
    path = tar_of(tmp_path / "x.tar", [(name, image(1)) for name in names])
    assert [str(sample.path) for sample in listed_images(path)] == [
        f"{path}/{name}" for name in ("etc/passwd.png", "up.png", "a/b.png", "x/y.png", "\x1b[2J.png")
    ]


def lying(content: bytes, place: int, value: bytes) -> bytes:
    """A header that states other numbers, with its checksum corrected."""
    start = place // 512 * 512
    header = bytearray(content[start : start + 512])
    header[place - start : place - start + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + 512 :]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda c: b"", "no plain tar"),
        (lambda c: b"\x1f\x8b" + c, "no plain tar"),
        (lambda c: c[:5000], "truncated"),
        (lambda c: c[:-10240] if len(c) > 10240 else c[:1536], "truncated"),
        (lambda c: c[:600] + b"\xff" * 900 + c[1500:], "truncated or damaged at byte"),
        (lambda c: lying(c, 124 + 1024, b"77777777777\0"), "truncated: it ends"),
        (lambda c: lying(c, 124 + 1024, b"\xff" * 12), "tar"),
        (lambda c: lying(lying(c, 124 + 1024, b"00077777777\0"), 156 + 1024, b"L"), "no plain tar"),
    ],
    ids=["empty", "gzip", "truncated", "no end", "header", "too long", "negative", "long name"],
)
def test_a_damaged_tar_is_refused_with_its_place(tmp_path: Path, cache: Path, damage: Any, named: str) -> None:
    path = foreign(tmp_path / "x.tar")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RequestError, match=named) as caught:
        listed_images(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([("a.png", b"x"), ("a.cls", b"cat")], "index of a class"),
        ([("a.png", b"x"), ("a.cls", b"999999999")], "index of a class"),
        ([("a.txt", b"x")], "no image"),
        ([("a.png", b"x"), ("b.png", b"x"), ("a.cls", b"1")], 'key "a" stands in it twice'),
    ],
)
def test_what_is_no_sample_is_refused(tmp_path: Path, cache: Path, members: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        listed_images(tar_of(tmp_path / "x.tar", members))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_our_shards_and_we_read_its(folder: Path, written: Path, tmp_path: Path, cache: Path) -> None:
    wds = pytest.importorskip("webdataset")
    ours = {sample.path.name.partition(".")[0]: sample for sample in shard_folder(written).samples}
    seen = {item["__key__"]: item for item in wds.WebDataset(str(written).replace("\\", "/"), shardshuffle=False)}
    gc.collect()  # it leaves files open
    assert seen.keys() == ours.keys()
    for key, item in seen.items():
        assert (folder / json.loads(item["json"])["path"]).read_bytes() == item["png"]
        assert int(item["cls"]) == ours[key].label
    with wds.TarWriter(str(tmp_path / "theirs-000000.tar")) as sink:
        for index in range(5):
            sink.write({"__key__": f"k{index}", "png": np.full((4, 4, 3), index, np.uint8), "cls": index % 2})
    found = shard_folder(tmp_path / "theirs-000000.tar")
    assert [int(read(sample.source, 3)[0, 0, 0]) for sample in found.samples] == list(range(5))
    assert found.samples.labels.tolist() == [0, 1, 0, 1, 0]
