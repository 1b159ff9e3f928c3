// CRC-32 as in zlib and ZIP files, several times faster where the machine multiplies polynomials.
//
// Bits are reflected: the lowest bit of the first byte is the highest power of x. A block that lies
// n bits before the end contributes block * x^n modulo the polynomial, so 512 bits at a time are
// multiplied by constants x^k mod P and added to the 512 bits that follow. What is left in the end
// is summed up byte by byte.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr uint32_t kPolynomial = 0xEDB88320u;  // reflected, without x^32

// table[k][b]: what byte b adds to the register k bytes later.
struct Tables {
  uint32_t table[8][256];
  Tables() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? kPolynomial : 0);
      table[0][byte] = value;
    }
    for (int later = 1; later < 8; ++later) {
      for (int byte = 0; byte < 256; ++byte) {
        const uint32_t before = table[later - 1][byte];
        table[later][byte] = (before >> 8) ^ table[0][before & 0xFF];
      }
    }
  }
};

const Tables& tables() {
  static const Tables built;
  return built;
}

// Advances the register (not inverted) over some bytes.
uint32_t by_table(uint32_t state, const uint8_t* data, size_t size) {
  const auto& table = tables().table;
  for (; size >= 8; size -= 8, data += 8) {
    uint64_t word = 0;
    for (int index = 7; index >= 0; --index) word = word << 8 | data[index];
    word ^= state;
    state = 0;
    for (int index = 0; index < 8; ++index) {
      state ^= table[7 - index][word >> (8 * index) & 0xFF];
    }
  }
  for (; size > 0; --size, ++data) state = (state >> 8) ^ table[0][(state ^ *data) & 0xFF];
  return state;
}

#if defined(__x86_64__)

// x^n mod P, reflected into 33 bits as the multiplication of reflected numbers needs it.
uint64_t power(int n) {
  uint32_t value = 0x80000000u;  // x^0
  for (; n > 0; --n) value = (value >> 1) ^ (value & 1 ? kPolynomial : 0);
  return static_cast<uint64_t>(value) << 1;
}

// Factors that move the lower and the upper 64 bits of a lane `bits` further.
struct Factors {
  uint64_t low, high;
  explicit Factors(int bits) : low(power(bits + 32)), high(power(bits - 32)) {}
};

__attribute__((target("pclmul,sse4.1"))) inline __m128i moved(__m128i lane, __m128i factors) {
  return _mm_xor_si128(_mm_clmulepi64_si128(lane, factors, 0x00),
                       _mm_clmulepi64_si128(lane, factors, 0x11));
}

__attribute__((target("pclmul,sse4.1"))) inline __m128i loaded(const uint8_t* data) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

// Needs at least 64 bytes.
__attribute__((target("pclmul,sse4.1"))) uint32_t by_products(uint32_t state, const uint8_t* data,
                                                              size_t size) {
  static const Factors four(512), one(128);
  const __m128i by_four = _mm_set_epi64x(four.high, four.low);
  const __m128i by_one = _mm_set_epi64x(one.high, one.low);
  __m128i lanes[4];
  for (int lane = 0; lane < 4; ++lane) lanes[lane] = loaded(data + 16 * lane);
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(state)));
  for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
    for (int lane = 0; lane < 4; ++lane) {
      lanes[lane] = _mm_xor_si128(moved(lanes[lane], by_four), loaded(data + 16 * lane));
    }
  }
  __m128i sum = lanes[0];
  for (int lane = 1; lane < 4; ++lane) sum = _mm_xor_si128(moved(sum, by_one), lanes[lane]);
  for (; size >= 16; data += 16, size -= 16) {
    sum = _mm_xor_si128(moved(sum, by_one), loaded(data));
  }
  uint8_t rest[16];
  std::memcpy(rest, &sum, sizeof rest);
  return by_table(by_table(0, rest, sizeof rest), data, size);
}

bool has_products() {
  return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

#endif

}  // namespace

// The checksum of what was summed up in `crc` and of what follows it.
EXPORT uint32_t crc32_update(uint32_t crc, const void* data, int64_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  const auto count = static_cast<size_t>(size);
#if defined(__x86_64__)
  static const bool fast = has_products();
  if (fast && count >= 64) return ~by_products(~crc, bytes, count);
#endif
  return ~by_table(~crc, bytes, count);
}
