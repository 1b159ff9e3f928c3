// SPDX-License-Identifier: Apache-2.0
// Blocked matrix product and the linear layer's entry points.
//
// The right-hand side is packed once per call by all threads together (kCols columns per panel, so
// that the inner loop streams it), the left-hand side block by block by the thread that uses it.
#include <algorithm>
#include <numeric>
#include <vector>

#include "external_gemm.h"
#include "few_rows.h"
#include "gemm_pairs.h"
#include "gemm_tiles.h"
#include "micro.h"

namespace kernels {

namespace {

// Deep blocks write C seldom; tall register blocks read a panel of B seldom, so that it may come from
// the second-level cache, where the block of A (280 KiB) stays too.
constexpr int64_t kDepthBlock = 512;
constexpr int64_t kRowBlock = 140;
constexpr int64_t kSharedFloats = 4 * 1024 * 1024;  // packed B at a time: 16 MiB

// Panel `index` of op(B): columns [index * kCols, ...), full depth.
template <class T>
void pack_right(Matrix<T> b, int64_t first, int64_t columns, int64_t depth, float* panel) {
    const int64_t count = columns - first < kCols ? columns - first : kCols;
    if (b.transposed) {
        pack_rows<kCols>(b.data + first * b.stride, b.stride, count, depth, panel);
    } else {
        pack_columns<kCols>(b.data + first, b.stride, count, depth, panel);
    }
}

// Rows [first, first + count) of op(A) at depth [k, k + depth) as panels [row panel][depth][kTallRows].
template <class T>
void pack_left(Matrix<T> a, int64_t first, int64_t count, int64_t k, int64_t depth, float* packed) {
    for (int64_t row = 0; row < count; row += kTallRows, packed += depth * kTallRows) {
        const int64_t rows = count - row < kTallRows ? count - row : kTallRows;
        if (a.transposed) {
            pack_columns<kTallRows>(a.data + k * a.stride + first + row, a.stride, rows, depth, packed);
        } else {
            pack_rows<kTallRows>(a.data + (first + row) * a.stride + k, a.stride, rows, depth, packed);
        }
    }
}

// Adds (or stores) the valid part of a register block that reaches over the edge of C.
void write_edge(const float* block, float* c, int64_t stride, int64_t rows, int64_t columns,
                bool add) {
    for (int64_t row = 0; row < kTallRows && row < rows; ++row)
        vector_loop(columns < kCols ? columns : kCols, [&](int64_t i, int64_t count) {
            float* out = c + row * stride + i;
            const vf value = load(block + row * kCols + i);
            store(out, add ? value + load(out, count) : value, count);
        });
}

struct Task {
    int64_t row, rows;        // rows of C
    int64_t column, columns;  // columns of C, relative to the packed part
};

// C block (fp32, row stride `stride`) of one task; `right` holds the packed columns.
template <class T>
void multiply_block(Matrix<T> a, const float* right, Task task, int64_t depth, float* c,
                    int64_t stride, bool accumulate) {
    float* left = scratch(kOwnPanels, round_up(task.rows, kTallRows) * kDepthBlock);
    for (int64_t k = 0; k < depth; k += kDepthBlock) {
        const int64_t block = depth - k < kDepthBlock ? depth - k : kDepthBlock;
        pack_left(a, task.row, task.rows, k, block, left);
        const bool add = accumulate || k > 0;
        for (int64_t column = 0; column < task.columns; column += kCols) {
            const float* panel = right + (task.column + column) * depth + k * kCols;
            for (int64_t row = 0; row < task.rows; row += kTallRows) {
                const float* panel_left = left + row * block;
                float* out = c + row * stride + column;
                if (task.rows - row >= kTallRows && task.columns - column >= kCols) {
                    multiply<1, kTallRows, kTallRows>(block, panel_left, panel, out, stride, add);
                } else {
                    float edge[kTallRows * kCols];
                    multiply<1, kTallRows, kTallRows>(block, panel_left, panel, edge, kCols, false);
                    write_edge(edge, out, stride, task.rows - row, task.columns - column, add);
                }
            }
        }
    }
}

// Adds the bias of each column and rounds to the storage type of C.
template <class TC, class TBias>
void finish(const float* tile, int64_t stride, TC* c, int64_t c_stride, Task task,
            const TBias* bias) {
    for (int64_t row = 0; row < task.rows; ++row)
        vector_loop(task.columns, [&](int64_t i, int64_t count) {
            vf value = load(tile + row * stride + i, count);
            if (bias) value += load(bias + i, count);
            store(c + row * c_stride + i, value, count);
        });
}

template <class TA, class TC>
void run_task(Matrix<TA> a, const float* right, Task task, TC* c, int64_t c_stride, int64_t depth,
              bool accumulate, const TA* bias) {
    if constexpr (sizeof(TC) == sizeof(float)) {
        multiply_block(a, right, task, depth, c, c_stride, accumulate);
        if (bias) finish(c, c_stride, c, c_stride, task, bias);
    } else {
        const int64_t stride = round_up(task.columns, kCols);
        float* tile = scratch(kTile, task.rows * stride);
        multiply_block(a, right, task, depth, tile, stride, false);
        finish(tile, stride, c, c_stride, task, bias);
    }
}

}  // namespace

template <class TA, class TB, class TC>
void gemm(Matrix<TA> a, Matrix<TB> b, TC* c, int64_t rows, int64_t columns, int64_t depth,
          bool accumulate, const TA* bias) {
    if (rows <= 0 || columns <= 0) return;
    if (gemm_tiles(a, b, c, rows, columns, depth, accumulate, bias)) return;
    if (external_gemm(a, b, c, rows, columns, depth, accumulate, bias)) return;
    const int team = rows * columns * (depth + 1) < 64 * kSerialElements ? 1 : threads();
    int64_t width = kSharedFloats / (depth + 1) / kCols * kCols;
    width = width < 256 ? 256 : (width > 2048 ? 2048 : width);
    width = width < columns ? width : columns;
    float* right = scratch(kSharedPanels, round_up(width, kCols) * (depth + 1));

    int64_t row_parts = ceil_div(rows, kRowBlock);
    if (row_parts > 1) row_parts = round_up(row_parts, team);
    const int64_t row_panels = ceil_div(rows, kTallRows);
    row_parts = row_parts < row_panels ? row_parts : row_panels;
    const int64_t wanted = ceil_div(team, row_parts);
    const int64_t column_step = round_up(ceil_div(width, wanted), kCols);

#pragma omp parallel num_threads(team) if (team > 1)
    for (int64_t first = 0; first < columns; first += width) {
        const int64_t part = columns - first < width ? columns - first : width;
        const int64_t panels = ceil_div(part, kCols);
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < panels; ++panel)
            pack_right(b, first + panel * kCols, first + part, depth,
                       right + panel * kCols * depth);
        const int64_t column_parts = ceil_div(part, column_step);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < row_parts * column_parts; ++index) {
            Task task;
            const int64_t part_row = index / column_parts;
            task.row = row_panels * part_row / row_parts * kTallRows;
            const int64_t end = row_panels * (part_row + 1) / row_parts * kTallRows;
            task.rows = (end < rows ? end : rows) - task.row;
            task.column = index % column_parts * column_step;
            task.columns = part - task.column < column_step ? part - task.column : column_step;
            run_task(a, right, task, c + task.row * columns + first + task.column, columns, depth,
                     accumulate, bias ? bias + first + task.column : nullptr);
        }
    }
    if (depth == 0 && !accumulate && !bias)
        std::memset(static_cast<void*>(c), 0, static_cast<size_t>(rows * columns) * sizeof(TC));
}

