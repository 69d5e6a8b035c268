"""The simulated device's C++ part, compiled when it is first needed."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hal.errors import HalError

__all__ = ["extension"]

_NAME = "hal_simulated"
_SOURCE = Path(__file__).with_name("device.cpp")


@functools.cache
def extension() -> Any:
    """The compiled part; it is kept in torch's folder of extensions, by its source and torch.

    Compiling takes half a minute.

    Raises:
        HalError: There is nothing to compile it with, or it cannot be compiled.
    """
    from torch.utils import cpp_extension

    versions = f"{torch.__version__} {sys.version}".encode()
    key = hashlib.sha256(_SOURCE.read_bytes() + versions).hexdigest()[:16]
    folder = cpp_extension._get_build_directory(f"{_NAME}_{key}", verbose=False)  # pyright: ignore[reportPrivateUsage]
    library = Path(folder) / f"{_NAME}.so"
    return _loaded(library) if library.exists() else _compiled(library, cpp_extension)


def _loaded(library: Path) -> Any:
    spec = importlib.util.spec_from_file_location(_NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiled(library: Path, cpp_extension: Any) -> Any:
    """Compile in a folder of its own, so that no other process finds half of it."""
    compiler = cpp_extension.get_cxx_compiler()
    if not (cpp_extension.is_ninja_available() and shutil.which(compiler)):
        raise HalError(
            f"a simulated device is compiled when it is first used, with {compiler} and ninja; "
            "install a C++ compiler and ninja, such as Debian's g++ and ninja-build"
        )
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        options = {"build_directory": folder, "extra_cflags": ["-O0"]}
        try:
            module = cpp_extension.load(_NAME, [str(_SOURCE)], **options)
        except RuntimeError as error:
            raise HalError(f"the simulated device cannot be compiled: {error}") from error
        os.replace(Path(folder) / library.name, library)
    return module
