"""Sets and unknown images: the promised shares by scipy's beta-binomial, AUROC by scikit-learn."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from support.tiny_models import CONTRACT
from trt_cls.artefacts.decoding import Format, Origin, contract_from_json, decoded
from trt_cls.contract import Conformal, Contract, Reject
from trt_cls.errors import ArtefactError, DataError
from trt_cls.evaluation.prediction_sets import (
    KINDS,
    auroc,
    conformal_of,
    counts_of_kinds,
    decision,
    in_sets,
    named,
    reject_of,
)

SPLITS, FITTED, TESTED = 200, 50, 200


def answers(images: int, sharpness: float = 2.0, seed: int = 0) -> tuple[Any, Any]:
    """Probabilities of five classes, which are too sure, and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=sharpness, size=(images, 5))
    powers = np.exp(1.5 * logits)
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize(("rule", "share"), [("coverage", 0.9), ("coverage", 0.8), ("reject", 0.1), ("reject", 0.35)])
def test_the_share_over_200_splits_is_beta_binomial(rule: str, share: float) -> None:
    """Split conformal prediction of n images promises that law exactly, whatever the model, without ties."""
    betabinom = pytest.importorskip("scipy.stats").betabinom
    probabilities, labels = answers(FITTED + TESTED)
    random, counts = np.random.default_rng(1), []
    for _ in range(SPLITS):
        order = random.permutation(FITTED + TESTED)
        fitted, tested = order[:FITTED], order[FITTED:]
        if rule == "coverage":
            found = conformal_of(probabilities[fitted], labels[fitted], share)
            counts.append(in_sets(probabilities[tested], found)[np.arange(TESTED), labels[tested]].sum())
        else:
            known = replace(CONTRACT, reject=reject_of(probabilities[fitted], share))
            counts.append(counts_of_kinds(probabilities[tested], known)["unknown"])
    steps = Fraction(str(share)) * (FITTED + 1)
    rank = math.ceil(steps) if rule == "coverage" else math.floor(steps)
    law = betabinom(TESTED, rank, FITTED + 1 - rank)
    # the law of the next rank is 3.7 or more of these deviations away
    assert abs(np.mean(counts) - law.mean()) < 3 * law.std() / math.sqrt(SPLITS)
    low, high = law.interval(0.9)
    inside = np.mean([low <= count <= high for count in counts])
    expected = law.cdf(high) - law.cdf(low - 1)
    assert abs(inside - expected) < 3 * math.sqrt(expected * (1 - expected) / SPLITS)
    assert law.ppf(1e-5) <= min(counts) <= max(counts) <= law.isf(1e-5)


def test_auroc_is_scikit_learns_with_ties() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    own, foreign = answers(300)[0], answers(170, sharpness=1.0, seed=1)[0]
    for known, others in ((own, foreign), (np.round(own, 1), np.round(foreign, 1)), (own, own)):
        truth = np.repeat([1, 0], [len(known), len(others)])
        scores = np.concatenate([known, others]).max(axis=1)
        assert auroc(known, others) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)


SETS, DOUBTS = Conformal(0.9, 0.75), Reject(0.05, 0.5)


@pytest.mark.parametrize(
    ("row", "rules", "expected"),
    [
        ([0.25, 0.625, 0.125], (None, None), ("label", ["green"])),
        ([0.25, 0.625, 0.125], (SETS, None), ("set", ["green", "red"])),
        ([0.125, 0.75, 0.125], (SETS, None), ("label", ["green"])),
        ([0.25, 0.5, 0.25], (SETS, DOUBTS), ("set", ["green", "red", "blue"])),
        ([0.375, 0.375, 0.25], (SETS, DOUBTS), ("unknown", ["unknown"])),
        ([0.375, 0.375, 0.25], (None, DOUBTS), ("unknown", ["unknown"])),
        ([0.25, 0.5, 0.25], (None, DOUBTS), ("label", ["green"])),
        ([0.25, 0.5, 0.25], (Conformal(0.5, 0.25), None), ("unknown", ["unknown"])),
    ],
)
def test_a_label_a_set_or_unknown(row: list[float], rules: tuple[Any, Any], expected: tuple[str, list[str]]) -> None:
    """Equal to the bound counts as in the set, and as known; an empty set says nothing."""
    contract = replace(CONTRACT, conformal=rules[0], reject=rules[1])
    probabilities = np.array(row, np.float32)
    found = decision(probabilities, contract)
    assert (found.kind, [name for name, _ in found.named]) == expected
    assert [share for _, share in found.named] == sorted(row, reverse=True)[: len(found.named)]
    assert counts_of_kinds(probabilities[None], contract) == {kind: int(kind == found.kind) for kind in KINDS}
    assert named(probabilities[None], contract).sum() == (0 if found.kind == "unknown" else len(found.named))


@pytest.mark.parametrize(("measure", "flag"), [(conformal_of, "--coverage"), (reject_of, "--reject-rate")])
def test_19_images_are_the_fewest_for_1_in_20(measure: Any, flag: str) -> None:
    probabilities, labels = answers(19)
    given = (probabilities, labels, 0.95) if flag == "--coverage" else (probabilities, 0.05)
    assert measure(*given)
    few = [value[:18] if isinstance(value, np.ndarray) else value for value in given]
    with pytest.raises(DataError, match=f"{flag}: 18 validation images are left .* expected at least 19"):
        measure(*few)


@pytest.mark.parametrize("rules", [{"conformal": SETS}, {"reject": DOUBTS}, {"conformal": SETS, "reject": DOUBTS}])
def test_a_contract_with_rules_has_format_2_which_version_0_1_refuses(rules: dict[str, Any]) -> None:
    contract = replace(CONTRACT, **rules)
    text = contract.to_json()
    written = json.loads(text)
    assert written["format"] == 2
    assert {name: written.get(name) for name in rules} == {name: asdict(rule) for name, rule in rules.items()}
    assert contract_from_json(text, "a") == contract
    assert contract_from_json(CONTRACT.to_json(), "a") == CONTRACT
    assert json.loads(CONTRACT.to_json())["format"] == 1
    with pytest.raises(ArtefactError, match="format: invalid enum value 2"):  # as version 0.1 reads it
        decoded(Contract, text, Origin("a", " its contract", "write it again"), Format)


@pytest.mark.parametrize(
    ("rule", "values", "fault"),
    [
        ("conformal", {"coverage": 1.0, "quantile": 0.5, "score": "lac"}, "conformal.coverage: 1 found"),
        ("conformal", {"coverage": 0.9, "quantile": 1.5, "score": "lac"}, "conformal.quantile: 1.5 found"),
        ("conformal", {"coverage": 0.9, "quantile": 0.5, "score": "aps"}, "conformal.score: invalid enum value 'aps'"),
        ("conformal", {"coverage": 0.9}, "conformal: object missing required field `quantile`"),
        ("reject", {"rate": 0.0, "threshold": 0.5}, "reject.rate: 0 found"),
        ("reject", {"rate": 0.1, "threshold": -1.0}, "reject.threshold: -1 found"),
        ("reject", {"rate": 0.1, "threshold": 0.5, "size": 1}, "reject.size: unknown field"),
    ],
)
def test_rules_beyond_their_ranges_are_refused(rule: str, values: dict[str, Any], fault: str) -> None:
    content = {**json.loads(CONTRACT.to_json()), "format": 2, rule: values}
    with pytest.raises(ArtefactError, match=fault):
        contract_from_json(json.dumps(content), "a")
