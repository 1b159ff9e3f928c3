// SPDX-License-Identifier: Apache-2.0
// Matrix products of libraries that are already in the process, used where they are faster.
//
// Python looks the functions up and hands their addresses over once. Each is called from our own
// threads on a part of C; the libraries' own threads are not used, since two pools on the same cores
// would get in each other's way.
#pragma once

#include "gemm.h"

namespace kernels {

// True when a library product computed C = op(A) op(B) (+ bias) (+ C).
template <class TA, class TB, class TC>
inline bool external_gemm(Matrix<TA>, Matrix<TB>, TC*, int64_t, int64_t, int64_t, bool,
                          const TA*) {
    return false;
}

bool external_gemm(Matrix<float> a, Matrix<float> b, float* c, int64_t rows, int64_t columns,
                   int64_t depth, bool accumulate, const float* bias);
bool external_gemm(Matrix<bf16> a, Matrix<bf16> b, float* c, int64_t rows, int64_t columns,
                   int64_t depth, bool accumulate, const bf16* bias);
bool external_gemm(Matrix<bf16> a, Matrix<bf16> b, bf16* c, int64_t rows, int64_t columns,
                   int64_t depth, bool accumulate, const bf16* bias);

}  // namespace kernels
