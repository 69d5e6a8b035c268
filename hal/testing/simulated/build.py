"""The simulated device's C++ part, compiled when it is first needed."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
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
    if not library.exists():
        _compile(library, cpp_extension)
    return _loaded(library)


def _loaded(library: Path) -> Any:
    spec = importlib.util.spec_from_file_location(_NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(library: Path, cpp_extension: Any) -> None:
    """Compile it elsewhere and move it, so that no other process finds half of it."""
    compiler = str(cpp_extension.get_cxx_compiler())
    if shutil.which(compiler) is None:
        raise HalError(
            f"a simulated device is compiled when it is first used, by {compiler}, which is not "
            "here; install a C++ compiler, such as Debian's g++, or name one in CXX"
        )
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_arguments(cpp_extension), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HalError(f"{compiler} cannot compile the simulated device:\n{done.stderr}")
        os.replace(made, library)


def _arguments(cpp_extension: Any) -> list[str]:
    included = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    abi = int(torch.compiled_with_cxx11_abi())
    return [
        # Torch 2.13 takes no less than C++20; that compiles with 2.7 as well.
        *("-std=c++20", "-O0", "-fPIC", "-shared"),
        *(f"-DTORCH_EXTENSION_NAME={_NAME}", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"),
        *(part for path in included for part in ("-isystem", path)),
        str(_SOURCE),
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]
