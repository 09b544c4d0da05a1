from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.spec_texts import spec_text
from trt_cls.contract import Contract
from trt_cls.errors import ArtefactError
from trt_cls.preprocessing.description import preprocessing_from_spec, require_spec_fits
from trt_cls.spec import loads

CHANGES = {"mean": (1.0, 2.0, 3.0), "divisor": 255.0, "channel_order": "rgb", "crop": "none", "filter": "bicubic"}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_a_spec_that_asks_for_other_pixels_than_the_model_saw_is_refused(name: str, value: Any) -> None:
    experiment = loads(spec_text())
    pixels = preprocessing_from_spec(experiment, "train")
    contract = Contract(experiment.model_config, pixels, ("a", "b"))
    require_spec_fits(experiment, Path("spec.txt"), contract, Path("model.onnx"))
    assert getattr(pixels, name) != value
    trained = replace(contract, preprocessing=replace(pixels, **{name: value}))
    with pytest.raises(ArtefactError, match=rf"disagree on the preprocessing: {name} is "):
        require_spec_fits(experiment, Path("spec.txt"), trained, Path("model.onnx"))
