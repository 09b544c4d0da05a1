"""Draws hostile specs, contracts, model files, images and names; what each case is stands beside it."""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from PIL import Image

from artefacts.test_gate import (
    NOT_JSON,
    WRONG,
    foreign_operation,
    size_of_weight,
    type_of_weight,
    version_of_opset,
    weights_elsewhere,
    without_outputs,
)
from preprocessing.test_image_file import encoded, fifo, kernel_log, nothing, process, sparse, zeros
from trt_cls.contract import METADATA_KEY

Draw = random.Random
WORDS = [
    *("nan", "-inf", "1e400", "-1", "0", "-0.0", "1e-46", "9" * 4000, "2147483648", "0x7f", "010", "1f", "true", "{"),
    *('"1"', '"3,-5,5"', '"3,99999999999,9"', '"\\377\\376"', '"\x1b[2J"', '"\u202e\u2028"', '"/dev/zero"', '"timm/x"'),
    *("[1,2]", "BICUBIC", "99", '"' + "A" * 5000 + '"', '"torchvision/resnet18"', "\0", "é", "\ud800"),
]
SIGNS = [*"{}<>[]:;,#\"'\\\0\x1b\r\x0c\x85\u2028\ufeff", "}" * 2000, "a {" * 1500, "model_config {" * 300]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 3, 33, 10**9, 2**63, 10**30, 1e308, float("nan"), float("inf"), -0.0, 1.5),
    *(
        "",
        "x",
        "\0",
        "\x1b]0;x\x07",
        "\ud800",
        "\u202e",
        "../../../etc/passwd",
        "A" * 100_000,
        "resnet",
        "timm/resnet18",
    ),
    *("3,224,224", "1,32,32", "-3,32,32", "1,100000,100000", [], [1], {}, {"a": 1}, [[["x"]]]),
]
NAMES = [
    *(b"<img src=x onerror=alert(1)>", b"a'b\"c", b"comma,name", b"=cmd|' C'!A0", b"@SUM(1)", b"+1", b"-rf", b" "),
    *(b"\x1b[2J\x1b]0;x\x07", b"new\nline", b"c\rr", b"\xff\xfe", b"semi;colon", b"ta\tb", b"x ", b"$(touch OWNED)"),
    *("\u202egnp".encode(), "l\u2028s".encode(), "\u0435".encode(), b"{{7*7}}", b"&lt;b&gt;", b"A" * 240, b"%00"),
    *(b"%s%n", b"skipped: x"),
]  # fmt: skip
PIPES = [fifo, kernel_log, nothing, process, sparse, zeros]
"""What is no picture and must not be read."""


class Case(NamedTuple):
    """A file's bytes, and what was done to make them."""

    name: str
    content: bytes
    done: str


def flipped(draw: Draw, content: bytes, within: int | None = None) -> bytes:
    """A few bits turned over, in the first `within` bytes."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        changed[draw.randrange(min(len(changed), within or len(changed)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw: Draw, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def specs(draw: Draw, texts: list[str], count: int) -> Iterator[Case]:
    """Specs with a value, a field, a block, a sign or some bytes changed."""
    for _ in range(count):
        text, changes = draw.choice(texts), []
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            change = draw.choice([_value, _value, _value, _field, _block, _sign, _piece])
            text = change(draw, text)
            changes.append(change.__name__)
        content = text.encode("utf-8", "surrogatepass")
        damage = draw.choice([None] * 8 + [flipped, cut])
        yield Case("spec.txt", damage(draw, content) if damage and content else content, " ".join(changes))


def _fields(text: str, pattern: str = r"\b\w+\s*:\s*(\"[^\"]*\"|[-\w.+]+)") -> list[re.Match[str]]:
    return list(re.finditer(pattern, text))


def _value(draw: Draw, text: str) -> str:
    if not (fields := _fields(text)):
        return text
    start, end = draw.choice(fields).span(1)
    return text[:start] + draw.choice(WORDS) + text[end:]


def _field(draw: Draw, text: str) -> str:
    """A field that is gone, doubled, or in another's place."""
    if not (fields := _fields(text)):
        return text
    one, other = draw.choice(fields), draw.choice(fields)
    instead = draw.choice(["", f"{one[0]} {one[0]}", other[0]])
    return text[: one.start()] + instead + text[one.end() :]


