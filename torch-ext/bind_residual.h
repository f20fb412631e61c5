// Ops on documents that are stored as centroids and residuals. Arguments and layouts: docs/ops.md.
#pragma once

#include "../maxsim_common/residuals.h"
#include "torch_binding.h"

namespace maxsim {

#define MAXSIM_RESIDUAL_PARAMETERS                                                                          \
  const Tensor &queries, const Tensor &codes, const Tensor &residuals, const MaybeTensor &document_offsets, \
      const MaybeTensor &document_lengths, const MaybeTensor &query_mask, const MaybeTensor &document_mask, \
      const MaybeTensor &pair_queries, const MaybeTensor &pair_documents, const Tensor &centroids,          \
      const Tensor &bucket_weights, const MaybeTensor &inverse_norms, double centroid_norm, int64_t nbits,  \
      bool normalize_queries, bool normalize_documents, double empty_score, int64_t path, bool with_argmax
#define MAXSIM_RESIDUAL_ARGUMENTS                                                                         \
  queries, codes, residuals, document_offsets, document_lengths, query_mask, document_mask, pair_queries, \
      pair_documents, centroids, bucket_weights, inverse_norms, centroid_norm, nbits, normalize_queries,  \
      normalize_documents, empty_score, path, with_argmax

// Which tokens there are: `tokens` is contiguous, [Nd, Ld, …] with lengths or [T, …] with offsets.
struct __attribute__((visibility("hidden"))) DocumentTokens {
  const Tensor& tokens;
  int64_t trailing;  // dimensions of one token
  const MaybeTensor& offsets;
  const MaybeTensor& lengths;
  const MaybeTensor& mask;
};

// Document segments without features. `begin` of a segment is the number of its first token.
Segments bind_documents(const DocumentTokens& documents, int64_t dim);

// The arguments of `residual_forward`, checked, and what was made contiguous on the way.
struct __attribute__((visibility("hidden"))) BoundResiduals {
  BoundProblem bound;
  Residuals residuals;
  Tensor codes, bytes, centroids, weights, norms;
};
BoundResiduals bind_residuals(MAXSIM_RESIDUAL_PARAMETERS);

// Scores and argmax of a bound call, the latter [0] without one.
std::tuple<Tensor, Tensor> new_results(const BoundProblem& bound, const Tensor& like, bool with_argmax);

// The arguments of `approx_forward`: scores of every centroid [Nq, C, Lq] and the documents' centroid numbers.
struct __attribute__((visibility("hidden"))) BoundApproximation {
  BoundProblem bound;
  Approximation approximation;
  Tensor codes, scores, probed;  // what the pointers point into
};
#define MAXSIM_APPROX_PARAMETERS                                                           \
  const Tensor &centroid_scores, const Tensor &codes, const MaybeTensor &document_offsets, \
      const MaybeTensor &document_lengths, const MaybeTensor &probed
#define MAXSIM_APPROX_ARGUMENTS centroid_scores, codes, document_offsets, document_lengths, probed
BoundApproximation bind_approximation(MAXSIM_APPROX_PARAMETERS);

// Similarities of every centroid, float32 `by_centroid` [Nq, C, Lq], are computed where they are not given.
#define MAXSIM_SEARCH_PARAMETERS                                                                                    \
  const MaybeTensor &by_centroid, const Tensor &queries, const Tensor &codes, const Tensor &residuals,              \
      const Tensor &document_offsets, const Tensor &centroids, const Tensor &bucket_weights,                        \
      const Tensor &inverse_norms, double centroid_norm, int64_t nbits, int64_t path, int64_t probes, int64_t kept, \
      int64_t top_k

std::tuple<Tensor, Tensor> search_forward_cuda(MAXSIM_SEARCH_PARAMETERS);
std::tuple<Tensor, Tensor> residual_forward_cuda(MAXSIM_RESIDUAL_PARAMETERS);
Tensor approx_forward_cuda(MAXSIM_APPROX_PARAMETERS);

// The extra level lets the name and the key be macros.
#define MAXSIM_FRAGMENT(name, library) STABLE_TORCH_LIBRARY_FRAGMENT(name, library)
#define MAXSIM_IMPLEMENTATION(name, key, library) STABLE_TORCH_LIBRARY_IMPL(name, key, library)

}  // namespace maxsim
