"""The recipes that benchmarks/recipes.py trains."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from trt_cls import spec
from trt_cls.spec.experiment import RegConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_recipes")


def test_a_choice_does_not_look_at_the_test_images(recipes: ModuleType) -> None:
    for recipe in recipes.CANDIDATES:
        experiment = recipes.experiment_of(recipe, Path("/data"), choosing=True)
        assert experiment.train_config.val_dataset_path == ""
        assert experiment.extensions.validation_split == 0.2


def test_each_candidate_has_a_folder_and_a_request_of_its_own(recipes: ModuleType) -> None:
    experiments = [recipes.experiment_of(recipe, Path("/data")) for recipe in recipes.CANDIDATES]
    assert len({spec.show(experiment) for experiment in experiments}) == len(experiments)
    assert len({(recipe.network, recipe.name) for recipe in recipes.CANDIDATES}) == len(experiments)


@pytest.mark.parametrize(
    ("name", "file"),
    [("today", "cifar10_resnet18"), ("growing-muon-longer-trivial-batch128", "cifar10_resnet18_muon")],
)
def test_measured_recipes_are_those_of_the_specs(name: str, file: str, recipes: ModuleType) -> None:
    [measured] = [recipe for recipe in recipes.RECIPES if (recipe.network, recipe.name) == ("resnet18", name)]
    ours = recipes.experiment_of(measured, Path("data/cifar10"))
    theirs = spec.load(ROOT / "specs" / f"{file}.txt", paths=False)
    assert ours.model_config == theirs.model_config
    assert ours.extensions == theirs.extensions
    config = replace(ours.train_config, random_seed=7, n_workers=2)
    if config.reg_config.type == "None":  # its weight decay is without effect
        config = replace(config, reg_config=RegConfig(type="None"))
    assert config == theirs.train_config


def test_recipes_of_resnet18_are_compared_with_todays(recipes: ModuleType) -> None:
    assert (recipes.RECIPES[0].network, recipes.RECIPES[0].name) == ("resnet18", "today")
