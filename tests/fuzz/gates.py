"""Coverage-guided fuzzing (atheris) of what strangers write: nothing but the product's own errors, and at once.

pip install atheris
python tests/fuzz/gates.py contract|sidecar|classmap|labels|spec|image CORPUS_FOLDER -max_total_time=600
"""

import io
import json
import sys
import tempfile
from pathlib import Path
from time import process_time

import atheris

with atheris.instrument_imports(include=["trt_cls", "google.protobuf.text_format", "PIL"]):
    from PIL import Image

    from trt_cls.artefacts.classmap import read_classmap
    from trt_cls.artefacts.decoding import contract_from_json
    from trt_cls.artefacts.sidecar import Profile, Sidecar, read_sidecar, write_sidecar
    from trt_cls.contract import Contract, Preprocessing
    from trt_cls.data.labels_csv import labeled_folder
    from trt_cls.errors import TrtClsError
    from trt_cls.preprocessing.images import decode
    from trt_cls.spec import show
    from trt_cls.spec.experiment import ModelConfig
    from trt_cls.spec.loader import experiment_from_text, read_text

ROOT = Path(__file__).parents[2]
FOLDER = Path(tempfile.mkdtemp())
PIXELS = Preprocessing(3, 32, 32, "center", "bicubic", "bgr", 1.0, (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
CONTRACT = Contract(ModelConfig(), PIXELS, ("cat", "dog"))


def contract(data: bytes) -> None:
    again = contract_from_json(data, "file")
    assert contract_from_json(again.to_json(), "file") == again


def sidecar(data: bytes) -> None:
    (FOLDER / "m.engine.json").write_bytes(data)
    read_sidecar(FOLDER / "m.engine")


def classmap(data: bytes) -> None:
    (FOLDER / "classmap.json").write_bytes(data)
    read_classmap(FOLDER / "classmap.json")


def labels(data: bytes) -> None:
    (FOLDER / "labels").mkdir(exist_ok=True)
    (FOLDER / "labels" / "1.png").touch()
    (FOLDER / "labels" / "labels.csv").write_bytes(data)
    labeled_folder(FOLDER / "labels", "labels.csv")


def spec(data: bytes) -> None:
    (FOLDER / "spec.txt").write_bytes(data)
    experiment = experiment_from_text(
        read_text(FOLDER / "spec.txt"), "spec", overrides=(), needs=("train_config",), files_of=()
    )
    again = experiment_from_text(show(experiment, secrets=True), "spec", overrides=(), needs=(), files_of=())
    assert again == experiment


def image(data: bytes) -> None:
    for channels in (3, 1):
        decode(data, channels)


def pictures() -> list[bytes]:
    found = []
    for name in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "AVIF"):
        for mode in ("RGB", "L"):
            written = io.BytesIO()
            Image.effect_noise((16, 12), 60).convert(mode).save(written, name)
            found.append(written.getvalue())
    return found


def seeds() -> dict[str, list[bytes]]:
    side = Sidecar(CONTRACT, "0" * 64, "tensorrt", "10.3", ("8.9",), "GPU", Profile(1, 8, 32), "m.onnx", "0" * 64)
    write_sidecar(FOLDER / "m.engine", side)
    return {
        "contract": [CONTRACT.to_json().encode()],
        "sidecar": [(FOLDER / "m.engine.json").read_bytes()],
        "labels": [b'path,labels\r\n1.png,cat|dog\r\n"2,.png",\r\n'],
        "classmap": [json.dumps({"cat": 0, "dog": 1}).encode()],
        "spec": [path.read_bytes() for path in sorted((ROOT / "specs").glob("*.txt"))],
        "image": pictures(),
    }


def main() -> None:
    name, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()[name]):
        (corpus / f"seed{number}").write_bytes(seed)
    target = {
        "contract": contract,
        "sidecar": sidecar,
        "classmap": classmap,
        "labels": labels,
        "spec": spec,
        "image": image,
    }[name]

    def one(data: bytes) -> None:
        started = process_time()
        try:
            target(data)
        except TrtClsError as error:
            text = str(error)
            text.encode()  # a lone surrogate would end the program while it prints
            assert name == "spec" or "\n" not in text, text
        assert process_time() - started < 1, "more than a second"

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
