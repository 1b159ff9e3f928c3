// SPDX-License-Identifier: Apache-2.0
// The matrix product on the tile unit, where the CPU has one.
#pragma once

#include "gemm.h"

namespace kernels {

// True when the tile unit computed C = op(A) op(B) (+ bias) (+ C).
template <class T, class TC>
bool gemm_tiles(Matrix<T> a, Matrix<T> b, TC* c, int64_t rows, int64_t columns, int64_t depth,
                bool accumulate, const T* bias);

}  // namespace kernels
