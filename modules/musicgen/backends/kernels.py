"""The kernels that `fused.FusedStep` puts together, in Triton's language; see there for what they are for.

Arguments in capitals are known when a kernel is compiled. Where they are numbers of a product: N outputs, K inputs, M
rows (rounded up), BN and BK how much of them a program takes at once. PDL says that the next kernel may start while
this one runs, and that this one must wait for the one before.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def follow(PDL: tl.constexpr):
    """Let the next kernel start, and wait for what the one before wrote. What does not hang on it comes first."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def few(
    x, w, sums, bias, kept, n, rows, N: tl.constexpr, K: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr,
    ADD: tl.constexpr, M: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """norm(x) @ w[n].T + bias[n] + kept[:, n], float32 [M, BN], for so few rows that multiplying costs nothing."""
    m, k = tl.arange(0, M), tl.arange(0, BK)
    inside, there = n < N, m < rows
    weights = tl.load(w + n[:, None] * K + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
    if NORM:
        off = tl.load(sums + n, mask=inside, other=0.0)
    if bias is not None:
        shift = tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    follow(PDL)
    if ADD:
        before = tl.load(kept + m[:, None] * N + n[None, :], mask=there[:, None] & inside[None, :], other=0.0)
    wide = tl.load(x + m[:, None] * K + k[None, :], mask=there[:, None] & (k < K)[None, :], other=0.0)
    wide = wide.to(tl.float32)
    gathered = wide[:, None, :] * weights.to(tl.float32)[None, :, :]
    total, squares = wide, wide * wide
    for k0 in tl.static_range(BK, K, BK):
        k = k0 + tl.arange(0, BK)
        weights = tl.load(w + n[:, None] * K + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
        wide = tl.load(x + m[:, None] * K + k[None, :], mask=there[:, None] & (k < K)[None, :], other=0.0)
        wide = wide.to(tl.float32)
        gathered += wide[:, None, :] * weights.to(tl.float32)[None, :, :]
        if NORM:
            total += wide
            squares += wide * wide
    y = tl.sum(gathered, 2)
    if NORM:
        mean, square = tl.sum(total, 1) / K, tl.sum(squares, 1) / K
        deviation = tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + EPS)
        y = deviation[:, None] * (y - mean[:, None] * off[None, :])
    if bias is not None:
        y += shift[None, :]
    if ADD:
        y += before.to(tl.float32)
    return y


@triton.jit
def several(
    x, w, sums, bias, kept, n, rows, first, N: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr,
    EPS: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, M: tl.constexpr, BK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The same on the tensor cores, of the inputs first .. first + SPAN - 1; two warps share each BK of them."""
    HALF: tl.constexpr = BK // 2
    m = tl.arange(0, M)
    k = first + tl.arange(0, 2)[:, None] * HALF + tl.arange(0, HALF)[None, :]
    inside, there = n < N, m < rows
    weights = tl.load(w + n[None, :, None] * K + k[:, None, :], mask=inside[None, :, None], other=0.0)
    if NORM:
        off = tl.load(sums + n, mask=inside, other=0.0)
    if bias is not None:
        shift = tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    follow(PDL)
    if ADD:
        before = tl.load(kept + m[:, None] * N + n[None, :], mask=there[:, None] & inside[None, :], other=0.0)
    inputs = tl.load(x + m[None, None, :] * K + k[:, :, None], mask=there[None, None, :], other=0.0)
    product = tl.dot(weights, inputs, input_precision="ieee")
    wide = inputs.to(tl.float32)
    total, squares = wide, wide * wide
    for k0 in tl.static_range(BK, SPAN, BK):
        weights = tl.load(w + n[None, :, None] * K + (k0 + k)[:, None, :], mask=inside[None, :, None], other=0.0)
        inputs = tl.load(x + m[None, None, :] * K + (k0 + k)[:, :, None], mask=there[None, None, :], other=0.0)
        product += tl.dot(weights, inputs, input_precision="ieee")
        if NORM:
            wide = inputs.to(tl.float32)
            total += wide
            squares += wide * wide
    y = tl.trans(tl.sum(product, 0))
    if NORM:
        mean = tl.sum(tl.sum(total, 0), 0) / K
        square = tl.sum(tl.sum(squares, 0), 0) / K
        deviation = tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + EPS)
        y = deviation[:, None] * (y - mean[:, None] * off[None, :])
    if bias is not None:
        y += shift[None, :]
    if ADD:
        y += before.to(tl.float32)
    return y


@triton.jit
def linear(
    x, w, sums, bias, out, rows, N: tl.constexpr, K: tl.constexpr, EPS: tl.constexpr,
    NORM: tl.constexpr, ACT: tl.constexpr, ADD: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    FEW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [rows, N] = (out +) act(norm(x [rows, K]) @ w.T + bias)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, M)
    if FEW:
        y = few(x, w, sums, bias, out, n, rows, N, K, EPS, NORM, ADD, M, BK, PDL)
    else:
        y = several(x, w, sums, bias, out, n, rows, 0, N, K, K, EPS, NORM, ADD, M, BK, PDL)
    if ACT == 1:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    if ACT == 2:
        y = tl.maximum(y, 0.0)
    there = (m < rows)[:, None] & (n < N)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], y.to(out.dtype.element_ty), mask=there)


@triton.jit
def share(
    x, w, pieces, rows, N: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """pieces [K / SPAN, rows, N]: the product of a stretch of the inputs each."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, M)
    part = tl.program_id(1)
    y = several(x, w, None, None, None, n, rows, part * SPAN, N, K, SPAN, 0.0, False, False, M, BK, PDL)
    there = (m < rows)[:, None] & (n < N)[None, :]
    tl.store(pieces + (part * rows + m[:, None]) * N + n[None, :], y, mask=there)


@triton.jit
def add(pieces, bias, out, size, N: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out [rows, N] += the pieces and the bias."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    follow(PDL)
    y = tl.load(out + at, mask=there, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        y += tl.load(pieces + part * size + at, mask=there, other=0.0)
    if bias is not None:
        y += tl.load(bias + at % N, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def queries_keys_values(
    x, w, sums, bias, queries, keys, values, where, rows, length, DIM: tl.constexpr, D: tl.constexpr,
    EPS: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FEW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The product's first third to `queries` [rows, DIM], the others to their place in the buffers."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, M)
    if FEW:
        y = few(x, w, sums, bias, None, n, rows, 3 * DIM, DIM, EPS, True, False, M, BK, PDL)
    else:
        y = several(x, w, sums, bias, None, n, rows, 0, 3 * DIM, DIM, DIM, EPS, True, False, M, BK, PDL)
    y = y.to(queries.dtype.element_ty)
    there = (m < rows)[:, None] & (n < 3 * DIM)[None, :]
    part = (tl.program_id(0) * BN) // DIM
    column = n - part * DIM
    place = (m[:, None] * (DIM // D) + (column // D)[None, :]) * length + tl.load(where)
    kept = place.to(tl.int64) * D + (column % D)[None, :]
    if part == 0:
        tl.store(queries + m[:, None] * DIM + column[None, :], y, mask=there)
    elif part == 1:
        tl.store(keys + kept, y, mask=there)
    else:
        tl.store(values + kept, y, mask=there)


@triton.jit
def attend(
    queries, keys, values, where, highest, weight, mixed, out, length, SCALE: tl.constexpr, WHOLE: tl.constexpr,
    D: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A head of a row looks at a part of the positions; what it gathers is joined by `join`, or is all of it."""
    head, part = tl.program_id(0), tl.program_id(1)
    follow(PDL)
    seen = length if WHOLE else (tl.load(where) + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(seen, PARTS), BLOCK) * BLOCK
    first = part * share
    last = tl.minimum(first + share, seen)
    d = tl.arange(0, D)
    query = tl.load(queries + head * D + d).to(tl.float32) * SCALE
    at = head.to(tl.int64) * length * D
    peak = float("-inf")
    total = 0.0
    gathered = tl.zeros([D], tl.float32)
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        position = start + tl.arange(0, BLOCK)
        there = position < last
        near = at + position[:, None] * D + d[None, :]
        key = tl.load(keys + near, mask=there[:, None], other=0.0).to(tl.float32)
        value = tl.load(values + near, mask=there[:, None], other=0.0).to(tl.float32)
        score = tl.where(there, tl.sum(key * query[None, :], 1), float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 0))
        share_of = tl.exp(score - higher)
        fade = tl.exp(peak - higher)
        gathered = gathered * fade + tl.sum(share_of[:, None] * value, 0)
        total = total * fade + tl.sum(share_of, 0)
        peak = higher
    if PARTS == 1:
        tl.store(out + head * D + d, (gathered / total).to(out.dtype.element_ty))
    else:
        piece = head * PARTS + part
        tl.store(highest + piece, peak)
        tl.store(weight + piece, total)
        tl.store(mixed + piece * D + d, gathered)


@triton.jit
def join(highest, weight, mixed, out, D: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr):
    head = tl.program_id(0)
    follow(PDL)
    piece = head * PARTS + tl.arange(0, PARTS)
    d = tl.arange(0, D)
    peak = tl.load(highest + piece)
    share = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(share * tl.load(weight + piece), 0)
    gathered = tl.sum(share[:, None] * tl.load(mixed + piece[:, None] * D + d[None, :]), 0)
    tl.store(out + head * D + d, (gathered / total).to(out.dtype.element_ty))


@triton.jit
def embed(
    sequence, at, where, tables, sine, added, out, steps, takes, DIM: tl.constexpr, CODEBOOKS: tl.constexpr,
    WORDS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A row's token, one of each codebook, as the sum of their vectors and its position's."""
    row = tl.program_id(0)
    follow(PDL)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < DIM
    known = sequence + (row % takes) * CODEBOOKS * steps + tl.load(at)
    x = tl.load(sine + tl.load(where) * DIM + column, mask=there, other=0.0).to(tl.float32)
    for book in tl.static_range(CODEBOOKS):
        token = tl.load(known + book * steps)
        x += tl.load(tables + (book * WORDS + token) * DIM + column, mask=there, other=0.0).to(tl.float32)
    if added is not None:
        x += tl.load(added + row * DIM + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * DIM + column, x.to(out.dtype.element_ty), mask=there)


@triton.jit
def draw(
    logits, uniform, sequence, at, steps, takes, coefficient, temperature, GUIDED: tl.constexpr,
    CODEBOOKS: tl.constexpr, CARD: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, GREEDY: tl.constexpr,
    OPEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The next token of one codebook of one take, written where the sequence is still open."""
    take, book = tl.program_id(0), tl.program_id(1)
    follow(PDL)
    code = tl.arange(0, WIDTH)
    there = code < CARD
    row = (take * CODEBOOKS + book) * CARD + code
    logit = tl.load(logits + row, mask=there, other=float("-inf"))
    if GUIDED:
        free = tl.load(logits + takes * CODEBOOKS * CARD + row, mask=there, other=float("-inf"))
        logit = tl.where(there, free + (logit - free) * coefficient, float("-inf"))
    if GREEDY:
        token = tl.argmax(logit, 0)
    else:
        if TOP_K < CARD:
            # The bits of a float, ordered as the numbers are; the edge is found a bit at a time.
            bits = logit.to(tl.int32, bitcast=True)
            order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            edge = tl.where(tl.sum((order >= 0).to(tl.int32), 0) >= TOP_K, 0, -2147483648).to(tl.int32)
            for bit in tl.static_range(31):
                higher = edge | (1 << (30 - bit))
                edge = tl.where(tl.sum((order >= higher).to(tl.int32), 0) >= TOP_K, higher, edge)
            logit = tl.where(order >= edge, logit, float("-inf"))
        weights = tl.exp((logit - tl.max(logit, 0)) / temperature)
        cumulative = tl.cumsum(weights, 0)
        total = tl.max(cumulative, 0)
        drawn = tl.load(uniform + (take * steps + tl.load(at) + 1) * CODEBOOKS + book)
        target = tl.minimum(drawn * total, total * 0.99999994)
        token = tl.sum((cumulative <= target).to(tl.int32), 0)
    place = sequence + (take * CODEBOOKS + book) * steps + tl.load(at) + 1
    known = tl.load(place)
    tl.store(place, tl.where(known == OPEN, token.to(tl.int64), known))
