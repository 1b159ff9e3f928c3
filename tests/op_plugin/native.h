// SPDX-License-Identifier: Apache-2.0
// Entry points of the project's native library (mindspeed_ms/ops/cpu/csrc), found at run time.
#pragma once

#include <cstdint>

#include "call.h"

namespace plugin {

constexpr int32_t kFloat32 = 0;  // code of the storage type, as in csrc/common.h
constexpr int32_t kGelu = 0, kGeluTanh = 1, kSilu = 2, kSwiglu = 4;

// AttentionSizes of csrc/attention.h.
struct Band {
    int64_t offset, left, right;
    const int64_t *starts, *stops, *offsets;
};
constexpr int64_t kUnbounded = int64_t{1} << 40;

struct Finish {
    float softcap = 0.0f, divisor = 1.0f;
    int32_t storage = -1, rounds_weights = 0;
    const float* slopes = nullptr;
    const void* bias = nullptr;
    int32_t bias_storage = 0, unused = 0;
    int64_t bias_batch = 1, bias_heads = 1;
};

struct AttentionSizes {
    int64_t queries, keys, batch, heads, groups, dim, value_dim, mask_batch;
    float scale;
    uint64_t seed, offset;
    uint32_t threshold;
    float keep_scale;
    const int32_t *query_documents, *key_documents;
    int64_t document_batch, whole_heads, first_head, whole_queries, whole_keys;
    const int64_t *query_places, *key_places;
    Band band;
    Finish finish;
    int64_t row_step, batch_step;
    const int64_t* slots;
    const float* sinks;
    float* tops;
};

struct Native {
    void (*norm_forward)(int32_t, const void* x, const void* weight, const void* bias, void* y,
                         float* mean, float* rstd, int64_t rows, int64_t columns, float eps);
    void (*norm_backward)(int32_t, const void* x, const void* dy, const void* weight,
                          const float* mean, const float* rstd, void* dx, void* dweight,
                          void* dbias, int64_t rows, int64_t columns);
    void (*activation_forward)(int32_t, int32_t kind, const void* x, const void* bias, void* y,
                               int64_t rows, int64_t columns);
    void (*activation_backward)(int32_t, int32_t kind, const void* x, const void* bias,
                                const void* dy, void* dx, void* dbias, int64_t rows,
                                int64_t columns);
    void (*rotary)(int32_t, const void* t, const float* cos, const float* sin, void* y, int64_t s,
                   int64_t b, int64_t n, int64_t d, int64_t rot, int64_t tables,
                   int32_t interleaved, int32_t backward);
    void (*embedding_forward)(int32_t, const void* weight, const int64_t* ids, void* y,
                              int64_t count, int64_t vocab, int64_t columns, int64_t vocab_start);
    void (*embedding_accumulate)(int32_t, const void* dy, const int64_t* ids, float* grad,
                                 int64_t count, int64_t vocab, int64_t columns,
                                 int64_t vocab_start);
    void (*attention_forward)(int32_t, const void* q, const void* k, const void* v,
                              const uint8_t* mask, void* out, float* lse, const AttentionSizes*);
    void (*attention_backward)(int32_t, const void* q, const void* k, const void* v,
                               const uint8_t* mask, const void* out, const float* lse,
                               const void* dout, void* dq, void* dk, void* dv, int32_t adds,
                               const AttentionSizes*);
    void (*adamw)(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t size,
                  float beta1, float beta2, float one_minus_beta1, float one_minus_beta2, float eps,
                  float decay, float step_size, float root, float grad_scale);
};

const Native& native();  // rejected before use_kernels

}  // namespace plugin
