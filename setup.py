"""The extension modules. Everything else about the package is in pyproject.toml.

Environment variables, for developers:

FASTSOCK_DEBUG
    ``1``: no optimisation, assertions and symbols kept.
"""

import os

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

EXTENSIONS = [
    "_turn",
    "_genuine",
    "_channel",
    "_stream",
    "_reader",
    "_writer",
    "_accept",
    "_control",
    "_leader",
    "_core",
    "_worker",
]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"fastsock.{name}",
                [f"fastsock/{name}.pyx"],
                extra_compile_args=[*CFLAGS, "-Wall", "-Wno-unused-function"],
            )
            for name in EXTENSIONS
        ],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    )
)
