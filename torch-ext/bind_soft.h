// What the soft maximum's ops check and allocate on every backend.
#pragma once

#include "torch_binding.h"

namespace maxsim {

// bind_problem, and a temperature that is positive and finite. `width` counts the parts of a score, as an argmax's.
BoundProblem bind_soft(const ProblemArguments& arguments, double tau, bool normalize, double empty_score,
                       int64_t width);

// fp32 [*scores.shape, width], uninitialised.
Tensor new_parts(const BoundProblem& bound, const Tensor& like);

// Contiguous inputs that match the problem, gradients zeroed where needed, else [0].
struct __attribute__((visibility("hidden"))) SoftBackwardTensors {
  Tensor grad_scores, parts, grad_queries, grad_documents;
};
SoftBackwardTensors bind_soft_backward(const BoundProblem& bound, const Tensor& grad_scores, const Tensor& parts,
                                       const Tensor& queries, const Tensor& documents, bool need_queries,
                                       bool need_documents);

#define MAXSIM_DECLARE_SOFT_OPS(device)                                                                         \
  Tensor soft_forward_##device(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize, double empty_score,       \
                               int64_t path);                                                                   \
  std::tuple<Tensor, Tensor> soft_forward_parts_##device(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize, \
                                                         double empty_score, int64_t path, int64_t width);      \
  std::tuple<Tensor, Tensor> soft_backward_##device(const Tensor& grad_scores, const Tensor& parts,             \
                                                    MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize,      \
                                                    bool need_queries, bool need_documents, int64_t path);

MAXSIM_DECLARE_SOFT_OPS(cpu)
MAXSIM_DECLARE_SOFT_OPS(cuda)
MAXSIM_DECLARE_SOFT_OPS(mps)

#undef MAXSIM_DECLARE_SOFT_OPS

}  // namespace maxsim
