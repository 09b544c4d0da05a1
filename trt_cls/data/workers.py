"""Worker processes that make batches: orders go out and batches come back, over a socket to each of them.

No shared memory is used: a container has 64 MB of it by default, and a batch that does not fit there fails silently. A
socket costs about the same: the main process spends 10 ms on a batch of 19 MB, through /dev/shm 8 ms (AMD Zen 3, torch
2.14), and tensors for a GPU arrive in page-locked memory without another copy. A worker that dies closes its socket,
which the main process notices at once; when the main process dies, however it does, its workers end. Does not know:
images.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any

import numpy as np

from trt_cls import terminal
from trt_cls.errors import RequestError, TrtClsError, one_line
from trt_cls.isolation import start_forkserver

AHEAD = 2
"""Batches in work for each worker, beside the one that was returned last."""
ADVICE = (
    "expected it to the end of the training; lower train_config.n_workers or batch_size_per_gpu if memory is short, "
    "then go on with --resume"
)


class LoaderError(TrtClsError):
    """A worker process died or failed."""


class Workers:
    """`count` processes in which `make` turns orders into batches; both are sent as pickles, tensors beside them.

    `preload` is the module of `make`, imported once for all processes. With a `gpu` tensors arrive in page-locked
    memory for it.

    Raises:
        LoaderError: they can't be started.
    """

    def __init__(self, make: Callable[[Any], Any], count: int, preload: str, gpu: int | None = None) -> None:
        # forkserver: fork would copy this process's threads, spawn would import torch in each process
        context = get_context("forkserver")
        started: list[_Worker] = []
        Finalize(self, _kill, (started,), exitpriority=10)
        self._started = started
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        try:
            start_forkserver([preload])
            for _ in range(count):
                started.append(_Worker(context, make, gpu))
                self._idle.put(started[-1])
            self._threads = ThreadPoolExecutor(count, "trt-cls-loader")
        except (OSError, EOFError, RuntimeError) as error:
            _kill(started)
            raise LoaderError(
                f"loader process {len(started) + 1} of {count} can't be started ({one_line(error)}); expected room for "
                "it; lower train_config.n_workers, or raise the limit of open files, processes or memory (ulimit -a)"
            ) from error

    def map(self, orders: Iterable[Any]) -> Iterator[Any]:
        """The batch of each order, in order; some are made ahead.

        Raises:
            LoaderError: a process died, or failed in its work.
            TrtClsError: as `make` raised it.
        """
        ahead: deque[Future[Any]] = deque()
        try:
            for order in orders:
                ahead.append(self._threads.submit(self._made, order))
                if len(ahead) >= AHEAD * len(self._started):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Ends the processes at once."""
        _kill(self._started)
        self._threads.shutdown(cancel_futures=True)  # before the sockets that they read from are closed
        for worker in self._started:
            worker.connection.close()

    def _made(self, order: Any) -> Any:
        worker = self._idle.get()  # there is one for each thread
        try:
            return worker.ask(order)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, and the socket to it."""

    def __init__(self, context: Any, make: Callable[[Any], Any], gpu: int | None) -> None:
        self._gpu = gpu
        self.connection, others = context.Pipe()
        try:
            self.process = context.Process(target=_work, args=(others, make), daemon=True)
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            others.close()

    def ask(self, order: Any) -> Any:
        try:
            self.connection.send(order)
            outcome = _receive(self.connection, self._gpu)
        except (EOFError, OSError) as error:
            raise LoaderError(f"a loader process {self._end()}; {ADVICE}") from error
        if isinstance(outcome, _Failure):
            outcome.raise_it()
        return outcome

    def kill(self) -> None:
        with suppress(OSError):  # it may be gone
            self.process.kill()

    def _end(self) -> str:
        self.process.join(5)
        status = self.process.exitcode
        if status is None or status >= 0:
            return f"ended (status {status})"
        return f"was killed by {signal.Signals(-status).name}"


class _Failure:
    """A worker's exception as text, because not every exception can be pickled."""

    def __init__(self, error: Exception) -> None:
        self._status = error.exit_code if isinstance(error, TrtClsError) else None
        self._text = str(error) if self._status else one_line(error)
        self._trace = traceback.format_exc()

    def raise_it(self) -> None:
        cause = LoaderError(f"in a loader process:\n{self._trace}")
        if self._status:
            raise (RequestError if self._status == RequestError.exit_code else TrtClsError)(self._text) from cause
        raise LoaderError(f"a loader process failed ({self._text}); {ADVICE}") from cause


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()


def _work(connection: Connection, make: Callable[[Any], Any]) -> None:
    """The main function of a worker process."""
    # These signals reach every process of a terminal or a job; the main process handles them and ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    terminal.prepare()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch := sys.modules.get("torch"):  # `make` has imported it, or does not need it
        torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):  # the main process has ended
        while True:
            order = connection.recv()
            try:
                outcome = make(order)
            except Exception as error:  # MemoryError too
                outcome = _Failure(error)
            _send(connection, outcome)


def _end_with_parent() -> None:
    """Ends with the process that started this one through the fork server, and which may die of SIGKILL."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Pickler(pickle.Pickler):
    """Collects tensors and leaves their content out."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Any] = []

    def persistent_id(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor):
            return None
        self.tensors.append(value)
        return tuple(value.shape), value.dtype


class _Unpickler(pickle.Unpickler):
    """Makes tensors without content."""

    def __init__(self, file: io.BytesIO, gpu: int | None) -> None:
        super().__init__(file)
        self._pinned = gpu is not None
        self.tensors: list[Any] = []

    def persistent_load(self, described: Any) -> Any:
        import torch

        shape, dtype = described
        self.tensors.append(torch.empty(shape, dtype=dtype, pin_memory=self._pinned))
        return self.tensors[-1]


def _send(connection: Connection, outcome: Any) -> None:
    content = io.BytesIO()
    pickler = _Pickler(content)
    pickler.dump(outcome)
    connection.send_bytes(content.getbuffer())
    for tensor in pickler.tensors:
        view = _bytes(tensor)
        while len(view):
            view = view[os.write(connection.fileno(), view) :]


def _receive(connection: Connection, gpu: int | None) -> Any:
    content = connection.recv_bytes()
    if gpu is not None:  # page-locked memory belongs to the thread's current device
        import torch

        torch.cuda.set_device(gpu)
    unpickler = _Unpickler(io.BytesIO(content), gpu)
    outcome = unpickler.load()
    for tensor in unpickler.tensors:
        view = _bytes(tensor)
        while len(view):
            count = os.readv(connection.fileno(), [view])
            if not count:
                raise EOFError
            view = view[count:]
    return outcome


def _bytes(tensor: Any) -> memoryview:
    return memoryview(tensor.contiguous().numpy().reshape(-1).view(np.uint8))
