"""The extension modules. Everything else about the package is in pyproject.toml.

Environment variables, for developers:

FASTSOCK_DEBUG
    ``1``: no optimisation, assertions and symbols kept.
FASTSOCK_INCREMENTAL
    ``1``: leave object files alone that are newer than their source, whatever flags they were
    compiled with.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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

INCREMENTAL = os.environ.get("FASTSOCK_INCREMENTAL", "") not in ("", "0")


class BuildWhatChanged(build_ext):
    """distutils compiles all sources of an extension if one of them has changed."""

    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def compile_if_newer(target, source, *arguments):
            if not os.path.exists(target) or os.path.getmtime(target) <= os.path.getmtime(source):
                compile_one(target, source, *arguments)

        self.compiler._compile = compile_if_newer
        super().build_extension(ext)


def cythonized(package):
    """An extension for each .pyx of a package."""
    return cythonize(
        [
            Extension(
                f"{package}.{source.stem}",
                [str(source)],
                extra_compile_args=[*CFLAGS, "-Wall", "-Wno-unused-function"],
            )
            for source in sorted(Path(*package.split(".")).glob("*.pyx"))
        ],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    )


modules = cythonized("fastsock")
setup(
    ext_modules=[
        # All in one shared object: fastsock/_native.py says why, and loads them from it.
        Extension(
            "fastsock._core",
            [source for module in modules for source in module.sources],
            depends=[dependency for module in modules for dependency in module.depends],
            extra_compile_args=[*CFLAGS, "-Wall", "-Wno-unused-function"],
        ),
        *cythonized("fastsock.bench"),
    ],
    cmdclass={"build_ext": BuildWhatChanged} if INCREMENTAL else {},
)
