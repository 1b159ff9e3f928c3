// SPDX-License-Identifier: Apache-2.0
// Table lookup and its gradient. Each thread owns a range of columns of the table, so no two write
// the same number and every row is summed in the order of the ids.
#include "simd.h"

using namespace kernels;

// y [count, columns] = weight[ids - vocab_start], zeros for ids outside [0, vocab)
EXPORT void embedding_forward(int32_t storage, const void* weight, const int64_t* ids, void* y,
                              int64_t count, int64_t vocab, int64_t columns, int64_t vocab_start) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        const T* table = static_cast<const T*>(weight);
        T* out = static_cast<T*>(y);
        const size_t bytes = static_cast<size_t>(columns) * sizeof(T);
        parallel_ranges(count, columns, [=](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t row = ids[i] - vocab_start;
                void* to = out + i * columns;
                if (row >= 0 && row < vocab) {
                    std::memcpy(to, table + row * columns, bytes);
                } else {
                    std::memset(to, 0, bytes);
                }
            }
        });
    });
}

// grad [vocab, columns] (fp32) += dy rows by id
EXPORT void embedding_accumulate(int32_t storage, const void* dy, const int64_t* ids, float* grad,
                                 int64_t count, int64_t vocab, int64_t columns,
                                 int64_t vocab_start) {
    with_storage(storage, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(dy);
        parallel_ranges((columns + 63) / 64, 64 * count, [=](int64_t begin, int64_t end) {
            const int64_t first = begin * 64, last = end * 64 < columns ? end * 64 : columns;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t row = ids[i] - vocab_start;
                if (row < 0 || row >= vocab) continue;
                float* to = grad + row * columns + first;
                const auto* from = in + i * columns + first;
                vector_loop(last - first, [&](int64_t j, int64_t lanes) {
                    store(to + j, load(to + j, lanes) + load(from + j, lanes), lanes);
                });
            }
        });
    });
}
