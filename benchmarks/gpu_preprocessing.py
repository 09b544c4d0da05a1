"""The preprocessing kernel on a GPU: its share of a copy's bandwidth, and other libraries in the same run.

Decoded images of 500×375, on the GPU already, to the network's input of 224×224, in batches of 256. All libraries take
turns, medians of the rounds; those that can't be imported are left out. Also how far the pixels of each are from
Pillow's. Takes numpy, pillow, pycuda and NVRTC; torch and torchvision, cvcuda, nvidia-dali for the others. Writes
results/gpu-preprocessing.csv.

Where its time goes on an H100 (132 multiprocessors of 4 schedulers at 1.9 GHz), counted by its profiler: 95 million
instructions of 32 threads make 401,408 times 32 pixels, 237 a pixel of three channels, of which 24 + 24 multiply and
add and as many take a byte out of a word. At one instruction a cycle from each scheduler that is 95 µs, the 237 MB
that must move take 80 µs at a copy's speed, and a launch takes 131 µs: schedulers wait a third of their cycles, most
of it for the first bytes of a row. Before words were loaded in place of bytes and a table in place of two divisions a
value it was 165 million instructions, 410 a pixel, and 243 µs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import _results
import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.evaluation.stages import GIGA, Bandwidth, bandwidth, write_pictures
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.packing import bytes_needed
from trt_cls.preprocessing.pillow import Floats, Pixels, fit, hwc, normalize

BATCH, ROUNDS, REPEATS = 256, 7, 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(3, 224, 224, "center", "bilinear", "rgb", 255.0, MEAN, STD)
COVERING = (256, 341)
"""(height, width) that 500×375 are resized to before the crop."""
LIBRARIES = ("torch", "torchvision", "cvcuda-cu12", "cvcuda-cu13", "nvidia-dali-cuda120", "nvidia-dali-cuda130")

Way = tuple[Callable[[], object], Callable[[], None], Callable[[], Floats]]
"""Queues one batch; waits for all that is queued; the tensor of the last batch on the host."""


def our_kernel(kernel: CudaPreprocessing, images: Sequence[Pixels]) -> Way:
    cuda = kernel.cuda
    stream, staging = cuda.Stream(), kernel.new_staging()
    host = cuda.pagelocked_empty((len(images), *PREPROCESSING.input_shape), np.float32)
    output = cuda.mem_alloc(host.nbytes)
    placed = kernel.copy(images, staging, stream)

    def result() -> Floats:
        cuda.memcpy_dtoh_async(host, output, stream)
        stream.synchronize()
        return np.array(host)

    return lambda: kernel.launch(placed, int(output), stream), lambda: stream.synchronize(), result


def torchvision_chain(images: Sequence[Pixels]) -> Way:
    """torchvision in its best case: all images have one size, and are one tensor."""
    import torch
    from torchvision.transforms.v2 import functional

    batch = torch.from_numpy(np.stack(images)).cuda().permute(0, 3, 1, 2).contiguous()

    def work() -> Any:
        resized = functional.resize(batch, list(COVERING), antialias=True)
        return _normalized(functional.center_crop(resized, [224, 224]))

    return work, torch.cuda.synchronize, lambda: work().cpu().numpy()


def cvcuda_chain(images: Sequence[Pixels]) -> Way:
    """CV-CUDA's Pillow-like resize; crop and normalization by torch."""
    import cvcuda
    import torch

    batch = torch.from_numpy(np.stack(images)).cuda()
    source = cvcuda.as_tensor(batch, "NHWC")
    top, left = (COVERING[0] - 224) // 2, round(COVERING[1] / 2) - 112

    def work() -> Any:
        resized = cvcuda.pillowresize(source, (len(images), *COVERING, 3), cvcuda.Format.RGB8, cvcuda.Interp.LINEAR)
        pixels = torch.as_tensor(resized.cuda(), device="cuda")[:, top : top + 224, left : left + 224]
        return _normalized(pixels.permute(0, 3, 1, 2))

    return work, torch.cuda.synchronize, lambda: work().cpu().numpy()


