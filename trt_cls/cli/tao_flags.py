"""The table of TAO's commands and flags for TF1 classification: what `classification_tf1` does with each.

It covers TAO Toolkit (train to export) and TAO Deploy (gen_trt_engine, and evaluate and inference on engines). The
parser of `classification_tf1`, its help and docs/coming-from-tao.md come from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Action = Literal["flag", "model", "output", "here", "ignored", "refused"]
"""flag: passed to trt-cls; model: so too, with our file beside a missing one of TAO's; output: so too, with our suffix;
here: `classification_tf1` does what the note says; ignored: with a line; refused: an error that says what to do."""
Takes = Literal["value", "number", "switch", "list"]


@dataclass(frozen=True)
class Flag:
    """One flag of TAO's."""

    spelling: str
    """All its names, separated by spaces; the last one names it in code."""
    action: Action
    to: str = ""
    """The flag of trt-cls, for the first three actions."""
    note: str = ""
    takes: Takes = "value"
    required: bool = False

    @property
    def names(self) -> list[str]:
        """Its names as they are typed."""
        return self.spelling.split()

    @property
    def name(self) -> str:
        """Its name in code, as `results_dir`."""
        return self.names[-1].strip("-").replace("-", "_")

    @property
    def meaning(self) -> str:
        """What becomes of it, in a line."""
        heading = {"here": "", "ignored": "ignored", "refused": "refused"}.get(self.action, self.to)
        return ": ".join(part for part in (heading, self.note) if part)


@dataclass(frozen=True)
class Verb:
    """One command of TAO's."""

    command: str
    """The command of trt-cls that does it; empty: none does."""
    summary: str
    flags: tuple[Flag, ...]


OURS = {".hdf5": ".safetensors", ".h5": ".safetensors", ".tlt": ".safetensors", ".etlt": ".onnx", ".trt": ".engine"}
"""Suffix of TAO's → ours."""
PARALLEL = ("train", "evaluate", "inference")
"""Commands that --gpus N gives to N processes."""
COMMON = (
    Flag("--gpus", "here", note=f"{', '.join(PARALLEL)}: one process on each GPU; ignored elsewhere", takes="number"),
    Flag("-np --num_processes", "here", note="as --gpus; -1: as many as --gpus says", takes="number"),
    Flag("-k --key", "ignored", note="models are not encrypted"),
    Flag("-v --verbose", "flag", "-v", takes="switch"),
    Flag("--gpu_index", "here", note="the GPUs that the command sees (CUDA_VISIBLE_DEVICES)", takes="list"),
    Flag("--log_file", "ignored", note="end the command with 2>&1 | tee FILE"),
    Flag("--use_amp", "ignored", note="on a GPU mixed precision is the default of train", takes="switch"),
    Flag(
        "--multi-node", "refused", note="torchrun --nnodes N -m trt_cls train on each machine does it", takes="switch"
    ),
    Flag("--mpirun-arg", "refused", note="there is no MPI; torchrun --nnodes N -m trt_cls train does it"),
)
"""Flags of every command."""
_SPEC = Flag("-e --experiment_spec_file --experiment_spec", "flag", "-e")
_NEEDS_SPEC = Flag(_SPEC.spelling, "flag", "-e", required=True)
_MODEL = Flag("-m --model_path --model", "model", "-m", required=True)
_RESULTS = Flag("-r --results_dir", "flag", "-r")
_BATCH = Flag("-b --batch_size", "flag", "-b")
_CLASSMAP = Flag("-cm -c --classmap", "flag", "-cm", "checked against the model's own classes")
_BUILDING = (
    _MODEL,
    _SPEC,
    Flag("--data_type", "flag", "--data_type", "left out: the model's own, which after train is fp32"),
    Flag("--cal_image_dir", "here", note="--calibration-images with int8; left out: the training dataset of the spec"),
    Flag("--batches", "here", note="with int8, calibrate on this many batches of --batch_size images", takes="number"),
    Flag("--batch_size", "here", note="of calibration; left out: 16 (export) or 1 (gen_trt_engine)", takes="number"),
    Flag("--cal_data_file", "ignored", note="calibration reads images: name --cal_image_dir DIR, or a spec with -e"),
    Flag("--cal_cache_file", "ignored", note="the ranges are in the ONNX file"),
    Flag("--cal_json_file", "ignored", note="the ranges are in the ONNX file"),
    Flag("--force_ptq", "ignored", note="int8 calibrates every network not trained for INT8", takes="switch"),
    Flag("--engine_file", "output", "--engine"),
    Flag("--min_batch_size", "flag", "--min-batch"),
    Flag("--opt_batch_size", "flag", "--opt-batch"),
    Flag("--max_batch_size", "flag", "--max-batch", "left out: 32"),
    Flag("--max_workspace_size", "ignored", note="the builder may take 2 GiB"),
    Flag("-s --strict_type_constraints", "ignored", note="precision comes from the ONNX file", takes="switch"),
    Flag("-r --results_dir", "ignored", note="everything is written beside the output"),
)
"""Flags of export and gen_trt_engine."""


