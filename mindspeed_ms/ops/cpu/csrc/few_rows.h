// SPDX-License-Identifier: Apache-2.0
// y = x weight^T for so few rows that the time is that of reading the weight.
//
// Every row of the weight is read once, by one thread; arithmetic is fp32. A row of the result does
// not depend on how many there are.
#pragma once

#include <type_traits>

#include "micro.h"

namespace kernels {

// Keep in step with ops/cpu/decode.py.
struct Linear {
    const void* weight;   // [out, in] of the storage type; of int8 if there are scales
    const float* bias;    // [out], null: none
    const float* scales;  // [out], factors of the weight's rows, null: none
    int64_t in, out;
};

// Rows of the weight are too short for the processor to look ahead by itself, and several are read at
// once; so what is fetched is memory in its order, this far ahead.
constexpr int64_t kFetchedBytes = 16384;

enum class Fetch {
    kNone,
    kOnce,   // past the caches that are for what is read again
    kAgain,  // more rows of x will read it
};

// Count rows of y, for Outputs rows of the weight.
template <int Count, int Outputs, Fetch Kind, class T>
inline void dot_rows(const float* x, const T* weight, const Linear& linear, int64_t first,
                     float* y) {
    constexpr int64_t step_bytes = Outputs * kWidth * sizeof(T), line = 64;
    const int64_t in = linear.in;
    const char* ahead = reinterpret_cast<const char*>(weight) + kFetchedBytes;
    vf sums[Count][Outputs] = {};
    vector_loop(in, [&](int64_t i, int64_t lanes) {
        vf w[Outputs];
#pragma GCC unroll 4
        for (int o = 0; o < Outputs; ++o) w[o] = load(weight + o * in + i, lanes);
        if constexpr (Kind != Fetch::kNone) {
            const char* at = ahead + i * Outputs * static_cast<int64_t>(sizeof(T));
#pragma GCC unroll 4
            for (int64_t b = 0; b < step_bytes; b += line)
                __builtin_prefetch(at + b, 0, Kind == Fetch::kOnce ? 0 : 3);
        }
#pragma GCC unroll 8
        for (int row = 0; row < Count; ++row) {
            const vf value = load(x + row * in + i, lanes);
#pragma GCC unroll 4
            for (int o = 0; o < Outputs; ++o) sums[row][o] += value * w[o];
        }
    });
    for (int o = 0; o < Outputs; ++o) {
        const float scale = linear.scales ? linear.scales[first + o] : 1.0f;
        const float bias = linear.bias ? linear.bias[first + o] : 0.0f;
        for (int row = 0; row < Count; ++row)
            y[row * linear.out + first + o] = sum_of(sums[row][o]) * scale + bias;
    }
}

template <int Outputs, class T>
void all_rows(const float* x, int64_t rows, const Linear& linear, int64_t first, float* y) {
    const T* weight = static_cast<const T*>(linear.weight) + first * linear.in;
    int64_t row = 0;
    const auto step = [&](auto count, auto kind) {
        dot_rows<count(), Outputs, kind()>(x + row * linear.in, weight, linear, first,
                                           y + row * linear.out);
        row += count();
    };
    constexpr std::integral_constant<int, 4> four{};
    constexpr std::integral_constant<int, 1> one{};
    constexpr std::integral_constant<Fetch, Fetch::kNone> none{};
    rows >= 4 ? step(four, std::integral_constant<Fetch, Fetch::kAgain>{})
              : step(one, std::integral_constant<Fetch, Fetch::kOnce>{});
    while (row + 4 <= rows) step(four, none);
    while (row < rows) step(one, none);
}

// y [rows, out] = x [rows, in] weight^T * scales + bias, for a weight of a type; so many outputs at once
template <int Outputs, class T>
void multiply_blocks(const float* x, int64_t rows, const Linear& linear, float* y) {
    const int64_t blocks = ceil_div(linear.out, Outputs);
    parallel_ranges(blocks, Outputs * linear.in, [=](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block * Outputs;
            if (first + Outputs <= linear.out) {
                all_rows<Outputs, T>(x, rows, linear, first, y);
                continue;
            }
            for (int64_t o = first; o < linear.out; ++o) all_rows<1, T>(x, rows, linear, o, y);
        }
    });
}

// Several rows share what is loaded; one is read for itself, for which fewer streams are faster.
template <class T>
void multiply_stored(const float* x, int64_t rows, const Linear& linear, float* y) {
    rows >= 4 ? multiply_blocks<4, T>(x, rows, linear, y)
              : multiply_blocks<2, T>(x, rows, linear, y);
}

constexpr int64_t kFewRows = 16;

// The same as a blocked product; defined in gemm.cpp.
template <class T>
void multiply_many(const float* x, int64_t rows, const Linear& linear, float* y);

template <class T>
void multiply_rows(const float* x, int64_t rows, const Linear& linear, float* y) {
    if (linear.scales) return multiply_stored<int8_t>(x, rows, linear, y);
    if (rows > kFewRows) return multiply_many<T>(x, rows, linear, y);
    multiply_stored<T>(x, rows, linear, y);
}

}  // namespace kernels
