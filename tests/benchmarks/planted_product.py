"""A kernel that must not ship: from 64 rows and 4 warps on its product becomes wgmma on sm_90 and tcgen05 on sm_100."""

import triton
import triton.language as tl


@triton.jit
def product_kernel(x_ptr, y_ptr, ROWS: tl.constexpr):
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, 64)[None, :]
    x = tl.load(x_ptr + rows * 64 + columns)
    square = tl.load(x_ptr + tl.arange(0, 64)[:, None] * 64 + columns)
    tl.store(y_ptr + rows * 64 + columns, tl.dot(x, square))
