// SPDX-License-Identifier: Apache-2.0
// Index arrays whose every entry depends on the one before it: the order of a blend and the random
// order of a pass. Loaded with ctypes by native.py; NumPy versions of both are in Python.

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

// A fused multiply-add would round the errors differently from Megatron's x86 build.
#pragma GCC optimize("fp-contract=off")

#define EXPORT extern "C" __attribute__((visibility("default")))

// Digest of the sources, which the loader compares: see files/native_library.py.
EXPORT const char* built_from() { return BUILT_FROM; }

namespace {

// The loop over corpora is unrolled for small blends and written without branches: which corpus
// wins is unpredictable. It keeps the first of equal errors.
template <int kFixed>
void blend(int16_t* corpora, int64_t* places, const double* weights, const int64_t* limits,
           int64_t num_corpora, int64_t size) {
  const int64_t n = kFixed > 0 ? kFixed : num_corpora;
  std::vector<double> counts(n, 0.0);
  std::vector<double> spent(n, 0.0);  // added to the error of a corpus that has no sample left
  for (int64_t i = 0; i < n; ++i) {
    if (limits != nullptr && limits[i] == 0) spent[i] = -1e300;
  }
  for (int64_t k = 0; k < size; ++k) {
    const double scale = k > 1 ? static_cast<double>(k) : 1.0;
    double largest = weights[0] * scale - counts[0] + spent[0];
    int64_t chosen = 0;
    for (int64_t i = 1; i < n; ++i) {
      const double error = weights[i] * scale - counts[i] + spent[i];
      const bool is_larger = error > largest;
      largest = is_larger ? error : largest;
      chosen = is_larger ? i : chosen;
    }
    corpora[k] = static_cast<int16_t>(chosen);
    places[k] = static_cast<int64_t>(counts[chosen]);
    counts[chosen] += 1.0;
    if (limits != nullptr && counts[chosen] == static_cast<double>(limits[chosen])) {
      spent[chosen] = -1e300;
    }
  }
}

// Row k of the sample index: the first document that reaches the last token of sample k - 1, and in
// it the offset of the first token of sample k. Sample k starts at token k * sequence_length; its
// predecessor ends with extra_token tokens of it.
template <typename T>
void sample_index(T* rows, const int32_t* lengths, const int32_t* order, int64_t num_documents,
                  int64_t num_rows, int64_t sequence_length, int64_t extra_token) {
  int64_t start = 0;
  int64_t token = sequence_length;
  T* row = rows;
  T* const end = rows + 2 * num_rows;
  for (int64_t place = 0; place < num_documents && row != end; ++place) {
    const int64_t next = start + lengths[order[place]];
    for (; row != end && token + extra_token <= next; token += sequence_length) {
      *row++ = static_cast<T>(place);
      *row++ = static_cast<T>(token - start);
    }
    start = next;
  }
}

}  // namespace

EXPORT int64_t count_tokens(const int32_t* lengths, const int32_t* order, int64_t num_documents) {
  int64_t count = 0;
  for (int64_t place = 0; place < num_documents; ++place) count += lengths[order[place]];
  return count;
}

// rows: [num_rows, 2], the rows behind row 0, of 4 or 8 byte integers.
EXPORT void sample_rows(void* rows, int32_t is_wide, const int32_t* lengths, const int32_t* order,
                        int64_t num_documents, int64_t num_rows, int64_t sequence_length,
                        int64_t extra_token) {
  if (is_wide) {
    sample_index(static_cast<int64_t*>(rows), lengths, order, num_documents, num_rows,
                 sequence_length, extra_token);
  } else {
    sample_index(static_cast<int32_t*>(rows), lengths, order, num_documents, num_rows,
                 sequence_length, extra_token);
  }
}

// limits may be null: no corpus ever runs out.
EXPORT void blending_indices(int16_t* corpora, int64_t* places, const double* weights,
                             const int64_t* limits, int64_t num_corpora, int64_t size) {
  switch (num_corpora) {
    case 1: return blend<1>(corpora, places, weights, limits, num_corpora, size);
    case 2: return blend<2>(corpora, places, weights, limits, num_corpora, size);
    case 3: return blend<3>(corpora, places, weights, limits, num_corpora, size);
    case 4: return blend<4>(corpora, places, weights, limits, num_corpora, size);
    case 5: return blend<5>(corpora, places, weights, limits, num_corpora, size);
    case 6: return blend<6>(corpora, places, weights, limits, num_corpora, size);
    case 7: return blend<7>(corpora, places, weights, limits, num_corpora, size);
    case 8: return blend<8>(corpora, places, weights, limits, num_corpora, size);
    default: return blend<0>(corpora, places, weights, limits, num_corpora, size);
  }
}

// The permutation of torch.randperm on CPU for a generator with this seed. From 2^32 / 20 entries
// on torch draws 64 bits per entry and builds the permutation from the inside out.
EXPORT void random_permutation(int64_t* order, int64_t size, uint32_t seed) {
  std::mt19937 draw(seed);
  if (size < UINT32_MAX / 20) {
    for (int64_t i = 0; i < size; ++i) order[i] = i;
    for (int64_t i = 0; i + 1 < size; ++i) {
      std::swap(order[i], order[i + static_cast<int64_t>(draw() % (size - i))]);
    }
    return;
  }
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t high = draw();
    const uint64_t bits = high << 32 | draw();
    const int64_t other = static_cast<int64_t>(bits % static_cast<uint64_t>(i + 1));
    order[i] = i;
    order[i] = order[other];
    order[other] = i;
  }
}
