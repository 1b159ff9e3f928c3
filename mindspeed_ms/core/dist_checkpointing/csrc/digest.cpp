// Position-weighted sums of the bits of numbers; see digest.py for their meaning.
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// sums[0] += sum of bits, sums[1] += sum of column * bits, sums[2] += sum of row * bits.
template <typename Bits>
void accumulate(const Bits* data, int64_t rows, int64_t columns, int64_t stride, uint64_t* sums) {
  uint64_t total = 0, by_column = 0, by_row = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const Bits* line = data + row * stride;
    uint64_t plain = 0, weighted = 0;
    for (int64_t first = 0; first < columns; first += 1 << 20) {
      // Short counters keep the products in 32 x 32 bits, which every machine has as a vector.
      const int64_t last = columns - first < (1 << 20) ? columns - first : (1 << 20);
      uint64_t part = 0, part_weighted = 0;
      for (uint32_t index = 0; index < static_cast<uint32_t>(last); ++index) {
        const uint64_t bits = line[first + index];
        part += bits;
        part_weighted += bits * index;
      }
      plain += part;
      weighted += part_weighted + part * static_cast<uint64_t>(first);
    }
    total += plain;
    by_column += weighted;
    by_row += plain * static_cast<uint64_t>(row);
  }
  sums[0] += total;
  sums[1] += by_column;
  sums[2] += by_row;
}

}  // namespace

EXPORT void digest_sums(const void* data, int32_t width, int64_t rows, int64_t columns,
                        int64_t stride, uint64_t* sums) {
  if (width == 1) {
    accumulate(static_cast<const uint8_t*>(data), rows, columns, stride, sums);
  } else if (width == 2) {
    accumulate(static_cast<const uint16_t*>(data), rows, columns, stride, sums);
  } else if (width == 4) {
    accumulate(static_cast<const uint32_t*>(data), rows, columns, stride, sums);
  } else {
    accumulate(static_cast<const uint64_t*>(data), rows, columns, stride, sums);
  }
}
