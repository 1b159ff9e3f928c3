// SPDX-License-Identifier: Apache-2.0
// Pieces of the vocabulary-parallel cross entropy, row by row over logits [rows, vocab].
#include "simd.h"

namespace kernels {

namespace {

template <class T>
float row_max(const T* logits, int64_t vocab) {
    vf top[2] = {splat(-INFINITY), splat(-INFINITY)};
    vector_loop(vocab, [&](int64_t i, int64_t count) {
        vf& best = top[(i / kWidth) & 1];
        best = vmax(fill_tail(load(logits + i, count), count, -INFINITY), best);
    });
    return max_of(vmax(top[0], top[1]));
}

// Four running vectors and fp64 at the end: the error does not grow with the vocabulary.
template <class T, class Value>
float row_sum(const T* logits, int64_t vocab, Value value) {
    double total = 0.0;
    for (int64_t first = 0; first < vocab; first += 64 * kWidth) {
        const int64_t size = vocab - first < 64 * kWidth ? vocab - first : 64 * kWidth;
        vf sum[2] = {vf{}, vf{}};
        vector_loop(size, [&](int64_t i, int64_t count) {
            sum[(i / kWidth) & 1] += fill_tail(value(load(logits + first + i, count)), count, 0.0f);
        });
        total += sum_of(sum[0] + sum[1]);
    }
    return static_cast<float>(total);
}

struct Backward {
    int64_t vocab_start, vocab;
    float smoothing, uniform;  // uniform = smoothing / total vocabulary
};

// grad may be logits: the target's is read before the row is written.
template <class T>
void backward_row(const T* logits, int64_t target, float top, float sum, float dloss, T* grad,
                  const Backward& given) {
    const vf shift = splat(top), scale = splat(1.0f / sum), factor = splat(dloss);
    const vf uniform = splat(given.uniform);
    const int64_t local = target - given.vocab_start;
    const bool here = local >= 0 && local < given.vocab;
    const vf wanted = here ? load(logits + local, 1) : vf{};
    vector_loop(given.vocab, [&](int64_t i, int64_t count) {
        const vf probability = vexp(load(logits + i, count) - shift) * scale;
        store(grad + i, (probability - uniform) * factor, count);
    });
    if (here) {
        const vf probability = vexp(wanted - shift) * scale;
        store(grad + local, (probability - uniform - (1.0f - given.smoothing)) * factor, 1);
    }
}

}  // namespace

}  // namespace kernels

using namespace kernels;

EXPORT void ce_max(int32_t storage, const void* logits, float* result, int64_t rows,
                   int64_t vocab) {
    with_storage(storage, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(logits);
        parallel_ranges(rows, vocab, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                result[row] = row_max(in + row * vocab, vocab);
        });
    });
}

EXPORT void ce_sum(int32_t storage, const void* logits, const int64_t* target, const float* top,
                   float* sum_exp, float* predicted, int64_t rows, int64_t vocab,
                   int64_t vocab_start) {
    with_storage(storage, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(logits);
        parallel_ranges(rows, vocab, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const vf shift = splat(top[row]);
                sum_exp[row] =
                    row_sum(in + row * vocab, vocab, [=](vf value) { return vexp(value - shift); });
                const int64_t local = target[row] - vocab_start;
                const bool here = local >= 0 && local < vocab;
                predicted[row] = here ? load_one(in + row * vocab + local) : 0.0f;
            }
        });
    });
}

EXPORT void ce_sum_logits(int32_t storage, const void* logits, float* result, int64_t rows,
                          int64_t vocab) {
    with_storage(storage, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(logits);
        parallel_ranges(rows, vocab, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                result[row] = row_sum(in + row * vocab, vocab, [](vf value) { return value; });
        });
    });
}

EXPORT void ce_backward(int32_t storage, const void* logits, const int64_t* target,
                        const float* top, const float* sum_exp, const float* dloss, void* grad,
                        int64_t rows, int64_t vocab, int64_t vocab_start, float smoothing,
                        float uniform) {
    const Backward given{vocab_start, vocab, smoothing, uniform};
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T* in = static_cast<const T*>(logits);
        T* out = static_cast<T*>(grad);
        parallel_ranges(rows, vocab, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                backward_row(in + row * vocab, target[row], top[row], sum_exp[row], dloss[row],
                             out + row * vocab, given);
        });
    });
}
