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

// words[4 * lane + i] of kPhiloxLanes consecutive blocks.
inline void philox_blocks(uint64_t seed, uint64_t block, uint32_t* words) {
    uint32_t x0[kPhiloxLanes], x1[kPhiloxLanes], x2[kPhiloxLanes], x3[kPhiloxLanes];
    for (int lane = 0; lane < kPhiloxLanes; ++lane) {
        x0[lane] = static_cast<uint32_t>(block + static_cast<uint64_t>(lane));
        x1[lane] = static_cast<uint32_t>((block + static_cast<uint64_t>(lane)) >> 32);
        x2[lane] = x3[lane] = 0;
    }
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
#pragma omp simd
        for (int lane = 0; lane < kPhiloxLanes; ++lane) {
            const uint64_t p0 = static_cast<uint64_t>(x0[lane]) * 0xD2511F53u;
            const uint64_t p1 = static_cast<uint64_t>(x2[lane]) * 0xCD9E8D57u;
            x0[lane] = static_cast<uint32_t>(p1 >> 32) ^ x1[lane] ^ key0;
            x2[lane] = static_cast<uint32_t>(p0 >> 32) ^ x3[lane] ^ key1;
            x1[lane] = static_cast<uint32_t>(p1);
            x3[lane] = static_cast<uint32_t>(p0);
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (int lane = 0; lane < kPhiloxLanes; ++lane) {
        words[4 * lane] = x0[lane];
        words[4 * lane + 1] = x1[lane];
        words[4 * lane + 2] = x2[lane];
        words[4 * lane + 3] = x3[lane];
    }
}

// factors[i] = scale or 0 for element first + i of the draw.
inline void keep_factors(const Dropout& dropout, uint64_t first, int64_t count, float* factors) {
    const uint64_t word = dropout.offset + first;
    uint64_t block = word / 4;
    int64_t skip = static_cast<int64_t>(word % 4);
    uint32_t words[4 * kPhiloxLanes];
    for (int64_t done = 0; done < count; block += kPhiloxLanes, skip = 0) {
        philox_blocks(dropout.seed, block, words);
        const int64_t left = count - done, ready = 4 * kPhiloxLanes - skip;
        const int64_t taken = left < ready ? left : ready;
        for (int64_t i = 0; i < taken; ++i)
            factors[done + i] = words[skip + i] < dropout.threshold ? 0.0f : dropout.scale;
        done += taken;
    }
}

}  // namespace kernels
