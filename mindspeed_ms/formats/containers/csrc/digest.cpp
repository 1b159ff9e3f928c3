// SPDX-License-Identifier: Apache-2.0
// Position-weighted sums of the bits of numbers; see digest.py for their meaning.
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE __attribute__((always_inline)) inline

// Digest of the sources, which the loader compares: see files/native_library.py.
EXPORT const char* built_from() { return BUILT_FROM; }

namespace {

// Sums of bits and of index * bits over a stretch so short that the products fit into Wide.
template <typename Wide, typename Bits>
INLINE void short_sums(const Bits* data, uint32_t count, uint64_t* plain, uint64_t* weighted) {
  Wide part = 0, products = 0;
  for (uint32_t index = 0; index < count; ++index) {
    const Wide bits = data[index];
    part += bits;
    products += bits * index;
  }
  *plain = part;
  *weighted = products;
}

// sums[0] += sum of bits, sums[1] += sum of column * bits, sums[2] += sum of row * bits.
template <int64_t kStretch, typename Wide, typename Bits>
INLINE void accumulate(const Bits* data, int64_t rows, int64_t columns, int64_t stride,
                       uint64_t* sums) {
  uint64_t total = 0, by_column = 0, by_row = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const Bits* line = data + row * stride;
    uint64_t plain = 0, weighted = 0;
    for (int64_t first = 0; first < columns; first += kStretch) {
      const int64_t left = columns - first;
      const uint32_t count = static_cast<uint32_t>(left < kStretch ? left : kStretch);
      uint64_t part, products;
      short_sums<Wide>(line + first, count, &part, &products);
      plain += part;
      weighted += products + part * static_cast<uint64_t>(first);
    }
    total += plain;
    by_column += weighted;
    by_row += plain * static_cast<uint64_t>(row);
  }
  sums[0] += total;
  sums[1] += by_column;
  sums[2] += by_row;
}

INLINE void sums_of(const void* data, int32_t width, int64_t rows, int64_t columns, int64_t stride,
                    uint64_t* sums) {
  // 256 numbers of 16 bits, times less than 256, add up to less than 2^32; a million positions
  // keep the products of 32-bit numbers in 32 x 32 bits, which every machine has as a vector.
  if (width == 1) {
    accumulate<256, uint32_t>(static_cast<const uint8_t*>(data), rows, columns, stride, sums);
  } else if (width == 2) {
    accumulate<256, uint32_t>(static_cast<const uint16_t*>(data), rows, columns, stride, sums);
  } else if (width == 4) {
    accumulate<1 << 20, uint64_t>(static_cast<const uint32_t*>(data), rows, columns, stride, sums);
  } else {
    accumulate<1 << 20, uint64_t>(static_cast<const uint64_t*>(data), rows, columns, stride, sums);
  }
}

using Sums = void (*)(const void*, int32_t, int64_t, int64_t, int64_t, uint64_t*);

void sums_generic(const void* data, int32_t width, int64_t rows, int64_t columns, int64_t stride,
                  uint64_t* sums) {
  sums_of(data, width, rows, columns, stride, sums);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void sums_avx2(const void* data, int32_t width, int64_t rows,
                                               int64_t columns, int64_t stride, uint64_t* sums) {
  sums_of(data, width, rows, columns, stride, sums);
}

Sums chosen() { return __builtin_cpu_supports("avx2") ? sums_avx2 : sums_generic; }
#else
Sums chosen() { return sums_generic; }
#endif

}  // namespace

EXPORT void digest_sums(const void* data, int32_t width, int64_t rows, int64_t columns,
                        int64_t stride, uint64_t* sums) {
  static const Sums function = chosen();
  function(data, width, rows, columns, stride, sums);
}