def _verb(command: str, summary: str, *flags: Flag) -> Verb:
    return Verb(command, summary, flags)


VERBS: dict[str, Verb] = {
    "train": _verb(
        "train",
        "Train a network; retrain a pruned one.",
        _NEEDS_SPEC,
        Flag("-r --results_dir", "flag", "-r", required=True),
        Flag("-c --classmap", "flag", "-c"),
        Flag("--init_epoch", "flag", "--init-epoch"),
    ),
    "evaluate": _verb(
        "evaluate",
        "Evaluate a checkpoint, an ONNX file or an engine on a labeled folder.",
        _NEEDS_SPEC,
        Flag("-m --model_path --model", "model", "-m", "left out: eval_config.model_path"),
        _RESULTS,
        Flag("-i --image_dir", "flag", "--dataset"),
        _BATCH,
        _CLASSMAP,
        Flag("-l --label_dir", "ignored", note="labels are the names of the folders"),
    ),
    "prune": _verb(
        "prune",
        "Remove the weakest filters of a network.",
        _MODEL,
        Flag("-o --output_file", "output", "-o", required=True),
        Flag("-pth --pruning_threshold", "flag", "-pth"),
        Flag("-n --normalizer", "flag", "-n"),
        Flag("-eq --equalization_criterion", "flag", "-eq"),
        Flag("-pg --pruning_granularity", "flag", "-pg"),
        Flag("-nf --min_num_filters", "flag", "-nf"),
        Flag("-el --excluded_layers", "flag", "-el", takes="list"),
        _RESULTS,
    ),
    "inference": _verb(
        "infer",
        "Label an image or a folder of images.",
        _MODEL,
        Flag("-i --image", "here", note="-i: an image, or a folder"),
        Flag("-d --image_dir", "here", note="-i: a folder"),
        Flag("-r --results_dir", "here", note="-r: where result.csv goes; left out: into the folder of images"),
        _SPEC,
        _CLASSMAP,
        _BATCH,
    ),
    "calibration_tensorfile": _verb(
        "",
        "Nothing to do: --data_type int8 reads the images of --cal_image_dir, or the training dataset of -e SPEC.",
        Flag(_SPEC.spelling, "here", note="not needed", required=True),
        Flag("-o --output", "here", note="not written"),
        Flag("-m --max_batches", "here", note="export has --batches"),
        Flag("--use_validation_set", "here", note="export has --cal_image_dir", takes="switch"),
    ),
    "export": _verb(
        "export",
        "Write a checked ONNX file and, with --engine_file, an engine.",
        *_BUILDING,
        Flag("-o --output_file", "here", note="-o: the ONNX file; left out: beside the model"),
        Flag("--gen_ds_config", "here", note="--deepstream, the folder deepstream beside -o", takes="switch"),
        Flag("--classmap_json", "ignored", note="labels.txt has the model's own classes"),
        Flag("--static_batch_size", "ignored", note="the batch size of the ONNX file is dynamic"),
        Flag("--target_opset", "ignored", note="the ONNX file has opset 20"),
        Flag("--backend", "ignored", note="the file is ONNX"),
        Flag("--onnx_route", "ignored", note="torch writes the ONNX file"),
        Flag("--is_byom", "refused", note='train arch: "timm/NAME", or evaluate an ONNX file', takes="switch"),
    ),
    "gen_trt_engine": _verb("export", "Build an engine from an ONNX file.", *_BUILDING),
}


def markdown() -> str:
    """The table as sections of Markdown, for docs/coming-from-tao.md."""
    lines = list(_section("Flags of every command", "", COMMON))
    for name, verb in VERBS.items():
        lines += _section(f"`{name}`", f"`trt-cls {verb.command}`: " if verb.command else "", verb.flags, verb.summary)
    return "\n".join(lines[:-1]) + "\n"


def _section(heading: str, command: str, flags: tuple[Flag, ...], summary: str = "") -> Iterator[str]:
    text = [f"{command}{summary}", ""] if summary else []
    yield from (f"### {heading}", "", *text, "| TAO | here |", "|---|---|")
    for flag in flags:
        spellings = " ".join(f"`{name}`" for name in flag.names)
        meaning = re.sub(r"(?<!\w)(--?[a-z][\w-]*)", r"`\1`", flag.meaning).replace("|", "\\|")
        yield f"| {spellings} | {meaning} |"
    yield ""
