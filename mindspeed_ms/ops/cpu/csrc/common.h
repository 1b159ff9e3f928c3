// SPDX-License-Identifier: Apache-2.0
// Shared by all kernels: storage types, the dispatch over them, threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace kernels {

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

// Codes that the Python side passes for the storage type.
enum Storage : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Calls function(T{}) with the storage type of a code.
template <class Function>
inline void with_storage(int32_t code, Function function) {
    if (code == kFloat32) {
        function(float{});
    } else if (code == kBFloat16) {
        function(bf16{});
    } else {
        function(fp16{});
    }
}

int threads();

// Work below this many elements is not worth waking another thread.
constexpr int64_t kSerialElements = 1 << 14;

inline int threads_for(int64_t elements) { return elements < kSerialElements ? 1 : threads(); }

// body(begin, end) over [0, items), split evenly over the threads.
template <class Body>
inline void parallel_ranges(int64_t items, int64_t elements_per_item, Body body) {
    const int64_t team = threads_for(items * elements_per_item);
    if (team <= 1 || items <= 1) {
        if (items > 0) body(int64_t{0}, items);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(team))
    for (int64_t part = 0; part < team; ++part) {
        const int64_t begin = items * part / team, end = items * (part + 1) / team;
        if (begin < end) body(begin, end);
    }
}

// Scratch memory of one thread that is kept between calls, so that pages are touched only once.
// The contents are undefined after another request of the same thread and slot.
float* scratch(int slot, int64_t floats);

enum ScratchSlot : int { kSharedPanels, kOwnPanels, kTile, kPartial, kAttention, kStack, kWidened, kSlots };

// Rows are summed in a fixed number of pieces, so the result does not depend on the thread count.
constexpr int64_t kMaxPieces = 32;

inline int64_t row_pieces(int64_t rows) {
    const int64_t pieces = (rows + 15) / 16;
    return pieces < 1 ? 1 : (pieces > kMaxPieces ? kMaxPieces : pieces);
}

}  // namespace kernels
