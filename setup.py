# SPDX-License-Identifier: Apache-2.0
"""Builds the native CPU kernels, once per instruction set, the index builder and the checksums.

Wheels serve every Python 3 of a platform (``py3-none-<platform>``), and hold the configurations and
small corpora of the source tree as ``mindspeed_ms/shipped``.

The extensions are optional: without a compiler the installation succeeds and the portable versions
are used. They are plain shared objects, loaded with ctypes by ``mindspeed_ms/ops/cpu/library.py``,
``mindspeed_ms/data/native.py`` and ``mindspeed_ms/formats/containers/native.py``.
"""

from __future__ import annotations

import copy
import os
import platform
import runpy
import shutil
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools_scm import ScmVersion
from setuptools_scm.version import guess_next_dev_version

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # an older one than builds wheels, which only builds kernels in place
    bdist_wheel = Command

NEXT = "0.3.0"
"""Where the checkout has no tag, the version that is being worked on; mindspeed_ms names it too."""
VERSION_FILE = """# SPDX-License-Identifier: Apache-2.0
# Written by setup.py.
__version__ = "{version}"
"""
SOURCES = Path("mindspeed_ms/ops/cpu/csrc")
COMMON = ["-std=c++17", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"]
# The kernels spell out their vectors; -O3 takes a third longer to compile and is no faster.
COMMON += ["-O2", "-ftree-vectorize", "-g0"]
LEVELS = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    LEVELS |= {"avx2": AVX2, "avx512": AVX2 + AVX512}


def next_version(version: ScmVersion) -> str:
    """The tag itself, or the version after it as a development version; without tags ``NEXT``."""
    if str(version.tag) in ("0.0", "0", "0.1.0.dev0") and not version.exact:
        return f"{NEXT}.dev{version.distance or 0}"
    return guess_next_dev_version(version)


SHIPPED = ("configs", "data")
"""Folders of the source tree that a wheel holds."""
LEFT_OUT = ("cache", ".gitignore")
"""Their parts that a run has made, or that only a source tree needs."""


class BuildPackage(build_py):
    """The package, and what is shipped with it."""

    def run(self) -> None:
        """Copy; an editable installation uses the source tree itself."""
        super().run()
        if not self.editable_mode:
            for source, target in self._shipped():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _shipped(self) -> list[tuple[Path, Path]]:
        found = [path for folder in SHIPPED for path in sorted(Path(folder).rglob("*"))]
        root = Path(self.build_lib) / "mindspeed_ms" / "shipped"
        return [
            (path, root / path)
            for path in found
            if path.is_file() and not set(LEFT_OUT) & set(path.parts)
        ]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Files that this command makes."""
        own = super().get_outputs(include_bytecode)
        return own if self.editable_mode else [*own, *(str(to) for _, to in self._shipped())]


class PlatformWheel(bdist_wheel):
    """A wheel for a platform: ctypes loads the kernels, whatever the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


class BuildKernels(build_ext):
    """One folder of object files per extension, since all share the same sources."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the tag of a version of Python, to which the kernels are not bound."""
        name = super().get_ext_filename(fullname)
        return str(Path(name).with_name(f"{fullname.rpartition('.')[2]}.so"))

    def finalize_options(self) -> None:
        """Build the levels side by side unless told otherwise."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, extension: Extension) -> None:
        """Compile one instruction-set level; again if what is there is of other sources."""
        own = copy.copy(self)
        own.build_temp = f"{self.build_temp}/{extension.name}"
        native = runpy.run_path("mindspeed_ms/files/native_library.py")
        digest = native["sources_digest"](Path(extension.sources[0]).parent)
        extension.define_macros = [("BUILT_FROM", f'"{digest}"')]
        built = Path(self.get_ext_fullpath(extension.name))
        own.force = self.force or not built.exists() or digest.encode() not in built.read_bytes()
        build_ext.build_extension(own, extension)


KERNELS = [
    Extension(
        f"mindspeed_ms.ops.cpu._kernels_{level}",
        sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
        depends=sorted(str(path) for path in SOURCES.glob("*.h")),
        extra_compile_args=COMMON + flags,
        extra_link_args=["-fopenmp"],
        language="c++",
        optional=True,
    )
    for level, flags in LEVELS.items()
]
INDICES = Extension(
    "mindspeed_ms.data._kernels_indices",
    sources=["mindspeed_ms/data/csrc/indices.cpp"],
    extra_compile_args=["-std=c++17", "-O2", "-g0", "-fvisibility=hidden"],
    language="c++",
    optional=True,
)
DIGEST = Extension(
    "mindspeed_ms.formats.containers._kernels_digest",
    sources=sorted(map(str, Path("mindspeed_ms/formats/containers/csrc").glob("*.cpp"))),
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"],
    language="c++",
    optional=True,
)

setup(
    ext_modules=[*KERNELS, INDICES, DIGEST],
    cmdclass={"bdist_wheel": PlatformWheel, "build_ext": BuildKernels, "build_py": BuildPackage},
    use_scm_version={
        "version_scheme": next_version,
        "local_scheme": "no-local-version",
        "fallback_version": f"{NEXT}.dev0",
        "version_file": "mindspeed_ms/_version.py",
        "version_file_template": VERSION_FILE,
    },
)
