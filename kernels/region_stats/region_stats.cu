// Connected regions of a batch of masks, and their statistics.  Six launches, nothing for the host to wait for:
//   label_tiles      components of each tile, by union-find in shared memory; zeroes the statistics
//   join_tiles       unions over the seams between tiles
//   count_roots      roots in each chunk of consecutive pixels
//   number_roots     rank of each root in row-major order, which is its region's number
//   measure_regions  numbers for all pixels; statistics of each tile, then one set of global atomics a region and tile
//   finish_regions   sums to means
// The root of a region is its smallest pixel index, so its first pixel in row-major order.  Statistics are integers under
// commutative atomics: no result depends on the order in which threads run.
#ifndef TILE_W
#define TILE_W 32
#define TILE_H 16
#endif
#ifndef CHUNK
#define CHUNK 1024
#endif
#define TILE (TILE_W * TILE_H)

// Rows of `sums`, u64 [B, SUMS, capacity].  Entropies and probabilities are in units of 2^-20: a tile's sum fits 32 bits
// and an image's 64.  PEAK is (bits of min(p, 1 - p)) << 32 | ~pixel, so its maximum is the first of the most uncertain
// pixels.
enum { AREA, ENTROPY, PROB, X, Y, PEAK, SUMS };
#define UNIT 1048576.0

// Rows of `extents`, int [B, EXTENTS, capacity]: W - x, H - y, x + 1 and y + 1.  All are maxima, so all start at zero.
enum { LEFT, TOP, RIGHT, BOTTOM, EXTENTS };

__device__ int find_root(int* parent, int i) {
    int p = fresh(parent + i);
    while (p != i) {
        i = p;
        RACE_POINT();
        p = fresh(parent + i);
    }
    return i;
}

// Roots only ever move to smaller indices.  When another thread was faster, what it wrote is united as well.
__device__ void unite(int* parent, int a, int b) {
    while (true) {
        a = find_root(parent, a);
        b = find_root(parent, b);
        if (a == b) return;
        if (a > b) {
            const int t = a;
            a = b;
            b = t;
        }
        const int old = atomicMin(parent + b, a);
        if (old == b) return;
        b = old;
    }
}

// Grid (tiles in x, tiles in y, B), block (TILE_W, TILE_H).
extern "C" __global__ void label_tiles(
    const u8* __restrict__ mask,    // [B, H, W]
    int* __restrict__ parent,       // [B, H, W] out: first pixel of the component within the tile; -1 outside of the mask
    u64* __restrict__ sums,         // [B, SUMS, capacity] out: zeros
    int* __restrict__ extents,      // [B, EXTENTS, capacity] out: zeros
    int H, int W, int capacity, int diagonal) {
    SHARED(u8, on, TILE);
    SHARED(int, tree, TILE);
    const int tx = threadIdx.x, ty = threadIdx.y, t = ty * TILE_W + tx;
    const int x = blockIdx.x * TILE_W + tx, y = blockIdx.y * TILE_H + ty;
    const size_t image = blockIdx.z, pixel = (image * H + y) * W + x;
    const bool inside = x < W && y < H;
    on[t] = inside && mask[pixel];

    const int threads = gridDim.x * gridDim.y * TILE, me = (blockIdx.y * gridDim.x + blockIdx.x) * TILE + t;
    for (int k = me; k < SUMS * capacity; k += threads) sums[image * SUMS * capacity + k] = 0;
    for (int k = me; k < EXTENTS * capacity; k += threads) extents[image * EXTENTS * capacity + k] = 0;
    __syncthreads();

    // A run of pixels in a row is one tree from the start; its first pixel writes it.
    const bool left = tx > 0 && on[t - 1], right = tx + 1 < TILE_W && on[t + 1];
    if (on[t] && !left)
        for (int k = t; k < (ty + 1) * TILE_W && on[k]; ++k) tree[k] = t;
    __syncthreads();

    // Unions that a neighbour in the run makes anyway are left out: one a pair of touching runs remains.
    if (on[t] && ty > 0) {
        const int up = t - TILE_W;
        const bool upleft = tx > 0 && on[up - 1], upright = tx + 1 < TILE_W && on[up + 1];
        if (on[up]) {
            if (!(left && upleft)) unite(tree, t, up);
        } else if (diagonal) {
            if (upleft && !left) unite(tree, t, up - 1);
            if (upright && !right) unite(tree, t, up + 1);
        }
    }
    __syncthreads();

    if (!inside) return;
    int first = -1;
    if (on[t]) {
        const int root = find_root(tree, t);
        first = (blockIdx.y * TILE_H + root / TILE_W) * W + blockIdx.x * TILE_W + root % TILE_W;
    }
    parent[pixel] = first;
}

