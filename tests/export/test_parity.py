from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.pixel_reference import preprocess
from trt_cls.contract import Contract, Precision
from trt_cls.data.split import Dataset, evaluation_dataset
from trt_cls.errors import DataError, ExportError
from trt_cls.export.parity import Infer, answers_of_both, checked
from trt_cls.export.sample_images import ImageSet, evenly_spread, images_for
from trt_cls.preprocessing.images import decode
from trt_cls.spec.experiment import EvalConfig, Experiment, ModelConfig

Array = np.ndarray


def answers(first: float, count: int = 1) -> Array:
    """`count` images of which a two-class network gives the first class the probability `first`."""
    return np.tile(np.array([[first, 1 - first]], np.float32), (count, 1))


def compare(reference: Array, artefact: Array, tie: float) -> tuple[int, float, float]:
    batches = [np.zeros((len(reference), 3, 2, 2), np.float32)]
    found = answers_of_both(lambda batch: artefact, lambda batch: reference, batches)
    return len(found.expected), found.agreement(tie), found.difference


def test_figures_of_two_answers() -> None:
    reference = np.concatenate([answers(0.9, 3), answers(0.6)])
    artefact = np.concatenate([answers(0.8, 3), answers(0.4)])
    images, agreement, difference = compare(reference, artefact, tie=0.01)
    assert (images, agreement) == (4, 0.75)
    assert difference == pytest.approx(0.2)


@pytest.mark.parametrize(("margin", "agreement"), [(0.009, 1.0), (0.011, 0.0)])
def test_another_best_class_counts_unless_the_network_itself_was_undecided(margin: float, agreement: float) -> None:
    assert compare(answers(0.5 + margin / 2), answers(0.499), tie=0.01)[1] == agreement


@pytest.fixture
def images(contract: Contract) -> ImageSet:
    return images_for(contract.preprocessing, None)


@pytest.mark.parametrize(
    ("precision", "reference", "artefact"),
    [
        ("fp32", 0.9, 0.9 + 2e-4),
        ("fp16", 0.9, 0.9 - 0.06),
        ("fp16", 0.52, 0.49),
    ],
)
def test_out_of_bounds_is_an_error_with_the_figures(
    images: ImageSet, precision: Precision, reference: float, artefact: float
) -> None:
    with pytest.raises(
        ExportError, match=r"agreement .*%, max .*64 random images; expected at least .*(--fp16|checkpoint)"
    ):
        checked(
            lambda batch: answers(artefact, len(batch)), lambda batch: answers(reference, len(batch)), images, precision
        )


@pytest.mark.parametrize(("precision", "difference"), [("fp32", 9e-5), ("fp16", 0.04)])
def test_within_bounds_gives_the_figures(images: ImageSet, precision: Precision, difference: float) -> None:
    parity = checked(
        lambda batch: answers(0.9 - difference, len(batch)), lambda batch: answers(0.9, len(batch)), images, precision
    ).parity
    assert (parity.images, parity.top1_agreement, parity.source) == (64, 1.0, "64 random images")
    assert parity.max_abs_difference == pytest.approx(difference, rel=0.05)


def test_images_are_those_of_the_folder_as_the_contract_wants_them(contract: Contract, pictures: Path) -> None:
    images = images_for(contract.preprocessing, pictures)
    found = np.concatenate(list(images.batches()))
    expected = [preprocess(decode(path, 3), contract.preprocessing) for path in sorted(pictures.rglob("*.png"))]
    np.testing.assert_array_equal(found, np.stack(expected))
    assert images.describe(len(found)) == f"12 of 12 images of {pictures}"


def test_the_specs_dataset_is_taken_where_no_folder_is_named(contract: Contract, pictures: Path) -> None:
    experiment = Experiment(model_config=ModelConfig(), eval_config=EvalConfig(eval_dataset_path=str(pictures)))
    assert evaluation_dataset(experiment) == Dataset(pictures)


