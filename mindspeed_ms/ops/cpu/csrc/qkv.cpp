// SPDX-License-Identifier: Apache-2.0
// Columns [q ... q, k, v] per group of a projection, taken apart into dense tensors and put together.
#include "common.h"

using namespace kernels;

namespace {

// Both directions walk the rows of `mixed`; query and channel are sizes in bytes.
template <class Copy>
void walk(char* mixed, char* q, char* k, char* v, int64_t rows, int64_t groups, int64_t query,
          int64_t channel, Copy copy) {
    const int64_t width = query + 2 * channel;
    parallel_ranges(rows * groups, width / 4, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            char* at = mixed + i * width;
            copy(at, q + i * query, static_cast<size_t>(query));
            copy(at + query, k + i * channel, static_cast<size_t>(channel));
            copy(at + query + channel, v + i * channel, static_cast<size_t>(channel));
        }
    });
}

}  // namespace

// mixed [rows, groups, (queries + 2) * dim] <-> q [rows, groups, queries * dim], k, v
EXPORT void split_qkv(char* mixed, char* q, char* k, char* v, int64_t rows, int64_t groups,
                      int64_t query_bytes, int64_t channel_bytes) {
    walk(mixed, q, k, v, rows, groups, query_bytes, channel_bytes,
         [](char* from, char* to, size_t bytes) { std::memcpy(to, from, bytes); });
}

EXPORT void join_qkv(char* mixed, char* q, char* k, char* v, int64_t rows, int64_t groups,
                     int64_t query_bytes, int64_t channel_bytes) {
    walk(mixed, q, k, v, rows, groups, query_bytes, channel_bytes,
         [](char* to, char* from, size_t bytes) { std::memcpy(to, from, bytes); });
}