__device__ __forceinline__ bool is_on(int* parent, int x, int y, int H, int W) {
    return x >= 0 && x < W && y >= 0 && y < H && fresh(parent + (size_t)y * W + x) >= 0;
}

// One thread a pixel below or right of a seam.  Grid (enough for SEAMS threads, B), block any, where
// SEAMS = (H - 1) / TILE_H * W + (W - 1) / TILE_W * H.
extern "C" __global__ void join_tiles(
    int* __restrict__ parent,  // [B, H, W] in and out: a smaller or equal pixel index of the same region
    int H, int W, int diagonal) {
    parent += (size_t)blockIdx.y * H * W;
    const int below = (H - 1) / TILE_H * W, beside = (W - 1) / TILE_W * H;
    int s = blockIdx.x * blockDim.x + threadIdx.x;
    if (s < below) {
        const int x = s % W, y = (s / W + 1) * TILE_H, i = y * W + x, up = i - W;
        if (!is_on(parent, x, y, H, W)) return;
        const bool left = is_on(parent, x - 1, y, H, W), upleft = is_on(parent, x - 1, y - 1, H, W);
        if (is_on(parent, x, y - 1, H, W)) {
            if (!(left && upleft)) unite(parent, i, up);
        } else if (diagonal) {
            if (upleft && !left) unite(parent, i, up - 1);
            if (is_on(parent, x + 1, y - 1, H, W) && !is_on(parent, x + 1, y, H, W)) unite(parent, i, up + 1);
        }
        return;
    }
    s -= below;
    if (s >= beside) return;
    const int x = (s / H + 1) * TILE_W, y = s % H, i = y * W + x;
    if (!is_on(parent, x, y, H, W)) return;
    const bool up = is_on(parent, x, y - 1, H, W), upleft = is_on(parent, x - 1, y - 1, H, W);
    if (is_on(parent, x - 1, y, H, W)) {
        // Where four tiles meet, the seam above relies on this union, so it may not rely on that one.
        if (!(up && upleft) || y % TILE_H == 0) unite(parent, i, i - 1);
    } else if (diagonal) {
        if (upleft && !up) unite(parent, i, i - W - 1);
        if (is_on(parent, x - 1, y + 1, H, W) && !is_on(parent, x, y + 1, H, W)) unite(parent, i, i + W - 1);
    }
}

