"""Shards in object stores: the images of the files, a cache within its limit, and faults named without secrets."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.pixel_reference import preprocessing_of
from support.tiny_models import write_onnx
from trt_cls import spec, store_cache, stores
from trt_cls.cli import main
from trt_cls.data.folder import image_folder, listed_images
from trt_cls.data.shard_writer import write_shards
from trt_cls.data.shards import shard_folder
from trt_cls.data.split import Dataset
from trt_cls.data.stream import stream
from trt_cls.errors import DataError, MissingDependency, RequestError, StoreError, TrtClsError
from trt_cls.files import is_shards, shard_paths
from trt_cls.preprocessing.images import read
from trt_cls.urls import StorePath, location, redacted

PREPROCESSING = preprocessing_of("rgb", "bilinear", "center", "16x24", "torch")
SECRET = "hunter2"
Fault = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Sends the files of a folder, or what the next fault of a name makes of them."""

    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.asked[self.command, name] += 1
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        file = self.server.folder / name
        if not file.is_file():
            self.send_error(404)
            return
        faults = self.server.faults[name] if self.command == "GET" else []
        (faults.pop(0) if faults else send)(self, file.read_bytes())

    def log_message(self, *_: Any) -> None:
        pass


def send(handler: Handler, content: bytes, stated: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if stated is None else stated))
    handler.send_header("ETag", f'"{hash(content)}"')
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(content)


class Server(ThreadingHTTPServer):
    """An HTTP server on this machine, with planted faults: the next answers for a name."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.asked: Counter[tuple[str, str]] = Counter()
        self.seen: list[tuple[str, str | None]] = []

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def pattern(self) -> Path:
        return location(f"http://{self.place}/set/s-{{000000..000002}}.tar")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for index in range(12):
            pixels = generator.integers(0, 256, (60, 50 + index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def files(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards and their index."""
    out = tmp_path_factory.mktemp("shards")
    assert len(write_shards(image_folder(images), out, "s", 120_000).shards) == 3
    return out


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRT_CLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "WAIT", 0.001)
    return tmp_path / "cache" / "stores"


@pytest.fixture
def server(files: Path) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    serving = Server(files)
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()


@pytest.fixture
def memory(files: Path) -> Iterator[Path]:
    """The shards in the memory of this process; the pattern that names them."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    for path in files.iterdir():
        store.pipe_file(f"/set/{path.name}", path.read_bytes())
    yield location("memory://set/s-{000000..000002}.tar")
    store.store.clear()


@pytest.fixture
def kept(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where outputs are taken, too: this process goes on after the command."""
    monkeypatch.setattr(stores, "UNSHARED", ())
    return memory


def contents(samples: Any) -> list[tuple[bytes, bytes, int]]:
    return [
        (name, read(sample.source, 3).tobytes(), sample.label)
        for name, sample in zip(samples.names(), samples, strict=True)
    ]


def copies(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.suffix == ".tar")


def all_of(pattern: Path) -> list[tuple[bytes, bytes, int]]:
    return contents(shard_folder(pattern).samples)


def test_a_store_holds_the_images_of_the_files(files: Path, server: Server, memory: Path, cache: Path) -> None:
    expected = contents(shard_folder(files / "s-{000000..000002}.tar").samples)
    assert all_of(server.pattern) == all_of(memory) == expected
    assert contents(shard_folder(location(f"file://{files}/s-{{000000..000002}}.tar")).samples) == expected
    assert len(copies(cache)) == 6
    names = [str(sample.path) for sample in listed_images(shard_paths(server.pattern)[1])]
    assert all(name.startswith(f"http://{server.place}/set/s-000001.tar/0000") for name in names)
    assert Dataset(memory, "val", 0.3, 5).labeled().counts.tolist() == [4, 4]


def test_a_shard_is_copied_once_whoever_wants_it(server: Server, cache: Path) -> None:
    samples = shard_folder(server.pattern).samples
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda sample: read(sample.source, 3), samples))
    program = "import sys; from trt_cls.data.shards import *; from trt_cls.urls import location\n"
    program += "from trt_cls.preprocessing.images import read\n"
    program += "for s in shard_folder(location(sys.argv[1])).samples: read(s.source, 3)"
    subprocess.run([sys.executable, "-c", program, str(server.pattern)], check=True)
    assert {server.asked["GET", f"s-00000{number}.tar"] for number in range(3)} == {1}
    assert not list(cache.glob("*.part"))


