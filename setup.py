"""The extension modules. Everything else about the package is in pyproject.toml.

Environment variables, for developers:

FASTSOCK_DEBUG
    ``1``: no optimisation, assertions and symbols kept.
FASTSOCK_INCREMENTAL
    ``1``: leave object files alone that are newer than their source, whatever flags they were
    compiled with.
"""

import os
from concurrent.futures import ThreadPoolExecutor
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


class Build(build_ext):
    """Compiles the sources of an extension beside each other, which distutils does in turn."""

    def build_extension(self, ext):
        compile_one, compile_all = self.compiler._compile, self.compiler.compile

        def compile_beside(*arguments, **keywords):
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                begun = []
                self.compiler._compile = lambda *one: begun.append(
                    pool.submit(self.compile, compile_one, *one)
                )
                objects = compile_all(*arguments, **keywords)
            for each in begun:
                each.result()
            return objects

        self.compiler.compile = compile_beside
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile, self.compiler.compile = compile_one, compile_all

    def compile(self, compile_one, target, source, *arguments):
        # Otherwise all sources of an extension are compiled if one of them has changed.
        if not (
            INCREMENTAL
            and os.path.exists(target)
            and os.path.getmtime(target) > os.path.getmtime(source)
        ):
            compile_one(target, source, *arguments)


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
    cmdclass={"build_ext": Build},
)
