// SPDX-License-Identifier: Apache-2.0
// Blocked matrix product on the tile unit.
//
// As in gemm.cpp: the right-hand side is packed by all threads together, the left-hand side block by
// block by the thread that uses it. The sum over the depth is formed in blocks of fixed size.
#include "gemm_tiles.h"

#include "tiles.h"

#if defined(HAS_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kernels {

namespace {

TileUse g_use = TileUse::kNone;

}  // namespace

TileUse tile_use() { return g_use; }

#if defined(HAS_TILES)

namespace {

constexpr int64_t kMinDepth = 16, kMinSide = 8;       // less would be mostly padding
constexpr int64_t kSmall = 1 << 15;                   // products below which packing costs more
constexpr int64_t kDepthBlock = 1024;
constexpr int64_t kLeftBytes = 800 << 10;             // packed A: stays in the second-level cache
constexpr int64_t kRightBytes = 12 << 20;             // packed B at a time

struct Task {
    int64_t row, rows;        // rows of C
    int64_t column, columns;  // columns of C, relative to the packed part
};

// Depth [first, first + size) of a block.
struct Depth {
    int64_t first, size;
};

template <bool Right, class T>
void pack(const T* from, int64_t stride, bool along, int64_t items, int64_t depth, char* to) {
    items = items < kPanel ? items : kPanel;
    if (along) {
        pack_panel<kParts<T>, true, Right>(from, stride, items, depth, to);
    } else {
        pack_panel<kParts<T>, false, Right>(from, stride, items, depth, to);
    }
}

template <class T>
void pack_left(Matrix<T> a, Task task, Depth block, char* packed) {
    const int64_t bytes = panel_bytes<kParts<T>>(block.size);
    for (int64_t row = 0; row < task.rows; row += kPanel, packed += bytes) {
        const int64_t first = task.row + row;
        const T* from = a.transposed ? a.data + block.first * a.stride + first
                                     : a.data + first * a.stride + block.first;
        pack<false>(from, a.stride, !a.transposed, task.rows - row, block.size, packed);
    }
}

template <class T>
void pack_right(Matrix<T> b, int64_t first, int64_t count, int64_t depth, char* packed) {
    const T* from = b.transposed ? b.data + first * b.stride : b.data + first;
    const FlushTiny flush;
    pack<true>(from, b.stride, b.transposed, count, depth, packed);
}

// Stores or adds the valid part of a block.
void put_block(const float* block, float* c, int64_t stride, int64_t rows, int64_t columns,
               bool add) {
    for (int64_t row = 0; row < rows; ++row)
        vector_loop(columns, [&](int64_t i, int64_t count) {
            const vf value = load(block + row * kPanel + i, count);
            float* out = c + row * stride + i;
            store(out, add ? value + load(out, count) : value, count);
        });
}

void prefetch_block(const float* c, int64_t stride, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
        __builtin_prefetch(c + row * stride, 1);
        __builtin_prefetch(c + row * stride + kPanel - 1, 1);
    }
}

// One block of the depth: `left` is packed, `right` begins at the task's columns and this depth.
template <int Parts>
void multiply_block(const char* left, const char* right, int64_t right_bytes, Task task,
                    int64_t depth, float* c, int64_t stride, bool add) {
    const int64_t steps = ceil_div(depth, kTileDepth), left_bytes = steps * kStepBytes<Parts>;
    alignas(64) float block[kPanel * kPanel];
    for (int64_t column = 0; column < task.columns; column += kPanel, right += right_bytes) {
        const char* panel = left;
        for (int64_t row = 0; row < task.rows; row += kPanel, panel += left_bytes) {
            float* out = c + row * stride + column;
            const int64_t height = task.rows - row, width = task.columns - column;
            if (!add && height >= kPanel && width >= kPanel) {
                panel_product<Parts, Parts>(steps, panel, right, out, stride * 4);
                continue;
            }
            // Sums of blocks are added, rather than continued: fewer roundings of large sums.
            prefetch_block(out, stride, height < kPanel ? height : kPanel);
            panel_product<Parts, Parts>(steps, panel, right, block, kPanel * 4);
            put_block(block, out, stride, height < kPanel ? height : kPanel,
                      width < kPanel ? width : kPanel, add);
        }
    }
}

// Adds the bias of each column and rounds to the storage type of C.
template <class TC, class TBias>
void finish(const float* from, int64_t stride, TC* c, int64_t c_stride, Task task,
            const TBias* bias) {
    for (int64_t row = 0; row < task.rows; ++row)
        vector_loop(task.columns, [&](int64_t i, int64_t count) {
            vf value = load(from + row * stride + i, count);
            if (bias) value += load(bias + i, count);
            store(c + row * c_stride + i, value, count);
        });
}

