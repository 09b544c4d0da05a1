"""The C++ library's name and the wheel's tag; all other settings are in pyproject.toml."""

import os
import re
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PREBUILT = "TRT_CLS_PREBUILT_LIBRARY"
"""The environment variable with which release/wheels.py hands over a library built for another machine."""


class BuildLibrary(build_ext):
    """ctypes loads the library by a fixed name: it is no module, and the same for every Python."""

    def get_ext_filename(self, fullname: str) -> str:  # noqa: D102
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:  # noqa: D102
        if (prebuilt := os.environ.get(PREBUILT)) is None:
            super().build_extension(ext)
            return
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(prebuilt, target)


class AnyPython(bdist_wheel):
    """Depends on the machine, but not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:  # noqa: D102
        return "py3", "none", super().get_tag()[2]


DOCUMENTATION = """## Documentation

The pages are Markdown files in the source distribution: begin with `docs/index.md`. Paths in this text are paths there.
"""


def long_description() -> str:
    """README for an index's page, where a link into the repository leads nowhere: files are named by their paths."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r"^## Documentation\n.*?(?=^\S[^|]*$)", DOCUMENTATION + "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\((?!https?://)[^)]+\)\n+", "", text)
    text = re.sub(r"\[(`[^\]]+/`)\]\((?!https?://)[^)]+\)", r"\1", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)([^)#]+)[^)]*\)", r"\1 (`\2`)", text)


setup(
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
