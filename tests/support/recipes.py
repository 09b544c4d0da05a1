"""The recipes of docs/architecture.md, carried out in a copy of the package, and what then works.

As a program, run inside that copy: prints what each recipe gives, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Edits = Mapping[str, tuple[tuple[str, str], ...]]
"""File → pairs of a line that is there and the lines that take its place; of a new file, "" and its text."""

SPEC_FIELD: Edits = {
    "trt_cls/spec/experiment.py": (
        (
            '    disable_horizontal_flip: bool = option(False, "no random horizontal flip")\n',
            '    disable_horizontal_flip: bool = option(False, "no random horizontal flip")\n'
            '    vertical_flip: float = option(0.0, "probability of a vertical flip", interval(0, 1))\n',
        ),
    ),
}

ARCHITECTURE: Edits = {
    "trt_cls/models/families/tinynet.py": (
        (
            "",
            '"""TinyNet: one convolution."""\n\n'
            "from trt_cls.models.builder import Builder, Value\n\n\n"
            "def network(net: Builder, num_classes: int) -> Value:\n"
            '    """One convolution and the head. Freeze id: 0."""\n'
            "    with net.block(0):\n"
            '        x = net.activation(net.conv(net.input, "conv1", 8, 3, 2), "conv1_relu")\n'
            "    return net.classifier(x, num_classes)\n",
        ),
    ),
    "trt_cls/models/families/__init__.py": (
        (
            "from trt_cls.models.network import Network,",
            "from trt_cls.models.families import tinynet\nfrom trt_cls.models.network import Network,",
        ),
        ("FAMILIES = {\n", 'FAMILIES = {\n    "tinynet": Family(tinynet.network),\n'),
    ),
    "trt_cls/spec/architectures.py": (
        (
            "    for architecture in (\n",
            '    for architecture in (\n        Architecture("tinynet", (), range(1), activations=("relu",)),\n',
        ),
    ),
}

OPTIMIZER: Edits = {
    "trt_cls/spec/experiment.py": (
        (
            "@dataclass(frozen=True, kw_only=True)\nclass Optimizer(ExactlyOne):\n",
            "@dataclass(frozen=True, kw_only=True)\nclass Adagrad:\n"
            '    """Adagrad."""\n\n'
            '    lr: float = option(0.01, "overridden by lr_config", above(0))\n'
            '    epsilon: float = option(1e-10, "added to the denominator", above(0))\n\n\n'
            "@dataclass(frozen=True, kw_only=True)\nclass Optimizer(ExactlyOne):\n",
        ),
        (
            '    rmsprop: Rmsprop | None = option(None, "RMSprop")\n',
            '    rmsprop: Rmsprop | None = option(None, "RMSprop")\n'
            '    adagrad: Adagrad | None = option(None, "Adagrad")\n',
        ),
    ),
    "trt_cls/training/optimization.py": (
        (
            '    "rmsprop": (torch.optim.RMSprop,',
            '    "adagrad": (torch.optim.Adagrad, lambda adagrad: {"eps": adagrad.epsilon}),\n'
            '    "rmsprop": (torch.optim.RMSprop,',
        ),
    ),
}

BACKEND: Edits = {
    "trt_cls/engines/uniform.py": (
        (
            "",
            '"""Gives all classes the same probability."""\n\n'
            "import numpy as np\n\nfrom trt_cls.artefacts.model_file import read_contract\n\n\n"
            "class UniformEngine:\n"
            "    def __init__(self, path, provider, threads):\n"
            '        self.contract, self.backend = read_contract(path), "uniform"\n\n'
            "    def infer(self, images):\n"
            "        classes = len(self.contract.classes)\n"
            "        return np.full((len(images), classes), 1 / classes, np.float32)\n\n"
            "    def close(self):\n"
            "        pass\n",
        ),
    ),
    "trt_cls/engines/backends.py": (
        ('"cuda", "tensorrt"]\n', '"cuda", "tensorrt", "uniform"]\n'),
        (
            "BACKENDS = (\n",
            'BACKENDS = (\n    Backend(\n        "Uniform", "uniform.UniformEngine", (".onnx",),\n'
            '        {"uniform": "cpu"}, "cpu", ("numpy",),\n    ),\n',
        ),
    ),
}

REPORT_COLUMN: Edits = {
    "trt_cls/evaluation/metrics.py": (
        ("    f1: float\n    support: int\n", "    f1: float\n    iou: float\n    support: int\n"),
        (
            "            support=int(images),\n",
            "            iou=_share(int(hits), int(claims) + int(images) - int(hits)),\n"
            "            support=int(images),\n",
        ),
    ),
    "trt_cls/evaluation/report/templates/evaluation.html": (
        (
            '<th data-sort="number" class="number">F1</th>',
            '<th data-sort="number" class="number">F1</th><th data-sort="number" class="number">IoU</th>',
        ),
        (
            '<td class="number">{{ row.mistakes }}</td>',
            '<td class="number">{{ "%.1f" | format(100 * row.scores.iou) }}</td>'
            '<td class="number">{{ row.mistakes }}</td>',
        ),
    ),
}

RECIPES = {
    "A spec field": SPEC_FIELD,
    "An architecture": ARCHITECTURE,
    "An optimizer": OPTIMIZER,
    "An engine backend": BACKEND,
    "A report column": REPORT_COLUMN,
}
"""Heading in docs/architecture.md → the edits."""


def carry_out(edits: Edits, root: Path) -> None:
    """Makes the edits below `root`; each line that is replaced must be there, once."""
    for name, pairs in edits.items():
        path = root / name
        for there, instead in pairs:
            text = path.read_text() if there else ""
            assert not there or text.count(there) == 1, f"{name} holds {text.count(there)} times: {there}"
            path.write_text(text.replace(there, instead) if there else instead)


def spec_field() -> Any:
    from support.spec_texts import spec_text
    from trt_cls.spec import loads, show
    from trt_cls.spec.reference import markdown

    experiment = loads(spec_text(train="vertical_flip: 0.25"))
    assert "| `vertical_flip` | float | `0.0` | a number in [0, 1] | probability of a vertical flip |" in markdown()
    return loads(show(experiment)).train_config.vertical_flip  # type: ignore[union-attr]


def architecture() -> Any:
    import torch

    from trt_cls.models import build
    from trt_cls.spec.experiment import ModelConfig

    return list(
        build(ModelConfig(arch="tinynet", input_image_size="3,32,32"), 4).eval()(torch.zeros(2, 3, 32, 32)).shape
    )


def optimizer() -> Any:
    import torch

    from support.spec_texts import spec_text
    from trt_cls.spec import loads
    from trt_cls.training.optimization import optimizer as made

    config = loads(spec_text(optimizer="optimizer { adagrad { epsilon: 0.5 } }")).train_config
    assert config is not None
    found = made(config.optimizer, [{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    return [type(found).__name__, found.defaults["eps"]]


def backend() -> Any:
    import numpy as np

    from trt_cls.cli.evaluate import command
    from trt_cls.engines import open_engine

    choices = next(parameter for parameter in command.params if parameter.name == "provider").type
    assert "uniform" in choices.choices  # type: ignore[attr-defined]
    engine = open_engine(Path("model.onnx"), "uniform")  # type: ignore[arg-type]
    return engine.infer(np.zeros((1, 3, 4, 4), np.float32)).astype(float).round(3).tolist()


def report_column() -> Any:
    import numpy as np

    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.data.folder import Sample
    from trt_cls.evaluation.evaluate import Evaluation, Predictions, Seconds
    from trt_cls.evaluation.metrics import measure
    from trt_cls.evaluation.report.evaluation_page import evaluation_page
    from trt_cls.evaluation.results import evaluation_table, results_dict

    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    samples = tuple(Sample(Path(f"{number}.png"), label) for number, label in enumerate((0, 1, 1, 2)))
    predictions = Predictions(samples, probabilities, (), Seconds(1, 1, 2))
    metrics = measure(probabilities, predictions.labels, 1)
    evaluation = Evaluation(read_contract(Path("model.onnx")), "cpu", predictions, 1, metrics)
    assert evaluation_table(evaluation)
    assert ">IoU</th>" in evaluation_page(evaluation, Path("model.onnx"))
    return [scores["iou"] for scores in results_dict(evaluation, Path("model.onnx"))["per_class"].values()]


CHECKS: dict[str, Callable[[], Any]] = {
    "A spec field": spec_field,
    "An architecture": architecture,
    "An optimizer": optimizer,
    "An engine backend": backend,
    "A report column": report_column,
}

if __name__ == "__main__":
    results = {}
    for heading in sys.argv[1:]:
        try:
            results[heading] = CHECKS[heading]()
        except Exception as error:
            results[heading] = f"{type(error).__name__}: {error}"
    print(json.dumps(results))