template <class T, class TC>
void run_task(Matrix<T> a, const char* right, Task task, TC* c, int64_t c_stride, int64_t depth,
              int64_t depth_block, bool accumulate, const T* bias) {
    constexpr int parts = kParts<T>;
    constexpr bool direct = sizeof(TC) == sizeof(float);
    const int64_t right_bytes = panel_bytes<parts>(depth);
    char* left = reinterpret_cast<char*>(
        scratch(kOwnPanels, ceil_div(task.rows, kPanel) * panel_bytes<parts>(depth_block) / 4));
    float* out;
    int64_t stride = c_stride;
    if constexpr (direct) {
        out = c;
    } else {
        stride = round_up(task.columns, kPanel) + 16;
        out = scratch(kTile, round_up(task.rows, kPanel) * stride);
    }
    const FlushTiny flush;
    begin_tiles();
    for (int64_t k = 0; k < depth; k += depth_block) {
        const Depth block{k, depth - k < depth_block ? depth - k : depth_block};
        pack_left(a, task, block, left);
        multiply_block<parts>(
            left, right + task.column / kPanel * right_bytes + k / kTileDepth * kStepBytes<parts>,
            right_bytes, task, block.size, out, stride, accumulate || k > 0);
    }
    end_tiles();
    if (!direct || bias) finish(out, stride, c, c_stride, task, bias);
}

}  // namespace

template <class T, class TC>
bool gemm_tiles(Matrix<T> a, Matrix<T> b, TC* c, int64_t rows, int64_t columns, int64_t depth,
                bool accumulate, const T* bias) {
    if (!tiles_ready<T>() || depth < kMinDepth || rows < kMinSide || columns < kMinSide ||
        rows * columns * depth < kSmall)
        return false;
    constexpr int parts = kParts<T>;
    const int team = rows * columns * depth < 64 * kSerialElements ? 1 : threads();
    const int64_t depth_block =
        round_up(ceil_div(depth, ceil_div(depth, kDepthBlock)), kTileDepth);
    const int64_t panel = panel_bytes<parts>(depth);
    int64_t width = kRightBytes / panel * kPanel;
    width = width < 8 * kPanel ? 8 * kPanel : width;
    width = width < columns ? width : round_up(columns, kPanel);
    char* right = reinterpret_cast<char*>(scratch(kSharedPanels, width / kPanel * panel / 4));

    const int64_t row_panels = ceil_div(rows, kPanel);
    int64_t row_parts = ceil_div(row_panels * panel_bytes<parts>(depth_block), kLeftBytes);
    if (row_parts < 2 * team) row_parts = 2 * team;
    row_parts = row_parts < row_panels ? row_parts : row_panels;
    const int64_t column_step = round_up(ceil_div(width, ceil_div(2 * team, row_parts)), kPanel);

#pragma omp parallel num_threads(team) if (team > 1)
    for (int64_t first = 0; first < columns; first += width) {
        const int64_t part = columns - first < width ? columns - first : width;
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < ceil_div(part, kPanel); ++index) {
            const int64_t column = index * kPanel, left = part - column;
            pack_right(b, first + column, left, depth,
                       right + index * panel);
        }
        const int64_t column_parts = ceil_div(part, column_step);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < row_parts * column_parts; ++index) {
            Task task;
            const int64_t part_row = index / column_parts;
            task.row = row_panels * part_row / row_parts * kPanel;
            const int64_t end = row_panels * (part_row + 1) / row_parts * kPanel;
            task.rows = (end < rows ? end : rows) - task.row;
            task.column = index % column_parts * column_step;
            task.columns = part - task.column < column_step ? part - task.column : column_step;
            run_task(a, right, task, c + task.row * columns + first + task.column, columns, depth,
                     depth_block, accumulate, bias ? bias + first + task.column : nullptr);
        }
    }
    return true;
}

#else

template <class T, class TC>
bool gemm_tiles(Matrix<T>, Matrix<T>, TC*, int64_t, int64_t, int64_t, bool, const T*) {
    return false;
}

#endif  // HAS_TILES

#define INSTANCE(T, TC)                                                                        \
    template bool gemm_tiles(Matrix<T>, Matrix<T>, TC*, int64_t, int64_t, int64_t, bool, \
                             const T*);
INSTANCE(float, float)
INSTANCE(bf16, float)
INSTANCE(bf16, bf16)
INSTANCE(fp16, float)
INSTANCE(fp16, fp16)
#undef INSTANCE

}  // namespace kernels

// Asks the system for the tile unit for no (0), the 16-bit (1) or all (2) types; returns what it
// will be used for.
EXPORT int32_t use_tiles(int32_t wanted) {
    kernels::g_use = kernels::TileUse::kNone;
#if defined(HAS_TILES)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
    if (wanted && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0)
        kernels::g_use = static_cast<kernels::TileUse>(wanted);
#endif
    return static_cast<int32_t>(kernels::g_use);
}