template <class T>
void multiply_many(const float* x, int64_t rows, const Linear& linear, float* y) {
    const int64_t in = linear.in, out = linear.out;
    const Matrix<T> weight{static_cast<const T*>(linear.weight), in, true};
    if constexpr (sizeof(T) == sizeof(float)) {
        gemm(Matrix<float>{x, in, false}, weight, y, rows, out, in, false, linear.bias);
        return;
    }
    if (multiply_pairs(x, rows, weight.data, in, out, y) == false) {
        T* narrow = reinterpret_cast<T*>(scratch(kTile, ceil_div(rows * in, 2) + kWidth));
        parallel_ranges(rows, in, [=](int64_t begin, int64_t end) {
            vector_loop((end - begin) * in, [&](int64_t i, int64_t lanes) {
                store(narrow + begin * in + i, load(x + begin * in + i, lanes), lanes);
            });
        });
        gemm(Matrix<T>{narrow, in, false}, weight, y, rows, out, in, false,
             static_cast<const T*>(nullptr));
    }
    if (linear.bias) finish(y, out, y, out, Task{0, rows, 0, out}, linear.bias);
}
template void multiply_many<float>(const float*, int64_t, const Linear&, float*);
template void multiply_many<bf16>(const float*, int64_t, const Linear&, float*);
template void multiply_many<fp16>(const float*, int64_t, const Linear&, float*);

