// SPDX-License-Identifier: Apache-2.0
// What a processor can do at best: arithmetic in registers, and streams through memory. Compiled by
// limit.py for the machine it runs on; no part of the package.
#include <omp.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float vf __attribute__((vector_size(kLanes * 4)));

// Enough sums to hide the latency of two multiply-adds per cycle, few enough for the registers.
constexpr int kSums = kLanes == 16 ? 24 : 12;

volatile float g_kept;  // what is computed must be read, or it is not computed

double own_seconds() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The most that work(part), which returns an amount, does per second: of all threads together, each
// by its own time on a processor, since others may use the machine.
template <class Work>
double best_rate(int threads, Work work) {
    double best = 0.0;
    for (int round = 0; round < 7; ++round) {
        double rate = 0.0;
#pragma omp parallel num_threads(threads) reduction(+ : rate)
        {
            const double start = own_seconds();
            const double amount = work(omp_get_thread_num());
            rate += amount / (own_seconds() - start);
        }
        if (rate > best) best = rate;
    }
    return best;
}

double fma_fp32(int64_t steps) {
    vf sums[kSums] = {};
    vf a = vf{} + 0.999f, b = vf{} + 1e-3f;
    asm volatile("" : "+x"(a), "+x"(b));
    for (vf& sum : sums) asm volatile("" : "+x"(sum));  // or equal sums become one
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
    }
    vf total = vf{};
    for (int i = 0; i < kSums; ++i) total += sums[i];
    g_kept = total[0];
    return 2.0 * kSums * kLanes * static_cast<double>(steps);
}

#if defined(__AMX_BF16__)
struct TileShapes {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Four products in flight: 16 x 16 sums over 32 pairs each.
double fma_bf16(int64_t steps) {
    constexpr int request = 0x1023, tile_data = 18;
    if (syscall(SYS_arch_prctl, request, tile_data) != 0) return 0.0;
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
        shapes.bytes[tile] = 64;
        shapes.rows[tile] = 16;
    }
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t step = 0; step < steps; ++step) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    alignas(64) float kept[256];
    _tile_stored(0, kept, 64);
    g_kept = kept[0];
    _tile_release();
    return 2.0 * 4 * 16 * 16 * 32 * static_cast<double>(steps);
}
#elif defined(__AVX512BF16__)
double fma_bf16(int64_t steps) {
    __m512 sums[kSums];
    for (__m512& sum : sums) sum = _mm512_setzero_ps();
    __m512i raw = _mm512_set1_epi16(0x3c00);
    asm volatile("" : "+v"(raw));
    const __m512bh a = (__m512bh)raw;
    for (__m512& sum : sums) asm volatile("" : "+v"(sum));  // or equal sums become one
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, a);
    }
    __m512 total = _mm512_setzero_ps();
    for (const __m512& sum : sums) total = _mm512_add_ps(total, sum);
    g_kept = _mm512_reduce_add_ps(total);
    return 2.0 * kSums * 32 * static_cast<double>(steps);
}
#else
double fma_bf16(int64_t) { return 0.0; }
#endif

#if defined(__AVX512FP16__)
double fma_fp16(int64_t steps) {
    __m512h sums[kSums];
    for (__m512h& sum : sums) sum = _mm512_setzero_ph();
    __m512h a = _mm512_set1_ph((_Float16)0.5f);
    asm volatile("" : "+v"(a));
    for (__m512h& sum : sums) asm volatile("" : "+v"(sum));
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < kSums; ++i) sums[i] = _mm512_fmadd_ph(sums[i], a, a);
    }
    __m512h total = _mm512_setzero_ph();
    for (const __m512h& sum : sums) total = _mm512_add_ph(total, sum);
    g_kept = static_cast<float>(_mm512_reduce_add_ph(total));
    return 2.0 * kSums * 32 * static_cast<double>(steps);
}
#else
double fma_fp16(int64_t) { return 0.0; }
#endif

}  // namespace

// Multiply-adds per second, counted as two operations, of all threads; 0: the type has none.
EXPORT double limit_arithmetic(int32_t type, int32_t threads, int64_t steps) {
    double (*const work)(int64_t) = type == 0 ? fma_fp32 : type == 1 ? fma_bf16 : fma_fp16;
    return best_rate(threads, [=](int) { return work(steps); });
}

// Bytes per second that are read, by all threads.
EXPORT double limit_read(const float* from, int64_t count, int32_t threads) {
    return best_rate(threads, [=](int part) {
        const int64_t begin = count * part / threads, end = count * (part + 1) / threads;
        vf sums[8] = {};
        for (int64_t i = begin; i + 8 * kLanes <= end; i += 8 * kLanes)
            for (int j = 0; j < 8; ++j) {
                vf value;
                std::memcpy(&value, from + i + j * kLanes, sizeof value);
                sums[j] += value;
            }
        float total = 0.0f;
        for (const vf& sum : sums) total += sum[0];
        g_kept = total;
        return static_cast<double>(end - begin) * sizeof(float);
    });
}

// Bytes per second that are copied (each read and written once), by all threads.
EXPORT double limit_copy(const char* from, char* to, int64_t bytes, int32_t threads) {
    return best_rate(threads, [=](int part) {
        const int64_t begin = bytes * part / threads, end = bytes * (part + 1) / threads;
        std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
        return static_cast<double>(end - begin);
    });
}
