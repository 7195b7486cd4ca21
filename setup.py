"""The extension modules. Everything else about the package is in pyproject.toml.

Environment variables, for developers:

FASTSOCK_DEBUG
    ``1``: no optimisation, assertions and symbols kept.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": False,
    "initializedcheck": False,
}

DEBUG = os.environ.get("FASTSOCK_DEBUG", "") not in ("", "0")
CFLAGS = ["-O0", "-g3", "-UNDEBUG"] if DEBUG else ["-O2"]

modules = cythonize(
    [
        Extension(f"fastsock.{source.stem}", [str(source)])
        for source in sorted(Path("fastsock").glob("*.pyx"))
    ],
    compiler_directives=DIRECTIVES,
    build_dir="build/cython",
)
setup(
    ext_modules=[
        # All in one shared object: fastsock/_native.py says why, and loads them from it.
        Extension(
            "fastsock._core",
            [source for module in modules for source in module.sources],
            depends=[dependency for module in modules for dependency in module.depends],
            extra_compile_args=[*CFLAGS, "-Wall", "-Wno-unused-function"],
        )
    ]
)
