"""The recipes that benchmarks/recipes.py trains."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from trt_cls import spec

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


def test_todays_recipe_of_resnet18_is_that_of_the_specs(recipes: ModuleType) -> None:
    first = recipes.RECIPES[0]
    ours = recipes.experiment_of(first, Path("data/cifar10"))
    theirs = spec.load(ROOT / "specs" / "cifar10_resnet18.txt", paths=False)
    assert (first.network, first.name) == ("resnet18", "today")
    assert ours.model_config == theirs.model_config
    assert ours.extensions == theirs.extensions
    assert replace(ours.train_config, random_seed=7, n_workers=2) == theirs.train_config
