// Thread count and scratch memory.
#include "common.h"

#if defined(__GLIBC__)
#include <malloc.h>
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

float* scratch(int slot, int64_t floats) {
    static thread_local Buffers buffers;
    if (buffers.size[slot] < floats) {
        std::free(buffers.data[slot]);
        const int64_t rounded = (floats + floats / 8 + 1023) / 1024 * 1024;
        buffers.data[slot] =
            static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(rounded) * 4));
        buffers.size[slot] = buffers.data[slot] ? rounded : 0;
        if (!buffers.data[slot]) std::abort();
    }
    return buffers.data[slot];
}

}  // namespace kernels

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
