"""Extension modules; everything static stands in pyproject.toml."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from threading import BoundedSemaphore
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = "kernels/csrc"
CORES = os.cpu_count() or 1

# What the kernels are optimised to; the sanitizers' builds take less, which compiles sooner.
OPTIMISE = os.environ.get("EDGEKERNELS_OPTIMISE", "-O3")

compile_args, link_args = [], []
if sys.platform != "win32":
    # Contracted products (FMA) would change the last bits between levels; -ffast-math, the whole process.
    compile_args += [OPTIMISE, "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    link_args += ["-lm"]
if sys.platform == "linux":
    compile_args.append("-fopenmp")
    link_args += ["-fopenmp", "-ldl"]


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


# Likewise the bus: -O3 makes its modules a fifth larger and no quicker.
OPTIMISE_BUS = os.environ.get("EDGEKERNELS_OPTIMISE", "-O2")
BUS_IN_CYTHON = ("_compiled", "_guard", "_handed", "_port", "_tcp", "_views", "_waiting", "shm._files")

# The hot path of the bus: modules which run as they stand, and faster compiled (their .pxd files say with what types).
BUS = (
    "answerer",
    "arrays",
    "attached",
    "bulk",
    "bulk_receiver",
    "calls",
    "desk",
    "engine",
    "engine_delivering",
    "express",
    "express_sending",
    "handed",
    "hub",
    "hub_collecting",
    "hub_links",
    "ids",
    "inbox",
    "link",
    "link_receiving",
    "link_sending",
    "links",
    "liveness",
    "near",
    "pace",
    "policy",
    "readiness",
    "requests",
    "runner",
    "runner_calling",
    "runner_sections",
    "sharing",
    "sharing_numbers",
    "sharing_pool",
    "sharing_puts",
    "sharing_views",
    "shm.arena",
    "shm.board",
    "shm.ledger",
    "shm.mapper",
    "shm.numbers",
    "shm.pipes",
    "shm.pool",
    "shm.ranges",
    "sockets",
    "taps",
    "turns",
    "unended",
    "wire",
)

# Processes that translate; those of other platforms would run this file anew.
translators = CORES if sys.platform == "linux" else 0
modules = []
if os.path.isdir("kernels"):  # scripts/sanitize.sh, fuzz.sh and arm.sh build copies of some parts
    kernels = [extension(family) for family in ("gemm", "attend", "decode", "bits", "accept")]  # the longest first
    modules += cythonize(kernels, nthreads=translators)
if os.path.isdir("edgebus"):
    bus = cythonize(
        [
            *(Extension(f"edgebus.{name}", [f"edgebus/{name.replace('.', '/')}.pyx"]) for name in BUS_IN_CYTHON),
            *(Extension(f"edgebus.{name}", [f"edgebus/{name.replace('.', '/')}.py"]) for name in BUS),
        ],
        nthreads=translators,
        compiler_directives={"annotation_typing": False},
    )
    # One object: code that runs together lies together, which counts where a tensor has just emptied the caches.
    modules.append(
        Extension(
            "edgebus._compiled",
            sorted(source for module in bus for source in module.sources),
            extra_compile_args=["-g0", OPTIMISE_BUS, "-DCYTHON_CLINE_IN_TRACEBACK=0"],
            extra_link_args=["-ldl"] if sys.platform == "linux" else [],
        )
    )
if os.path.isdir("qpart"):
    modules += cythonize(
        [
            Extension(f"qpart.{name}", [f"qpart/{name}.pyx"], extra_compile_args=compile_args)
            for name in ("_fronts", "_search")
        ]
    )
for module in modules:
    module.optional = True  # without a compiler numpy and Python serve; set here, because cythonize drops it


def is_newer(made: str, *sources: str) -> bool:
    """Whether a file was made after all of these."""
    return os.path.exists(made) and all(os.path.getmtime(made) > os.path.getmtime(source) for source in sources)


class BuildExtensions(build_ext):
    """Compiles the files of a module side by side, too: those of _gemm take as long as all others together."""

    def build_extensions(self) -> None:
        """All modules, as many at a time as there are cores."""
        self.parallel = self.parallel or CORES
        one_after_the_other = self.compiler.compile
        places = BoundedSemaphore(self.parallel)  # of all modules together: a compiler takes hundreds of MiB

        def side_by_side(sources: list[str], *arguments: Any, **options: Any) -> list[str]:
            def one(source: str) -> list[str]:
                made = self.compiler.object_filenames([source], output_dir=self.build_temp)
                if source.startswith("edgebus/") and not self.force and is_newer(made[0], source, __file__):
                    return list(made)
                with places:
                    return list(one_after_the_other([source], *arguments, **options))

            with ThreadPoolExecutor(self.parallel) as pool:
                return [built for objects in pool.map(one, sources) for built in objects]

        self.compiler.compile = side_by_side
        super().build_extensions()


setup(ext_modules=modules, cmdclass={"build_ext": BuildExtensions})
