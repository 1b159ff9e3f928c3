// SPDX-License-Identifier: Apache-2.0
// Calls of OpenBLAS (fp32) and oneDNN (bf16) on parts of C.
#include "external_gemm.h"

#include <initializer_list>

#include "simd.h"

namespace kernels {

namespace {

// cblas_sgemm with 64-bit sizes: order, transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc
using Sgemm = void (*)(int, int, int, int64_t, int64_t, int64_t, float, const float*, int64_t,
                       const float*, int64_t, float, float*, int64_t);
// dnnl_gemm_bf16bf16f32, row-major; returns 0 on success
using Bgemm = int (*)(char, char, int64_t, int64_t, int64_t, float, const uint16_t*, int64_t,
                      const uint16_t*, int64_t, float, float*, int64_t);

Sgemm g_sgemm = nullptr;
Bgemm g_bgemm = nullptr;

constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112;
constexpr int64_t kSmall = 1 << 15;  // multiplications below which packing by ourselves is as good
constexpr int64_t kGrain = 64;       // parts begin at multiples of this
constexpr int64_t kTileSide = 1024;  // largest side of a part that needs an fp32 copy

template <class T>
Matrix<T> shifted(Matrix<T> m, int64_t row, int64_t column) {
    return {m.data + (m.transposed ? column * m.stride + row : row * m.stride + column), m.stride,
            m.transposed};
}

// part(row, rows, column, columns) for a grid over C with sides of at most `limit`.
template <class Part>
void over_parts(int64_t rows, int64_t columns, int64_t depth, int64_t limit, Part part) {
    const int64_t team = rows * columns * depth < 64 * kSerialElements ? 1 : threads();
    int64_t row_step = rows, column_step = columns;
    int64_t& longer = rows >= columns ? row_step : column_step;
    longer = (longer + team - 1) / team;
    for (int64_t* step : {&row_step, &column_step}) {
        *step = *step < limit ? *step : limit;
        *step = (*step + kGrain - 1) / kGrain * kGrain;
    }
    const int64_t row_parts = (rows + row_step - 1) / row_step;
    const int64_t column_parts = (columns + column_step - 1) / column_step;
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(team)) if (team > 1)
    for (int64_t index = 0; index < row_parts * column_parts; ++index) {
        const int64_t row = index / column_parts * row_step;
        const int64_t column = index % column_parts * column_step;
        part(row, rows - row < row_step ? rows - row : row_step, column,
             columns - column < column_step ? columns - column : column_step);
    }
}

void bgemm_part(Matrix<bf16> a, Matrix<bf16> b, float* c, int64_t c_stride, int64_t rows,
                int64_t columns, int64_t depth, bool accumulate) {
    const int status =
        g_bgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', rows, columns, depth, 1.0f,
                &a.data->bits, a.stride, &b.data->bits, b.stride, accumulate ? 1.0f : 0.0f, c,
                c_stride);
    if (status != 0) std::abort();  // tried once when the address was handed over
}

// out [rows, columns] = in (+ bias), rounded to the type of out.
template <class TC, class TBias>
void finish(const float* in, int64_t in_stride, TC* out, int64_t out_stride, int64_t rows,
            int64_t columns, const TBias* bias) {
    for (int64_t row = 0; row < rows; ++row)
        vector_loop(columns, [&](int64_t i, int64_t count) {
            vf value = load(in + row * in_stride + i, count);
            if (bias) value += load(bias + i, count);
            store(out + row * out_stride + i, value, count);
        });
}

}  // namespace

bool external_gemm(Matrix<float> a, Matrix<float> b, float* c, int64_t rows, int64_t columns,
                   int64_t depth, bool accumulate, const float* bias) {
    if (!g_sgemm || rows * columns * depth < kSmall) return false;
    over_parts(rows, columns, depth, rows + columns,
               [=](int64_t row, int64_t height, int64_t column, int64_t width) {
                   const Matrix<float> left = shifted(a, row, 0), right = shifted(b, 0, column);
                   float* out = c + row * columns + column;
                   g_sgemm(kRowMajor, a.transposed ? kTransposed : kPlain,
                           b.transposed ? kTransposed : kPlain, height, width, depth, 1.0f,
                           left.data, left.stride, right.data, right.stride,
                           accumulate ? 1.0f : 0.0f, out, columns);
                   if (bias) finish(out, columns, out, columns, height, width, bias + column);
               });
    return true;
}

bool external_gemm(Matrix<bf16> a, Matrix<bf16> b, float* c, int64_t rows, int64_t columns,
                   int64_t depth, bool accumulate, const bf16* bias) {
    if (!g_bgemm || rows * columns * depth < kSmall) return false;
    over_parts(rows, columns, depth, rows + columns,
               [=](int64_t row, int64_t height, int64_t column, int64_t width) {
                   float* out = c + row * columns + column;
                   bgemm_part(shifted(a, row, 0), shifted(b, 0, column), out, columns, height,
                              width, depth, accumulate);
                   if (bias) finish(out, columns, out, columns, height, width, bias + column);
               });
    return true;
}

bool external_gemm(Matrix<bf16> a, Matrix<bf16> b, bf16* c, int64_t rows, int64_t columns,
                   int64_t depth, bool, const bf16* bias) {
    if (!g_bgemm || rows * columns * depth < kSmall) return false;
    over_parts(rows, columns, depth, kTileSide,
               [=](int64_t row, int64_t height, int64_t column, int64_t width) {
                   float* tile = scratch(kTile, height * width);
                   bgemm_part(shifted(a, row, 0), shifted(b, 0, column), tile, width, height,
                              width, depth, false);
                   finish(tile, width, c + row * columns + column, columns, height, width,
                          bias ? bias + column : nullptr);
               });
    return true;
}

}  // namespace kernels

using namespace kernels;

// Addresses of the library functions, 0 for none. Returns 1 when the bf16 product works here.
EXPORT int32_t set_external_gemm(uint64_t sgemm, uint64_t bgemm) {
    g_sgemm = reinterpret_cast<Sgemm>(static_cast<uintptr_t>(sgemm));
    g_bgemm = reinterpret_cast<Bgemm>(static_cast<uintptr_t>(bgemm));
    if (!g_bgemm) return 0;
    const uint16_t one = 0x3f80;
    float result = 0.0f;
    if (g_bgemm('N', 'N', 1, 1, 1, 1.0f, &one, 1, &one, 1, 0.0f, &result, 1) != 0 || result != 1.0f)
        g_bgemm = nullptr;
    return g_bgemm != nullptr;
}
