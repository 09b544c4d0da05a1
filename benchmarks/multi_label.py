"""Multi-label classification on composites of small pictures: average precision, exact resumption, FP16 and INT8.

A composite has one to three different classes, each a picture in a quarter of the canvas; they are drawn from a seed
and written to --out, not kept. Two equal trainings run, of which one is killed with SIGKILL --kills times and resumed;
the files must be equal. The best checkpoint and its exports are evaluated, and each figure is held against
scikit-learn's. The result goes to results/multi_label.csv.
Usage: python benchmarks/multi_label.py --images FOLDER --out DIR, FOLDER with train/CLASS and test/CLASS.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.metrics as sklearn
from _results import about, write
from PIL import Image

from trt_cls.artefacts.model_file import read_contract
from trt_cls.cli import main as trt_cls
from trt_cls.data.folder import image_folder

TILE = 16
SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,32,32" use_batch_norm: true }}
train_config {{
  train_dataset_path: "{root}/train" val_dataset_path: "{root}/val" n_epochs: {epochs} batch_size_per_gpu: 32
  n_workers: 0 preprocess_mode: "torch" enable_random_crop: false enable_center_crop: false label_smoothing: 0.05
  optimizer {{ sgd {{ momentum: 0.9 nesterov: true }} }} reg_config {{ type: "L2" weight_decay: 0.0005 }}
  lr_config {{ cosine {{ learning_rate: 0.1 soft_start: 0.2 }} }}
}}
eval_config {{ eval_dataset_path: "{root}/test" enable_center_crop: false batch_size: 64 n_workers: 0 }}
extensions {{ labels: "labels.csv" }}
"""


def write_composites(source: Path, root: Path, count: int, seed: int) -> None:
    """`count` pictures of 2 × 2 tiles, one to three of them filled, and labels.csv."""
    folder, random = image_folder(source), np.random.default_rng(seed)
    of_class = [[s.path for s in folder.samples if s.label == label] for label in range(len(folder.classes))]
    root.mkdir(parents=True)
    rows = ["path,labels"]
    for number in range(count):
        labels = sorted(random.choice(len(of_class), random.integers(1, 4), replace=False))
        canvas = Image.fromarray(random.integers(90, 160, (2 * TILE, 2 * TILE, 3), dtype=np.uint8))
        for label, place in zip(labels, random.permutation(4)[: len(labels)], strict=True):
            with Image.open(random.choice(of_class[label])) as picture:
                tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)
            canvas.paste(tile, (int(place % 2) * TILE, int(place // 2) * TILE))
        canvas.save(root / f"{number:05}.png")
        rows.append(f"{number:05}.png,{'|'.join(folder.classes[label] for label in labels)}")
    (root / "labels.csv").write_text("\r\n".join([*rows, ""]))


def start(spec: Path, results: Path) -> subprocess.Popen[bytes]:
    flags = ["train", "-e", str(spec), "-r", str(results), "--device", "cpu", "--save-every", "3"]
    flags += ["--resume"] if (results / "train_state.pt").exists() else []
    return subprocess.Popen([sys.executable, "-m", "trt_cls", *flags], stdout=subprocess.DEVNULL)


def train_killed(spec: Path, results: Path, kills: int) -> None:
    """Trains, killed after some saves of each run but the last."""
    for saves in range(3, 3 + kills):
        process, seen, state = start(spec, results), set(), results / "train_state.pt"
        while len(seen) <= saves and process.poll() is None:
            seen |= {state.stat().st_mtime_ns} if state.exists() else set()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        print(f"killed after {len(seen)} saves: status {process.wait()}", flush=True)
    if start(spec, results).wait():
        raise SystemExit("the resumed training failed")


def weights_and_curve(results: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*(results / "weights").iterdir(), results / "training.csv")}


def figures(model: Path, spec: Path, out: Path) -> dict[str, Any]:
    """Of an evaluation, with the largest difference from scikit-learn's."""
    if trt_cls(["evaluate", "-e", str(spec), "-m", str(model), "-r", str(out), "--provider", "cpu"]):
        raise SystemExit(f"{model} could not be evaluated")
    results = json.loads((out / "results.json").read_text())
    with np.load(out / "predictions.npz") as arrays:
        truth, probabilities = arrays["truth"], arrays["probabilities"]
    given = (probabilities >= np.array(read_contract(model).thresholds)).astype(np.uint8)
    scores = sklearn.precision_recall_fscore_support(truth, given, zero_division=0)
    expected = {
        "mAP": sklearn.average_precision_score(truth, probabilities),
        "micro_f1": sklearn.f1_score(truth, given, average="micro", zero_division=0),
        "macro_f1": sklearn.f1_score(truth, given, average="macro", zero_division=0),
        "exact_match": sklearn.accuracy_score(truth, given),
        "hamming_loss": sklearn.hamming_loss(truth, given),
    }
    differences = [abs(results[name] - value) for name, value in expected.items()]
    aps = sklearn.average_precision_score(truth, probabilities, average=None)
    names = "precision", "recall", "f1", "support", "ap"
    for name, values in zip(names, (*scores, aps), strict=True):
        found = [of_class[name] for of_class in results["per_class"].values()]
        differences.append(float(np.abs(np.array(found) - values).max()))
    found = {name: f"{results[name]:.4f}" for name in expected}
    return {"images": results["num_images"], **found, "from_sklearn": f"{max(differences):.1g}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000, help="training images; validation and test have half each")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=3)
    given = parser.parse_args()
    for seed, (part, source, share) in enumerate([("train", "train", 1), ("val", "train", 2), ("test", "test", 2)]):
        write_composites(given.images / source, given.out / part, given.count // share, seed)
    spec = given.out / "spec.txt"
    spec.write_text(SPEC.format(root=given.out, epochs=given.epochs))
    if start(spec, given.out / "one").wait():
        raise SystemExit("the training failed")
    train_killed(spec, given.out / "killed", given.kills)
    equal = weights_and_curve(given.out / "one") == weights_and_curve(given.out / "killed")
    print(f"files of the killed training are equal: {equal}", flush=True)
    best, rows = given.out / "one" / "weights" / "best.safetensors", []
    for precision in ("checkpoint", "fp32", "fp16", "int8"):
        model = best
        if precision != "checkpoint":
            model = given.out / f"{precision}.onnx"
            flags = ["-e", str(spec), "-o", str(model), "--builder", "none", "--data_type", precision]
            if trt_cls(["export", "-m", str(best), *flags]):
                raise SystemExit(f"the export in {precision} failed")
        found = figures(model, spec, given.out / f"evaluated_{precision}")
        request = {"train_images": given.count, "epochs": given.epochs, "kills": given.kills, "resumed_equal": equal}
        rows.append({"model": precision, **found, **request, **about(["torch", "onnxruntime", "scikit-learn"])})
    write("multi_label", rows)


if __name__ == "__main__":
    main()
