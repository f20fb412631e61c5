// The ops on centroids and residuals, for CUDA tensors.
#include "../maxsim_cuda/residual_launch.h"
#include "bind_cuda.h"
#include "bind_residual.h"

namespace maxsim {

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
