"""INT8 and FP8 export: a float32 graph is calibrated on images and quantized, all of it or the layers that cost little.

Knows what 8 bits can compute (`layers`), the graph (`qdq`), and what stays in float16 for its accuracy (`sensitivity`).
Does not know: how calibration clips a range, which is in `models/int8_ranges.py` for training too. Begin with
`quantize`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import Contract
from trt_cls.data.folder import evenly_spread
from trt_cls.data.split import Dataset, training_datasets
from trt_cls.errors import DataError, ExportError, RequestError
from trt_cls.export.int8.layers import LEAST_SHARE, Keep, first_and_last, float_layers_text, quantizable, share_of
from trt_cls.export.int8.qdq import Fp8, int8_from_fp32, measure_magnitudes, trained_layers
from trt_cls.export.int8.sensitivity import EightBits, LabeledImages, choose, rank, signal_to_noise, table
from trt_cls.export.sample_images import BATCH, ImageSet, images_for
from trt_cls.export.torch_to_onnx import onnx_from_module
from trt_cls.files import is_shards
from trt_cls.models.int8_ranges import METHODS, Histogram, Method, best_of, threshold
from trt_cls.spec.experiment import Experiment

if TYPE_CHECKING:
    from torch import nn

EIGHT_BITS: tuple[EightBits, ...] = get_args(EightBits)
BATCHES = 32
"""Of 16 images: 512."""
RANKED_ON = 64
"""Images that a layer's cost is measured on: a second a layer of a resnet18 at 224×224 on two cores."""
LABELED = 2000
"""The standard error of an accuracy of 75 % is then one point."""


@dataclass(frozen=True)
class Int8:
    """What `--int8`, `--fp8` or `--auto` is asked to do."""

    images: Path | None = None
    """Folder to calibrate on; None: the training dataset of the spec."""
    batches: int = BATCHES
    method: Method | Literal["auto"] = "auto"
    """Auto: the one that changes the answers least."""
    keep: tuple[Keep, ...] = ()
    max_loss: float | None = None
    """Points of top-1, of multi-label models mAP, that may be lost on labeled images; None: all layers in 8 bits."""
    formats: tuple[EightBits, ...] = ("int8",)
    """Of layers, the cheapest first; several only with `max_loss`."""


def calibration_dataset(asked: Int8, experiment: Experiment | None) -> Dataset:
    """Where the images to calibrate on come from.

    Raises:
        RequestError: neither the request nor a spec names a folder.
    """
    if asked.images:
        return Dataset(asked.images)
    if experiment and experiment.train_config:
        return training_datasets(experiment.train_config, experiment.extensions)[0]
    raise RequestError(
        "--int8 and --fp8 need ranges that are measured on images, and none are named; expected --calibration-images "
        "DIR with 512 or more of the kind that the network will see, or -e SPEC whose training dataset is taken; add "
        "one of them"
    )


def quantize(
    model: OnnxModel, asked: Int8, folder: Dataset, labeled: Dataset | None, say: Callable[[str], None]
) -> OnnxModel:
    """`model` in 8 bits, calibrated on the images below `folder`; `labeled` is what `max_loss` is measured on.

    Raises:
        DataError: a folder is missing, or holds no image that can be decoded, or other classes than the model's.
        ExportError: the network can't be quantized, or too little of it, or not within `max_loss`.
    """
    graph = model.proto
    kept = first_and_last(graph, asked.keep)
    layers = {name: tensors for name, tensors in quantizable(graph).items() if name not in kept}
    if not asked.keep and asked.max_loss is None:
        _require_most(graph, layers, asked.formats[0])
    wanted = asked.batches * BATCH
    images = images_for(model.contract.preprocessing, folder, wanted)
    for line in shortcomings(images, wanted, class_folders=model.contract.task == "single"):
        say(line)
    measured_on = _labeled(model.contract, labeled) if asked.max_loss is not None else None
    tensors = list(dict.fromkeys(chain.from_iterable(layers.values())))
    first, batches = _peek(images)
    magnitudes = measure_magnitudes(graph, tensors, batches)
    largest = {name: found.largest for name, found in magnitudes.items()}
    thresholds, method = largest, "FP8: largest magnitude / 448"
    if "int8" in asked.formats:
        thresholds, method = _thresholds(graph, list(layers), magnitudes, asked.method, first)
    say(f"calibrated on {len(images.samples)} of {images.total} images of {folder} ({method})")
    if measured_on is None or asked.max_loss is None:
        say(_shares(graph, layers))
        fp8 = Fp8(list(layers) if asked.formats == ("fp8",) else [], largest)
        return int8_from_fp32(model, thresholds, list(layers), fp8)
    metric, count = measured_on.metric, len(measured_on.samples)
    say(f"measuring {len(layers)} layers one by one, then {metric} on {count} images of {labeled}")
    ranking = rank(graph, thresholds, list(layers), first, asked.formats, largest)
    choice = choose(model, thresholds, ranking, measured_on, asked.max_loss / 100, say, largest)
    for line in table(choice):
        say(line)
    say(
        f"{metric} on {count} images: float32 {choice.top1_fp32:.2%}, all {asked.formats[0].upper()} "
        f"{choice.top1_all_int8:.2%}, with {len(layers) - len(choice.int8)} of {len(layers)} layers in float16"
        f"{f' and {len(choice.fp8)} in FP8' if len(asked.formats) > 1 else ''} {choice.top1:.2%}"
    )
    say(_shares(graph, choice.int8))
    return int8_from_fp32(model, thresholds, choice.int8, Fp8(choice.fp8, largest))


