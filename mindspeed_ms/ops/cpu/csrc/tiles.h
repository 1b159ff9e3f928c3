// SPDX-License-Identifier: Apache-2.0
// Products on the tile unit of the CPU (AMX), which multiplies bf16 and adds in fp32.
//
// A storage type is written as a sum of bf16 numbers of 8 significant bits: bf16 as itself, fp16 as
// two, fp32 as three (x = h + m + l, exactly). An fp32 product is then hh + hm + mh + hl + lh + mm;
// what is left out is below 2^-24 of it, and as the unit adds 32 products before it rounds into the
// sum, the result is as accurate as that of fp32 arithmetic. Numbers below 2^-126 count as zero, so
// fp32 numbers below 2^-110 lose their last bits; infinite ones may give NaN.
//
// Panels hold 32 rows (or columns) in two tiles: [depth / 32][part][tile][16][16 words of 2 bf16].
#pragma once

#include "micro.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#if defined(__AVX512F__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define HAS_TILES 1
#endif
#endif

namespace kernels {

constexpr int64_t kPanel = 32;      // rows of a left panel, columns of a right one
constexpr int64_t kTileDepth = 32;  // products that a tile instruction adds
constexpr int64_t kTileBytes = 1024;

template <class T>
constexpr int kParts = sizeof(T) == 4 ? 3 : 1;
template <>
constexpr int kParts<fp16> = 2;

// Bytes of the two tiles of one step through the depth.
template <int Parts>
constexpr int64_t kStepBytes = Parts * 2 * kTileBytes;

template <int Parts>
inline int64_t panel_bytes(int64_t depth) {
    return ceil_div(depth, kTileDepth) * kStepBytes<Parts>;
}

// The types whose products go to the tile unit.
enum class TileUse : int32_t { kNone = 0, kHalf = 1, kAll = 2 };
TileUse tile_use();

template <class T>
inline bool tiles_ready() {
    return tile_use() == TileUse::kAll || (tile_use() == TileUse::kHalf && sizeof(T) == 2);
}

// While it lives, results below 2^-126 are zero for this thread, as they are to the tile unit: taking
// tiny numbers apart, or rounding exp(-100), would take a hundred times as long as other arithmetic.
struct FlushTiny {
#if defined(__SSE__)
    FlushTiny() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
    ~FlushTiny() { _mm_setcsr(before); }
    const unsigned before;
#endif
};

#if defined(HAS_TILES)

// One vector of numbers, taken apart: a bf16 in the upper half of each lane, anything in the lower.
template <int Parts>
struct Split {
    vu part[Parts];
};

template <int Parts>
inline Split<Parts> split(vf x) {
    Split<Parts> result;
#pragma GCC unroll 4
    for (int i = 0; i + 1 < Parts; ++i) {
        result.part[i] = (bits_of<vu>(x) + 0x8000u) & 0xffff0000u;
        x -= bits_of<vf>(result.part[i]);
    }
    result.part[Parts - 1] = bits_of<vu>(x);
    return result;
}

// Words of the upper halves: even and odd lanes of two vectors side by side, or one vector after
// the other.
inline vu paired(vu even, vu odd) { return (even >> 16) | (odd & 0xffff0000u); }

inline vu joined(vu low, vu high) {
    const __m512i odd_words = _mm512_add_epi16(
        _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                         24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0),
        _mm512_set1_epi16(1));
    return (vu)_mm512_permutex2var_epi16((__m512i)low, odd_words, (__m512i)high);
}