namespace {

// product(group, first row, rows) for every group that has rows. Each thread takes whole groups,
// the largest first, where that keeps all threads busy; else they share the work of each group.
template <class Product>
void over_groups(const int64_t* counts, int64_t groups, int64_t numbers_per_row, Product product) {
    std::vector<int64_t> first(groups + 1, 0), order(groups);
    for (int64_t g = 0; g < groups; ++g) first[g + 1] = first[g] + counts[g];
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [=](int64_t a, int64_t b) { return counts[a] > counts[b]; });
    const int64_t rows = first[groups], team = threads_for(rows * numbers_per_row);
    std::vector<int64_t> load(team, 0);
    for (const int64_t g : order) *std::min_element(load.begin(), load.end()) += counts[g];
    const int64_t longest = *std::max_element(load.begin(), load.end());
    const bool is_even = team > 1 && longest * team * 10 <= rows * 11;
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(team)) if (is_even)
    for (int64_t place = 0; place < groups; ++place) {
        const int64_t g = order[place];
        if (counts[g]) product(g, first[g], counts[g]);
    }
}

}  // namespace

}  // namespace kernels

using namespace kernels;

// y [rows, out] = x [rows, in] weight[out, in]^T + bias [out]
EXPORT void linear_forward(int32_t storage, const void* x, const void* weight, const void* bias,
                           void* y, int64_t rows, int64_t in, int64_t out) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        gemm(Matrix<T>{static_cast<const T*>(x), in, false},
             Matrix<T>{static_cast<const T*>(weight), in, true}, static_cast<T*>(y), rows, out, in,
             false, static_cast<const T*>(bias));
    });
}

// dx [rows, in] = dy [rows, out] weight [out, in]
EXPORT void linear_dgrad(int32_t storage, const void* dy, const void* weight, void* dx,
                         int64_t rows, int64_t in, int64_t out) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        gemm(Matrix<T>{static_cast<const T*>(dy), out, false},
             Matrix<T>{static_cast<const T*>(weight), in, false}, static_cast<T*>(dx), rows, in,
             out, false, static_cast<const T*>(nullptr));
    });
}

// dw [out, in] = dy [rows, out]^T x [rows, in], stored in the type of dy
EXPORT void linear_wgrad(int32_t storage, const void* dy, const void* x, void* dw, int64_t rows,
                         int64_t in, int64_t out) {
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        gemm(Matrix<T>{static_cast<const T*>(dy), out, true},
             Matrix<T>{static_cast<const T*>(x), in, false}, static_cast<T*>(dw), out, in, rows,
             false, static_cast<const T*>(nullptr));
    });
}

// main_grad [out, in] (fp32) += dy^T x
EXPORT void linear_wgrad_accumulate(int32_t storage, const void* dy, const void* x,
                                    float* main_grad, int64_t rows, int64_t in, int64_t out) {
    if (rows == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        gemm(Matrix<T>{static_cast<const T*>(dy), out, true},
             Matrix<T>{static_cast<const T*>(x), in, false}, main_grad, out, in, rows, true,
             static_cast<const T*>(nullptr));
    });
}

// y_g [rows, out] = x_g [rows, in] weights[g] [out, in]^T, the rows of the groups one after the other
EXPORT void grouped_linear_forward(int32_t storage, const void* x, const void* const* weights,
                                   void* y, const int64_t* counts, int32_t groups, int64_t rows,
                                   int64_t in, int64_t out) {
    if (rows == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        over_groups(counts, groups, in * out, [=](int64_t g, int64_t first, int64_t count) {
            gemm(Matrix<T>{static_cast<const T*>(x) + first * in, in, false},
                 Matrix<T>{static_cast<const T*>(weights[g]), in, true},
                 static_cast<T*>(y) + first * out, count, out, in, false,
                 static_cast<const T*>(nullptr));
        });
    });
}

// dx_g [rows, in] = dy_g [rows, out] weights[g] [out, in]
EXPORT void grouped_linear_dgrad(int32_t storage, const void* dy, const void* const* weights,
                                 void* dx, const int64_t* counts, int32_t groups, int64_t rows,
                                 int64_t in, int64_t out) {
    if (rows == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        over_groups(counts, groups, in * out, [=](int64_t g, int64_t first, int64_t count) {
            gemm(Matrix<T>{static_cast<const T*>(dy) + first * out, out, false},
                 Matrix<T>{static_cast<const T*>(weights[g]), in, false},
                 static_cast<T*>(dx) + first * in, count, in, out, false,
                 static_cast<const T*>(nullptr));
        });
    });
}

// main_grads[g] [out, in] (fp32) += dy_g^T x_g
EXPORT void grouped_linear_wgrad_accumulate(int32_t storage, const void* dy, const void* x,
                                            float* const* main_grads, const int64_t* counts,
                                            int32_t groups, int64_t rows, int64_t in,
                                            int64_t out) {
    if (rows == 0) return;
    with_storage(storage, [&](auto type) {
        using T = decltype(type);
        over_groups(counts, groups, in * out, [=](int64_t g, int64_t first, int64_t count) {
            gemm(Matrix<T>{static_cast<const T*>(dy) + first * out, out, true},
                 Matrix<T>{static_cast<const T*>(x) + first * in, in, false}, main_grads[g], out,
                 in, count, true, static_cast<const T*>(nullptr));
        });
    });
}
