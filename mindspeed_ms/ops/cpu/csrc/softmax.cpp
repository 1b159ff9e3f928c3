// SPDX-License-Identifier: Apache-2.0
// Masked softmax over rows of scores [heads_total, rows, columns].
#include "simd.h"

namespace kernels {

namespace {

struct Sizes {
    int64_t matrices, rows, columns;
    int64_t matrices_per_mask;  // consecutive matrices that share one mask [rows, columns]
    bool causal;
    float scale;
};

// Hidden positions become -infinity; writes fp32 scores to `line`, returns their maximum.
template <class T>
float masked_line(const T* scores, const uint8_t* mask, int64_t visible, const Sizes& n,
                  float* line) {
    const vf scale = splat(n.scale);
    vf top = splat(-INFINITY);
    vector_loop(n.columns, [&](int64_t i, int64_t count) {
        store(line + i, load(scores + i, count) * scale, count);
    });
    if (mask)
        for (int64_t i = 0; i < visible; ++i) line[i] = mask[i] ? -INFINITY : line[i];
    for (int64_t i = visible; i < n.columns; ++i) line[i] = -INFINITY;
    vector_loop(n.columns, [&](int64_t i, int64_t count) {
        top = vmax(fill_tail(load(line + i, count), count, -INFINITY), top);
    });
    return max_of(top);
}

template <class T>
void forward(const T* scores, const uint8_t* mask, T* probs, Sizes n) {
    parallel_ranges(n.matrices * n.rows, n.columns, [=](int64_t begin, int64_t end) {
        float* line = scratch(kTile, n.columns + kWidth);
        for (int64_t index = begin; index < end; ++index) {
            const int64_t row = index % n.rows, matrix = index / n.rows;
            int64_t visible = n.causal ? row + 1 + n.columns - n.rows : n.columns;
            visible = visible < 0 ? 0 : visible;
            const uint8_t* hidden =
                mask ? mask + (matrix / n.matrices_per_mask * n.rows + row) * n.columns : nullptr;
            float top = masked_line(scores + index * n.columns, hidden, visible, n, line);
            top = top == -INFINITY ? 0.0f : top;
            vf sum = vf{};
            vector_loop(n.columns, [&](int64_t i, int64_t count) {
                const vf weight = fill_tail(vexp(load(line + i, count) - top), count, 0.0f);
                store(line + i, weight, count);
                sum += weight;
            });
            const float total = sum_of(sum);
            const vf inverse = splat(total > 0.0f ? 1.0f / total : 0.0f);
            vector_loop(n.columns, [&](int64_t i, int64_t count) {
                store(probs + index * n.columns + i, load(line + i, count) * inverse, count);
            });
        }
    });
}

template <class T>
void backward(const T* probs, const T* dprobs, T* dscores, int64_t rows, int64_t columns,
              float scale) {
    parallel_ranges(rows, columns, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t at = row * columns;
            vf sum = vf{};
            vector_loop(columns, [&](int64_t i, int64_t count) {
                sum += load(probs + at + i, count) * load(dprobs + at + i, count);
            });
            const vf dot = splat(sum_of(sum));
            vector_loop(columns, [&](int64_t i, int64_t count) {
                const vf inner = load(dprobs + at + i, count) - dot;
                store(dscores + at + i, load(probs + at + i, count) * inner * scale, count);
            });
        }
    });
}

}  // namespace

}  // namespace kernels

using namespace kernels;

EXPORT void softmax_forward(int32_t storage, const void* scores, const uint8_t* mask, void* probs,
                            int64_t matrices, int64_t rows, int64_t columns,
                            int64_t matrices_per_mask, int32_t causal, float scale) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        forward(static_cast<const T*>(scores), mask, static_cast<T*>(probs),
                Sizes{matrices, rows, columns, matrices_per_mask, causal != 0, scale});
    });
}

EXPORT void softmax_backward(int32_t storage, const void* probs, const void* dprobs, void* dscores,
                             int64_t rows, int64_t columns, float scale) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        backward(static_cast<const T*>(probs), static_cast<const T*>(dprobs),
                 static_cast<T*>(dscores), rows, columns, scale);
    });
}