def _block(draw: Draw, text: str) -> str:
    """A block that is gone, repeated, or within another field."""
    blocks = _fields(text, r"\b\w+\s*\{[^{}]*\}")
    if not blocks or not (fields := _fields(text)):
        return text
    block, place = draw.choice(blocks), draw.choice(fields).start()
    gone = text[: block.start()] + text[block.end() :]
    return draw.choice(
        [gone, text[: block.end()] + block[0] * 3 + text[block.end() :], text[:place] + block[0] + text[place:]]
    )


def _sign(draw: Draw, text: str) -> str:
    place = draw.randint(0, len(text))
    return text[:place] + draw.choice(SIGNS) + text[place:]


def _piece(draw: Draw, text: str) -> str:
    """A piece that is cut out and put in elsewhere."""
    start, end = sorted(draw.randint(0, len(text)) for _ in range(2))
    rest = text[:start] + text[end:]
    place = draw.randint(0, len(rest))
    return rest[:place] + draw.choice(["", text[start:end]]) + rest[place:]


def changed_json(draw: Draw, content: dict[str, Any]) -> tuple[str, str]:
    """A JSON text with a few values replaced, missing or added, or no JSON at all; and what was done."""
    if draw.random() < 0.1:
        text = draw.choice(NOT_JSON)
        return text, f"text {text[:20]!r}"
    content, done = copy.deepcopy(content), []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        inside, key = draw.choice(list(_places(content)))
        change = draw.random()
        if change < 0.8:
            inside[key] = copy.deepcopy(draw.choice([*VALUES, *(value for _, value in WRONG)]))
        elif change < 0.9:
            del inside[key]
        elif isinstance(inside, dict):
            inside["zz\u202e"] = 1
        else:
            inside.extend(inside * 1000)
        done.append(f"{key}={str(inside[key])[:20]!r}" if change < 0.8 else f"{key} {change:.2f}")
    return json.dumps(content), "; ".join(done)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each container and key in it."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from _places(content[key])


class ModelFiles(NamedTuple):
    """Sound files of one small network of each kind."""

    onnx: bytes
    checkpoint: bytes
    plan: bytes
    sidecar: str
    contract: dict[str, Any]


def artefacts(draw: Draw, sound: ModelFiles, count: int) -> Iterator[Case]:
    """Model files that are damaged, or whose contract or sidecar says something else. A plan keeps its name."""
    makers: list[Callable[[Draw, ModelFiles], Case]] = [_onnx, _checkpoint, _sidecar, _contract_of_onnx, _graph]
    for number in range(count):
        yield makers[number % len(makers)](draw, sound)


def _onnx(draw: Draw, sound: ModelFiles) -> Case:
    damage = draw.choice([flipped, cut, lambda draw, content: flipped(draw, content, 300)])
    return Case("m.onnx", damage(draw, sound.onnx), "bits of the graph")


