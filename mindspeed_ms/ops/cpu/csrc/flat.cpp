// SPDX-License-Identifier: Apache-2.0
// In-place arithmetic on flat buffers.
#include "simd.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace kernels {

namespace {

// fp64 sums are formed per chunk of fixed size and added in order: the same for any thread count.
constexpr int64_t kChunk = 1 << 14;

typedef float vhalf __attribute__((vector_size(kWidth * 2)));
typedef double vd __attribute__((vector_size(kWidth * 4)));

inline vd widened(const float* p) {
    vhalf half;
    __builtin_memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, vd);
}

// A vector of numbers in fp64: two halves.
inline void load_wide(const float* p, vd (&halves)[2]) {
    halves[0] = widened(p);
    halves[1] = widened(p + kWidth / 2);
}
template <class T>
inline void load_wide(const T* p, vd (&halves)[2]) {
    float lanes[kWidth];
    store(lanes, load(p));
    load_wide(static_cast<const float*>(lanes), halves);
}

// Quarters of the chunk go side by side: a core fetches several streams faster than one.
template <class T>
double chunk_squares(const T* x, int64_t size) {
    constexpr int kStreams = 4;
    vd sums[kStreams][2] = {};
    const int64_t part = size / kStreams / kWidth * kWidth;
    for (int64_t i = 0; i < part; i += kWidth)
#pragma GCC unroll 4
        for (int stream = 0; stream < kStreams; ++stream) {
            vd wide[2];
            load_wide(x + stream * part + i, wide);
            sums[stream][0] += wide[0] * wide[0];
            sums[stream][1] += wide[1] * wide[1];
        }
    for (int64_t i = kStreams * part; i < size; i += kWidth) {
        float lanes[kWidth];
        store(lanes, load(x + i, size - i));
        vd wide[2];
        load_wide(static_cast<const float*>(lanes), wide);
        sums[0][0] += wide[0] * wide[0];
        sums[0][1] += wide[1] * wide[1];
    }
    double total = 0.0;
    for (const auto& stream : sums)
        for (const vd& half : stream)
            for (int lane = 0; lane < kWidth / 2; ++lane) total += half[lane];
    return total;
}

template <class Range>
void over_chunks(int64_t size, Range range) {
    const int64_t chunks = (size + kChunk - 1) / kChunk;
    parallel_ranges(chunks, kChunk, [=](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t first = chunk * kChunk;
            range(chunk, first, size - first < kChunk ? size - first : kChunk);
        }
    });
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// step_size = lr / (1 - beta1^t), root = sqrt(1 - beta2^t), decay = 1 - lr * weight_decay
EXPORT void adamw(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t size,
                  float beta1, float beta2, float one_minus_beta1, float one_minus_beta2, float eps,
                  float decay, float step_size, float root, float grad_scale) {
    over_chunks(size, [=](int64_t, int64_t first, int64_t count) {
        const float inverse_root = 1.0f / root;
        vector_loop(count, [&](int64_t offset, int64_t lanes) {
            const int64_t i = first + offset;
            const vf g = load(grad + i, lanes) * grad_scale;
            const vf m = load(exp_avg + i, lanes) * beta1 + g * one_minus_beta1;
            const vf v = load(exp_avg_sq + i, lanes) * beta2 + g * g * one_minus_beta2;
            const vf update = m / (vsqrt(v) * inverse_root + eps);
            store(param + i, load(param + i, lanes) * decay - update * step_size, lanes);
            store(exp_avg + i, m, lanes);
            store(exp_avg_sq + i, v, lanes);
        });
    });
}

EXPORT void axpy(int32_t storage, float* y, const void* x, int64_t size, float alpha) {
    with_storage(storage, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(x);
        over_chunks(size, [=](int64_t, int64_t first, int64_t count) {
            vector_loop(count, [&](int64_t i, int64_t lanes) {
                float* out = y + first + i;
                store(out, load(out, lanes) + alpha * load(in + first + i, lanes), lanes);
            });
        });
    });
}