def trained_for_int8(network: nn.Module, contract: Contract, say: Callable[[str], None]) -> OnnxModel:
    """The graph of a network that was trained as INT8 computes, with the ranges of its training.

    Raises:
        ExportError: it can't be exported.
    """
    from trt_cls.models.int8_layers import restore_layers, trained_ranges

    ranges = trained_ranges(network)
    restore_layers(network)
    model = onnx_from_module(network, replace(contract, precision="fp32"))
    thresholds, layers = trained_layers(model.proto, ranges)
    say(_shares(model.proto, layers))
    return int8_from_fp32(model, thresholds, layers)


def _require_most(graph: onnx.ModelProto, layers: Collection[str], form: EightBits) -> None:
    share = share_of(graph, layers)
    if share < LEAST_SHARE:
        raise ExportError(
            f"--{form} would compute {share:.1%} of the multiply-adds in 8 bits, the rest in float16: "
            f"{float_layers_text(graph, layers)}; expected at least {LEAST_SHARE:.0%}; export with --fp16, or take it "
            "as it is with --int8-keep or --auto"
        )


def _shares(graph: onnx.ModelProto, layers: Collection[str]) -> str:
    """How much of a float32 `graph` 8 bits compute with `layers`, for display."""
    rest = float_layers_text(graph, layers)
    share = f"8 bits compute {share_of(graph, layers):.1%} of the multiply-adds"
    return f"{share}, float16 {rest}" if rest else share


def _thresholds(
    model: onnx.ModelProto,
    layers: Sequence[str],
    magnitudes: Mapping[str, Histogram],
    asked: Method | Literal["auto"],
    images: NDArray[Any],
) -> tuple[dict[str, float], str]:
    """The largest magnitude kept of each activation, and the method in words; "auto" tries them all on `images`."""
    methods = METHODS if asked == "auto" else (asked,)
    ranges = {method: {name: threshold(found, method) for name, found in magnitudes.items()} for method in methods}
    if asked != "auto":
        return ranges[asked], asked
    best, compared = best_of(signal_to_noise(model, ranges, layers, images))
    return ranges[best], compared


def shortcomings(images: ImageSet, asked: int, *, class_folders: bool = True) -> list[str]:
    """What calibration on `images` may miss, one sentence each."""
    found = []
    if len(images.samples) < asked:
        found.append(
            f"calibration: {images.folder} holds {len(images.samples)} images, {asked} were asked for: "
            "ranges measured on few images cut what others reach"
        )
    assert images.folder is not None
    if is_shards(images.folder):
        return found
    folders = {sample.path.relative_to(images.folder).parts[:-1] for sample in images.samples}
    if len(folders) == 1 and class_folders:
        found.append(
            f"calibration: all images lie in one folder, {images.samples[0].path.parent}: if they are of one class, "
            "the ranges of the other classes are not known; name a folder with images of all classes"
        )
    return found


def _peek(images: ImageSet) -> tuple[NDArray[Any], Iterable[NDArray[Any]]]:
    """The first images, up to 64, and all of them.

    Raises:
        DataError: none can be decoded.
    """
    batches = images.batches()
    first = list(islice(batches, RANKED_ON // BATCH))
    if not first:
        raise DataError(f"{images.folder}: holds no image that can be decoded; expected images to calibrate on")
    return np.concatenate(first), chain(first, batches)


def _labeled(contract: Contract, folder: Dataset | None) -> LabeledImages:
    if folder is None:
        raise RequestError(
            f"--auto measures {'top-1' if contract.task == 'single' else 'mAP'} on labeled images, and none are "
            "named; expected --images DIR with a sub-folder per class, or -e SPEC whose evaluation dataset is taken; "
            "add one of them"
        )
    samples = folder.labeled(contract.classes, allow_missing=True).samples
    return LabeledImages(contract.preprocessing, evenly_spread(samples, LABELED))
