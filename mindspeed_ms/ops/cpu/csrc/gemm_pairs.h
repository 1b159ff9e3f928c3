// SPDX-License-Identifier: Apache-2.0
// The product of fp32 rows and a bf16 weight where the processor multiplies pairs of bf16 numbers.
#pragma once

#include "common.h"

namespace kernels {

// True when y [rows, out] = x [rows, in] weight [out, in]^T was computed, of x rounded to bf16.
template <class T>
inline bool multiply_pairs(const float*, int64_t, const T*, int64_t, int64_t, float*) {
    return false;
}
template <>
bool multiply_pairs(const float* x, int64_t rows, const bf16* weight, int64_t in, int64_t out,
                    float* y);

}  // namespace kernels
