"""Every documented rule of the spec's fields, with values just inside and just outside.

In the tables `@` in a text stands for each of the values after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from support.shared_data import tao_records
from support.spec_texts import problems, spec_text
from trt_cls.spec.architectures import ARCHITECTURES

GRAY = 'input_image_size: "1,32,32"'
MEANS = {
    keys: " ".join(f"image_mean {{ key: '{key}' value: @ }}" for key in keys) for keys in ("bgr", "bg", "bgrl", "l")
}
STEP = "lr_config { step { learning_rate: 1 step_size: 30 gamma: 0.5 } }"
PENALTY = 'reg_config { type: "L2" scope: "Dense" weight_decay: 0.1 }'


def filled(text: str, values: Sequence[str]) -> list[str]:
    return [text.replace("@", value) for value in values] or [text]


GOOD_MODEL: list[tuple[str, ...]] = [
    ('input_image_size: "@"', "3,16,16", "1,300,200", "3, 224, 224"),
    ('arch: "@" n_layers: 16 dropout: 0.99', "vgg", "squeezenet"),
    ('arch: "googlenet" dropout: 0 all_projections: false',),
    ('arch: "@" all_projections: true', "resnet", "mobilenet_v2"),
    ("batch_norm_config { momentum: @ epsilon: 1e-12 }", "0.001", "0.999"),
    ('activation { activation_type: "@" }', "relu", "swish"),
    ('arch: "cspdarknet_tiny" activation { activation_type: "@" }', "leaky_relu", "relu", "mish"),
    ("activation { activation_type: 'relu' activation_parameters { key: 'a' value: 1 } }",),
    ('byom_model: ""',),
]
GOOD_TRAIN: list[tuple[str, ...]] = [
    ("batch_size_per_gpu: 1 n_epochs: 1 n_workers: 0 random_seed: 0",),
    ("label_smoothing: @", "0", "0.999"),
    ("mixup_alpha: @", "0", "1"),
    ('preprocess_mode: "@"', "caffe", "torch", "tf"),
    (MEANS["bgr"], "0", "100", "-3.5"),
    ("model_parallelism: [0.5, 0.5]",),
    ("visualizer { enabled: true num_images: 0 wandb_config { mode: OFFLINE tags: ['a', 'b'] } clearml_config { } }",),
]
GOOD_OPTIMIZER: list[tuple[str, ...]] = [
    ("optimizer { @ { } }", "sgd", "adam", "rmsprop"),
    ("optimizer { sgd { lr: 1e-9 momentum: 0 decay: 1 nesterov: true } }",),
    ("optimizer { adam { beta_1: 0 beta_2: 0 epsilon: 1e-300 } }",),
]
GOOD_PENALTY: list[tuple[str, ...]] = [
    (PENALTY.replace("Dense", "@"), "Conv2D", "Dense", "dense, conv2d", "Conv2D,Dense"),
    (PENALTY.replace("L2", "@"), "L1", "L2", "None"),
    (PENALTY.replace("0.1", "@"), "1e-9", "0.999"),
    ('reg_config { type: "None" }',),
    (PENALTY.replace("L2", "None").replace("0.1", "@"), "0", "1", "3"),
]
GOOD_SCHEDULE: list[tuple[str, ...]] = [
    (STEP.replace("rate: 1", "rate: @"), "1e-9", "100"),
    (STEP.replace("30", "@"), "0.1", "99.9"),
    (STEP.replace("0.5", "@"), "0.001", "0.999"),
    (
        "lr_config { soft_anneal { learning_rate: 0.1 @ } }",
        "",
        "soft_start: 0.1 annealing_points: [0.11, 0.5, 0.5, 0.9]",
    ),
    ("lr_config { soft_anneal { learning_rate: 0.1 annealing_divider: 1.001 } }",),
    ("lr_config { cosine { learning_rate: 0.1 min_lr_ratio: @ soft_start: @ } }", "0", "0.999"),
]
GOOD = [
    *(
        spec_text(f'arch: "{name}" {f"n_layers: {depth}" if depth else ""}')
        for name, family in ARCHITECTURES.items()
        for depth in family.depths or (None,)
    ),
    spec_text(GRAY, "image_mean { key: 'l' value: 99.5 }"),
    *(spec_text(model=line) for text, *values in GOOD_MODEL for line in filled(text, values)),
    *(spec_text(train=line) for text, *values in GOOD_TRAIN for line in filled(text, values)),
    *(spec_text(optimizer=line) for text, *values in GOOD_OPTIMIZER for line in filled(text, values)),
    *(spec_text(penalty=line) for text, *values in GOOD_PENALTY for line in filled(text, values)),
    *(spec_text(schedule=line) for text, *values in GOOD_SCHEDULE for line in filled(text, values)),
    *(spec_text(evaluation=line) for line in ("top_k: 1 batch_size: 1 n_workers: 0", "top_k: 1000")),
]


@pytest.mark.parametrize("text", GOOD)
def test_allowed(text: str) -> None:
    assert not problems(text)


BAD_MODEL: list[tuple[str, ...]] = [
    ("arch", '"@" found, expected one of resnet, ', 'arch: "@"', "", "ResNet", "resnet20"),
    (
        "arch",
        'expected the name of a network after "timm/", as in "timm/resnet18"',
        'arch: "@"',
        "timm/",
        "timm/convnext-tiny",
        "timm/convnext.in1k",
    ),
    ("arch", "torchvision/NAME, timm/NAME", 'arch: "@"', "torch/resnet18", "hub/resnet18"),
    *(
        (
            name,
            f"{found} found, expected the field left out: @ has no such option",
            f'arch: "@" {text}',
            "timm/resnet18",
        )
        for name, found, text in (
            ("n_layers", "50", "n_layers: 50"),
            ("use_batch_norm", "true", "use_batch_norm: true"),
            ("use_bias", "true", "use_bias: true"),
            ("use_pooling", "true", "use_pooling: true"),
            ("all_projections", "true", "all_projections: true"),
            ("retain_head", "true", "retain_head: true"),
            ("freeze_bn", "true", "freeze_bn: true"),
            ("freeze_blocks", "values", "freeze_blocks: 1"),
            ("dropout", "0.5", "dropout: 0.5"),
            ("batch_norm_config", "values", "batch_norm_config { momentum: 0.99 }"),
            ("activation", "values", "activation { activation_type: 'relu' }"),
        )
    ),
    ("input_image_size", "1 channel found, expected 3", 'arch: "torchvision/resnet18" input_image_size: "1,32,32"'),
    ("n_layers", "@ found, expected one of 10, 18, 34, 50, 101, 152 for resnet", "n_layers: @", "19", "-1", "0"),
    ("n_layers", "18 (the default) found, expected one of 16, 19 for vgg", 'arch: "vgg"'),
    ("n_layers", "18 (the default) found, expected one of 19, 53 for @", 'arch: "@"', "darknet", "cspdarknet"),
    (
        "input_image_size",
        "C 1 or 3",
        'input_image_size: "@"',
        "3,224",
        "2,224,224",
        "3,15,224",
        "3,224,15",
        "3x224x224",
    ),
    ("input_image_size", "C 1 or 3", 'input_image_size: "@"', "", "3,-32,32", "3,224,224,1", "3,²²,32", "224,224,3"),
    (
        "freeze_blocks",
        "@ found, expected integers from 0 to 4",
        "freeze_blocks: [0, @]",
        "5",
        "-1",
        "1.5",
        "nan",
        "inf",
    ),
    ("freeze_blocks", "0 found, expected integers from 1 to 5", 'arch: "vgg" n_layers: 16 freeze_blocks: 0'),
    ("dropout", "does not use it, only vgg", 'arch: "@" dropout: 0.5', "resnet", "googlenet", "efficientnet_b0"),
    ("dropout", "expected a number in [0, 1)", 'arch: "squeezenet" dropout: @', "1", "-0.1", "nan"),
    ("all_projections", "has no shortcuts, only resnet", 'arch: "@" all_projections: true', "alexnet", "squeezenet"),
    ("batch_norm_config.momentum", "(0, 1)", "batch_norm_config { momentum: @ }", "0", "1"),
    ("batch_norm_config.epsilon", "(0, 0.1)", "batch_norm_config { epsilon: @ }", "0", "1", "-1e-5"),
    ("activation.activation_type", "missing", "activation { }"),
    ("activation.activation_type", "one of relu, swish, mish", "activation { activation_type: 'tanh' }"),
    (
        "activation.activation_type",
        "relu, swish for resnet",
        "activation { activation_type: '@' }",
        "mish",
        "leaky_relu",
    ),
    ("activation.activation_type", "one of relu for @", "arch: '@' activation { activation_type: 'swish' }", "alexnet"),
    ("byom_model", "ONNX file", 'byom_model: "net.tltb"'),
]
SPLIT = "extensions { validation_split: 0.2 }"
BAD_TRAIN: list[tuple[str, ...]] = [
    ("batch_size_per_gpu", "@ found, expected an integer ≥ 1", "batch_size_per_gpu: @", "0", "-1"),
    ("n_epochs", "@ found, expected an integer ≥ 1", "n_epochs: @", "0", "-1"),
    ("n_workers", "-1 found, expected an integer ≥ 0", "n_workers: -1"),
    ("random_seed", "-1 found, expected an integer ≥ 0", "random_seed: -1"),
    ("label_smoothing", "[0, 1)", "label_smoothing: @", "1", "-0.1", "nan"),
    ("mixup_alpha", "[0, 1]", "mixup_alpha: @", "1.1", "-0.1", "inf"),
    ("preprocess_mode", 'did you mean "caffe"', 'preprocess_mode: "@"', "cafe", "Caffe"),
    ("image_mean", 'keys "b", "g" found, expected all of b, g, r', MEANS["bg"], "1"),
    ("image_mean", 'keys "b", "g", "l", "r" found', MEANS["bgrl"], "1"),
    ("image_mean", 'keys "l" found', MEANS["l"], "1"),
    ("model_parallelism", "> 0", "model_parallelism: [1, @]", "0", "-1", "inf"),
    ("visualizer.num_images", "-1 found", "visualizer { num_images: -1 }"),
]
BAD_OPTIMIZER: list[tuple[str, ...]] = [
    ("optimizer", "missing", ""),
    ("optimizer", "exactly one of sgd, adam, ", "optimizer { }"),
    ("optimizer.adam", "found beside sgd", "optimizer { sgd { } adam { } }"),
    ("optimizer.sgd.lr", "> 0", "optimizer { sgd { lr: @ } }", "0", "-1", "nan"),
    ("optimizer.sgd.momentum", "[0, 1)", "optimizer { sgd { momentum: @ } }", "1", "-0.1"),
    ("optimizer.sgd.decay", "[0, 1]", "optimizer { sgd { decay: -1 } }"),
    ("optimizer.adam.beta_1", "[0, 1)", "optimizer { adam { beta_1: 1 } }"),
    ("optimizer.adam.beta_2", "[0, 1)", "optimizer { adam { beta_2: -1 } }"),
    ("optimizer.adam.epsilon", "> 0", "optimizer { adam { epsilon: 0 } }"),
    ("optimizer.rmsprop.rho", "[0, 1)", "optimizer { rmsprop { rho: 1 } }"),
]
BAD_PENALTY: list[tuple[str, ...]] = [
    ("reg_config", "missing", ""),
    ("reg_config.type", "missing", "reg_config { weight_decay: 0.1 }"),
    ("reg_config.type", "one of L1, L2, None", PENALTY.replace("L2", "@"), "l2", "", "none"),
    (
        "reg_config.scope",
        "Conv2D, Dense or both",
        PENALTY.replace("Dense", "@"),
        "",
        "Conv",
        "Conv2D;Dense",
        "Conv2D,,Dense",
    ),
    ("reg_config.weight_decay", "missing", "reg_config { type: 'L2' }"),
    ("reg_config.weight_decay", "(0, 1)", PENALTY.replace("0.1", "@"), "0", "1", "-0.1", "nan"),
    ("reg_config.weight_decay", "nan found", "reg_config { type: 'None' weight_decay: nan }"),
]
BAD_SCHEDULE: list[tuple[str, ...]] = [
    ("", "missing", ""),
    ("", "exactly one of step, ", "lr_config { }"),
    (".step", "found beside cosine", "lr_config { cosine { learning_rate: 1 } step { } }"),
    (".step.learning_rate", "> 0", STEP.replace("rate: 1", "rate: @"), "0", "-1", "inf", "nan"),
    (".step.step_size", "(0, 100)", STEP.replace("30", "@"), "0", "100", "-5"),
    (".step.gamma", "(0, 1)", STEP.replace("0.5", "@"), "0", "1"),
    (".soft_anneal.soft_start", "[0, 1)", "lr_config { soft_anneal { learning_rate: 1 soft_start: @ } }", "1", "-0.1"),
    (".soft_anneal.annealing_divider", "> 1", "lr_config { soft_anneal { learning_rate: 1 annealing_divider: 1 } }"),
    *(
        (".soft_anneal.annealing_points", message, f"lr_config {{ soft_anneal {{ learning_rate: 1 {line} }} }}")
        for line, message in (
            ("annealing_points: 0", "(0, 1)"),
            ("annealing_points: [0.5, 1]", "(0, 1)"),
            ("annealing_points: [0.5, 0.4]", "0.5, 0.4 found, expected them in rising order"),
            ("soft_start: 0.5 annealing_points: [0.5, 0.6]", "0.5 found, expected points after soft_start, 0.5"),
        )
    ),
    (".cosine.learning_rate", "missing", "lr_config { cosine { } }"),
    (".cosine.min_lr_ratio", "[0, 1)", "lr_config { cosine { learning_rate: 1 min_lr_ratio: @ } }", "1", "-0.1"),
    (".cosine.soft_start", "[0, 1)", "lr_config { cosine { learning_rate: 1 soft_start: @ } }", "1", "-0.1"),
]
BAD_EVALUATION: list[tuple[str, ...]] = [
    ("top_k", "an integer ≥ 1", "top_k: @", "0", "-1"),
    ("batch_size", "an integer ≥ 1", "batch_size: 0"),
    ("n_workers", "an integer ≥ 0", "n_workers: -1"),
]


def bad(section: str, keyword: str, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, str, str]]:
    return [
        (section + field, message.replace("@", value), spec_text(**{keyword: text.replace("@", value)}))
        for field, message, text, *values in rows
        for value in values or [""]
    ]


BAD = [
    *bad("model_config.", "model", BAD_MODEL),
    *bad("train_config.", "train", BAD_TRAIN),
    *bad("train_config.", "optimizer", BAD_OPTIMIZER),
    *bad("train_config.", "penalty", BAD_PENALTY),
    *bad("train_config.lr_config", "schedule", BAD_SCHEDULE),
    *bad("eval_config.", "evaluation", BAD_EVALUATION),
    ("train_config.image_mean", "found, expected l for 1 channel", spec_text(GRAY, MEANS["bgr"].replace("@", "1"))),
    ("train_config.image_mean.l", "nan found", spec_text(GRAY, MEANS["l"].replace("@", "nan"))),
    ("train_config.image_mean.l", "inf found", spec_text(GRAY, MEANS["l"].replace("@", "inf"))),
    ("train_config.train_dataset_path", "missing", spec_text().replace('train_dataset_path: "train"', "")),
    ("train_config.val_dataset_path", "missing", spec_text().replace('val_dataset_path: "val"', "")),
    ("eval_config.eval_dataset_path", "missing", "model_config { } eval_config { }"),
    ("model_config", "missing", "eval_config { eval_dataset_path: 'test' }"),
    ("train_config.val_dataset_path", '"val" found with extensions.validation_split 0.2', spec_text() + SPLIT),
    (
        "eval_config.eval_dataset_path",
        "expected one of the two",
        spec_text(evaluation="").replace('val_dataset_path: "val"', "").replace('"test"', '"./train"') + SPLIT,
    ),
    ("train_config", "missing, expected the training whose images", f"model_config {{ }} eval_config {{ }} {SPLIT}"),
    ("extensions.validation_split", "[0, 1)", spec_text() + SPLIT.replace("0.2", "1")),
    ("model_config.arch", 'did you mean arch: "resnet" n_layers: 18?', spec_text('arch: "resnet18"')),
    ("model_config.arch", 'did you mean arch: "cspdarknet" n_layers: 53?', spec_text('arch: "CSPDarknet-53"')),
]


@pytest.mark.parametrize(("path", "message", "text"), BAD)
def test_refused(path: str, message: str, text: str) -> None:
    [problem] = problems(text)
    assert problem.path == path
    assert message in problem.message
    assert problem.where.startswith("spec.txt")


def test_with_a_split_no_other_images_need_be_named_and_a_test_set_may_be() -> None:
    text = spec_text(evaluation="").replace('val_dataset_path: "val"', "") + SPLIT
    assert not problems(text)
    assert not problems(text.replace('eval_dataset_path: "test"', ""))


def test_one_mistake_is_not_reported_again_by_the_rules_that_depend_on_it() -> None:
    model = 'arch: 5 n_layers: 53 input_image_size: "big" activation { activation_type: "tanh" }'
    assert {problem.path for problem in problems(spec_text(model, MEANS["l"].replace("@", "1")))} == {
        "model_config.arch",
        "model_config.input_image_size",
        "model_config.activation.activation_type",
    }


def test_block_ids_with_an_effect_in_nvidias_code_are_accepted_and_no_others() -> None:
    effective: dict[str, set[int]] = {}
    for record in tao_records("freeze_blocks.json"):
        for block, trainable in record["trainable_params_with_freeze_blocks"].items():
            if block != "all" and trainable != record["trainable_params_no_freeze"]:
                effective.setdefault(record["arch"], set()).add(int(block))
    assert effective
    assert {name: set(ARCHITECTURES[name].freeze_blocks) for name in effective} == effective