def test_random_images_are_the_same_each_time_and_in_the_networks_range(images: ImageSet) -> None:
    first, second = (np.concatenate(list(images.batches())) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (64, 3, 32, 32)
    assert (first.min(), first.max()) == (np.float32(0 - 123.68), np.float32(255 - 103.939))


def test_an_undecodable_image_is_named_and_counted(
    contract: Contract, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "whole.png").write_bytes(next(pictures.rglob("*.png")).read_bytes())
    images = images_for(contract.preprocessing, tmp_path)
    assert sum(len(batch) for batch in images.batches()) == 1
    assert "broken.png" in caplog.text
    assert images.describe(1) == f"1 of 2 images of {tmp_path} (1 can't be decoded)"


def test_no_decodable_image_is_an_error(contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="--images"):
        checked(lambda batch: batch, lambda batch: batch, images_for(contract.preprocessing, tmp_path), "fp32")


def test_few_of_many_are_spread_over_all_classes() -> None:
    samples = [label for label in range(100) for _ in range(37)]
    chosen = evenly_spread(samples, 512)
    assert len(chosen) == 512
    assert {chosen.count(label) for label in range(100)} == {5, 6}
    assert evenly_spread([1, 2, 3], 512) == [1, 2, 3]


def constant(answer: Array) -> Infer:
    return lambda batch: np.tile(answer, (len(batch), 1))


EXACT = answers(0.6)


@pytest.mark.parametrize(("network", "file"), [(4.3e-4, 5.8e-4), (-2e-4, 1e-3), (3e-4, 0.0), (3e-5, -9e-5)])
def test_rounding_as_large_as_the_networks_own_is_no_refusal(images: ImageSet, network: float, file: float) -> None:
    artefact, reference = (constant(EXACT + np.float32([[error, -error]])) for error in (file, network))
    found = checked(artefact, reference, images, "fp32", lambda: constant(EXACT))
    assert found.parity.max_abs_difference == pytest.approx(abs(network - file), rel=0.05)
    assert found.parity.top1_agreement == 1
    assert f"the network is up to {abs(network):.2g} from its answers in float64" in found.remarks[-1]


@pytest.mark.parametrize(("network", "file"), [(1e-5, 2e-4), (1e-4, 9e-4), (0, -1.1e-4), (4.3e-4, 0.01)])
def test_more_than_rounding_is_a_changed_network(images: ImageSet, network: float, file: float) -> None:
    artefact, reference = (constant(EXACT + np.float32([[error, -error]])) for error in (file, network))
    with pytest.raises(ExportError, match=r"8 times float32's own rounding .*the export changed the network: report"):
        checked(artefact, reference, images, "fp32", lambda: constant(EXACT))


def test_classes_as_near_as_rounding_are_no_disagreement(images: ImageSet) -> None:
    artefact, reference = constant(answers(0.4997)), constant(answers(0.5004))
    found = checked(artefact, reference, images, "fp32", lambda: constant(answers(0.5)))
    assert found.parity.top1_agreement == 1


def test_float64_is_not_computed_within_the_plain_bound_nor_in_other_precisions(images: ImageSet) -> None:
    def never() -> Infer:
        raise AssertionError

    checked(constant(EXACT + np.float32([[9e-5, -9e-5]])), constant(EXACT), images, "fp32", never)
    with pytest.raises(ExportError, match="too coarse"):
        checked(constant(EXACT + np.float32([[0.1, -0.1]])), constant(EXACT), images, "fp16", never)


@pytest.mark.parametrize(
    ("precision", "cure"), [("fp32", "changed the network"), ("fp16", "float16 is too small"), ("int8", "in FP32")]
)
@pytest.mark.parametrize("answer", [np.nan, np.inf])
def test_a_file_that_answers_no_numbers_is_refused_for_that(
    images: ImageSet, precision: Precision, cure: str, answer: float
) -> None:
    with pytest.raises(ExportError, match=rf"NaN or infinity for 64 images, the network for none, .*{cure}"):
        checked(constant(answers(answer)), constant(EXACT), images, precision)


def test_a_network_that_answers_no_numbers_is_not_the_files_fault(images: ImageSet) -> None:
    with pytest.raises(ExportError, match=r"the network itself answers NaN or infinity for 64 images.*the training"):
        checked(constant(answers(np.nan)), constant(answers(np.nan)), images, "fp32")


def test_answers_of_one_class_are_named_for_what_they_prove(images: ImageSet) -> None:
    (remark,) = checked(constant(EXACT), constant(EXACT), images, "fp32").remarks
    assert remark.startswith("the network answers one class alone on 64 random images: the check proves nothing")

    def by_image(batch: Array) -> Array:
        return np.where(np.arange(len(batch))[:, None] % 2, EXACT, EXACT[:, ::-1])

    assert checked(by_image, by_image, images, "fp32").remarks == ()


def test_a_network_of_one_answer_is_named_where_the_images_have_labels(
    contract: Contract, pictures: Path, tmp_path: Path
) -> None:
    picture = next(pictures.rglob("*.png")).read_bytes()
    for number in range(8):
        path = tmp_path / "ab"[number > 1] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture)
    images = images_for(contract.preprocessing, tmp_path, classes=("a", "b"))
    (remark,) = checked(constant(EXACT), constant(EXACT), images, "fp32").remarks
    assert remark.startswith("all 8 answers are a; the majority class alone would score 75 %: the check proves nothing")


def test_the_images_that_are_held_against_float64_are_those_that_differ_most(images: ImageSet) -> None:
    """One image of 64 is wrong, and the network's rounding is large on another."""
    first = np.concatenate(list(images.batches()))[:, 0, 0, 0]
    known = {float(value): index for index, value in enumerate(first)}

    def off(errors: dict[int, float]) -> Infer:
        def infer(batch: Array) -> Array:
            moved = np.float32([[errors.get(known[float(image[0, 0, 0])], 0.0)] for image in batch])
            return answers(0.6, len(batch)) + moved * np.float32([[1, -1]])

        return infer

    assert len(known) > 32, "images are told apart by their first pixel"
    wrong = known[float(first[50])]
    with pytest.raises(ExportError, match=r"the network is up to 0\.0002 .*, the file 0\.02"):
        checked(off({wrong: 0.02}), off({known[float(first[3])]: 2e-4}), images, "fp32", lambda: off({}))
