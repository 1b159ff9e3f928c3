// In-place arithmetic on flat buffers.
#include "simd.h"

namespace kernels {

namespace {

// fp64 sums are formed per chunk of fixed size and added in order: the same for any thread count.
constexpr int64_t kChunk = 1 << 14;

template <class T>
double chunk_squares(const T* x, int64_t size) {
    double lanes[2 * kWidth] = {};
    int64_t half = 0;
    vector_loop(size, [&](int64_t i, int64_t count) {
        const vf value = load(x + i, count);
        double* sums = lanes + half;
        for (int lane = 0; lane < kWidth; ++lane)
            sums[lane] += static_cast<double>(value[lane]) * static_cast<double>(value[lane]);
        half = kWidth - half;
    });
    double total = 0.0;
    for (double lane : lanes) total += lane;
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
            vf size_of_step = v;
            for (int lane = 0; lane < kWidth; ++lane)
                size_of_step[lane] = __builtin_sqrtf(size_of_step[lane]);
            const vf update = m / (size_of_step * inverse_root + eps);
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

EXPORT void scale(float* t, int64_t size, float factor) {
    over_chunks(size, [=](int64_t, int64_t first, int64_t count) {
        vector_loop(count, [&](int64_t i, int64_t lanes) {
            store(t + first + i, load(t + first + i, lanes) * factor, lanes);
        });
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
