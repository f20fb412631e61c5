// Which function serves which device, for the soft maximum's ops; and the CPU's functions.
#include <torch/csrc/stable/library.h>

#include "../maxsim_cpu/soft.h"
#include "bind_soft.h"

namespace maxsim {

Tensor soft_forward_cpu(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize, double empty_score, int64_t path) {
  const BoundProblem bound = bind_soft({MAXSIM_PROBLEM_ARGUMENTS}, tau, normalize, empty_score, kNoArgmax);
  Tensor scores = new_scores(bound, queries);
  cpu::soft_forward(bound.problem, static_cast<cpu::Path>(path), tau, static_cast<float*>(scores.mutable_data_ptr()),
                    nullptr);
  return scores;
}

std::tuple<Tensor, Tensor> soft_forward_parts_cpu(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize,
                                                  double empty_score, int64_t path, int64_t width) {
  const BoundProblem bound = bind_soft({MAXSIM_PROBLEM_ARGUMENTS}, tau, normalize, empty_score, width);
  Tensor scores = new_scores(bound, queries), parts = new_parts(bound, queries);
  cpu::soft_forward(bound.problem, static_cast<cpu::Path>(path), tau, static_cast<float*>(scores.mutable_data_ptr()),
                    static_cast<float*>(parts.mutable_data_ptr()));
  return {scores, parts};
}

std::tuple<Tensor, Tensor> soft_backward_cpu(const Tensor& grad_scores, const Tensor& parts, MAXSIM_PROBLEM_PARAMETERS,
                                             double tau, bool normalize, bool need_queries, bool need_documents,
                                             int64_t path) {
  const int64_t width = parts.dim() ? parts.size(parts.dim() - 1) : 0;
  const BoundProblem bound = bind_soft({MAXSIM_PROBLEM_ARGUMENTS}, tau, normalize, 0.0, width);
  const SoftBackwardTensors t =
      bind_soft_backward(bound, grad_scores, parts, queries, documents, need_queries, need_documents);
  cpu::soft_backward(
      bound.problem, static_cast<cpu::Path>(path), tau, static_cast<const float*>(t.grad_scores.const_data_ptr()),
      static_cast<const float*>(t.parts.const_data_ptr()), need_queries ? t.grad_queries.mutable_data_ptr() : nullptr,
      need_documents ? t.grad_documents.mutable_data_ptr() : nullptr);
  return {t.grad_queries, t.grad_documents};
}

}  // namespace maxsim

// The extra level lets the name be a macro.
#define MAXSIM_IMPLEMENTATION(name, key, library) STABLE_TORCH_LIBRARY_IMPL(name, key, library)

#define MAXSIM_REGISTER_SOFT(key, device)                                            \
  MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, key, ops) {                            \
    ops.impl("soft_forward", TORCH_BOX(&maxsim::soft_forward_##device));             \
    ops.impl("soft_forward_parts", TORCH_BOX(&maxsim::soft_forward_parts_##device)); \
    ops.impl("soft_backward", TORCH_BOX(&maxsim::soft_backward_##device));           \
  }

MAXSIM_REGISTER_SOFT(CPU, cpu)
#if defined(CUDA_KERNEL)
MAXSIM_REGISTER_SOFT(CUDA, cuda)
#endif
