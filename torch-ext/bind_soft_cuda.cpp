// The soft maximum's ops on CUDA tensors.
#include "../maxsim_cuda/soft.h"
#include "bind_cuda.h"
#include "bind_soft.h"

namespace maxsim {
namespace {

void forward(const BoundProblem& bound, int64_t path, double tau, const Tensor& on, Tensor& scores, Tensor* parts) {
  const Launch launch(on);
  const int64_t bytes = cuda::soft_workspace(bound.problem, false);
  Tensor workspace;
  if (bytes) workspace = new_tensor(on, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::soft_forward(bound.problem, static_cast<cuda::Path>(path), tau, static_cast<float*>(scores.mutable_data_ptr()),
                     parts ? static_cast<float*>(parts->mutable_data_ptr()) : nullptr,
                     bytes ? workspace.mutable_data_ptr() : nullptr, launch.stream);
}

}  // namespace

Tensor soft_forward_cuda(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize, double empty_score, int64_t path) {
  const BoundProblem bound = bind_soft({MAXSIM_PROBLEM_ARGUMENTS}, tau, normalize, empty_score, kNoArgmax);
  Tensor scores = new_scores(bound, queries);
  forward(bound, path, tau, queries, scores, nullptr);
  return scores;
}

std::tuple<Tensor, Tensor> soft_forward_parts_cuda(MAXSIM_PROBLEM_PARAMETERS, double tau, bool normalize,
                                                   double empty_score, int64_t path, int64_t width) {
  const BoundProblem bound = bind_soft({MAXSIM_PROBLEM_ARGUMENTS}, tau, normalize, empty_score, width);
  Tensor scores = new_scores(bound, queries), parts = new_parts(bound, queries);
  forward(bound, path, tau, queries, scores, &parts);
  return {scores, parts};
}

std::tuple<Tensor, Tensor> soft_backward_cuda(const Tensor& grad_scores, const Tensor& parts, MAXSIM_PROBLEM_PARAMETERS,
                                              double tau, bool normalize, bool need_queries, bool need_documents,
                                              int64_t path) {
  const int64_t width = parts.dim() ? parts.size(parts.dim() - 1) : 0;
  const BoundProblem bound = bind_soft({MAXSIM_PROBLEM_ARGUMENTS}, tau, normalize, 0.0, width);
  const SoftBackwardTensors t =
      bind_soft_backward(bound, grad_scores, parts, queries, documents, need_queries, need_documents);
  const Launch launch(queries);
  const int64_t bytes = cuda::soft_workspace(bound.problem, true);
  Tensor workspace;
  if (bytes) workspace = new_tensor(queries, &bytes, 1, aoti_torch_dtype_uint8());
  cuda::soft_backward(
      bound.problem, static_cast<cuda::Path>(path), tau, static_cast<const float*>(t.grad_scores.const_data_ptr()),
      static_cast<const float*>(t.parts.const_data_ptr()), need_queries ? t.grad_queries.mutable_data_ptr() : nullptr,
      need_documents ? t.grad_documents.mutable_data_ptr() : nullptr, bytes ? workspace.mutable_data_ptr() : nullptr,
      launch.stream);
  return {t.grad_queries, t.grad_documents};
}

}  // namespace maxsim
