"""Whether a spec, a class map and a model speak of the same network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from trt_cls.artefacts.classmap import read_classmap
from trt_cls.contract import Contract
from trt_cls.errors import ArtefactError
from trt_cls.preprocessing.description import preprocessing_to_hold_against
from trt_cls.spec.experiment import Experiment
from trt_cls.text import told_apart


def require_spec_fits(experiment: Experiment, spec: Path, contract: Contract, model: Path) -> None:
    """Refuses a spec that asks for other pixels than the model was trained on.

    A spec without train_config, where preprocess_mode stands, does not say what it wants; the contract holds then.

    Raises:
        ArtefactError: they disagree.
    """
    if experiment.train_config is None:
        return
    split: Literal["train", "eval"] = "eval" if experiment.eval_config else "train"
    wanted = preprocessing_to_hold_against(contract.preprocessing, experiment, split)
    differences = [
        f"{name} is {asked} in the spec and {trained} in the model"
        for (name, asked), trained in zip(asdict(wanted).items(), asdict(contract.preprocessing).values(), strict=True)
        if asked != trained
    ]
    if differences:
        raise ArtefactError(
            f"{spec} and {model} disagree on the preprocessing: {'; '.join(differences)}; expected the spec that the "
            "model was trained with; set its fields to the model's, or name another model"
        )


def require_classmap_fits(classmap: Path, contract: Contract, model: Path) -> None:
    """Refuses a class map that orders or names the classes other than the model.

    Raises:
        ArtefactError: they disagree.
        DataError: the class map can't be read.
    """
    names = read_classmap(classmap)
    if names != contract.classes:
        raise ArtefactError(
            f"{classmap} and {model} disagree on the classes: {list(names)} in the class map, {list(contract.classes)} "
            f"in the model{told_apart(names, contract.classes)}; expected the class map of the training; leave it out, "
            "the model carries its own classes"
        )
