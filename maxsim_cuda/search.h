// PLAID's search behind the similarities of the centroids. It only enqueues work on `stream`.
#pragma once

#include "../maxsim_common/residuals.h"
#include "launch.h"

namespace maxsim {
namespace cuda {

struct Search {
  Problem problem;  // queries [Nq, Lq, d] and all documents, one after another
  Residuals residuals;
  const float* by_centroid;     // [Nq, C, Lq], or null where search_multiplies()
  int64_t probes, kept, top_k;  // centroids of a query token, documents that are scored exactly, and returned
  Path path;
};

// Whether it computes similarities of queries and centroids itself.
bool search_multiplies(const Search& search);
// Whether there is room for what it keeps in shared memory, and for a row of blocks each query.
bool search_takes(const Search& search);
int64_t search_workspace(const Search& search);
// Scores and documents [Nq, top_k], -inf and -1 where candidates run out.
void search(const Search& search, float* scores, int64_t* ids, void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace maxsim
