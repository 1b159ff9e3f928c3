// SPDX-License-Identifier: Apache-2.0
// y = residual + (x + bias) * keep, with the mask drawn anew from (seed, offset) in backward.
#include "philox.h"

namespace kernels {

namespace {

constexpr int64_t kChunk = 1024;  // elements per draw

// dropout.scale == 0: nothing is dropped.
template <class T>
void apply(const T* x, const T* bias, const T* residual, T* y, int64_t rows, int64_t columns,
           Dropout dropout) {
    parallel_ranges(rows, columns, [=](int64_t begin, int64_t end) {
        float keep[kChunk];
        for (int64_t row = begin; row < end; ++row)
            for (int64_t first = 0; first < columns; first += kChunk) {
                const int64_t size = columns - first < kChunk ? columns - first : kChunk;
                const int64_t at = row * columns + first;
                if (dropout.scale != 0.0f)
                    keep_factors(dropout, static_cast<uint64_t>(at), size, keep);
                vector_loop(size, [&](int64_t i, int64_t count) {
                    vf value = load(x + at + i, count);
                    if (bias) value += load(bias + first + i, count);
                    if (dropout.scale != 0.0f) value *= load(keep + i, count);
                    if (residual) value += load(residual + at + i, count);
                    store(y + at + i, value, count);
                });
            }
    });
}

}  // namespace

}  // namespace kernels

using namespace kernels;

EXPORT void dropout(int32_t storage, const void* x, const void* bias, const void* residual, void* y,
                    int64_t rows, int64_t columns, uint64_t seed, uint64_t offset,
                    uint32_t threshold, float scale) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        apply(static_cast<const T*>(x), static_cast<const T*>(bias),
              static_cast<const T*>(residual), static_cast<T*>(y), rows, columns,
              Dropout{seed, offset, threshold, scale});
    });
}
