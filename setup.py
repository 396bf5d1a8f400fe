"""Extension modules; everything static stands in pyproject.toml."""

import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

CSRC = "kernels/csrc"

compile_args, link_args = [], []
if sys.platform != "win32":
    # Contracted products (FMA) would change the last bits between levels; -ffast-math, the whole process.
    compile_args += ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    link_args += ["-lm"]
if sys.platform == "linux":
    compile_args.append("-fopenmp")
    link_args.append("-fopenmp")


def extension(family: str) -> Extension:
    """One extension module with its C variants: csrc/FAMILY_LEVEL.c for each level, and csrc/FAMILY_dispatch.c."""
    variants = sorted(name for name in glob(f"{CSRC}/{family}_*.c") if not name.endswith(".inc.c"))
    return Extension(
        f"edgekernels._{family}",
        sources=[f"kernels/edgekernels/_{family}.pyx", *variants, f"{CSRC}/cpu.c"],
        depends=[*glob(f"{CSRC}/*.h"), *glob(f"{CSRC}/*.inc.c")],
        include_dirs=[CSRC],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


modules = cythonize([extension(family) for family in ("accept", "bits", "gemm", "decode")])
for module in modules:
    module.optional = True  # without a compiler numpy serves; set here, because cythonize drops it

setup(ext_modules=modules)
