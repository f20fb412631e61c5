// Ops on compressed documents, for MPS tensors: centroids with residuals, and bytes or bits for features.
#include <torch/csrc/stable/library.h>

#include "bind_metal.h"
#include "bind_quantised.h"
#include "bind_residual.h"

namespace maxsim {

// `inverse_norms` are left aside: what is decompressed is at hand, and its norms are a few multiplications of it.
std::tuple<Tensor, Tensor> residual_forward_mps(MAXSIM_RESIDUAL_PARAMETERS) {
  require_path(path);
  const BoundResiduals call = bind_residuals(MAXSIM_RESIDUAL_ARGUMENTS);
  auto [scores, argmax] = new_results(call.bound, queries, with_argmax);
  const MaybeTensor none;
  MetalBuffers buffers;
  buffers.set_problem({queries, call.bytes, none, document_offsets, none, document_lengths, query_mask, document_mask,
                       pair_queries, pair_documents});
  buffers.set(Role::codes, call.codes);
  buffers.set(Role::centroids, call.centroids);
  buffers.set(Role::bucket_weights, call.weights);
  buffers.set(Role::scores, scores);
  buffers.set(Role::argmax, argmax);
  buffers.run(metal_backend::plan_residual(call.bound.problem, buffers.token_offsets(), call.residuals), queries);
  return {scores, argmax};
}

Tensor approx_forward_mps(MAXSIM_APPROX_PARAMETERS) {
  const BoundApproximation call = bind_approximation(MAXSIM_APPROX_ARGUMENTS);
  Tensor scores = new_scores(call.bound, codes);
  MetalBuffers buffers;
  buffers.set(Role::document_extents, document_offsets ? document_offsets : document_lengths);
  buffers.set(Role::codes, call.codes);
  buffers.set(Role::centroid_scores, call.scores);
  if (probed) buffers.set(Role::probed, call.probed);
  buffers.set(Role::scores, scores);
  buffers.run(metal_backend::plan_approx(call.bound.problem, call.approximation), codes);
  return scores;
}

std::tuple<Tensor, Tensor> quantised_forward_mps(MAXSIM_QUANTISED_PARAMETERS) {
  require_path(path);
  const BoundProblem bound = bind_quantised(MAXSIM_QUANTISED_ARGUMENTS);
  Tensor scores = new_scores(bound, queries), argmax = new_argmax_or_nothing(bound, queries);
  MetalBuffers buffers;
  buffers.set_problem({MAXSIM_PROBLEM_ARGUMENTS});
  buffers.set(Role::query_scales, query_scale);
  buffers.set(Role::document_scales, document_scale);
  buffers.set(Role::document_minima, document_minimum);
  buffers.set(Role::scores, scores);
  buffers.set(Role::argmax, argmax);
  buffers.run(metal_backend::plan_forward(bound.problem, buffers.token_offsets()), queries);
  return {scores, argmax};
}

}  // namespace maxsim

#ifndef MAXSIM_METAL_KEY
#define MAXSIM_METAL_KEY MPS
#endif
MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, MAXSIM_METAL_KEY, ops) {
  ops.impl("residual_forward", TORCH_BOX(&maxsim::residual_forward_mps));
  ops.impl("approx_forward", TORCH_BOX(&maxsim::approx_forward_mps));
  ops.impl("quantised_forward", TORCH_BOX(&maxsim::quantised_forward_mps));
}
