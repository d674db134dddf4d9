"""Compiles the kernels; all else that the package is stands in pyproject.toml.

pip wheel .                              # without a compiler: a wheel py3-none-any, no kernels
TALKBACK_REQUIRE_KERNELS=1 pip wheel .   # fails where they cannot be compiled
"""

import os
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildKernels(build_ext):
    """Compiles the extensions, which are optional unless the environment requires them."""

    def finalize_options(self) -> None:
        """Read what the environment requires."""
        super().finalize_options()
        if os.environ.get("TALKBACK_REQUIRE_KERNELS", "0") not in ("", "0"):
            for extension in self.extensions:
                extension.optional = False


class BuildWheel(bdist_wheel):
    """Builds a wheel for any platform where no kernels could be compiled: its name says so."""

    def run(self) -> None:
        """Compile first, for a wheel's name depends on what there is to put into it."""
        compiling: Any = self.get_finalized_command("build_ext")
        self.run_command("build_ext")
        paths = [Path(compiling.get_ext_fullpath(each.name)) for each in compiling.extensions]
        if not any(path.exists() for path in paths):
            self.warn("NO KERNELS: no C compiler has compiled them; torch will do their work.")
            self.root_is_pure = True
        super().run()


setup(cmdclass={"build_ext": BuildKernels, "bdist_wheel": BuildWheel})
