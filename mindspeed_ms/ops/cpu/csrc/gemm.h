// SPDX-License-Identifier: Apache-2.0
// Matrix product C = op(A) op(B) (+ bias) (+ C) for row-major matrices of any storage type.
#pragma once

#include "common.h"

namespace kernels {

template <class T>
struct Matrix {
    const T* data;
    int64_t stride;   // elements between stored rows
    bool transposed;  // op(X) = X^T
};

// C [rows, columns] with row stride `columns`; the inner dimension is `depth`. Every element is
// summed by one thread in one order: the result does not depend on the number of threads.
template <class TA, class TB, class TC>
void gemm(Matrix<TA> a, Matrix<TB> b, TC* c, int64_t rows, int64_t columns, int64_t depth,
          bool accumulate, const TA* bias);

}  // namespace kernels
