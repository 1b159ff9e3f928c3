// SPDX-License-Identifier: Apache-2.0
// Thread count and scratch memory.
#include "common.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kernels {

namespace {

int g_threads = 1;

struct Buffers {
    float* data[kSlots] = {};
    int64_t size[kSlots] = {};
    ~Buffers() {
        for (float* block : data) std::free(block);
    }
};

}  // namespace

int threads() { return g_threads; }

namespace {

// Large blocks lie on large pages where the system has them: they are walked through in big steps.
float* allocate(int64_t floats) {
    const size_t bytes = static_cast<size_t>(floats) * 4, page = size_t{2} << 20;
    if (bytes < 2 * page) return static_cast<float*>(std::aligned_alloc(64, bytes));
    const size_t whole = (bytes + page - 1) / page * page;
    void* block = std::aligned_alloc(page, whole);
#if defined(__linux__)
    if (block) madvise(block, whole, MADV_HUGEPAGE);
#endif
    return static_cast<float*>(block);
}

}  // namespace

float* scratch(int slot, int64_t floats) {
    static thread_local Buffers buffers;
    if (buffers.size[slot] < floats) {
        std::free(buffers.data[slot]);
        const int64_t rounded = (floats + floats / 8 + 1023) / 1024 * 1024;
        buffers.data[slot] = allocate(rounded);
        buffers.size[slot] = buffers.data[slot] ? rounded : 0;
        if (!buffers.data[slot]) std::abort();
    }
    return buffers.data[slot];
}

}  // namespace kernels

// Digest of the sources, which the loader compares: see files/native_library.py.
EXPORT const char* built_from() { return BUILT_FROM; }

EXPORT void set_threads(int32_t count) { kernels::g_threads = count < 1 ? 1 : count; }
EXPORT int32_t get_threads() { return kernels::g_threads; }

// A training step frees and allocates the same blocks again and again. Left alone, the allocator
// gives large ones back to the system each time, and every first touch of a page then costs more
// than the arithmetic on it.
EXPORT void keep_freed_memory() {
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
#endif
}
