// SPDX-License-Identifier: Apache-2.0
// Register-blocked product of two small blocks, and the packing that feeds it.
//
// A right-hand side is stored in panels of kCols columns: [panel][k][kCols]. The left-hand side is
// read element by element, so it may be a packed panel of kRows rows ([k][kRows]) or any block with
// strides known at compile time.
#pragma once

#include "simd.h"

namespace kernels {

constexpr int kVectors = 2;                    // vectors of one result row held in registers
constexpr int kCols = kVectors * kWidth;       // columns of a panel
#if defined(__AVX512F__)
constexpr int kRows = 8;
constexpr int kTallRows = 14;  // with two vectors a row, all 32 registers
#else
constexpr int kRows = 4;
constexpr int kTallRows = 4;
#endif

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
inline int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// C [Rows, kCols] (row stride c_stride) = or += the sum over k of a[row * RowStride +
// k * DepthStride] * b[k][kCols]. Not inlined, so that the sums stay in registers.
template <int RowStride, int DepthStride, int Rows = kRows>
__attribute__((noinline)) void multiply(int64_t depth, const float* a, const float* b, float* c,
                                        int64_t c_stride, bool add) {
    vf sum[Rows][kVectors];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
        // C is far away when a product begins and is wanted when it ends.
        __builtin_prefetch(c + row * c_stride, 1);
        __builtin_prefetch(c + row * c_stride + kCols - 1, 1);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[row][v] = vf{};
    }
    for (int64_t k = 0; k < depth; ++k) {
        vf column[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) column[v] = load(b + v * kWidth);
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
            const vf left = splat(a[row * RowStride]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sum[row][v] += left * column[v];
        }
        a += DepthStride;
        b += kCols;
    }
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            float* out = c + row * c_stride + v * kWidth;
            store(out, add ? sum[row][v] + load(out) : sum[row][v]);
        }
}

// Transposes kWidth vectors in place.
inline void transpose(vf (&rows)[kWidth]) {
#pragma GCC unroll 4
    for (int distance = 1; distance < kWidth; distance *= 2) {
        vi low, high;
        for (int lane = 0; lane < kWidth; ++lane) {
            low[lane] = (lane & distance) ? kWidth + lane - distance : lane;
            high[lane] = (lane & distance) ? kWidth + lane : lane + distance;
        }
#pragma GCC unroll 16
        for (int row = 0; row < kWidth; ++row) {
            if (row & distance) continue;
            const vf first = rows[row], second = rows[row + distance];
#if defined(__clang__)
            for (int lane = 0; lane < kWidth; ++lane) {
                rows[row][lane] =
                    low[lane] < kWidth ? first[low[lane]] : second[low[lane] - kWidth];
                rows[row + distance][lane] =
                    high[lane] < kWidth ? first[high[lane]] : second[high[lane] - kWidth];
            }
#else
            rows[row] = __builtin_shuffle(first, second, low);
            rows[row + distance] = __builtin_shuffle(first, second, high);
#endif
        }
    }
}

// panel[k][Size] = source[item * stride + k] for `count` items (zeros up to Size) and all k < depth:
// the items lie far apart, k is contiguous.
template <int Size, class T>
inline void pack_rows(const T* source, int64_t stride, int64_t count, int64_t depth, float* panel) {
    static_assert(Size % kWidth == 0 || Size < kWidth, "whole vectors, or a part of one");
    for (int first = 0; first < Size; first += kWidth) {
        const int lanes = Size - first < kWidth ? Size - first : kWidth;
        const int64_t items = count - first < lanes ? count - first : lanes;
        for (int64_t k = 0; k < depth; k += kWidth) {
            const int64_t steps = depth - k < kWidth ? depth - k : kWidth;
            vf block[kWidth];
            for (int item = 0; item < kWidth; ++item) {
                // The next panel: so many short streams are more than the processor foresees.
                if (Size >= kWidth) __builtin_prefetch(source + (first + item + Size) * stride + k);
                block[item] =
                    item < items ? load(source + (first + item) * stride + k, steps) : vf{};
            }
            transpose(block);
            float* out = panel + k * Size + first;
            for (int64_t step = 0; step < steps; ++step)
                __builtin_memcpy(out + step * Size, &block[step],
                                 (Size < kWidth ? Size : kWidth) * sizeof(float));
        }
    }
}

// panel[k][Size] = source[k * stride + item]: the items are contiguous.
template <int Size, class T>
inline void pack_columns(const T* source, int64_t stride, int64_t count, int64_t depth,
                         float* panel) {
    for (int64_t k = 0; k < depth; ++k, source += stride, panel += Size) {
        if (count >= Size && Size % kWidth == 0) {
            for (int i = 0; i < Size; i += kWidth) store(panel + i, load(source + i));
        } else {
            float lanes[Size + kWidth];
            vector_loop(Size, [&](int64_t i, int64_t) {
                store(lanes + i, i < count ? load(source + i, count - i) : vf{});
            });
            __builtin_memcpy(panel, lanes, Size * sizeof(float));
        }
    }
}

}  // namespace kernels