// result = a + b
EXPORT void add(int32_t storage, const void* a, const void* b, void* result, int64_t size) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T *first = static_cast<const T*>(a), *second = static_cast<const T*>(b);
        T* out = static_cast<T*>(result);
        parallel_ranges((size + kWidth - 1) / kWidth, kWidth, [=](int64_t begin, int64_t end) {
            const int64_t from = begin * kWidth, to = end * kWidth < size ? end * kWidth : size;
            vector_loop(to - from, [&](int64_t i, int64_t lanes) {
                const vf sum = load(first + from + i, lanes) + load(second + from + i, lanes);
                store(out + from + i, sum, lanes);
            });
        });
    });
}

EXPORT void scale(float* t, int64_t size, float factor) {
    over_chunks(size, [=](int64_t, int64_t first, int64_t count) {
        vector_loop(count, [&](int64_t i, int64_t lanes) {
            store(t + first + i, load(t + first + i, lanes) * factor, lanes);
        });
    });
}

// A buffer much larger than the caches: lines are written past them, without being read first.
EXPORT void zero(char* t, int64_t bytes) {
    parallel_ranges((bytes + 63) / 64, 16, [=](int64_t begin, int64_t end) {
        char *to = t + begin * 64, *const last = t + (end * 64 < bytes ? end * 64 : bytes);
#if defined(__SSE__)
        const int64_t head = -reinterpret_cast<intptr_t>(to) & 15;
        if (last - to >= (1 << 20)) {
            std::memset(to, 0, static_cast<size_t>(head));
            for (to += head; last - to >= 16; to += 16)
                _mm_stream_ps(reinterpret_cast<float*>(to), _mm_setzero_ps());
            _mm_sfence();
        }
#endif
        std::memset(to, 0, static_cast<size_t>(last - to));
    });
}

EXPORT double l2_norm_squared(int32_t storage, const void* x, int64_t size) {
    const int64_t chunks = (size + kChunk - 1) / kChunk;
    double* sums = reinterpret_cast<double*>(scratch(kPartial, 2 * chunks + 2));
    with_storage(storage, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(x);
        over_chunks(size, [=](int64_t chunk, int64_t first, int64_t count) {
            sums[chunk] = chunk_squares(in + first, count);
        });
    });
    double total = 0.0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk];
    return total;
}

EXPORT int64_t count_zeros(int32_t storage, const void* x, int64_t size) {
    int64_t* counts = reinterpret_cast<int64_t*>(scratch(kPartial, size / kChunk * 2 + 4));
    with_storage(storage, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(x);
        over_chunks(size, [=](int64_t chunk, int64_t first, int64_t count) {
            int64_t zeros = 0;
            vector_loop(count, [&](int64_t i, int64_t lanes) {
                const vi equal = load(in + first + i, lanes) == 0.0f;
                for (int64_t lane = 0; lane < lanes; ++lane) zeros -= equal[lane];
            });
            counts[chunk] = zeros;
        });
    });
    int64_t total = 0;
    for (int64_t chunk = 0; chunk * kChunk < size; ++chunk) total += counts[chunk];
    return total;
}

EXPORT void copy_cast(int32_t to_storage, int32_t from_storage, void* to, const void* from,
                      int64_t size) {
    with_storage(to_storage, [&](auto to_type) {
        using To = decltype(to_type);
        with_storage(from_storage, [&](auto from_type) {
            using From = decltype(from_type);
            To* out = static_cast<To*>(to);
            const From* in = static_cast<const From*>(from);
            over_chunks(size, [=](int64_t, int64_t first, int64_t count) {
                vector_loop(count, [&](int64_t i, int64_t lanes) {
                    store(out + first + i, load(in + first + i, lanes), lanes);
                });
            });
        });
    });
}
