// The soft maximum's ops: their schemas, and what every backend checks.
#include "bind_soft.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <stdexcept>
#include <string>

namespace maxsim {
namespace {

void require_floats(const Tensor& t, int64_t count, const Tensor& queries, const std::string& name) {
  int32_t type = 0, expected = 0;
  aoti_torch_get_device_type(t.get(), &type);
  aoti_torch_get_device_type(queries.get(), &expected);
  if (type != expected || t.get_device_index() != queries.get_device_index())
    throw std::runtime_error(name + " must be on the same device as queries");
  if (t.scalar_type() != torch::headeronly::ScalarType::Float || t.numel() != count)
    throw std::runtime_error(name + " must be float32 with " + std::to_string(count) + " elements; got " +
                             std::to_string(t.numel()));
}

}  // namespace

BoundProblem bind_soft(const ProblemArguments& arguments, double tau, bool normalize, double empty_score,
                       int64_t width) {
  if (!(tau > 0) || !std::isfinite(tau))
    throw std::runtime_error("tau must be positive and finite; got " + std::to_string(tau));
  return bind_problem(arguments, normalize, empty_score, width);
}

Tensor new_parts(const BoundProblem& bound, const Tensor& like) {
  int64_t shape[3] = {bound.score_shape[0], bound.score_shape[1], 0};
  shape[bound.score_dims] = bound.problem.argmax_width;
  return new_tensor(like, shape, bound.score_dims + 1, aoti_torch_dtype_float32());
}

SoftBackwardTensors bind_soft_backward(const BoundProblem& bound, const Tensor& grad_scores, const Tensor& parts,
                                       const Tensor& queries, const Tensor& documents, bool need_queries,
                                       bool need_documents) {
  const Problem& problem = bound.problem;
  require_floats(grad_scores, problem.pairs, queries, "grad_scores");
  require_floats(parts, problem.pairs * problem.argmax_width, queries, "parts");
  const auto gradient = [](const Tensor& like, bool needed) {
    return needed ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(like, {0});
  };
  return {torch::stable::contiguous(grad_scores), torch::stable::contiguous(parts), gradient(queries, need_queries),
          gradient(documents, need_documents)};
}

}  // namespace maxsim

// The extra level lets the name be a macro.
#define MAXSIM_FRAGMENT(name, library) STABLE_TORCH_LIBRARY_FRAGMENT(name, library)

#define MAXSIM_SOFT_PROBLEM                                                                                    \
  "Tensor queries, Tensor documents, Tensor? query_offsets, Tensor? document_offsets, Tensor? query_lengths, " \
  "Tensor? document_lengths, Tensor? query_mask, Tensor? document_mask, Tensor? pair_queries, Tensor? "        \
  "pair_documents, float tau, bool normalize, "

MAXSIM_FRAGMENT(TORCH_EXTENSION_NAME, ops) {
  ops.def("soft_forward(" MAXSIM_SOFT_PROBLEM "float empty_score, int path) -> Tensor");
  ops.def("soft_forward_parts(" MAXSIM_SOFT_PROBLEM "float empty_score, int path, SymInt width) -> (Tensor, Tensor)");
  ops.def("soft_backward(Tensor grad_scores, Tensor parts, " MAXSIM_SOFT_PROBLEM
          "bool need_queries, bool need_documents, int path) -> (Tensor, Tensor)");
}
