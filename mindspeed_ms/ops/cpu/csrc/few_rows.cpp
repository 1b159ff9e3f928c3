// SPDX-License-Identifier: Apache-2.0
// Linear layers of few rows for inference, and weights as eight bits.
#include "few_rows.h"

#include <algorithm>

namespace kernels {

namespace {

template <class T>
void few_rows(const T* x, const T* weight, const T* bias, T* y, int64_t rows, Linear linear) {
    linear.weight = weight;
    float* wide = scratch(kTile, (rows + 1) * (linear.in + linear.out) + 2 * kWidth);
    float* bias_wide = wide + rows * linear.in;
    float* result = bias_wide + linear.out;
    vector_loop(rows * linear.in,
                [&](int64_t i, int64_t lanes) { store(wide + i, load(x + i, lanes), lanes); });
    if (bias) {
        vector_loop(linear.out, [&](int64_t i, int64_t lanes) {
            store(bias_wide + i, load(bias + i, lanes), lanes);
        });
        linear.bias = bias_wide;
    }
    multiply_rows<T>(wide, rows, linear, result);
    vector_loop(rows * linear.out,
                [&](int64_t i, int64_t lanes) { store(y + i, load(result + i, lanes), lanes); });
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// y [rows, out] = x [rows, in] weight[out, in]^T + bias [out], all of one type
EXPORT void linear_few_rows(int32_t storage, const void* x, const void* weight, const void* bias,
                            void* y, int64_t rows, int64_t in, int64_t out) {
    if (rows == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        few_rows(static_cast<const T*>(x), static_cast<const T*>(weight),
                 static_cast<const T*>(bias), static_cast<T*>(y), rows,
                 Linear{nullptr, nullptr, nullptr, in, out});
    });
}

// to [rows, width] int8 and scales [rows], so that to * scales is nearest to from
EXPORT void quantize_rows(int32_t storage, const void* from, int64_t rows, int64_t width,
                          int8_t* to, float* scales) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        parallel_ranges(rows, width, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const T* own = static_cast<const T*>(from) + row * width;
                vf most = vf{};
                vector_loop(width, [&](int64_t i, int64_t lanes) {
                    most = vmax(vabs(load(own + i, lanes)), most);
                });
                const float largest = max_of(most);
                scales[row] = largest / 127.0f;
                const float factor = largest > 0.0f ? 127.0f / largest : 0.0f;
                for (int64_t i = 0; i < width; ++i)
                    to[row * width + i] =
                        static_cast<int8_t>(std::nearbyint(load_one(own + i) * factor));
            }
        });
    });
}
