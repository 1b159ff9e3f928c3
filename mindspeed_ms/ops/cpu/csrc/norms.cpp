// SPDX-License-Identifier: Apache-2.0
// LayerNorm and RMSNorm. With n = normalised row and g = dy * weight:
// dx = rstd * (g - n * mean(g n) [- mean(g)]), dweight = sum(dy n), dbias = sum(dy).
#include "simd.h"

namespace kernels {

namespace {

struct RowStats {
    float mean, rstd;
};

template <class T>
RowStats row_stats(const T* x, int64_t columns, float eps, bool centred) {
    RowStats stats{0.0f, 0.0f};
    if (centred) {
        vf sum[2] = {vf{}, vf{}};
        vector_loop(columns, [&](int64_t i, int64_t count) {
            sum[(i / kWidth) & 1] += load(x + i, count);
        });
        stats.mean = sum_of(sum[0] + sum[1]) / static_cast<float>(columns);
    }
    const vf mean = splat(stats.mean);
    vf square[2] = {vf{}, vf{}};
    vector_loop(columns, [&](int64_t i, int64_t count) {
        const vf d = fill_tail(load(x + i, count) - mean, count, 0.0f);
        square[(i / kWidth) & 1] += d * d;
    });
    const float variance = sum_of(square[0] + square[1]) / static_cast<float>(columns);
    stats.rstd = 1.0f / std::sqrt(variance + eps);
    return stats;
}

template <class T>
void forward(const T* x, const T* weight, const T* bias, T* y, float* mean, float* rstd,
             int64_t rows, int64_t columns, float eps) {
    parallel_ranges(rows, columns, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T* in = x + row * columns;
            T* out = y + row * columns;
            const RowStats stats = row_stats(in, columns, eps, bias != nullptr);
            rstd[row] = stats.rstd;
            if (bias) mean[row] = stats.mean;
            const vf shift = splat(stats.mean), scale = splat(stats.rstd);
            vector_loop(columns, [&](int64_t i, int64_t count) {
                vf value = (load(in + i, count) - shift) * scale * load(weight + i, count);
                if (bias) value += load(bias + i, count);
                store(out + i, value, count);
            });
        }
    });
}

// dx of one row; adds the row's part of dweight and dbias.
template <class T>
void backward_row(const T* x, const T* dy, const T* weight, RowStats stats, bool centred, T* dx,
                  float* dweight, float* dbias, int64_t columns) {
    const vf shift = splat(stats.mean), scale = splat(stats.rstd);
    vf dot[2] = {vf{}, vf{}}, sum[2] = {vf{}, vf{}};
    vector_loop(columns, [&](int64_t i, int64_t count) {
        const vf grad = load(dy + i, count);
        const vf n = (load(x + i, count) - shift) * scale;
        const vf g = grad * load(weight + i, count);
        dot[(i / kWidth) & 1] += g * n;
        sum[(i / kWidth) & 1] += g;
        store(dweight + i, load(dweight + i, count) + grad * n, count);
        if (centred) store(dbias + i, load(dbias + i, count) + grad, count);
    });
    const float inverse = 1.0f / static_cast<float>(columns);
    const vf mean_dot = splat(sum_of(dot[0] + dot[1]) * inverse);
    const vf mean_sum = splat(centred ? sum_of(sum[0] + sum[1]) * inverse : 0.0f);
    vector_loop(columns, [&](int64_t i, int64_t count) {
        const vf n = (load(x + i, count) - shift) * scale;
        const vf g = load(dy + i, count) * load(weight + i, count);
        store(dx + i, scale * (g - n * mean_dot - mean_sum), count);
    });
}

template <class T>
void backward(const T* x, const T* dy, const T* weight, const float* mean, const float* rstd, T* dx,
              T* dweight, T* dbias, int64_t rows, int64_t columns) {
    const bool centred = dbias != nullptr;
    const int64_t pieces = row_pieces(rows), width = columns * (centred ? 2 : 1);
    float* partial = scratch(kPartial, pieces * width);
    parallel_ranges(pieces, rows * columns / pieces, [=](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
            float* sums = partial + piece * width;
            std::memset(sums, 0, static_cast<size_t>(width) * sizeof(float));
            for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; ++row) {
                const RowStats stats{centred ? mean[row] : 0.0f, rstd[row]};
                backward_row(x + row * columns, dy + row * columns, weight, stats, centred,
                             dx + row * columns, sums, sums + columns, columns);
            }
        }
    });
    add_pieces(partial, pieces, width, columns, dweight);
    if (centred) add_pieces(partial + columns, pieces, width, columns, dbias);
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// bias null: RMSNorm, mean is not touched.
EXPORT void norm_forward(int32_t storage, const void* x, const void* weight, const void* bias,
                         void* y, float* mean, float* rstd, int64_t rows, int64_t columns,
                         float eps) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        forward(static_cast<const T*>(x), static_cast<const T*>(weight),
                static_cast<const T*>(bias), static_cast<T*>(y), mean, rstd, rows, columns, eps);
    });
}

EXPORT void norm_backward(int32_t storage, const void* x, const void* dy, const void* weight,
                          const float* mean, const float* rstd, void* dx, void* dweight,
                          void* dbias, int64_t rows, int64_t columns) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        backward(static_cast<const T*>(x), static_cast<const T*>(dy),
                 static_cast<const T*>(weight), mean, rstd, static_cast<T*>(dx),
                 static_cast<T*>(dweight), static_cast<T*>(dbias), rows, columns);
    });
}
