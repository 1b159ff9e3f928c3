// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding of t [S, B, N, D] with tables [S, B or 1, rot].
#include "simd.h"

namespace kernels {

namespace {

struct Sizes {
    int64_t seq, batch, heads, dim, rot, table_batch;
};

// y_a = a cos_a - b sin_a, y_b = b cos_b + a sin_b for the pair (a, b); the transposed map
// (backward) is y_a = a cos_a + b sin_b, y_b = b cos_b - a sin_a.
template <class T>
void turn_halves(const T* t, const float* cos, const float* sin, T* y, int64_t rot, bool backward) {
    const int64_t half = rot / 2;
    vector_loop(half, [&](int64_t i, int64_t count) {
        const vf a = load(t + i, count), b = load(t + half + i, count);
        const vf cos_a = load(cos + i, count), cos_b = load(cos + half + i, count);
        const vf sin_a = load(sin + i, count), sin_b = load(sin + half + i, count);
        store(y + i, backward ? a * cos_a + b * sin_b : a * cos_a - b * sin_a, count);
        store(y + half + i, backward ? b * cos_b - a * sin_a : b * cos_b + a * sin_b, count);
    });
}

template <class T>
void turn_pairs(const T* t, const float* cos, const float* sin, T* y, int64_t rot, bool backward) {
    vector_loop(rot, [&](int64_t i, int64_t count) {
        const vf value = load(t + i, count), c = load(cos + i, count), s = load(sin + i, count);
        vf swapped, factor;
        for (int lane = 0; lane < kWidth; lane += 2) {
            swapped[lane] = value[lane + 1];
            swapped[lane + 1] = value[lane];
            factor[lane] = backward ? s[lane + 1] : -s[lane];
            factor[lane + 1] = backward ? -s[lane] : s[lane + 1];
        }
        store(y + i, value * c + swapped * factor, count);
    });
}

template <class T>
void rotate(const T* t, const float* cos, const float* sin, T* y, Sizes n, bool interleaved,
            bool backward) {
    parallel_ranges(n.seq * n.batch, n.heads * n.dim, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t batch = n.table_batch == 1 ? 0 : row % n.batch;
            const int64_t table = (row / n.batch * n.table_batch + batch) * n.rot;
            for (int64_t head = 0; head < n.heads; ++head) {
                const int64_t at = (row * n.heads + head) * n.dim;
                if (interleaved) {
                    turn_pairs(t + at, cos + table, sin + table, y + at, n.rot, backward);
                } else {
                    turn_halves(t + at, cos + table, sin + table, y + at, n.rot, backward);
                }
                std::memcpy(static_cast<void*>(y + at + n.rot), t + at + n.rot,
                            static_cast<size_t>(n.dim - n.rot) * sizeof(T));
            }
        }
    });
}

}  // namespace

}  // namespace kernels

using namespace kernels;

EXPORT void rotary(int32_t storage, const void* t, const float* cos, const float* sin, void* y,
                   int64_t seq, int64_t batch, int64_t heads, int64_t dim, int64_t rot,
                   int64_t table_batch, int32_t interleaved, int32_t backward) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        rotate(static_cast<const T*>(t), cos, sin, static_cast<T*>(y),
               Sizes{seq, batch, heads, dim, rot, table_batch}, interleaved != 0, backward != 0);
    });
}