def _contract_of_onnx(draw: Draw, sound: ModelFiles) -> Case:
    text, done = changed_json(draw, sound.contract)
    model = onnx.load_from_string(sound.onnx)
    (entry,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    entry.value = text.encode("utf-8", "replace").decode()
    return Case("m.onnx", model.SerializeToString(), f"contract {done}")


def _graph(draw: Draw, sound: ModelFiles) -> Case:
    model = onnx.load_from_string(sound.onnx)
    elsewhere = (draw.choice(["/etc/passwd", "../secret", "missing", "", "m.onnx"]), draw.choice([0, -1, 2**62]))
    damages: dict[str, Callable[[onnx.ModelProto], object]] = {
        change.__name__: change
        for change in (version_of_opset, without_outputs, type_of_weight, size_of_weight, foreign_operation)
    }
    damages |= {
        "weights elsewhere": lambda model: weights_elsewhere(model, *elsewhere),
        "operator": lambda model: setattr(
            draw.choice(model.graph.node), "op_type", draw.choice(["", "If", "Loop", "Nope"])
        ),
        "inputs": lambda model: model.graph.node[0].input.append("nowhere"),
        "a loop": lambda model: model.graph.node[0].input.__setitem__(0, model.graph.node[0].output[0]),
        "no input": lambda model: model.graph.ClearField("input"),
        "no output": lambda model: model.graph.ClearField("output"),
        "shape": lambda model: setattr(
            model.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", draw.choice([-5, 0, 10**9, 2**62])
        ),
    }
    done = draw.choice(list(damages))
    damages[done](model)
    return Case("m.onnx", model.SerializeToString(), f"graph: {done}")


def _checkpoint(draw: Draw, sound: ModelFiles) -> Case:
    """Header and tensors of a safetensors file."""
    content = sound.checkpoint
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    kind = draw.randrange(6)
    if kind == 0:
        return Case("m.safetensors", draw.choice([flipped, cut])(draw, content), "bits")
    if kind == 1:
        size = struct.pack("<Q", draw.choice([2**64 - 1, 10**9, 0, 5]))
        return Case("m.safetensors", size + content[8:], "length of the header")
    name = draw.choice([name for name in header if name != "__metadata__"])
    if kind == 2:
        header[name]["shape"] = [draw.choice([-1, 0, 3, 10**9, 2**62])] * draw.randint(0, 5)
    elif kind == 3:
        header[name]["dtype"] = draw.choice(["F64", "I8", "X", "BOOL", "BF16", 3])
    elif kind == 4:
        header[draw.choice(["../../etc/passwd", "\x1b[2J", "x" * 5000])] = header.pop(name)
    text, done = (
        changed_json(draw, sound.contract) if kind == 5 else (json.dumps(sound.contract), f"header {kind} {name}")
    )
    header["__metadata__"][METADATA_KEY] = text
    made = json.dumps(header).encode()
    return Case("m.safetensors", struct.pack("<Q", len(made)) + made + content[8 + length :], done)


def _sidecar(draw: Draw, sound: ModelFiles) -> Case:
    text, done = changed_json(draw, json.loads(sound.sidecar))
    return Case("m.engine.json", text.encode("utf-8", "surrogatepass"), done)


def pictures() -> dict[str, bytes]:
    """A picture in every format that is taken, in several modes."""
    noise = Image.effect_noise((48, 40), 60)
    color, gray = noise.convert("RGB"), np.asarray(noise)
    made = {f"{form.lower()}.{form.lower()}": encoded(color, form) for form in ("PNG", "BMP", "WEBP", "PPM", "GIF")}
    made |= {
        f"{name}.tif": encoded(color, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "packbits", "jpeg")
    }
    made |= {f"{mode}.jpg": encoded(noise.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    made |= {f"{mode}.png": encoded(noise.convert(mode), "PNG") for mode in ("1", "LA", "RGBA", "P")}
    made["16.png"] = encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    made["float.tif"] = encoded(Image.fromarray(gray.astype(np.float32)), "TIFF")
    made["progressive.jpg"] = encoded(color, "JPEG", progressive=True)
    made["g4.tif"] = encoded(noise.convert("1"), "TIFF", compression="group4")
    return made


def images(draw: Draw, count: int) -> Iterator[Case]:
    """Pictures that are cut, or have bytes changed, added, or claim other sizes."""
    sound = pictures()
    yield Case("empty.jpg", b"", "nothing")
    yield Case("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "another format")
    yield Case("token.ppm", b"P6 " + b"1" * 1_000_000, "a number without end")
    yield Case("loop.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "a directory that leads to itself")
    yield Case("many.tif", b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\4\0\xff\xff\xff\xff\0\0\0\0" * 3, "65,535 entries")
    for number in range(count):
        name, content = draw.choice(list(sound.items()))
        damage = draw.choice([cut, flipped, _head, _inserted, _claimed])
        yield Case(f"{number:04}-{name}", damage(draw, content), damage.__name__)


def _head(draw: Draw, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(min(len(changed), 200))] = draw.choice([0, 255, 127, 128, draw.randrange(256)])
    return bytes(changed)


def _inserted(draw: Draw, content: bytes) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + draw.randbytes(draw.randint(1, 50)) + content[place:]


def _claimed(draw: Draw, content: bytes) -> bytes:
    """Two of the header's numbers are huge or zero: mostly the width and height."""
    place = draw.randrange(2, min(60, len(content) - 8))
    number = draw.choice([b"\xff\xff", b"\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff"])
    return content[:place] + number + content[place + len(number) :]


def write_pipes(folder: Path) -> None:
    """Files of `PIPES`, each named as a picture."""
    for number, make in enumerate(PIPES):
        make(folder / f"pipe{number}.jpg")


def plain_picture(color: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(stream, "PNG")
    return stream.getvalue()
