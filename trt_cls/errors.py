"""Every error that trt-cls raises on purpose.

    TrtClsError                  a run failed                              exit 1
    ├── RequestError             what was asked for is wrong               exit 2
    │   ├── SpecError            the spec file, field by field
    │   ├── DataError            folders of images, class maps, image files
    │   └── ArtefactError        model files: missing, truncated, foreign, of another contract
    ├── ExportError              an artefact could not be made or is not the network
    ├── EngineError              an engine could not be opened or run
    ├── DeviceError              the device that was asked for is not there
    ├── StoreError               an object store can't be read or written
    └── MissingDependency        an optional package is not installed

A message says what was found, what was expected and what to do next, in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType


class TrtClsError(Exception):
    """A run failed; `exit_code` is what the command line returns."""

    exit_code = 1


class RequestError(TrtClsError):
    """The request is wrong: flags, spec, a missing or unreadable file."""

    exit_code = 2


class DataError(RequestError):
    """A dataset folder, class map or image file can't be used."""


class ArtefactError(RequestError):
    """A model file is missing, truncated, foreign or of another contract."""


class ExportError(TrtClsError):
    """An artefact could not be made, or does not answer as the network does."""


class EngineError(TrtClsError):
    """An inference engine could not be built, opened or run."""


class DeviceError(TrtClsError):
    """The device that was asked for is not available."""


class StoreError(TrtClsError):
    """An object store does not answer, or what it has is damaged."""


class MissingDependency(TrtClsError):
    """An optional package is not installed."""

    def __init__(self, package: str, purpose: str, extra: str, fault: str = "is not installed") -> None:
        super().__init__(f'{purpose} needs the package {package}, which {fault}: pip install "trt-cls[{extra}]"')


@dataclass(frozen=True)
class Problem:
    """One mistake in a spec: where it stands, what was found there, what may stand there."""

    where: str
    """File and line (`spec.txt:12`), or the flag that set the value (`--set a.b=c`)."""
    path: str
    """Full field path, `train_config.n_epochs`; empty for a mistake of syntax."""
    message: str
    """What was found and what was expected, with a did-you-mean for names."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class SpecError(RequestError):
    """A spec has mistakes; `problems` lists them all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def require(module: str, purpose: str, extra: str, package: str = "") -> ModuleType:
    """The optional `module`, imported; `extra` installs it, and `package` is its name on PyPI where that is another.

    Raises:
        MissingDependency: it can't be imported; the message says what it is needed for, `purpose`.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency(package or module, purpose, extra) from error
    except ImportError as error:
        raise MissingDependency(package or module, purpose, extra, f"can't be imported ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """The message of `error` on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from, and so on; each once, for a chain can lead back to itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean "X"?`, or nothing where no known name is close.

    Of a name that looks the same as a known one it says where the two differ.
    """
    from trt_cls.text import difference, looks_like  # not needed by --help, which imports this module

    alike = next((other for other in known if looks_like(name, other)), None)
    if alike is not None:
        return f'; it looks like "{alike}", but {difference(name, alike)}'
    close = get_close_matches(name, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
