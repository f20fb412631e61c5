// The ops on centroids and residuals, for CUDA tensors.
#include <torch/csrc/stable/ops.h>
#include <stdexcept>

#include "../maxsim_cuda/residual_launch.h"
#include "../maxsim_cuda/search.h"
#include "bind_cuda.h"
#include "bind_residual.h"

namespace maxsim {
namespace {

void require(bool holds, const char* rule) {
  if (!holds) throw std::runtime_error(rule);
}

}  // namespace

std::tuple<Tensor, Tensor> search_forward_cuda(MAXSIM_SEARCH_PARAMETERS) {
  const MaybeTensor none;
  const BoundResiduals call =
      bind_residuals(queries, codes, residuals, document_offsets, none, none, none, none, none, centroids,
                     bucket_weights, inverse_norms, centroid_norm, nbits, false, true, 0.0, path, false);
  const Problem& problem = call.bound.problem;
  const int64_t count = problem.queries.count, extent = problem.queries.extent;
  const int64_t centroid_count = call.residuals.centroid_count;
  BoundApproximation given;
  if (by_centroid) {
    given = bind_approximation(*by_centroid, codes, document_offsets, none, none);
    require(by_centroid->size(0) == count && by_centroid->size(1) == centroid_count && by_centroid->size(2) == extent,
            "by_centroid must be float32 [Nq, C, Lq]");
  }
  require(probes >= 1 && probes <= centroid_count && kept >= 1 && kept <= problem.documents.count && top_k >= 1 &&
              top_k <= kept && count >= 1 && extent >= 1,
          "there must be as many centroids, documents and kept documents as are asked for");
  cuda::Search search{problem, call.residuals, given.approximation.centroid_scores, probes,
                      kept,    top_k,          static_cast<cuda::Path>(path)};
  require(by_centroid || cuda::search_multiplies(search),
          "without by_centroid, centroids must be float16 with 128 features, and queries not float32");
  require(cuda::search_takes(search), "more centroids, queries, documents or results than a search takes");
  const int64_t results[2] = {count, top_k};
  Tensor scores = new_tensor(queries, results, 2, aoti_torch_dtype_float32());
  Tensor ids = new_tensor(queries, results, 2, aoti_torch_dtype_int64());
  const Launch launch(queries);
  const int64_t bytes = cuda::search_workspace(search);
  Tensor workspace = new_tensor(queries, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::search(search, static_cast<float*>(scores.mutable_data_ptr()), static_cast<int64_t*>(ids.mutable_data_ptr()),
               workspace.mutable_data_ptr(), launch.stream);
  return {scores, ids};
}

std::tuple<Tensor, Tensor> residual_forward_cuda(MAXSIM_RESIDUAL_PARAMETERS) {
  const BoundResiduals call = bind_residuals(MAXSIM_RESIDUAL_ARGUMENTS);
  auto [scores, argmax] = new_results(call.bound, queries, with_argmax);
  const Launch launch(queries);
  const auto cuda_path = static_cast<cuda::Path>(path);
  const int64_t bytes = cuda::residual_workspace(call.bound.problem, call.residuals, cuda_path);
  Tensor workspace;
  if (bytes) workspace = new_tensor(queries, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::residual_forward(call.bound.problem, call.residuals, cuda_path, static_cast<float*>(scores.mutable_data_ptr()),
                         with_argmax ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr,
                         bytes ? workspace.mutable_data_ptr() : nullptr, launch.stream);
  return {scores, argmax};
}

Tensor approx_forward_cuda(MAXSIM_APPROX_PARAMETERS) {
  const BoundApproximation call = bind_approximation(MAXSIM_APPROX_ARGUMENTS);
  Tensor scores = new_scores(call.bound, codes);
  const Launch launch(codes);
  cuda::approx_forward(call.bound.problem, call.approximation, static_cast<float*>(scores.mutable_data_ptr()),
                       launch.stream);
  return scores;
}

}  // namespace maxsim
