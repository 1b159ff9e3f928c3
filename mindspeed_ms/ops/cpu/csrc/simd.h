// SPDX-License-Identifier: Apache-2.0
// One vector type for every instruction set, storage conversions, and elementary functions.
//
// GCC's vector extension compiles the same source to AVX-512, AVX2, SSE2 or NEON. All arithmetic is
// fp32; bf16 and fp16 exist in memory only.
#pragma once

#include <cmath>

#include "common.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace kernels {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float vf __attribute__((vector_size(kWidth * 4)));
typedef int32_t vi __attribute__((vector_size(kWidth * 4)));
typedef uint32_t vu __attribute__((vector_size(kWidth * 4)));
typedef uint16_t vh __attribute__((vector_size(kWidth * 2)));

inline vf splat(float x) { return x - vf{}; }  // minus zero changes no value, plus zero would

template <class To, class From>
inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// Of NaN and a number the second argument, as the instructions have it.
#if defined(__AVX512F__)
inline vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline vf vmax(vf a, vf b) { return a > b ? a : b; }
inline vf vmin(vf a, vf b) { return a < b ? a : b; }
#endif
inline vf vabs(vf a) { return bits_of<vf>(bits_of<vu>(a) & 0x7fffffffu); }

#if defined(__AVX512F__)
inline vf vsqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
#elif defined(__AVX2__)
inline vf vsqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
#else
inline vf vsqrt(vf a) {
    for (int lane = 0; lane < kWidth; ++lane) a[lane] = __builtin_sqrtf(a[lane]);
    return a;
}
#endif

