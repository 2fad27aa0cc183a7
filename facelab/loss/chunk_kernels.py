"""The passes over a chunk as Triton kernels: a matrix is read once or twice and written once, whatever is done to it.

The products stay with cuBLAS. What lies between them is bound by memory, and in torch it is half a dozen passes over
(B,c) in float32; here the product is read as it comes, in its own format, and nothing wide is written. Where the
gradient's memory keeps all exponentials, the backward pass multiplies them where they lie.

``Tile`` says what each pass computes; the tests hold the kernels to it, by Triton's interpreter where there is no GPU
(``TRITON_INTERPRET=1``). Importing this module needs Triton, so only ``chunked_softmax`` does, when it has use for it.
"""

import logging
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from facelab.loss.chunk_tile import Tile
from facelab.loss.columns import NORM_FLOOR

_SMALLEST = tl.constexpr(torch.finfo(torch.float32).min)  # of a hidden logit
_ROW = 8192  # columns of a row that a program holds: few rows are then under way at once, and still in the L2 cache
_STRIP = 2048  # columns of a strip of exponentials
_BLOCK = 4096  # numbers of a block of centres
_FUSE = {"enable_fp_fusion": True}  # a multiplication and an addition at once; said, since Triton's default will change

_log = logging.getLogger(__name__)


class FusedTile(Tile):
    """``Tile`` with its passes as kernels; for float32 outside the products."""

    def _reserve(self, columns: int, batch: int, size: int) -> None:
        self._low_units, self._low_scratch = self.low.new_empty(columns * size), self.low.new_empty(columns * size)
        self._inverse = self.scaled.new_empty(columns)
        self._place = torch.where(self.columns.here, self.columns.own, -1)  # −1: in no chunk

    def direct(self, rows: Tensor) -> None:
        """See Tile."""
        self.rows, self.inverse = rows.contiguous(), self._inverse[: len(rows)]
        if self.normalised:
            normalise(self.rows, self.low_units, self.inverse)
        else:
            self.low_units.copy_(rows)

    def scan(self, gradient: Any, largest: Tensor, sums: Tensor, best: Tensor, own: Tensor) -> None:
        """See Tile."""
        room = gradient.room(self.start, self.shape[0]) if gradient.kept else None
        scan(self.product(0), self._place, self.start, self.limit, largest, sums, best, own, room)

    def exponentials(self, gradient: Any, largest: Tensor) -> Tensor:
        """See Tile."""
        if gradient.kept == len(self.low):
            return gradient.room(self.start, self.shape[0])  # times_embeddings reads it before it writes there
        return super().exponentials(gradient, largest)

    def raise_two(self, product: Tensor, first: int, largest: Tensor) -> None:
        """See Tile."""
        limit = None if self.limit is None else self.limit[first:]
        exponentials(product, self._place[first:], self.start, limit, largest[first:])

    def times_embeddings(self, exponentials: Tensor, factor: Tensor, out: Tensor) -> None:
        """See Tile."""
        torch.mul(self.scaled, factor, out=self._low_rows)
        grad = torch.mm(exponentials.T, self._low_rows, out=self._view(self._low_scratch))
        if self.normalised:
            project(grad, self.rows, self.inverse, out)
        else:
            out.copy_(grad)


@cache
def runs_on(device: torch.device) -> bool:
    """Whether a kernel can be built and run there; the reason why not is logged, once."""
    try:
        row = torch.ones(1, 1, device=device)
        normalise(row, row.clone(), row[0].clone())
    except Exception as error:  # whatever a compiler, a linker or a driver says
        _log.warning("no Triton kernels on %s, so the classifier is slower there: %s", device, error)
        return False
    return True


def normalise(rows: Tensor, units: Tensor, inverse: Tensor) -> None:
    """(c,D) rows → units of length 1, in a format of their own, and (c,) float32 1/length; 0 for a row without one."""
    block = _block(rows)
    with torch.cuda.device_of(rows):
        _normalise[(triton.cdiv(len(rows), block["ROWS"]),)](
            rows, units, inverse, len(rows), rows.shape[1], FLOOR=NORM_FLOOR, **block
        )


def scan(
    matrix: Tensor,
    place: Tensor,
    start: int,
    limit: Tensor | None,
    largest: Tensor,
    sums: Tensor,
    best: Tensor,
    own: Tensor,
    room: Tensor | None,
) -> None:
    """See ``Tile.scan``.

    Args:
        matrix: (B,c) logits.
        place: (B,) int64, the own class among all columns, −1 where it is not among them.
        start: the first of these columns.
        limit: (B,1).
        largest: (B,) float32, as are sums, best and own.
        sums: see above.
        best: see above.
        own: see above.
        room: (kept,c) for the exponentials of the first rows, in the matrix's format; ``None`` for none.
    """
    rows, columns = matrix.shape
    block = min(triton.next_power_of_2(columns), _ROW)
    kept = 0 if room is None else len(room)
    with torch.cuda.device_of(matrix):
        _scan[(rows,)](
            matrix, place, start, limit, largest, sums, best, own, room, kept, columns,
            BLOCK=block, num_warps=16 if block >= 4096 else 4, **_FUSE,
        )  # fmt: skip


