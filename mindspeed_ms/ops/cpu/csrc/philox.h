// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al., 2011): word w of a seed's stream is element w % 4 of the block with
// counter w / 4. The same words as ops/portable/dropout.py.
#pragma once

#include "simd.h"

namespace kernels {

struct Dropout {
    uint64_t seed, offset;
    uint32_t threshold;  // smaller words are dropped
    float scale;         // 1 / (1 - p)
};

constexpr int kPhiloxLanes = 16;

// Upper and lower halves of the products of 32-bit lanes with a number.
inline void multiply_wide(vu a, uint32_t factor, vu& high, vu& low) {
    typedef uint64_t vq __attribute__((vector_size(kWidth * 4)));
    const vq lanes = bits_of<vq>(a), by = vq{} + factor;
#if defined(__AVX512F__)
    const vq even = (vq)_mm512_mul_epu32((__m512i)lanes, (__m512i)by);
    const vq odd = (vq)_mm512_mul_epu32((__m512i)(lanes >> 32), (__m512i)by);
#elif defined(__AVX2__)
    const vq even = (vq)_mm256_mul_epu32((__m256i)lanes, (__m256i)by);
    const vq odd = (vq)_mm256_mul_epu32((__m256i)(lanes >> 32), (__m256i)by);
#else
    const vq even = (lanes & 0xffffffffu) * by, odd = (lanes >> 32) * by;
#endif
    const vq upper = vq{} + (uint64_t{0xffffffffu} << 32);
    high = bits_of<vu>((even >> 32) | (odd & upper));
    low = bits_of<vu>((even & ~upper) | (odd << 32));
}

// words[4 * lane + i] = x[i][lane]
inline void store_by_block(const vu (&x)[4], uint32_t* words) {
    vi pairs, quads;  // lanes of two vectors: one of each in turn, two of each in turn
    for (int lane = 0; lane < kWidth; ++lane) {
        pairs[lane] = lane / 2 + (lane % 2) * kWidth;
        quads[lane] = lane / 4 * 2 + lane % 2 + (lane / 2 % 2) * kWidth;
    }
    for (int half = 0; half < 2; ++half, pairs += kWidth / 2) {
        const vu low = __builtin_shuffle(x[0], x[1], pairs);
        const vu high = __builtin_shuffle(x[2], x[3], pairs);
        for (int quarter = 0; quarter < 2; ++quarter, words += kWidth) {
            const vu part = __builtin_shuffle(low, high, quads + quarter * (kWidth / 2));
            __builtin_memcpy(words, &part, sizeof part);
        }
    }
}

// words[4 * lane + i] of kPhiloxLanes consecutive blocks.
inline void philox_blocks(uint64_t seed, uint64_t block, uint32_t* words) {
    static_assert(kPhiloxLanes % kWidth == 0, "whole vectors");
    for (int first = 0; first < kPhiloxLanes; first += kWidth) {
        vu x[4] = {};
        for (int lane = 0; lane < kWidth; ++lane) {
            const uint64_t counter = block + static_cast<uint64_t>(first + lane);
            x[0][lane] = static_cast<uint32_t>(counter);
            x[1][lane] = static_cast<uint32_t>(counter >> 32);
        }
        uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            vu high0, low0, high1, low1;
            multiply_wide(x[0], 0xD2511F53u, high0, low0);
            multiply_wide(x[2], 0xCD9E8D57u, high1, low1);
            x[0] = high1 ^ x[1] ^ key0;
            x[2] = high0 ^ x[3] ^ key1;
            x[1] = low1;
            x[3] = low0;
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        store_by_block(x, words + 4 * first);
    }
}

// factors[i] = scale or 0 for element first + i of the draw.
inline void keep_factors(const Dropout& dropout, uint64_t first, int64_t count, float* factors) {
    const uint64_t word = dropout.offset + first;
    uint64_t block = word / 4;
    int64_t skip = static_cast<int64_t>(word % 4);
    uint32_t words[4 * kPhiloxLanes + kWidth] = {};
    for (int64_t done = 0; done < count; block += kPhiloxLanes, skip = 0) {
        philox_blocks(dropout.seed, block, words);
        const int64_t left = count - done, ready = 4 * kPhiloxLanes - skip;
        const int64_t taken = left < ready ? left : ready;
        vector_loop(taken, [&](int64_t i, int64_t lanes) {
            vu word;
            __builtin_memcpy(&word, words + skip + i, sizeof word);
            const vf factor = word < dropout.threshold ? vf{} : splat(dropout.scale);
            store(factors + done + i, factor, lanes);
        });
        done += taken;
    }
}

}  // namespace kernels
