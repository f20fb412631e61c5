// Which function serves which device, for the ops on centroids and residuals; and the CPU's functions.
#include <torch/csrc/stable/library.h>

#include "../maxsim_cpu/residual.h"
#include "bind_residual.h"

namespace maxsim {

std::tuple<Tensor, Tensor> residual_forward_cpu(MAXSIM_RESIDUAL_PARAMETERS) {
  const BoundResiduals call = bind_residuals(MAXSIM_RESIDUAL_ARGUMENTS);
  auto [scores, argmax] = new_results(call.bound, queries, with_argmax);
  cpu::residual_forward(call.bound.problem, call.residuals, static_cast<cpu::Path>(path),
                        static_cast<float*>(scores.mutable_data_ptr()),
                        with_argmax ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr);
  return {scores, argmax};
}

Tensor approx_forward_cpu(MAXSIM_APPROX_PARAMETERS) {
  const BoundApproximation call = bind_approximation(MAXSIM_APPROX_ARGUMENTS);
  Tensor scores = new_scores(call.bound, codes);
  cpu::approx_forward(call.bound.problem, call.approximation, static_cast<float*>(scores.mutable_data_ptr()));
  return scores;
}

}  // namespace maxsim

MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("residual_forward", TORCH_BOX(&maxsim::residual_forward_cpu));
  ops.impl("approx_forward", TORCH_BOX(&maxsim::approx_forward_cpu));
}

#if defined(CUDA_KERNEL)
MAXSIM_IMPLEMENTATION(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("residual_forward", TORCH_BOX(&maxsim::residual_forward_cuda));
  ops.impl("approx_forward", TORCH_BOX(&maxsim::approx_forward_cuda));
  ops.impl("search_forward", TORCH_BOX(&maxsim::search_forward_cuda));
}
#endif
