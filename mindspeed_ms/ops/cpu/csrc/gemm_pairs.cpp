// SPDX-License-Identifier: Apache-2.0
// The weight is read where it lies, a pair of its numbers at a time, for all lanes of a vector of rows:
// only the rows are packed, and results are turned around on their way out.
#include "gemm_pairs.h"

#include "tiles.h"

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_PAIRS 1
#define PAIRS __attribute__((target("avx512bf16"), noinline))
#endif

namespace kernels {

#if defined(HAS_PAIRS)

namespace {

constexpr int kOutputs = 14;        // with two vectors of rows, all 32 registers
constexpr int64_t kLinePairs = 16;  // of a cache line

// panel [pairs][Vectors][kWidth] of up to Vectors * kWidth rows, rounded; zeros in place of others.
template <int Vectors>
void pack(const float* x, int64_t rows, int64_t in, uint32_t* panel) {
    for (int v = 0; v < Vectors; ++v)
        for (int64_t k = 0; k < in; k += 2 * kWidth) {
            vf block[kWidth];
            for (int row = 0; row < kWidth; ++row) {
                const float* from = x + (v * kWidth + row) * in + k;
                const int64_t left = v * kWidth + row < rows ? in - k : 0;
                bf16 halves[2 * kWidth];
                store(halves, left > 0 ? load(from, left) : vf{});
                store(halves + kWidth, left > kWidth ? load(from + kWidth, left - kWidth) : vf{});
                __builtin_memcpy(&block[row], halves, sizeof halves);
            }
            transpose(block);
            for (int64_t pair = 0; pair < kWidth && k + 2 * pair < in; ++pair)
                __builtin_memcpy(panel + ((k / 2 + pair) * Vectors + v) * kWidth, &block[pair],
                                 sizeof(vf));
        }
}

// sums [kOutputs][Vectors * kWidth] of the first rows of a weight and a panel
template <int Vectors>
PAIRS void multiply_panel(const bf16* weight, int64_t in, const uint32_t* panel, bool fetches,
                          float* sums) {
    __m512 sum[kOutputs][Vectors];
#pragma GCC unroll 16
    for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[o][v] = _mm512_setzero_ps();
    for (int64_t line = 0; line < in / 2; line += kLinePairs) {
        // The rows that follow: these are too short for the processor to look ahead by itself.
        if (fetches)
#pragma GCC unroll 16
            for (int o = 0; o < kOutputs; ++o)
                __builtin_prefetch(weight + (kOutputs + o) * in + 2 * line);
        const int64_t end = line + kLinePairs < in / 2 ? line + kLinePairs : in / 2;
        for (int64_t pair = line; pair < end; ++pair) {
            __m512bh rows[Vectors];
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; ++v)
                rows[v] = (__m512bh)_mm512_loadu_si512(panel + (pair * Vectors + v) * kWidth);
#pragma GCC unroll 16
            for (int o = 0; o < kOutputs; ++o) {
                int32_t both;
                __builtin_memcpy(&both, weight + o * in + 2 * pair, sizeof both);
                const __m512bh w = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 2
                for (int v = 0; v < Vectors; ++v)
                    sum[o][v] = _mm512_dpbf16_ps(sum[o][v], rows[v], w);
            }
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v)
            _mm512_storeu_ps(sums + (o * Vectors + v) * kWidth, sum[o][v]);
}

// y [rows, kOutputs] with row stride `stride` for one panel.
template <int Vectors>
void block(const bf16* weight, int64_t in, const uint32_t* panel, int64_t rows, bool fetches,
           float* y, int64_t stride) {
    alignas(64) float sums[kOutputs * Vectors * kWidth];
    multiply_panel<Vectors>(weight, in, panel, fetches, sums);
    for (int v = 0; v < Vectors; ++v) {
        vf turned[kWidth] = {};
        for (int o = 0; o < kOutputs; ++o) turned[o] = load(sums + (o * Vectors + v) * kWidth);
        transpose(turned);
        for (int row = 0; row < kWidth && v * kWidth + row < rows; ++row)
            __builtin_memcpy(y + (v * kWidth + row) * stride, &turned[row],
                             kOutputs * sizeof(float));
    }
}

bool has_pairs() {
    static const bool found = __builtin_cpu_supports("avx512bf16");
    return found && tile_use() == TileUse::kNone;
}

}  // namespace

template <>
bool multiply_pairs(const float* x, int64_t rows, const bf16* weight, int64_t in, int64_t out,
                    float* y) {
    if (!has_pairs() || in % 2 != 0 || out < kOutputs) return false;
    constexpr int64_t height = 2 * kWidth;
    const int64_t panels = ceil_div(rows, height), size = in / 2 * height;
    uint32_t* packed = reinterpret_cast<uint32_t*>(scratch(kSharedPanels, panels * size));
    parallel_ranges(panels, in * height, [=](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            const int64_t first = panel * height, left = rows - first;
            const auto put = left > kWidth ? pack<2> : pack<1>;
            put(x + first * in, left, in, packed + panel * size);
        }
    });
    parallel_ranges(ceil_div(out, kOutputs), kOutputs * in * rows, [=](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
            // The last block reaches back where it would reach over the edge.
            const int64_t o = index * kOutputs < out - kOutputs ? index * kOutputs : out - kOutputs;
            for (int64_t panel = 0; panel < panels; ++panel) {
                const int64_t first = panel * height, left = rows - first;
                const auto product = left > kWidth ? block<2> : block<1>;
                product(weight + o * in, in, packed + panel * size, left, panel == 0,
                        y + first * out + o, out);
            }
        }
    });
    return true;
}

#else

template <>
bool multiply_pairs(const float*, int64_t, const bf16*, int64_t, int64_t, float*) {
    return false;
}

#endif  // HAS_PAIRS

}  // namespace kernels
