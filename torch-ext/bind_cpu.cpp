// The ops on CPU tensors.
#include "../maxsim_cpu/launch.h"
#include "torch_binding.h"

namespace maxsim {

Tensor forward_cpu(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score, int64_t path, bool /*allow_tf32*/,
                   int64_t /*longest_query*/) {
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, kNoArgmax);
  Tensor scores = new_scores(bound, queries);
  cpu::forward(bound.problem, static_cast<cpu::Path>(path), static_cast<float*>(scores.mutable_data_ptr()), nullptr);
  return scores;
}

std::tuple<Tensor, Tensor> forward_argmax_cpu(MAXSIM_PROBLEM_PARAMETERS, bool normalize, double empty_score,
                                              int64_t path, bool /*allow_tf32*/, int64_t argmax_width,
                                              int64_t /*backward_mode*/) {
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, empty_score, argmax_width);
  Tensor scores = new_scores(bound, queries), argmax = new_argmax(bound, queries);
  cpu::forward(bound.problem, static_cast<cpu::Path>(path), static_cast<float*>(scores.mutable_data_ptr()),
               static_cast<int32_t*>(argmax.mutable_data_ptr()));
  return {scores, argmax};
}

std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad_scores, const Tensor& argmax, MAXSIM_PROBLEM_PARAMETERS,
                                        bool normalize, bool need_queries, bool need_documents,
                                        int64_t /*backward_mode*/, int64_t path) {
  const int64_t width = argmax.dim() ? argmax.size(argmax.dim() - 1) : 0;
  const BoundProblem bound = bind_problem({MAXSIM_PROBLEM_ARGUMENTS}, normalize, 0.0, width);
  const BackwardTensors t = bind_backward(bound, grad_scores, argmax, queries, documents, need_queries, need_documents);
  cpu::backward(bound.problem, static_cast<cpu::Path>(path), static_cast<const float*>(t.grad_scores.const_data_ptr()),
                static_cast<const int32_t*>(t.argmax.const_data_ptr()),
                need_queries ? t.grad_queries.mutable_data_ptr() : nullptr,
                need_documents ? t.grad_documents.mutable_data_ptr() : nullptr);
  return {t.grad_queries, t.grad_documents};
}

int64_t available_paths_cpu() { return cpu::available_paths(); }

int64_t default_path_cpu(const Tensor& like) {
  const DType dtype = dtype_of(like, "like");
  return static_cast<int64_t>(cpu::choose_isa(cpu::Path::choose, dtype, dtype).path);
}

}  // namespace maxsim
