// Exact Euclidean distances inside the regions of a label map, and the pixel of each region that lies deepest.
//   column_distances  distance along the column to the next pixel of another label; zeroes the maxima
//   row_distances     minimum over the columns of the row; maximum over each region
//   region_points     maxima to points and radii
// The squared distance of pixel (x, y) is the minimum over columns c of (x - c)^2 + g(c)^2, where g(c) is the distance from
// (c, y) along column c to the next pixel that has another label than (x, y): 0 if (c, y) has, else what the first pass
// stored.  Columns farther than the minimum so far cannot lower it, so the search from a pixel is as long as its distance.
// Everything is an integer until the last square root, which is that of IEEE 754: correctly rounded.
#ifndef COLUMNS
#define COLUMNS 16
#define SEGMENTS 32
#endif
#ifndef MAX_WIDTH
#define MAX_WIDTH 2048
#endif

// Whether another label begins at row y of the column that starts at `label`.
__device__ __forceinline__ bool begins(const int* label, int y, int W) {
    return y == 0 || label[(size_t)y * W] != label[(size_t)(y - 1) * W];
}

// Each column is cut in SEGMENTS that are walked side by side.  Grid (column groups, B), block (COLUMNS, SEGMENTS).
extern "C" __global__ void column_distances(
    const int* __restrict__ labels,  // [B, H, W]
    int* __restrict__ gaps,          // [B, H, W] out: distance to the next other label above or below; outside is one
    u64* __restrict__ best,          // [B, capacity] out: zeros
    int H, int W, int capacity) {
    SHARED(int, first, COLUMNS * SEGMENTS);  // first and last row of the segment where a run of equal labels begins
    SHARED(int, last, COLUMNS * SEGMENTS);   // H and -1 if there is none
    const int tx = threadIdx.x, segment = threadIdx.y, t = segment * COLUMNS + tx;
    const int x = blockIdx.x * COLUMNS + tx;
    const size_t image = blockIdx.y;
    const int threads = gridDim.x * COLUMNS * SEGMENTS;
    for (int k = blockIdx.x * COLUMNS * SEGMENTS + t; k < capacity; k += threads) best[image * capacity + k] = 0;

    const int rows = (H + SEGMENTS - 1) / SEGMENTS, top = segment * rows, bottom = top + rows < H ? top + rows : H;
    labels += image * H * W + x;
    gaps += image * H * W + x;
    int low = H, high = -1;
    if (x < W)
        for (int y = top; y < bottom; ++y)
            if (begins(labels, y, W)) {
                if (low == H) low = y;
                high = y;
            }
    first[t] = low;
    last[t] = high;
    __syncthreads();
    if (x >= W) return;

    int start = -1, end = H;  // of the run, as the segment's first and last row see it
    for (int k = t - COLUMNS; k >= 0 && start < 0; k -= COLUMNS) start = last[k];
    for (int k = t + COLUMNS; k < COLUMNS * SEGMENTS && end == H; k += COLUMNS) end = first[k];
    for (int y = top; y < bottom; ++y) {
        if (begins(labels, y, W)) start = y;
        gaps[(size_t)y * W] = y - start + 1;
    }
    for (int y = bottom - 1; y >= top; --y) {
        const int down = end - y;
        if (down < gaps[(size_t)y * W]) gaps[(size_t)y * W] = down;
        if (begins(labels, y, W)) end = y;
    }
}

// Grid (H, B), block any.
extern "C" __global__ void row_distances(
    const int* __restrict__ labels,  // [B, H, W], W <= MAX_WIDTH
    const int* __restrict__ gaps,    // [B, H, W]
    double* __restrict__ distance,   // [B, H, W] out, or null: 0 where the label is 0
    u64* __restrict__ best,          // [B, capacity] in: zeros; out: squared distance << 32 | ~pixel
    int H, int W, int capacity) {
    SHARED(int, label, MAX_WIDTH);
    SHARED(int, gap, MAX_WIDTH);
    SHARED(int, found, MAX_WIDTH);
    const int y = blockIdx.x;
    const size_t image = blockIdx.y, row = (image * H + y) * W;
    for (int x = threadIdx.x; x < W; x += blockDim.x) {
        label[x] = labels[row + x];
        gap[x] = gaps[row + x];
    }
    __syncthreads();
    for (int x = threadIdx.x; x < W; x += blockDim.x) {
        const int own = label[x];
        int d = own > 0 ? gap[x] * gap[x] : 0;
        for (int k = 1; k * k < d; ++k) {
            const int a = x - k, b = x + k;
            if (a < 0 || b >= W || label[a] != own || label[b] != own) {
                d = k * k;
                break;
            }
            const int g = gap[a] < gap[b] ? gap[a] : gap[b];
            if (k * k + g * g < d) d = k * k + g * g;
        }
        found[x] = d;
        if (distance) distance[row + x] = sqrt((double)d);
    }
    __syncthreads();
    for (int x = threadIdx.x; x < W; x += blockDim.x) {
        const int own = label[x], d = found[x];
        if (own <= 0 || own > capacity) continue;
        // The first maximum of a region beats its left neighbour and is not beaten by its right one.  Few pixels of a row
        // pass, so a large region does not queue up at its slot.
        if (x > 0 && label[x - 1] == own && found[x - 1] >= d) continue;
        if (x + 1 < W && label[x + 1] == own && found[x + 1] > d) continue;
        atomicMax(best + image * capacity + own - 1, (u64)d << 32 | (0xffffffffu - (u32)(y * W + x)));
    }
}

// Grid (enough for capacity threads, B), block any.
extern "C" __global__ void region_points(
    const u64* __restrict__ best,   // [B, capacity]
    i64* __restrict__ points,       // [B, capacity, 2] out: x, y; zeros for labels without pixels
    double* __restrict__ radius,    // [B, capacity] out; zero for labels without pixels
    int W, int capacity) {
    const int slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= capacity) return;
    const size_t row = (size_t)blockIdx.y * capacity + slot;
    const u64 key = best[row];
    const u32 pixel = key ? 0xffffffffu - (u32)key : 0;
    points[2 * row] = pixel % W;
    points[2 * row + 1] = pixel / W;
    radius[row] = sqrt((double)(key >> 32));
}
