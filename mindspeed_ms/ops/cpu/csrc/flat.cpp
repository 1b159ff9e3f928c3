// In-place arithmetic on flat buffers.
#include "simd.h"

namespace kernels {

namespace {

// fp64 sums are formed per chunk of fixed size and added in order: the same for any thread count.
constexpr int64_t kChunk = 1 << 14;

typedef float vhalf __attribute__((vector_size(kWidth * 2)));
typedef double vd __attribute__((vector_size(kWidth * 4)));

inline vd widened_half(vf value, int which) {
    vhalf halves[2];
    __builtin_memcpy(halves, &value, sizeof value);
    return __builtin_convertvector(halves[which], vd);
}

template <class T>
double chunk_squares(const T* x, int64_t size) {
    vd sums[4] = {};
    int64_t i = 0;
    for (; i + 2 * kWidth <= size; i += 2 * kWidth)
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
            const vd wide = widened_half(load(x + i + part / 2 * kWidth), part % 2);
            sums[part] += wide * wide;
        }
    for (; i < size; i += kWidth)
        for (int part = 0; part < 2; ++part) {
            const vd wide = widened_half(load(x + i, size - i), part);
            sums[part] += wide * wide;
        }
    double total = 0.0;
    for (const vd& sum : sums)
        for (int lane = 0; lane < kWidth / 2; ++lane) total += sum[lane];
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

// A buffer much larger than the caches; 64-byte lines are written without being read first.
EXPORT void zero(char* t, int64_t bytes) {
    parallel_ranges((bytes + 63) / 64, 16, [=](int64_t begin, int64_t end) {
        const int64_t first = begin * 64, last = end * 64 < bytes ? end * 64 : bytes;
        std::memset(t + first, 0, static_cast<size_t>(last - first));
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
