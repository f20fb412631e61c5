// The op on quantised documents, for CPU tensors.
#include <torch/csrc/stable/library.h>

#include "../maxsim_cpu/launch.h"
#include "bind_quantised.h"
#include "registration.h"

namespace maxsim {
namespace {

std::tuple<Tensor, Tensor> quantised_forward_cpu(MAXSIM_QUANTISED_PARAMETERS) {
  const BoundProblem bound = bind_quantised(MAXSIM_QUANTISED_ARGUMENTS);
  Tensor scores = new_scores(bound, queries), argmax = new_argmax_or_nothing(bound, queries);
  cpu::forward(bound.problem, static_cast<cpu::Path>(path), static_cast<float*>(scores.mutable_data_ptr()),
               argmax_width < 0 ? nullptr : static_cast<int32_t*>(argmax.mutable_data_ptr()));
  return {scores, argmax};
}

}  // namespace
}  // namespace maxsim

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("quantised_forward", TORCH_BOX(&maxsim::quantised_forward_cpu));
}