def exponentials(matrix: Tensor, place: Tensor, start: int, limit: Tensor | None, largest: Tensor) -> None:
    """(B,c) logits become 2^(logit − largest) in place, the own class and those above the limit being hidden."""
    rows, columns = matrix.shape
    block = min(triton.next_power_of_2(columns), _STRIP)
    with torch.cuda.device_of(matrix):
        _exponentials[(rows, triton.cdiv(columns, block))](
            matrix, place, start, limit, largest, columns, BLOCK=block, num_warps=4, **_FUSE
        )


def project(grad: Tensor, rows: Tensor, inverse: Tensor, out: Tensor) -> None:
    """(c,D) gradient of the units → that of the rows: without the part along them, and divided by their length."""
    block = _block(rows)
    with torch.cuda.device_of(rows):
        _project[(triton.cdiv(len(rows), block["ROWS"]),)](grad, rows, inverse, out, len(rows), rows.shape[1], **block)


def _block(rows: Tensor) -> dict[str, int]:
    width = triton.next_power_of_2(rows.shape[1])
    return {"ROWS": max(_BLOCK // width, 1), "WIDTH": width, "num_warps": 8, **_FUSE}


# The kernels. Offsets of rows are 64 bits wide: a chunk may have more than 2^31 numbers.


@triton.jit
def _normalise(rows, units, inverse, count, size, FLOOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    there = (row < count)[:, None] & (column < size)[None, :]
    place = row[:, None] * size + column[None, :]
    values = tl.load(rows + place, mask=there, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(values * values, axis=1))
    factor = tl.where(norm < FLOOR, 0.0, 1.0 / tl.maximum(norm, FLOOR))
    tl.store(inverse + row, factor, mask=row < count)
    tl.store(units + place, (values * factor[:, None]).to(units.dtype.element_ty), mask=there)


@triton.jit
def _hidden_alike(values, offset, mine, limit, row):  # type: ignore[no-untyped-def]
    """Own class and what is above the limit as the smallest of numbers."""
    values = tl.where(offset == mine, _SMALLEST, values)
    if limit is not None:
        values = tl.where(values > tl.load(limit + row), _SMALLEST, values)
    return values


@triton.jit(do_not_specialize=["start"])
def _scan(  # type: ignore[no-untyped-def]
    matrix, place, start, limit, largest, sums, best, own, room, kept, columns, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    line = matrix + row * columns
    mine = tl.load(place + row) - start
    inside = (mine >= 0) & (mine < columns)
    tl.store(own + row, tl.load(line + mine, mask=inside, other=0.0).to(tl.float32), mask=inside)

    # The largest: of lanes first, so that they need not wait for each other within the loop.
    peaks = tl.full((BLOCK,), _SMALLEST, tl.float32)
    bests = tl.full((BLOCK,), _SMALLEST, tl.float32)
    for first in range(0, columns, BLOCK):
        offset = first + tl.arange(0, BLOCK)
        values = tl.load(line + offset, mask=offset < columns, other=-float("inf")).to(tl.float32)
        values = tl.where(offset == mine, _SMALLEST, values)
        if limit is not None:
            bests = tl.maximum(bests, values)
        peaks = tl.maximum(peaks, _hidden_alike(values, offset, mine, limit, row))
    peak = tl.max(peaks, axis=0)
    found = peak
    if limit is not None:
        found = tl.max(bests, axis=0)
    tl.store(best + row, tl.maximum(tl.load(best + row), found))
    tl.store(largest + row, peak)

    total = tl.zeros((BLOCK,), tl.float32)
    wanted = tl.where(row < kept, columns, 0)
    for first in range(0, columns, BLOCK):
        offset = first + tl.arange(0, BLOCK)
        there = offset < columns
        values = tl.load(line + offset, mask=there, other=0.0).to(tl.float32)
        raised = tl.exp2(_hidden_alike(values, offset, mine, limit, row) - peak)
        total += tl.where(there, raised, 0.0)
        if room is not None:
            tl.store(room + row * columns + offset, raised.to(room.dtype.element_ty), mask=offset < wanted)
    tl.store(sums + row, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["start"])
def _exponentials(matrix, place, start, limit, largest, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = offset < columns
    line = matrix + row * columns + offset
    values = tl.load(line, mask=there, other=0.0).to(tl.float32)
    values = _hidden_alike(values, offset, tl.load(place + row) - start, limit, row)
    tl.store(line, tl.exp2(values - tl.load(largest + row)).to(matrix.dtype.element_ty), mask=there)


@triton.jit
def _project(grad, rows, inverse, out, count, size, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    there = (row < count)[:, None] & (column < size)[None, :]
    place = row[:, None] * size + column[None, :]
    factor = tl.load(inverse + row, mask=row < count, other=0.0)[:, None]
    unit = tl.load(rows + place, mask=there, other=0.0).to(tl.float32) * factor
    slope = tl.load(grad + place, mask=there, other=0.0).to(tl.float32)
    along = tl.sum(slope * unit, axis=1)[:, None]
    tl.store(out + place, (factor * (slope - along * unit)).to(out.dtype.element_ty), mask=there)
