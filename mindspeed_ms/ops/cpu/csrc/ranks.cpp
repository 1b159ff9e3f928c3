// SPDX-License-Identifier: Apache-2.0
#include "ranks.h"

#include <algorithm>
#include <chrono>
#include <climits>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "simd.h"

namespace kernels {

namespace {

constexpr int64_t kLine = 64;  // bytes
constexpr auto kSpun = std::chrono::microseconds(100);  // to be woken takes about as long
constexpr int kLooks = 32;                              // between two looks at the clock

// What a rank tells the others.
struct Place {
    uint32_t turn;      // meetings it has come to
    uint32_t sleepers;  // ranks that wait for it asleep
};

Place* place_of(const Ranks& ranks, int64_t rank) {
    return reinterpret_cast<Place*>(static_cast<char*>(ranks.shared) + rank * kLine);
}

float* block_of(const Ranks& ranks, int64_t rank, uint32_t turn) {
    char* blocks = static_cast<char*>(ranks.shared) + ranks.size * kLine;
    return reinterpret_cast<float*>(blocks) + (rank * 2 + (turn & 1)) * ranks.block;
}

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

bool has_come(const Place* place, uint32_t turn, uint32_t* seen) {
    *seen = __atomic_load_n(&place->turn, __ATOMIC_SEQ_CST);
    return static_cast<int32_t>(*seen - turn) >= 0;  // turns may wrap
}

void sleep_on(Place* place, uint32_t seen) {
#if defined(__linux__)
    syscall(SYS_futex, &place->turn, FUTEX_WAIT, seen, nullptr, nullptr, 0);
#else
    (void)place, (void)seen;
    usleep(50);
#endif
}

void wake_all(Place* place) {
#if defined(__linux__)
    syscall(SYS_futex, &place->turn, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)place;
#endif
}

void wait_for(Place* place, uint32_t turn) {
    uint32_t seen;
    if (has_come(place, turn, &seen)) return;
    const auto until = std::chrono::steady_clock::now() + kSpun;
    do {
        for (int look = 0; look < kLooks; ++look) {
            pause();
            if (has_come(place, turn, &seen)) return;
        }
    } while (std::chrono::steady_clock::now() < until);
    // The order matters: either the other rank sees the sleeper, or the sleeper sees its turn.
    __atomic_fetch_add(&place->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!has_come(place, turn, &seen)) sleep_on(place, seen);
    __atomic_fetch_sub(&place->sleepers, 1, __ATOMIC_SEQ_CST);
}

// share(block) writes this rank's; comes back with the turn when all ranks have written theirs.
template <class Share>
uint32_t meet(const Ranks& ranks, Share share) {
    Place* own = place_of(ranks, ranks.rank);
    const uint32_t turn = own->turn + 1;
    share(block_of(ranks, ranks.rank, turn));
    __atomic_store_n(&own->turn, turn, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&own->sleepers, __ATOMIC_SEQ_CST)) wake_all(own);
    for (int64_t k = 0; k < ranks.size; ++k)
        if (k != ranks.rank) wait_for(place_of(ranks, k), turn);
    return turn;
}

// step(first, count, turn) for pieces of count numbers that have the size of a block at most.
template <class Step>
void in_pieces(const Ranks& ranks, const float* own, int64_t count, Step step) {
    for (int64_t first = 0; first < count; first += ranks.block) {
        const int64_t part = std::min(ranks.block, count - first);
        step(first, part, meet(ranks, [&](float* block) { std::copy_n(own + first, part, block); }));
    }
}

}  // namespace

void add_over_ranks(const Ranks& ranks, float* x, int64_t count) {
    in_pieces(ranks, x, count, [&](int64_t first, int64_t part, uint32_t turn) {
        vector_loop(part, [&](int64_t i, int64_t lanes) {
            vf sum = load(block_of(ranks, 0, turn) + i, lanes);
            for (int64_t k = 1; k < ranks.size; ++k)
                sum += load(block_of(ranks, k, turn) + i, lanes);
            store(x + first + i, sum, lanes);
        });
    });
}

}  // namespace kernels

using namespace kernels;

// x fp32 [count], in place: the sum over the ranks
EXPORT void sum_over_ranks(const Ranks* ranks, float* x, int64_t count) {
    add_over_ranks(*ranks, x, count);
}

// all fp32 [size, count] = own fp32 [count] of every rank
EXPORT void gather_over_ranks(const Ranks* ranks, const float* own, int64_t count, float* all) {
    in_pieces(*ranks, own, count, [&](int64_t first, int64_t part, uint32_t turn) {
        for (int64_t k = 0; k < ranks->size; ++k)
            std::copy_n(block_of(*ranks, k, turn), part, all + k * count + first);
    });
}