def test_batches_are_copied_ahead_and_complete(server: Server) -> None:
    samples = shard_folder(server.pattern).samples
    found = [batch for batch in stream(samples, PREPROCESSING, batch_size=5, workers=2)]
    assert sum(len(batch.images) for batch in found) == 24
    assert not any(batch.skipped for batch in found)


def failing(handler: Handler, content: bytes) -> None:
    handler.send_error(500)


def busy(handler: Handler, content: bytes) -> None:
    handler.send_error(429)


def refusing(handler: Handler, content: bytes) -> None:
    handler.send_error(403)


def cut(handler: Handler, content: bytes) -> None:
    send(handler, content[:5000], len(content))
    handler.close_connection = True


def short(handler: Handler, content: bytes) -> None:
    send(handler, content[:5000])


def flipped(handler: Handler, content: bytes) -> None:
    send(handler, content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])


def slow(handler: Handler, content: bytes) -> None:
    time.sleep(0.5)
    send(handler, content)


def gone(handler: Handler, content: bytes) -> None:
    handler.send_error(404)


def endless(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    with suppress(OSError):  # the other side hangs up
        for _ in range(1000):
            handler.wfile.write(content)


def to_a_file(handler: Handler, content: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", "file:///etc/passwd")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize("fault", [failing, busy, cut, short, flipped])
def test_what_passes_is_tried_again(server: Server, fault: Fault) -> None:
    server.faults["s-000001.tar"] = [fault, fault]
    assert len(all_of(server.pattern)) == 24
    assert server.asked["GET", "s-000001.tar"] == 3


@pytest.mark.parametrize(
    ("fault", "named", "times"),
    [
        (failing, "500", 5),
        (refusing, "403", 1),
        (cut, "tried 5 times", 5),
        (short, "truncated or changed: 5,000 bytes found, .* expected", 5),
        (flipped, "changed: SHA-256 .* found, .* expected by its index", 5),
        (slow, "slower than 0.2 seconds", 5),
        (endless, "more than .* bytes found", 5),
        (to_a_file, "file", 1),
    ],
)
def test_what_stays_is_named_and_no_image_is_skipped(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, named: str, times: int
) -> None:
    if fault is slow:  # on a busy machine any answer may take that long
        monkeypatch.setattr(stores, "PATIENCE", 0.2)
    server.faults["s-000001.tar"] = [fault] * 5
    samples = shard_folder(server.pattern).samples
    with pytest.raises(StoreError, match=f"/set/s-000001.tar: can't be read.*{named}") as caught:
        list(map(lambda sample: read(sample.source, 3), samples))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert server.asked["GET", "s-000001.tar"] == times
    assert len(copies(cache)) == 1, "what is not as expected is not kept"
    assert not list(cache.glob("*.part"))


def test_missing_shards_and_stores_are_refused_before_the_work(server: Server, memory: Path) -> None:
    for pattern in (server.pattern, memory):
        more = location(str(pattern).replace("000002", "000004"))
        with pytest.raises(RequestError, match=r"s-000003.tar: no such object.* 2 of 5 shards are missing"):
            listed_images(more)
    with pytest.raises(StoreError, match="can't be read, tried 5 times"):
        listed_images(location("http://127.0.0.1:1/x-0.tar"))
    with pytest.raises(RequestError, match="ftp:// found, expected one of s3, gs, https, http, memory"):
        listed_images(location("ftp://host/x-0.tar"))
    for list_of in (listed_images, image_folder):
        with pytest.raises(RequestError, match=r"s3://bucket/folder: no shards found, expected .*/x-\{0..9\}.tar"):
            list_of(location("s3://bucket/folder"))
    with pytest.raises(RequestError, match="keys found in the URL"):
        listed_images(location(f"s3://key:{SECRET}@mine/x-0.tar"))


def test_tars_of_others_come_from_a_store(server: Server, memory: Path, cache: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").rm_file("/set/s.json")
    found = shard_folder(memory)
    assert found.classes == ("0", "1")
    assert len(found.samples) == 24
    scans = list((cache.parent / "shards").iterdir())
    for copy in copies(cache):
        copy.unlink()
    assert len(shard_folder(memory).samples) == 24
    assert list((cache.parent / "shards").iterdir()) == scans, "scanned once"


def test_secrets_reach_the_server_and_no_text(
    server: Server, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://me:{SECRET}@{server.place}/set/s-{{000000..000002}}.tar?signature={SECRET}&x=1"
    assert is_shards(url)
    assert len(all_of(location(url))) == 24
    assert all(path.endswith(f"?signature={SECRET}&x=1") and given for path, given in server.seen)
    arguments = ["infer", "-m", str(write_onnx(tmp_path / "model.onnx")), "--provider", "cpu", "-i"]
    for flag in ("-o", "-r"):
        assert main([*arguments, url, flag, str(tmp_path / "out")]) == 0
        assert main([*arguments, url.replace("s-", "t-"), flag, str(tmp_path / "out"), "-v"]) == 2
    server.faults["s-000001.tar"] = [refusing] * 9
    monkeypatch.setenv("TRT_CLS_CACHE", str(tmp_path / "other"))
    assert main([*arguments, url, "-v"]) == 1
    said = "".join(capfd.readouterr())
    assert f"http://{server.place}/set/s-000001.tar: can't be read (403" in said
    assert f"http://{server.place}/set/t-000000.tar: no such object" in said
    assert SECRET not in said + "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert SECRET not in repr(location(url))
    assert redacted(f"a https://u:{SECRET}@h/x?y={SECRET}#z, b") == "a https://h/x, b"
    assert (
        redacted(f"(https://u:'{SECRET}@h/x?y='{SECRET}): 's3://h/z', ftp://h/?.")
        == "(https://h/x): 's3://h/z', ftp://h/?."
    )
    text = spec.show(spec.loads(SPEC.format(url), paths=False))
    assert f"http://{server.place}/set/s-{{000000..000002}}.tar" in text
    assert SECRET not in text


SPEC = """model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,16,16" }}
eval_config {{ eval_dataset_path: "{}" }}"""


def test_a_path_of_a_store_stays_one(tmp_path: Path) -> None:
    import pickle

    path = location(f"https://me:{SECRET}@host/a/b-{{0..2}}.tar?q={SECRET}")
    assert isinstance(path, StorePath)
    assert str(path) == "https://host/a/b-{0..2}.tar"
    assert [found.url for found in map(location, map(str, shard_paths(path))) if isinstance(found, StorePath)] == [
        f"https://me:{SECRET}@host/a/b-{number}.tar?q={SECRET}" for number in range(3)
    ]
    assert str(path.parent / "c.json") == str(path.with_name("c.json")) == "https://host/a/c.json"
    for kept in (path, path / "a?b#c.png"):
        assert str(pickle.loads(pickle.dumps(kept))) == str(kept)
    assert location("photos/x.tar") == Path("photos/x.tar")
    for url in ("file:///a/x.tar", "file://localhost/a/x.tar", "FILE://LocalHost/a/x.tar"):
        assert location(url) == Path("/a/x.tar")
    assert location("file:///localhost/x.tar") == Path("/localhost/x.tar")


@pytest.mark.parametrize("lag", [0, 10**9], ids=["one-clock", "clock-of-files-behind"])
def test_the_cache_keeps_its_limit_and_what_is_open(
    server: Server, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, lag: int
) -> None:
    monkeypatch.setattr(store_cache, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + lag))
    shards = shard_paths(server.pattern)
    sizes = [(files / shard.name).stat().st_size for shard in shards]
    monkeypatch.setenv("TRT_CLS_CACHE_SIZE", str(sizes[0] + sizes[1] + 1000))
    (first, second) = (store_cache.local(shard) for shard in shards[:2])
    held = store_cache.opened(shards[0])
    store_cache.local(shards[1])  # the first one is the least recently used
    third = store_cache.local(shards[2])
    assert copies(cache) == sorted([first, third])
    os.close(held)
    assert store_cache.local(shards[1]) == second
    assert copies(cache) == sorted([second, third])
    monkeypatch.setenv("TRT_CLS_CACHE_SIZE", "little")
    with pytest.raises(RequestError, match='TRT_CLS_CACHE_SIZE "little": expected a number of bytes'):
        store_cache.local(shards[0])


def test_a_shard_that_is_gone_after_it_was_listed_is_an_error_and_its_images_are_not_skipped(server: Server) -> None:
    server.faults["s-000001.tar"] = [gone] * 5
    samples = shard_folder(server.pattern).samples
    with pytest.raises(StoreError, match=r"/set/s-000001\.tar: no such object"):
        list(map(lambda sample: read(sample.source, 3), samples))


def test_a_full_disk_and_a_wrong_limit_are_errors_and_no_image_is_skipped(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = shard_folder(server.pattern).samples
    monkeypatch.setenv("TRT_CLS_CACHE_SIZE", "little")
    with pytest.raises(StoreError, match='TRT_CLS_CACHE_SIZE "little": expected a number of bytes'):
        read(samples[0].source, 3)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.delenv("TRT_CLS_CACHE_SIZE")
    monkeypatch.setattr(stores, "_copy", full)
    with pytest.raises(StoreError, match="disk is full"):
        read(samples[0].source, 3)


def test_threads_whose_cache_is_smaller_than_what_they_read_at_once_get_it(
    server: Server, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRT_CLS_CACHE_SIZE", "1")  # each copy drops those of the others that are not open

    def content(path: Path) -> bytes:
        with store_cache.held(path) as copy:
            time.sleep(0.001)
            return copy.read_bytes()

    paths = shard_paths(server.pattern) * 6
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(content, paths)) == [(files / path.name).read_bytes() for path in paths]


def test_a_limit_below_one_shard_gives_every_image(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_CLS_CACHE_SIZE", "1")
    assert len(all_of(server.pattern)) == 24


def test_a_copy_that_was_left_by_a_killed_process_is_made_anew(server: Server, cache: Path) -> None:
    path = shard_paths(server.pattern)[0]
    copy = store_cache.local(path)
    copy.rename(copy.with_suffix(".part"))
    copy.with_suffix(".part").write_bytes(b"half")
    assert store_cache.local(path).read_bytes() == (server.folder / path.name).read_bytes()


def test_a_cache_that_can_t_be_used_or_is_full_is_named(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard_paths(server.pattern)[0]
    cache.parent.mkdir()
    cache.write_text("a file")
    with pytest.raises(StoreError, match=r"the cache of http://.* can't be used .*set TRT_CLS_CACHE"):
        store_cache.local(path)
    cache.unlink()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "_copy", full)
    with pytest.raises(TrtClsError, match="can't be written, the disk is full"):
        store_cache.local(path)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(("scheme", "package", "extra"), [("s3", "s3fs", "cloud"), ("gs", "gcsfs", "gcs")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, extra: str) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf'{scheme}:// needs .* {package}, .*pip install "trt-cls\[{extra}\]"'):
        listed_images(location(f"{scheme}://bucket/x-0.tar"))


def test_nothing_of_stores_is_imported_for_files() -> None:
    program = "import sys, trt_cls.data.shards, trt_cls.stores, trt_cls.cli.infer\n"
    program += "assert not {'fsspec', 'aiohttp', 'asyncio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_labels_are_written_to_a_store_as_to_a_folder(kept: Path, files: Path, tmp_path: Path, capfd: Any) -> None:
    fsspec = pytest.importorskip("fsspec")
    model = write_onnx(tmp_path / "model.onnx")
    base = ["infer", "-m", str(model), "--provider", "cpu"]
    assert main([*base, "-i", str(files / "s-{000000..000002}.tar"), "-o", str(tmp_path / "labels")]) == 0
    assert main([*base, "-i", str(kept), "-o", "memory://out/labels"]) == 0
    assert "3 shards, 3 of this process, 3 to label" in capfd.readouterr().out
    assert main([*base, "-i", str(kept), "-o", "memory://out/labels"]) == 0
    assert "3 shards, 3 of this process, 0 to label" in capfd.readouterr().out
    for out in ("memory://out/labels", str(tmp_path / "labels")):
        assert main(["infer", "--merge", out]) == 0
    store = fsspec.filesystem("memory")
    stored = {name.rpartition("/")[2]: store.cat_file(name) for name in store.ls("/out/labels", detail=False)}
    assert stored == {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()}
    assert main([*base, "-i", str(kept), "-o", "https://host/labels"]) == 2
    assert "https:// can't be written" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["infer", "evaluate", "shards"])
def test_an_output_that_would_be_gone_with_the_process_is_refused(
    command: str, images: Path, files: Path, tmp_path: Path, capfd: Any
) -> None:
    pytest.importorskip("fsspec")
    model, shards = str(write_onnx(tmp_path / "model.onnx")), str(files / "s-{000000..000002}.tar")
    given = {"infer": ["-m", model, "-i", shards], "evaluate": ["-m", model, "--dataset", shards]}
    assert main([command, *given.get(command, [str(images)]), "-o", "memory://out"]) == 2
    assert "memory://out: the memory of this process, of which nothing is left" in capfd.readouterr().err


@pytest.mark.parametrize("indexed", [True, False])
def test_labels_of_other_images_that_had_the_name_of_a_shard_are_refused_without_a_copy_of_it(
    indexed: bool, server: Server, images: Path, tmp_path: Path, cache: Path, capfd: Any
) -> None:
    mirrored = Path(shutil.copytree(images, tmp_path / "images"))
    for path in mirrored.rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    for name, folder in (("one", images), ("other", mirrored)):
        (tmp_path / name).mkdir()
        assert len(write_shards(image_folder(folder), tmp_path / name, "s", 120_000).shards) == 3
        if not indexed:
            (tmp_path / name / "s.json").unlink()
    server.folder = tmp_path / "one"
    model = write_onnx(tmp_path / "model.onnx")
    command = ["infer", "-m", str(model), "--provider", "cpu", "-i", str(server.pattern), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    shutil.rmtree(cache)
    server.asked.clear()
    assert main(command) == 0
    assert "0 to label" in capfd.readouterr().out
    assert not [name for method, name in server.asked if method == "GET" and name.endswith(".tar")]
    server.folder = tmp_path / "other"
    assert main(command) == 2
    assert "s-000000.json: made of other images than those of http://" in capfd.readouterr().err


def test_a_shard_that_can_t_be_had_is_reported_and_the_others_are_labeled(
    server: Server, tmp_path: Path, capfd: Any
) -> None:
    server.faults["s-000001.tar"] = [flipped] * 9
    model = write_onnx(tmp_path / "model.onnx")
    command = ["infer", "-m", str(model), "--provider", "cpu", "-i", str(server.pattern), "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert {path.name for path in (tmp_path / "out").glob("s-*")} == {
        f"s-00000{number}.{ending}" for number in (0, 2) for ending in ("csv", "json")
    }
    assert "1 of 3 shards are not labeled" in capfd.readouterr().err
    server.faults.clear()
    assert main(command) == 0


def test_shards_are_written_to_a_store(images: Path, files: Path, kept: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    assert main(["shards", str(images), "-o", "memory://made", "--name", "s", "--size", "120kB"]) == 0
    store = fsspec.filesystem("memory")
    for path in files.iterdir():
        assert store.cat_file(f"/made/{path.name}") == path.read_bytes()
    assert main(["shards", str(images), "-o", "memory://made", "--name", "s", "--size", "120kB"]) == 2


def test_memory_is_not_shared_with_loader_processes(memory: Path) -> None:
    with pytest.raises(RequestError, match=r"memory://set.*set n_workers: 0"):
        stores.require_shared(memory)
    stores.require_shared(location("s3://bucket/x.tar"))


def test_a_copy_in_use_is_locked(server: Server) -> None:
    path = shard_paths(server.pattern)[0]
    held = store_cache.opened(path)
    with store_cache.local(path).open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held)


def test_a_name_of_a_store_can_t_break_a_line(memory: Path) -> None:
    path = location("memory://set/a\nb/../\x1b[2J-0.tar")
    with pytest.raises(DataError):
        listed_images(path)
    assert main(["infer", "-m", "missing.onnx", "-i", str(path)]) == 2
