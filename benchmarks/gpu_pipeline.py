"""An engine from image files to answers on a GPU: the share of its slowest stage, graphs on and off, and parity.

Builds an engine of an ONNX file that trt-cls wrote, for the GPU at hand, with each of TensorRT and TensorRT-RTX that is
installed. Takes pycuda and nvcc too, and onnxruntime for the parity. Writes results/gpu-pipeline.csv. Usage:
python benchmarks/gpu_pipeline.py --onnx MODEL.onnx --images DIR
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import _results
import numpy as np

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.sidecar import BuilderName, Profile, Sidecar, write_sidecar
from trt_cls.data.folder import Sample, list_images
from trt_cls.engines import open_engine
from trt_cls.engines.tensorrt.api import RUNTIMES, make_logger
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.errors import EngineError
from trt_cls.evaluation.benchmark import benchmark
from trt_cls.evaluation.evaluate import predict
from trt_cls.gpu import visible_gpu

PROFILE = Profile(1, 64, 256)
BATCH, SECONDS = 256, 20.0


def build(trt: Any, name: BuilderName, onnx: Path) -> bytes:
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(trt.BuilderFlag.TF32)  # as trt-cls export does
    shape = read_contract(onnx).preprocessing.input_shape
    profile.set_shape("input_1", *((n, *shape) for n in (PROFILE.minimum, PROFILE.optimum, PROFILE.maximum)))
    if name == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    read = parser.parse_from_file(str(onnx)) and config.add_optimization_profile(profile) == 0
    plan = builder.build_serialized_network(network, config) if read else None
    if plan is None:
        raise EngineError(f"{name} {trt.__version__} builds no engine of {onnx}: {'; '.join(logger.errors)}")
    return bytes(plan)


def engines(onnx: Path, folder: Path) -> Iterator[Path]:
    """An engine by each TensorRT that is installed and knows this GPU."""
    refused = []
    gpu = visible_gpu()
    for name, (module, _) in RUNTIMES.items():
        try:
            trt = import_module(module)
            plan = build(trt, name, onnx)
        except (ImportError, AttributeError, EngineError) as error:
            refused.append(f"{name}: {' '.join(str(error).split())}")
            continue
        path = folder / f"{name}.engine"
        path.write_bytes(plan)
        capability = gpu.compute_capability if gpu else ""
        digest = hashlib.sha256(plan).hexdigest()
        version = str(trt.__version__)
        contract = read_contract(onnx)
        write_sidecar(path, Sidecar(contract, digest, name, version, (capability,), "", PROFILE, onnx.name, digest))
        yield path
    for line in refused:
        print(f"left out: {line}", file=sys.stderr)
    if len(refused) == len(RUNTIMES):
        raise EngineError("no TensorRT here builds an engine for this GPU; install tensorrt or tensorrt-rtx")


def rows_of(path: Path, onnx: Path, samples: Sequence[Sample]) -> Iterator[Mapping[str, object]]:
    workers = os.cpu_count() or 1
    for graphs in (True, False):
        with closing(TensorRtEngine(path, graphs=graphs)) as engine:
            found = benchmark(engine, samples, batch_size=BATCH, workers=workers, executor="cuda", seconds=SECONDS)
        where = {"engine": found.backend, "cuda_graphs": "on" if graphs else "off"}
        figures = {f"{stage.stage} images/s": stage.images_per_second for stage in found.stages}
        figures |= {f"{stage.stage} p50 ms": stage.p50_ms for stage in found.stages}
        if found.limit and found.share_of_limit:
            figures[f"share of {found.limit.stage}, the slowest stage"] = found.share_of_limit
        if found.kernel:
            figures["kernel's share of a copy's bandwidth"] = found.kernel.share
        for name, value in figures.items():
            yield {**where, "figure": name, "value": f"{value:.4g}"}
    for name, value in parity(path, onnx, samples).items():
        yield {"engine": path.stem, "cuda_graphs": "on", "figure": name, "value": f"{value:.4g}"}


def parity(path: Path, onnx: Path, samples: Sequence[Sample]) -> dict[str, float]:
    with closing(open_engine(onnx, "cpu")) as reference, closing(TensorRtEngine(path)) as engine:
        expected = predict(reference, samples, batch_size=32, workers=8).probabilities
        found = predict(engine, samples, batch_size=BATCH, workers=8, executor="cuda").probabilities
    return {
        "top-1 agreement with ONNX Runtime": float((expected.argmax(1) == found.argmax(1)).mean()),
        "largest difference of a probability": float(np.abs(expected - found).max()),
    }


def measure(onnx: Path, images: Path) -> list[Mapping[str, object]]:
    samples = [Sample(path) for path in list_images(images)]
    about = _results.about(("numpy", "pillow", "pycuda", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13"))
    rows: list[Mapping[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in engines(onnx, Path(folder)):
            rows += [
                {**row, "model": onnx.name, "images": len(samples), "batch": BATCH, **about}
                for row in rows_of(path, onnx, samples)
            ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, help="ONNX file that trt-cls export wrote")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    arguments = parser.parse_args()
    return _results.run("gpu-pipeline", lambda: measure(arguments.onnx, arguments.images))


if __name__ == "__main__":
    sys.exit(main())
