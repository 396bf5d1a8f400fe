"""numpy arrays to frames and back: copied on the way out, read-only views on the way in."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebus.loans import Loan
from edgebus.messages import ArraySpec
from edgebus.streams import Frames, Specs
from edgebus.wire import ITEM_BYTES

Array = npt.NDArray[Any]
_DTYPES = {code: np.dtype(f"<{code}") for code in ITEM_BYTES}
"""No other way leads from a peer's word to a dtype: an array of objects over its bytes would be its pointers."""
_ndarray, _frombuffer = np.ndarray, np.frombuffer
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def pack_arrays(arrays: Sequence[Array], *, copy: bool = True) -> tuple[tuple[ArraySpec, ...], tuple[bytes, ...]]:
    """Describe arrays for sending, and copy or lend them.

    A resend has to find the same bytes. So either they are copied, and the caller may overwrite its buffer at once; or
    they are lent: then each array is read-only until nothing of it is on its way any more (other views of the same
    memory are not watched).

    Args:
        arrays: any shape of at most 8 dimensions; dtypes of wire.ITEM_BYTES.
        copy: False lends what is contiguous and little-endian; the rest is copied. Loans are always lent.

    Raises:
        TypeError: not an array, or a dtype that does not travel.
        ValueError: more than 8 dimensions.
    """
    specs = []
    frames: list[Any] = []
    for array in arrays:
        specs.append(_spec(array))
        if (
            (not copy or (type(array) is Loan and array._is_lent))
            and array.nbytes
            and array.flags.c_contiguous
            and array.dtype in _CODES
        ):
            frames.append(lend(array))
        else:
            frames.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return tuple(specs), tuple(frames)


def describe_arrays(arrays: Sequence[Array]) -> tuple[Specs, list[Array]]:
    """Describe arrays, and bring them into the order in which they travel, copied only where they are not.

    Raises:
        As pack_arrays.
    """
    specs, ordered = [], []
    for array in arrays:
        code = _CODES.get(array.dtype) if type(array) is _ndarray or type(array) is Loan else None
        if code is not None and 0 < array.ndim <= 8 and array.flags.c_contiguous:
            specs.append(ArraySpec(code, array.shape))
            ordered.append(array)  # as it travels
        else:
            specs.append(_spec(array))
            ordered.append(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
    return tuple(specs), ordered


def _spec(array: Array) -> ArraySpec:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"arrays must be numpy arrays, got {type(array).__name__}")
    code = _CODES.get(array.dtype) or f"{array.dtype.kind}{array.dtype.itemsize}"
    if code not in ITEM_BYTES:
        raise TypeError(f"dtype {array.dtype} does not travel; use one of {' '.join(ITEM_BYTES)}")
    if array.ndim > 8:
        raise ValueError(f"array has {array.ndim} dimensions, at most 8 travel")
    return ArraySpec(code, array.shape)


def checked_content(payload: bytes, arrays: Sequence[Array]) -> tuple[bytes, Sequence[Array]]:
    """Payload as bytes and arrays as a sequence, whatever else it looked like.

    Raises:
        TypeError: a payload that is not bytes-like, or an array in place of a sequence of them.

    >>> checked_content(bytearray(b"abc"), iter([]))
    (b'abc', ())
    """
    if type(payload) is not bytes:
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise TypeError(f"payload must be bytes, got {type(payload).__name__}: encode it, or send it as an array")
        payload = bytes(payload)
    if type(arrays) is not tuple and type(arrays) is not list:
        if isinstance(arrays, np.ndarray):
            raise TypeError("arrays must be a sequence of arrays, got one array: put it into a list")
        arrays = tuple(arrays)
    return payload, arrays


def pack_content(payload: bytes, arrays: Sequence[Array], copy: bool) -> tuple[Specs, Frames]:
    """Payload and arrays as the frames of a message; see pack_arrays."""
    if not arrays:
        return (), (bytes(payload),)
    specs, frames = pack_arrays(arrays, copy=copy)
    return specs, (bytes(payload), *frames)


def lend(array: Array) -> memoryview:
    """The bytes of an array, which is read-only until every view of them is gone.

    >>> array = np.zeros(3, np.uint8)
    >>> view = lend(array)
    >>> array.flags.writeable, view.nbytes
    (False, 3)
    >>> del view
    >>> array.flags.writeable
    True
    """
    return _lend(array)


def _plain_lend(array: Array) -> memoryview:
    lent = array.reshape(-1).view(np.uint8)  # an object of its own, kept by whoever keeps a piece of the memory
    lent.flags.writeable = False
    times = _lent.get(id(array), 0)
    if times or array.flags.writeable or _waiting.pop(id(array), None) is not None:
        array.flags.writeable = False
        _lent[id(array)] = times + 1
        weakref.finalize(lent, _give_back, array).atexit = False
    return lent.data


_lent: dict[int, int] = {}  # by id: how often each is lent, of those that were writeable before
_waiting: dict[int, Array] = {}  # by id: parts of such arrays, no longer lent themselves


def _give_back(array: Array) -> None:
    times = _lent.pop(id(array)) - 1
    if times:
        _lent[id(array)] = times
    else:
        _make_writeable(array)


def _make_writeable(array: Array) -> None:
    try:
        array.flags.writeable = True
    except ValueError:  # what it is a part of is read-only
        if _is_part_of_lent(array):
            _waiting[id(array)] = array
        return
    parts = list(_waiting.values())
    _waiting.clear()
    for part in parts:
        _make_writeable(part)


def _is_part_of_lent(array: Any) -> bool:
    base = getattr(array, "base", None)
    return base is not None and (id(base) in _lent or _is_part_of_lent(base))


_lend: Callable[[Array], memoryview] = _plain_lend
try:
    from edgebus import _views

    _lend = _views.lend
except ImportError:  # not built
    pass


def view_arrays(specs: Sequence[ArraySpec], frames: Sequence[bytes]) -> tuple[Array, ...]:
    """Read-only arrays over received frames, whose sizes wire.decode has checked."""
    if len(specs) != len(frames):
        raise ValueError(f"{len(specs)} specs for {len(frames)} frames")
    views = []
    for index, spec in enumerate(specs):
        frame = frames[index]
        if not len(frame):
            view: Array = np.ndarray(spec.shape, _DTYPES[spec.dtype], b"")
        else:
            # Not np.ndarray(buffer=frame): of a memoryview numpy would keep what lies under it, not the view, and
            # memory lent within this process would be writeable again while somebody still reads it here.
            view = _frombuffer(frame, _DTYPES[spec.dtype])
            if len(spec.shape) != 1:
                view = view.reshape(spec.shape)
            if type(frame) is not bytes and not frame.readonly:  # type: ignore[attr-defined]  # a memoryview
                view.flags.writeable = False
        views.append(view)
    return tuple(views)
