"""Levels: what a processor has, what falls to the next lower one, what is refused."""

import ctypes
import platform

import pytest

_bits = pytest.importorskip("edgekernels._bits")
pytestmark = pytest.mark.native
AARCH64 = platform.machine() in ("aarch64", "arm64")


@pytest.fixture(autouse=True)
def restored():
    before = _bits.level()
    yield
    _bits.set_level(before)


def test_levels_end_with_base_and_the_best_is_the_default():
    names = _bits.levels()
    assert names[-1] == "base"
    _bits.set_level("")
    assert _bits.level() == names[0]


def test_every_level_that_is_offered_can_be_had():
    for name in _bits.levels():
        _bits.set_level(name)
        assert _bits.level() == name


@pytest.mark.parametrize("name", ["mmx", "AVX2", "avx2 ", "neon_dot" if not AARCH64 else "avx2"])
def test_a_level_of_nowhere_or_elsewhere_is_refused(name):
    before = _bits.level()
    with pytest.raises(ValueError, match=f"level '{name}' is not available here; use one of .*base"):
        _bits.set_level(name)
    assert _bits.level() == before


@pytest.mark.skipif(not AARCH64, reason="dot products of bytes are aarch64's")
def test_neon_dot_is_had_where_the_processor_has_it_and_base_serves_it():
    """Low-bit codes have no use for dot products of bytes: the level exists, its kernels are those of base."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    if getauxval(16) >> 20 & 1:  # AT_HWCAP, HWCAP_ASIMDDP
        _bits.set_level("neon_dot")
        assert _bits.level() == "base"
    else:
        with pytest.raises(ValueError, match="level 'neon_dot' is not available here"):
            _bits.set_level("neon_dot")