#if defined(__AVX512F__)
inline float sum_of(vf v) { return _mm512_reduce_add_ps((__m512)v); }
inline float max_of(vf v) { return _mm512_reduce_max_ps((__m512)v); }
#else
inline float sum_of(vf v) {
    float lanes[kWidth];
    __builtin_memcpy(lanes, &v, sizeof v);
    for (int width = kWidth / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

inline float max_of(vf v) {
    float lanes[kWidth];
    __builtin_memcpy(lanes, &v, sizeof v);
    for (int width = kWidth / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane)
            lanes[lane] = lanes[lane] > lanes[lane + width] ? lanes[lane] : lanes[lane + width];
    return lanes[0];
}
#endif

// ---- storage <-> fp32 ---------------------------------------------------------------------------

inline vf widen(vf v) { return v; }

inline vf widen_bf16(vh half) { return bits_of<vf>(__builtin_convertvector(half, vu) << 16); }

inline vh narrow_bf16(vf v) {
    const vu bits = bits_of<vu>(v);
    const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const vu nan = (bits >> 16) | 0x40u;
    return __builtin_convertvector((v == v) ? rounded : nan, vh);
}

#if defined(__AVX512F__)
inline vf widen_fp16(vh half) { return (vf)_mm512_cvtph_ps((__m256i)half); }
inline vh narrow_fp16(vf v) {
    return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__AVX2__) && defined(__F16C__)
inline vf widen_fp16(vh half) { return (vf)_mm256_cvtph_ps((__m128i)half); }
inline vh narrow_fp16(vf v) {
    return (vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
inline vf widen_fp16(vh half) {
    const vu bits = __builtin_convertvector(half, vu);
    const vu magnitude = bits & 0x7fffu;
    // 112 moves the exponent bias from 15 to 127. Subnormal numbers count the last bits of 0.5, so
    // that the processor may flush subnormal fp32 numbers (libraries switch that on for arm64).
    const vf normal = bits_of<vf>((magnitude << 13) + (112u << 23));
    const vf subnormal = bits_of<vf>(magnitude + 0x3f000000u) - 0.5f;
    vf value = (magnitude < 0x0400u) ? subnormal : normal;
    const vu special = (magnitude << 13) | 0x7f800000u;
    value = (magnitude >= 0x7c00u) ? bits_of<vf>(special) : value;
    return bits_of<vf>(bits_of<vu>(value) | ((bits & 0x8000u) << 16));
}
inline vh narrow_fp16(vf v) {
    const vu sign = (bits_of<vu>(v) >> 16) & 0x8000u;
    const vf size = vabs(v);
    const vu bits = bits_of<vu>(size);
    // Adding 0.5 puts the rounding position of subnormal results at the last bit of the mantissa.
    const vu subnormal = bits_of<vu>(size + 0.5f) - 0x3f000000u;
    const vu normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    vu half = (bits < 0x38800000u) ? subnormal : normal;
    half = (bits >= 0x477ff000u) ? (vu{} + 0x7c00u) : half;
    half = (bits > 0x7f800000u) ? (vu{} + 0x7e00u) : half;
    return __builtin_convertvector(half | sign, vh);
}
#endif

inline vf load(const float* p) {
    vf v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline vf load(const bf16* p) {
    vh half;
    __builtin_memcpy(&half, p, sizeof half);
    return widen_bf16(half);
}
inline vf load(const fp16* p) {
    vh half;
    __builtin_memcpy(&half, p, sizeof half);
    return widen_fp16(half);
}
inline vf load(const int8_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    vf v;
    for (int lane = 0; lane < kWidth; ++lane) v[lane] = static_cast<float>(p[lane]);
    return v;
#endif
}
inline void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(bf16* p, vf v) {
    const vh half = narrow_bf16(v);
    __builtin_memcpy(p, &half, sizeof half);
}
inline void store(fp16* p, vf v) {
    const vh half = narrow_fp16(v);
    __builtin_memcpy(p, &half, sizeof half);
}

// The first `count` lanes; the others are 0 and are not touched in memory.
template <class T>
inline vf load(const T* p, int64_t count) {
    if (count >= kWidth) return load(p);
    T lanes[kWidth] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
    return load(lanes);
}
template <class T>
inline void store(T* p, vf v, int64_t count) {
    if (count >= kWidth) return store(p, v);
    T lanes[kWidth];
    store(lanes, v);
    __builtin_memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}

template <class T>
inline float load_one(const T* p) {
    return load(p, 1)[0];
}
inline float load_one(const float* p) { return *p; }

// step(index, lanes) over [0, count): whole vectors, then one partial vector.
template <class Step>
inline __attribute__((always_inline)) void vector_loop(int64_t count, Step step) {
    int64_t index = 0;
    for (; index + kWidth <= count; index += kWidth) step(index, int64_t{kWidth});
    if (index < count) step(index, count - index);
}

// Lanes at and beyond `count` become `filler`.
inline vf fill_tail(vf v, int64_t count, float filler) {
    if (count >= kWidth) return v;
    float lanes[kWidth];
    __builtin_memcpy(lanes, &v, sizeof v);
    for (int64_t lane = count; lane < kWidth; ++lane) lanes[lane] = filler;
    return load(lanes);
}

// result[column] = sum of the partial sums of all pieces, in order and in fp64.
template <class T>
inline void add_pieces(const float* partial, int64_t pieces, int64_t stride, int64_t columns,
                       T* result) {
    vector_loop(columns, [&](int64_t i, int64_t count) {
        double sums[kWidth] = {};
        for (int64_t piece = 0; piece < pieces; ++piece)
            for (int64_t lane = 0; lane < count; ++lane)
                sums[lane] += partial[piece * stride + i + lane];
        vf total = vf{};
        for (int lane = 0; lane < kWidth; ++lane) total[lane] = static_cast<float>(sums[lane]);
        store(result + i, total, count);
    });
}

// ---- elementary functions -----------------------------------------------------------------------

// exp with relative error below 1.5e-7; 0 and infinity outside the range of fp32.
inline vf vexp(vf x) {
    x = vmin(splat(89.5f), vmax(splat(-105.0f), x));  // NaN stays
    const vf shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const vf n = shifted - 12582912.0f;
    // ln 2 in two parts, the first exact in few bits, so that r has no rounding error of n * ln 2.
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440054690583e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // 2^n in two factors: n may lie outside the exponent range of one.
    const vi exponent = __builtin_convertvector(n, vi);
    const vi half = exponent >> 1;
    const vf first = bits_of<vf>((half + 127) << 23);
    const vf second = bits_of<vf>((exponent - half + 127) << 23);
    return p * first * second;
#endif
}

inline vf vtanh(vf x) {
    const vf size = vabs(x);
    const vf z = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z + -5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z + -3.33332819422e-1f;
    const vf small = x + x * z * p;
    const vf large = 1.0f - 2.0f / (vexp(2.0f * size) + 1.0f);
    const vf signed_large = bits_of<vf>(bits_of<vu>(large) | (bits_of<vu>(x) & 0x80000000u));
    return (size < 0.625f) ? small : signed_large;
}

#include "erf_coefficients.h"

// erf with absolute error below 1e-7: an odd polynomial near 0, 1 - exp(polynomial) beyond.
inline vf verf(vf x) {
    const vf size = vabs(x);
    const vf z = x * x;
    vf p = splat(kErfNear[0]);
    for (int i = 1; i < kErfNearTerms; ++i) p = p * z + kErfNear[i];
    const vf small = x * p;
    const vf t = vmin(size, splat(4.0f));
    vf q = splat(kErfFar[0]);
    for (int i = 1; i < kErfFarTerms; ++i) q = q * t + kErfFar[i];
    const vf large = 1.0f - vexp(q);
    const vf signed_large = bits_of<vf>(bits_of<vu>(large) | (bits_of<vu>(x) & 0x80000000u));
    return (size < 0.9f) ? small : signed_large;
}

}  // namespace kernels
