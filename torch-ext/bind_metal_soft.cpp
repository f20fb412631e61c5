// The soft maximum's ops on MPS tensors.
#include <torch/csrc/stable/library.h>

#include "bind_metal.h"
#include "bind_soft.h"

namespace maxsim {
namespace {

void run(const BoundProblem& bound, const ProblemArguments& arguments, double tau, const Tensor& scores,
         const Tensor* parts) {
  MetalBuffers buffers;
  buffers.set_problem(arguments);
  buffers.set(Role::scores, scores);
  if (parts) buffers.set(Role::parts, *parts);
  buffers.run(metal_backend::plan_soft_forward(bound.problem, buffers.token_offsets(), tau), arguments.queries);
}

}  // namespace

Tensor soft_forward_mps(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize, double empty_score, int64_t path) {
  require_path(path);
  const ProblemArguments arguments{MAXSIM_PROBLEM_ARGUMENTS};
  const BoundProblem bound = bind_soft(arguments, tau, normalize, empty_score, kNoArgmax);
  Tensor scores = new_scores(bound, queries);
  run(bound, arguments, tau, scores, nullptr);
  return scores;
}

std::tuple<Tensor, Tensor> soft_forward_parts_mps(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize,
                                                  double empty_score, int64_t path, int64_t width) {
  require_path(path);
  const ProblemArguments arguments{MAXSIM_PROBLEM_ARGUMENTS};
  const BoundProblem bound = bind_soft(arguments, tau, normalize, empty_score, width);
  Tensor scores = new_scores(bound, queries), parts = new_parts(bound, queries);
  run(bound, arguments, tau, scores, &parts);
  return {scores, parts};
}

std::tuple<Tensor, Tensor> soft_backward_mps(const Tensor& grad_scores, const Tensor& parts, MAXSIM_PROBLEM_PARAMETERS,
                                             double tau, bool normalize, bool need_queries, bool need_documents,
                                             int64_t path) {
  require_path(path);
  const ProblemArguments arguments{MAXSIM_PROBLEM_ARGUMENTS};
  const int64_t width = parts.dim() ? parts.size(parts.dim() - 1) : 0;
  const BoundProblem bound = bind_soft(arguments, tau, normalize, 0.0, width);
  const SoftBackwardTensors t =
      bind_soft_backward(bound, grad_scores, parts, queries, documents, need_queries, need_documents);
  MetalBuffers buffers;
  buffers.set_problem(arguments);
  buffers.set(Role::grad_scores, t.grad_scores);
  buffers.set(Role::parts, t.parts);
  if (need_queries) buffers.set(Role::grad_queries, t.grad_queries);
  if (need_documents) buffers.set(Role::grad_documents, t.grad_documents);
  buffers.set_sorted_pairs(arguments, need_queries, need_documents);
  buffers.run(metal_backend::plan_soft_backward(bound.problem, tau, need_queries, need_documents), queries);
  return {t.grad_queries, t.grad_documents};
}

}  // namespace maxsim

#ifndef MAXSIM_METAL_KEY
#define MAXSIM_METAL_KEY MPS
#endif
// The extra level lets the name and the key be macros.
#define MAXSIM_IMPLEMENTATION(name, key, library) STABLE_TORCH_LIBRARY_IMPL(name, key, library)
MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, MAXSIM_METAL_KEY, ops) {
  ops.impl("soft_forward", TORCH_BOX(&maxsim::soft_forward_mps));
  ops.impl("soft_forward_parts", TORCH_BOX(&maxsim::soft_forward_parts_mps));
  ops.impl("soft_backward", TORCH_BOX(&maxsim::soft_backward_mps));
}
