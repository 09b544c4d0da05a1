"""Spec texts for tests: a smallest valid one, with lines added where a test wants them; and every optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, get_args, get_type_hints

from trt_cls.errors import Problem, SpecError
from trt_cls.spec import loads
from trt_cls.spec.fields import ExactlyOne

OPTIMIZER = "optimizer { sgd { } }"
PENALTY = 'reg_config { type: "L2" scope: "Conv2D,Dense" weight_decay: 0.001 }'
SCHEDULE = "lr_config { cosine { learning_rate: 0.1 } }"
Block = TypeVar("Block", bound=ExactlyOne)


def spec_text(
    model: str = "",
    train: str = "",
    evaluation: str | None = None,
    *,
    optimizer: str = OPTIMIZER,
    penalty: str = PENALTY,
    schedule: str = SCHEDULE,
) -> str:
    """A spec with every required field; `model`, `train` and `evaluation` are added to their sections."""
    text = (
        f"model_config {{\n{model}\n}}\n"
        'train_config {\ntrain_dataset_path: "train"\nval_dataset_path: "val"\n'
        f"{optimizer}\n{penalty}\n{schedule}\n{train}\n}}\n"
    )
    return text if evaluation is None else text + f'eval_config {{\neval_dataset_path: "test"\n{evaluation}\n}}\n'


def problems(text: str, *, overrides: Sequence[str] = (), needs: Sequence[str] = ()) -> list[Problem]:
    """What is wrong with `text`."""
    try:
        loads(text, overrides=overrides, needs=needs, name="spec.txt")
    except SpecError as error:
        return list(error.problems)
    return []


def each_of(block: type[Block]) -> dict[str, Block]:
    """A `block` for each field that it may set, by the field's name, with the default options."""
    return {name: block(**{name: get_args(hint)[0]()}) for name, hint in get_type_hints(block).items()}
