// SPDX-License-Identifier: Apache-2.0
// Sums and gathers over ranks of one host, for tensors so small that the time is that of waiting.
//
// Every rank has two blocks in memory that all map, used by turns: whoever has come to a meeting has
// read what was written for the one before, so one meeting per sum will do.
#pragma once

#include "common.h"

namespace kernels {

// Keep in step with ops/cpu/ranks.py.
struct Ranks {
    int64_t rank, size;
    int64_t block;  // floats of a block
    void* shared;   // zeros at first: a line of 64 bytes per rank, then the blocks
};

// x [count] = the sum of all ranks' x, in the order of the ranks: the same bits on each.
void add_over_ranks(const Ranks& ranks, float* x, int64_t count);

}  // namespace kernels