// One tile for each of `Parts` parts from `items` rows or columns of a matrix at depth [0, depth), zeros beyond.
// `Along` says that the depth is contiguous (else the items are); `Right` wants [depth][item].
template <int Parts, bool Along, bool Right, class T>
inline void pack_tile(const T* from, int64_t stride, int64_t items, int64_t depth, char* to) {
    vf halves[2][kWidth];  // of the depth: [item][depth] or [depth][item]
    const int64_t rows = Along ? items : depth, columns = Along ? depth : items;
    for (int64_t half = 0; half < 2; ++half)
        for (int64_t i = 0; i < kWidth; ++i) {
            const int64_t row = Along ? i : half * kWidth + i, column = Along ? half * kWidth : 0;
            halves[half][i] = row < rows && column < columns
                                  ? load(from + row * stride + column, columns - column)
                                  : vf{};
        }
    if (Along == Right) {
        transpose(halves[0]);
        transpose(halves[1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
        const Split<Parts> first = split<Parts>(Right ? halves[i / 8][i % 8 * 2] : halves[0][i]);
        const Split<Parts> second =
            split<Parts>(Right ? halves[i / 8][i % 8 * 2 + 1] : halves[1][i]);
#pragma GCC unroll 4
        for (int p = 0; p < Parts; ++p) {
            const vu words = Right ? paired(first.part[p], second.part[p])
                                   : joined(first.part[p], second.part[p]);
            __builtin_memcpy(to + p * 2 * kTileBytes + i * 64, &words, 64);
        }
    }
}

// A panel of up to 32 items, the whole depth.
template <int Parts, bool Along, bool Right, class T>
inline void pack_panel(const T* from, int64_t stride, int64_t items, int64_t depth, char* to) {
    const int64_t item_step = Along ? stride : 1, depth_step = Along ? 1 : stride;
    for (int64_t k = 0; k < depth; k += kTileDepth, to += kStepBytes<Parts>) {
        if (!Along && items > 0)  // the next rows lie far away
            for (int64_t row = k + kTileDepth; row < k + 2 * kTileDepth && row < depth; ++row) {
                __builtin_prefetch(from + row * stride);
                __builtin_prefetch(from + row * stride + (items - 1));
            }
        for (int64_t half = 0; half < 2; ++half) {
            const int64_t left = items - half * kWidth;
            pack_tile<Parts, Along, Right>(from + k * depth_step + half * kWidth * item_step,
                                           stride, left < 0 ? 0 : (left < kWidth ? left : kWidth),
                                           depth - k < kTileDepth ? depth - k : kTileDepth,
                                           to + half * kTileBytes);
        }
    }
}

#define TILE_CODE __attribute__((target("amx-tile,amx-bf16")))

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Static, since compilers drop the stores to a local one: the instruction hides how much it reads.
static const TileShapes kTileShapes;

// All eight tiles: 16 rows of 64 bytes. A thread that has finished must let go of them.
TILE_CODE inline void begin_tiles() { _tile_loadconfig(&kTileShapes); }

TILE_CODE inline void end_tiles() { _tile_release(); }

TILE_CODE inline void load_left(const char* tiles) {
    _tile_loadd(4, tiles, 64);
    _tile_loadd(5, tiles + kTileBytes, 64);
}

TILE_CODE inline void load_right(const char* tiles) {
    _tile_loadd(6, tiles, 64);
    _tile_loadd(7, tiles + kTileBytes, 64);
}

TILE_CODE inline void multiply_tiles() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// C [32, 32] (row stride in bytes) = or += left panel x right panel over `steps` of 32.
template <int Left, int Right>
TILE_CODE inline void panel_product(int64_t steps, const char* left, const char* right, float* c,
                                    int64_t stride, bool add = false) {
    constexpr int64_t part = 2 * kTileBytes;
    char* out = reinterpret_cast<char*>(c);
    if (add) {
        _tile_loadd(0, out, stride);
        _tile_loadd(1, out + 64, stride);
        _tile_loadd(2, out + 16 * stride, stride);
        _tile_loadd(3, out + 16 * stride + 64, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (; steps > 0; --steps, left += kStepBytes<Left>, right += kStepBytes<Right>) {
        static_assert(Right == 1 || Left == Right, "these products are spelt out");
        if constexpr (Right == 1) {
            load_right(right);
#pragma GCC unroll 4
            for (int i = Left - 1; i >= 0; --i) load_left(left + i * part), multiply_tiles();
        } else if constexpr (Right == 2) {
            load_left(left + part), load_right(right + part), multiply_tiles();
            load_right(right), multiply_tiles();
            load_left(left), multiply_tiles();
            load_right(right + part), multiply_tiles();
        } else {
            load_left(left + 2 * part), load_right(right), multiply_tiles();
            load_left(left + part), multiply_tiles();
            load_right(right + part), multiply_tiles();
            load_left(left), multiply_tiles();
            load_right(right), multiply_tiles();
            load_right(right + 2 * part), multiply_tiles();
        }
    }
    _tile_stored(0, out, stride);
    _tile_stored(1, out + 64, stride);
    _tile_stored(2, out + 16 * stride, stride);
    _tile_stored(3, out + 16 * stride + 64, stride);
}

#endif  // HAS_TILES

}  // namespace kernels
