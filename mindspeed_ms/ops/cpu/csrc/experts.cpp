// SPDX-License-Identifier: Apache-2.0
// A mixture of experts: the weighted sum of chosen rows, and its gradient.
//
// Sums are those of the definition, bit for bit: products are rounded before they are added.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include <algorithm>

#include "simd.h"

namespace kernels {

namespace {

typedef float v4 __attribute__((vector_size(16)));

constexpr int kBlock = 16;

// Four partial sums, of which each takes every fourth number, the last four of a block first.
template <class T>
float dot(const T* a, const T* b, int64_t count) {
    v4 sums = {};
    for (int64_t i = 0; i < count; i += kBlock) {
        float left[kBlock] = {}, right[kBlock] = {};
        for (int64_t j = 0; j < kBlock && i + j < count; j += kWidth) {
            store(left + j, load(a + i + j, count - i - j));
            store(right + j, load(b + i + j, count - i - j));
        }
        const bool is_whole = count - i >= kBlock;
        for (int part = 0; part < 4; ++part) {
            const int64_t j = 4 * (is_whole ? 3 - part : part);
            v4 x, y;
            __builtin_memcpy(&x, left + j, sizeof x);
            __builtin_memcpy(&y, right + j, sizeof y);
            sums += x * y;
        }
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// y [tokens, columns] = sum over j of probs[t, j] * rows[places[t, j]]; a negative place adds nothing
EXPORT void combine_rows_forward(int32_t storage, const void* rows, const float* probs,
                                 const int32_t* places, void* y, int64_t tokens, int64_t choices,
                                 int64_t columns) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T* in = static_cast<const T*>(rows);
        T* out = static_cast<T*>(y);
        parallel_ranges(tokens, choices * columns, [=](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                vector_loop(columns, [&](int64_t i, int64_t count) {
                    vf sum = vf{};
                    for (int64_t j = t * choices; j < (t + 1) * choices; ++j)
                        if (places[j] >= 0)
                            sum += load(in + places[j] * columns + i, count) * probs[j];
                    store(out + t * columns + i, sum, count);
                });
        });
    });
}

// drows[places[t, j]] = probs[t, j] * dy[t], zero in rows without a place (of `rows`);
// dprobs[t, j] = rows[places[t, j]] . dy[t], zero without a place
EXPORT void combine_rows_backward(int32_t storage, const void* rows, const float* probs,
                                  const int32_t* places, const void* dy, void* drows, float* dprobs,
                                  int64_t tokens, int64_t choices, int64_t columns,
                                  int64_t num_rows) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T *in = static_cast<const T*>(rows), *grad = static_cast<const T*>(dy);
        T* out = static_cast<T*>(drows);
        const int64_t all = tokens * choices;
        if (std::count_if(places, places + all, [](int32_t place) { return place >= 0; }) < num_rows)
            std::memset(static_cast<void*>(out), 0,
                        static_cast<size_t>(num_rows * columns) * sizeof(T));
        parallel_ranges(tokens, choices * columns, [=](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                for (int64_t j = t * choices; j < (t + 1) * choices; ++j) {
                    dprobs[j] = 0.0f;
                    if (places[j] < 0) continue;
                    const int64_t row = places[j] * columns;
                    vector_loop(columns, [&](int64_t i, int64_t count) {
                        store(out + row + i, load(grad + t * columns + i, count) * probs[j], count);
                    });
                    dprobs[j] = dot(in + row, grad + t * columns, columns);
                }
        });
    });
}
