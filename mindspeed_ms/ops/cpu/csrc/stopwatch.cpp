// SPDX-License-Identifier: Apache-2.0
// How long attention takes, summed over all threads.
#include <chrono>
#include <mutex>

#include "attention.h"

namespace kernels {

namespace {

bool g_measures = false;
double g_seconds[2] = {0.0, 0.0};  // all, products
std::mutex g_mutex;

}  // namespace

double Stopwatch::now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(since).count();
}

Stopwatch::Stopwatch() : on_(g_measures) {
    if (on_) start_ = now();
}

Stopwatch::~Stopwatch() {
    if (!on_) return;
    const double seconds = now() - start_;
    const std::lock_guard<std::mutex> lock(g_mutex);
    g_seconds[0] += seconds;
    g_seconds[1] += products_;
}

}  // namespace kernels

// Starts from zero when it is switched on.
EXPORT void measure_attention(int32_t on) {
    kernels::g_measures = on != 0;
    if (on) kernels::g_seconds[0] = kernels::g_seconds[1] = 0.0;
}

EXPORT double attention_seconds(int32_t of_products) {
    return kernels::g_seconds[of_products ? 1 : 0];
}