// Grid (chunks, B), block CHUNK.
extern "C" __global__ void count_roots(
    const int* __restrict__ parent,  // [B, H, W]
    int* __restrict__ chunk_roots,   // [B, chunks] out
    int pixels) {                    // H * W
    SHARED(int, roots, 1);
    const int t = threadIdx.x, i = blockIdx.x * CHUNK + t;
    if (t == 0) roots[0] = 0;
    __syncthreads();
    if (i < pixels && parent[(size_t)blockIdx.y * pixels + i] == i) atomicAdd(roots, 1);
    __syncthreads();
    if (t == 0) chunk_roots[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = roots[0];
}

// Grid (chunks, B), block CHUNK.
extern "C" __global__ void number_roots(
    const int* __restrict__ parent,       // [B, H, W]
    const int* __restrict__ chunk_roots,  // [B, chunks]
    int* __restrict__ labels,             // [B, H, W] out, at roots only: 1..n in order
    i64* __restrict__ counts,             // [B] out: n, also where it exceeds the capacity
    u8* __restrict__ overflow,            // [B] out: n > capacity
    int pixels, int capacity) {
    SHARED(int, before, 1);
    SHARED(u32, flags, CHUNK / 32);
    const int t = threadIdx.x, i = blockIdx.x * CHUNK + t;
    const size_t first = (size_t)blockIdx.y * pixels;
    chunk_roots += (size_t)blockIdx.y * gridDim.x;
    if (t == 0) before[0] = 0;
    if (t < CHUNK / 32) flags[t] = 0;
    __syncthreads();
    int sum = 0;
    for (int k = t; k < (int)blockIdx.x; k += CHUNK) sum += chunk_roots[k];
    if (sum) atomicAdd(before, sum);
    const bool root = i < pixels && parent[first + i] == i;
    if (root) atomicOr(flags + t / 32, 1u << t % 32);
    __syncthreads();
    if (root) {
        int rank = before[0] + __popc(flags[t / 32] & ((1u << t % 32) - 1));
        for (int k = 0; k < t / 32; ++k) rank += __popc(flags[k]);
        labels[first + i] = rank + 1;
    }
    if (t == 0 && blockIdx.x == gridDim.x - 1) {
        const i64 n = before[0] + chunk_roots[blockIdx.x];
        counts[blockIdx.y] = n;
        overflow[blockIdx.y] = n > capacity;
    }
}

// Entropy of one pixel in units of 2^-20 bits; m is the smaller of p and 1 - p.
__device__ __forceinline__ u32 fixed_entropy(float m) {
    if (m <= 0) return 0;
    const float bits = -m * log2f(m) - (1 - m) * log2f(1 - m);
    return (u32)(bits * (float)UNIT + 0.5f);
}

// Grid (tiles in x, tiles in y, B), block (TILE_W, TILE_H).
extern "C" __global__ void measure_regions(
    int* __restrict__ parent,         // [B, H, W]
    const float* __restrict__ probs,  // [B, H, W]
    int* __restrict__ labels,         // [B, H, W] in: at roots; out: everywhere, 0 outside of the mask
    u64* __restrict__ sums,           // [B, SUMS, capacity] in: zeros
    int* __restrict__ extents,        // [B, EXTENTS, capacity] in: zeros
    int H, int W, int capacity) {
    SHARED(int, home, TILE);  // position in the tile where the pixel's component is summed up, -1 outside of the mask
    SHARED(u32, entropy, TILE);
    SHARED(u32, prob, TILE);
    SHARED(u32, closeness, TILE);  // bits of min(p, 1 - p): unsigned comparison orders them as floats
    SHARED(u32, area, TILE);       // from here on sums and maxima of the component
    SHARED(u32, sum_entropy, TILE);
    SHARED(u32, sum_prob, TILE);
    SHARED(u32, sum_x, TILE);  // relative to the tile
    SHARED(u32, sum_y, TILE);
    SHARED(int, min_x, TILE);
    SHARED(int, max_x, TILE);
    SHARED(int, max_y, TILE);
    SHARED(u64, peak, TILE);
    SHARED(int, number, TILE);
    const int tx = threadIdx.x, ty = threadIdx.y, t = ty * TILE_W + tx;
    const int x0 = blockIdx.x * TILE_W, y0 = blockIdx.y * TILE_H, x = x0 + tx, y = y0 + ty;
    const size_t image = blockIdx.z;
    parent += image * H * W;
    probs += image * H * W;
    labels += image * H * W;
    sums += image * SUMS * capacity;
    extents += image * EXTENTS * capacity;
    const bool inside = x < W && y < H;
    const int i = inside ? y * W + x : 0, p = inside ? parent[i] : -1;

    home[t] = -1;
    area[t] = sum_entropy[t] = sum_prob[t] = sum_x[t] = sum_y[t] = 0;
    min_x[t] = TILE_W;
    max_x[t] = max_y[t] = -1;
    peak[t] = 0;
    if (p >= 0) {
        // Within the tile the parent stands for the component.  If it is outside, this pixel is that first one itself.
        const int px = p % W - x0, py = p / W - y0;
        home[t] = px >= 0 && px < TILE_W && py >= 0 && py < TILE_H ? py * TILE_W + px : t;
        const float v = fminf(fmaxf(probs[i], 0.0f), 1.0f);  // also turns NaN into 0, which converts to an integer
        const float m = v <= 0.5f ? v : 1.0f - v;            // exact, and entropy rises with it: ties are true ties
        entropy[t] = fixed_entropy(m);
        prob[t] = (u32)(v * (float)UNIT + 0.5f);
        closeness[t] = __float_as_uint(m);
    }
    __syncthreads();

    // The first pixel of a run adds it up alone, so a full tile costs 16 shared atomics a quantity and not 512.
    const int h = home[t];
    if (h >= 0 && (tx == 0 || home[t - 1] != h)) {
        int length = 0;
        u32 e = 0, q = 0, best = 0, best_x = tx;
        for (int k = t; k < (ty + 1) * TILE_W && home[k] == h; ++k, ++length) {
            e += entropy[k];
            q += prob[k];
            if (closeness[k] > best) {
                best = closeness[k];
                best_x = tx + length;
            }
        }
        atomicAdd(area + h, (u32)length);
        atomicAdd(sum_entropy + h, e);
        atomicAdd(sum_prob + h, q);
        atomicAdd(sum_x + h, (u32)(length * tx + length * (length - 1) / 2));
        atomicAdd(sum_y + h, (u32)(length * ty));
        atomicMin(min_x + h, tx);
        atomicMax(max_x + h, tx + length - 1);
        atomicMax(max_y + h, ty);
        atomicMax(peak + h, (u64)best << 32 | (0xffffffffu - (u32)(y * W + x0 + best_x)));
    }
    __syncthreads();

    if (area[t]) {
        const int root = find_root(parent, i), n = labels[root], slot = n - 1;
        number[t] = n;
        if (slot < capacity) {
            const u64 count = area[t];
            atomicAdd(sums + (size_t)AREA * capacity + slot, count);
            atomicAdd(sums + (size_t)ENTROPY * capacity + slot, (u64)sum_entropy[t]);
            atomicAdd(sums + (size_t)PROB * capacity + slot, (u64)sum_prob[t]);
            atomicAdd(sums + (size_t)X * capacity + slot, count * x0 + sum_x[t]);
            atomicAdd(sums + (size_t)Y * capacity + slot, count * y0 + sum_y[t]);
            atomicMax(sums + (size_t)PEAK * capacity + slot, peak[t]);
            atomicMax(extents + (size_t)LEFT * capacity + slot, W - (x0 + min_x[t]));
            atomicMax(extents + (size_t)TOP * capacity + slot, H - root / W);
            atomicMax(extents + (size_t)RIGHT * capacity + slot, x0 + max_x[t] + 1);
            atomicMax(extents + (size_t)BOTTOM * capacity + slot, y0 + max_y[t] + 1);
        }
    }
    __syncthreads();
    // Roots have their number already; other tiles are reading it.
    if (inside && p != i) labels[i] = h >= 0 ? number[h] : 0;
}

// Grid (enough for capacity threads, B), block any.
extern "C" __global__ void finish_regions(
    const u64* __restrict__ sums,        // [B, SUMS, capacity]
    const int* __restrict__ extents,     // [B, EXTENTS, capacity]
    i64* __restrict__ area,              // [B, capacity] out, as all that follow; zeros beyond the last region
    double* __restrict__ max_entropy,    // [B, capacity] bits
    double* __restrict__ mean_entropy,   // [B, capacity] bits
    double* __restrict__ mean_prob,      // [B, capacity]
    i64* __restrict__ bbox,              // [B, capacity, 4] x0, y0, x1, y1
    i64* __restrict__ peak,              // [B, capacity, 2] x, y
    double* __restrict__ centroid,       // [B, capacity, 2] x, y
    int H, int W, int capacity) {
    const int slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= capacity) return;
    const size_t image = blockIdx.y, row = image * capacity + slot;
    sums += image * SUMS * capacity + slot;
    extents += image * EXTENTS * capacity + slot;
    const u64 n = sums[(size_t)AREA * capacity], best = sums[(size_t)PEAK * capacity];
    const bool used = n > 0;
    const double pixels = used ? n : 1;
    const double m = __uint_as_float((u32)(best >> 32));
    const u32 pixel = used ? 0xffffffffu - (u32)best : 0;
    area[row] = n;
    max_entropy[row] = m > 0 ? fmin(-m * log2(m) - (1 - m) * log2(1 - m), 1.0) : 0.0;
    mean_entropy[row] = sums[(size_t)ENTROPY * capacity] / pixels / UNIT;
    mean_prob[row] = sums[(size_t)PROB * capacity] / pixels / UNIT;
    bbox[4 * row] = used ? W - extents[(size_t)LEFT * capacity] : 0;
    bbox[4 * row + 1] = used ? H - extents[(size_t)TOP * capacity] : 0;
    bbox[4 * row + 2] = extents[(size_t)RIGHT * capacity];
    bbox[4 * row + 3] = extents[(size_t)BOTTOM * capacity];
    peak[2 * row] = pixel % W;
    peak[2 * row + 1] = pixel / W;
    centroid[2 * row] = sums[(size_t)X * capacity] / pixels;
    centroid[2 * row + 1] = sums[(size_t)Y * capacity] / pixels;
}