def dali_chain(images: Sequence[Pixels]) -> Way:
    import torch
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import feed_ndarray

    batch = [torch.from_numpy(image.copy()).cuda() for image in images]

    @pipeline_def(batch_size=len(images), num_threads=2, device_id=0, prefetch_queue_depth=1)  # type: ignore[misc]
    def pipeline() -> Any:
        pixels = fn.external_source(source=lambda: batch, device="gpu", layout="HWC", no_copy=True)
        resized = fn.resize(pixels, size=COVERING, interp_type=types.INTERP_LINEAR, antialias=True)
        mean, std = [255 * value for value in MEAN], [255 * value for value in STD]
        # Its own rounding of half a pixel would shift the crop, and every value would be off.
        return fn.crop_mirror_normalize(
            resized, crop=(224, 224), rounding="truncate", mean=mean, std=std, output_layout="CHW"
        )

    built = pipeline()
    built.build()

    def result() -> Floats:
        (tensors,) = built.run()
        tensor = torch.empty((len(images), *PREPROCESSING.input_shape), device="cuda")
        feed_ndarray(tensors.as_tensor(), tensor)
        torch.cuda.synchronize()
        return np.asarray(tensor.cpu().numpy())

    return built.run, torch.cuda.synchronize, result


def _normalized(pixels: Any) -> Any:
    import torch

    mean, std = (torch.tensor(values, device="cuda").view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).contiguous()


def ways(kernel: CudaPreprocessing, images: Sequence[Pixels]) -> Iterator[tuple[str, Way]]:
    yield "trt-cls kernel", our_kernel(kernel, images)
    chains = {"torchvision": torchvision_chain, "CV-CUDA": cvcuda_chain, "DALI": dali_chain}
    for name, chain in chains.items():
        with suppress(ImportError):
            yield name, chain(images)


def seconds(way: Way) -> float:
    work, wait, _ = way
    wait()
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    wait()
    return (time.perf_counter() - start) / REPEATS


def pixels_off(found: Floats, images: Sequence[Pixels]) -> tuple[float, float]:
    """Share of the values that are not Pillow's, and the largest difference, in levels of 0 to 255."""
    levels = np.abs(found - expected(images)) * np.array(STD, np.float32)[:, None, None] * 255
    return 1 - float((levels <= 0.5).mean()), float(levels.max())  # half a level: normalization may round otherwise


def expected(images: Sequence[Pixels]) -> Floats:
    from PIL import Image

    tensors = [normalize(fit(Image.fromarray(image), PREPROCESSING), PREPROCESSING) for image in images]
    return np.stack(tensors)


def batch() -> list[Pixels]:
    with tempfile.TemporaryDirectory() as folder:
        pictures = [hwc(decode(path, 3)) for path in write_pictures(Path(folder))]
    return [pictures[index % len(pictures)] for index in range(BATCH)]


def measure_alone() -> None:
    """A few launches of our kernel, for a profiler."""
    with closing(CudaPreprocessing(PREPROCESSING)) as kernel, kernel.current():
        work, wait, _ = our_kernel(kernel, batch())
        for _ in range(4):
            work()
        wait()


def measure() -> list[Mapping[str, object]]:
    images = batch()
    with closing(CudaPreprocessing(PREPROCESSING)) as kernel:
        floor = bandwidth(kernel, PREPROCESSING, images)
        with kernel.current():
            chosen = dict(ways(kernel, images))
            rounds = [{name: seconds(way) for name, way in chosen.items()} for _ in range(ROUNDS + 1)][1:]
            off = {name: pixels_off(way[2](), images) for name, way in chosen.items()}
            chosen.clear()
    needed = bytes_needed([(image.shape[1], image.shape[0]) for image in images], PREPROCESSING)
    return [row(name, [times[name] for times in rounds], off[name], needed, floor) for name in rounds[0]]


def row(
    name: str, times: Sequence[float], off: tuple[float, float], needed: int, floor: Bandwidth
) -> Mapping[str, object]:
    """The kernel's bandwidth by the GPU's clock, the others' by the host's, which includes their launches."""
    time_of_batch = statistics.median(times)
    achieved = floor.kernel if name == "trt-cls kernel" else needed / time_of_batch / GIGA
    return {
        "way": name,
        "images_per_second": f"{BATCH / time_of_batch:.0f}",
        "gb_per_second": f"{achieved:.1f}",
        "copy_gb_per_second": f"{floor.copy:.1f}",
        "share_of_copy": f"{achieved / floor.copy:.3f}",
        "share_of_values_off": f"{off[0]:.5f}",
        "largest_difference_levels": f"{off[1]:.2f}",
        "batch": BATCH,
        "rounds": len(times),
        **_results.about(("numpy", "pillow", "pycuda", *LIBRARIES)),
    }


if __name__ == "__main__":
    sys.exit(_results.run("gpu-preprocessing", measure))
