// The best documents of each query among scores. Entries only enqueue work on `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace maxsim {
namespace cuda {

constexpr int64_t kMostRanked = 2048;  // documents of a query that are kept

// Scores [queries, documents] of documents `first`, `first` + 1, ..., and what was ranked before: `keys`
// [queries, known], or null. A key is greater for a better score and, among equals, for a lower id.
struct Ranked {
  const float* scores = nullptr;
  int64_t queries = 0, documents = 0, first = 0;
  const int64_t* keys = nullptr;
  int64_t known = 0;
  int64_t k = 0;  // at most kMostRanked
  bool largest = true;
};

int64_t rank_workspace(const Ranked& ranked);
// The greatest keys [queries, min(k, known + documents)], descending.
void rank(const Ranked& ranked, int64_t* out, void* workspace, cudaStream_t stream);

// Lists of descending keys [lists, queries, length].
struct KeyLists {
  const int64_t* data;
  int64_t lists, queries, length;
  bool largest;
};

// Scores and ids [queries, width] of the greatest keys of all lists, at most lists * length, descending.
void unrank(const KeyLists& keys, int64_t width, float* scores, int64_t* ids, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
