// Registers the ops and hands each call's problem to the backend's launcher.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>

#include "../maxsim_cpu/launch.h"
#include "registration.h"

namespace maxsim {
namespace {

using torch::headeronly::ScalarType;

#define MAXSIM_PROBLEM_PARAMETERS                                                                                 \
  const Tensor &queries, const Tensor &documents, const MaybeTensor &query_offsets,                               \
      const MaybeTensor &document_offsets, const MaybeTensor &query_lengths, const MaybeTensor &document_lengths, \
      const MaybeTensor &query_mask, const MaybeTensor &document_mask, const MaybeTensor &pair_queries,           \
      const MaybeTensor &pair_documents
#define MAXSIM_PROBLEM_ARGUMENTS                                                                                   \
  queries, documents, query_offsets, document_offsets, query_lengths, document_lengths, query_mask, document_mask, \
      pair_queries, pair_documents
#define MAXSIM_PROBLEM_SCHEMA                                                                                  \
  "Tensor queries, Tensor documents, Tensor? query_offsets, Tensor? document_offsets, Tensor? query_lengths, " \
  "Tensor? document_lengths, Tensor? query_mask, Tensor? document_mask, Tensor? pair_queries, "                \
  "Tensor? pair_documents"

Tensor new_scores(const BoundProblem& bound, const Tensor& like) {
  return torch::stable::new_empty(like, {bound.score_shape, static_cast<size_t>(bound.score_dims)}, ScalarType::Float);
}

Tensor forward_cpu(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score, int64_t path) {
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, 0);
  Tensor scores = new_scores(bound, queries);
  cpu::forward(bound.problem, static_cast<cpu::Path>(path), static_cast<float*>(scores.mutable_data_ptr()), nullptr);
  return scores;
}

std::tuple<Tensor, Tensor> forward_argmax_cpu(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score,
                                              int64_t path, int64_t argmax_width, int64_t /*backward_mode*/) {
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, argmax_width);
  Tensor scores = new_scores(bound, queries);
  int64_t shape[3] = {bound.score_shape[0], bound.score_shape[1], 0};
  shape[bound.score_dims] = argmax_width;
  Tensor argmax =
      torch::stable::new_empty(queries, {shape, static_cast<size_t>(bound.score_dims + 1)}, ScalarType::Int);
  cpu::forward(bound.problem, static_cast<cpu::Path>(path), static_cast<float*>(scores.mutable_data_ptr()),
               static_cast<int32_t*>(argmax.mutable_data_ptr()));
  return {scores, argmax};
}

std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad_scores, const Tensor& argmax, MAXSIM_PROBLEM_PARAMETERS,
                                        bool normalize, bool need_queries, bool need_documents,
                                        int64_t /*backward_mode*/, int64_t path) {
  const int64_t width = argmax.dim() ? argmax.size(argmax.dim() - 1) : 0;
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, 0.0, width);
  if (grad_scores.numel() != bound.problem.pairs || grad_scores.scalar_type() != ScalarType::Float ||
      !grad_scores.is_cpu())
    throw std::runtime_error("grad_scores must be float32 with the scores' shape, on the device of queries; got " +
                             std::to_string(grad_scores.numel()) + " values for " +
                             std::to_string(bound.problem.pairs) + " scores");
  if (argmax.numel() != bound.problem.pairs * width || argmax.scalar_type() != ScalarType::Int || !argmax.is_cpu())
    throw std::runtime_error("argmax must be the int32 tensor that forward_argmax returned");
  const Tensor grads = torch::stable::contiguous(grad_scores), winners = torch::stable::contiguous(argmax);
  const auto make = [](const Tensor& like, bool needed) {
    return needed ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(like, {0});
  };
  Tensor grad_queries = make(queries, need_queries), grad_documents = make(documents, need_documents);
  cpu::backward(bound.problem, static_cast<cpu::Path>(path), static_cast<const float*>(grads.const_data_ptr()),
                static_cast<const int32_t*>(winners.const_data_ptr()),
                need_queries ? grad_queries.mutable_data_ptr() : nullptr,
                need_documents ? grad_documents.mutable_data_ptr() : nullptr);
  return {grad_queries, grad_documents};
}

int64_t available_paths() { return cpu::available_paths(); }

int64_t default_path_cpu(const Tensor& like) {
  const ScalarType type = like.scalar_type();
  const DType dtype = type == ScalarType::Half ? DType::f16 : type == ScalarType::BFloat16 ? DType::bf16 : DType::f32;
  return static_cast<int64_t>(cpu::choose_isa(cpu::Path::choose, dtype, dtype).path);
}

}  // namespace
}  // namespace maxsim

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("forward(" MAXSIM_PROBLEM_SCHEMA ", bool normalize, float empty_score, int path) -> Tensor");
  ops.def("forward_argmax(" MAXSIM_PROBLEM_SCHEMA
          ", bool normalize, float empty_score, int path, SymInt argmax_width, int backward_mode) -> (Tensor, Tensor)");
  ops.def("backward(Tensor grad_scores, Tensor argmax, " MAXSIM_PROBLEM_SCHEMA
          ", bool normalize, bool need_queries, bool need_documents, int backward_mode, int path) -> (Tensor, Tensor)");
  ops.def("available_paths() -> int");
  ops.def("default_path(Tensor like) -> int");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CompositeExplicitAutograd, ops) {
  ops.impl("available_paths", TORCH_BOX(&maxsim::available_paths));
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("forward", TORCH_BOX(&maxsim::forward_cpu));
  ops.impl("forward_argmax", TORCH_BOX(&maxsim::forward_argmax_cpu));
  ops.impl("backward", TORCH_BOX(&maxsim::backward_cpu));
  ops.impl("default_path", TORCH_BOX(&maxsim::default_path_cpu));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
