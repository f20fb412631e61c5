// What the bindings of CUDA tensors share.
#pragma once

#include "torch_binding.h"

namespace maxsim {

// Scores of a bound problem, and its argmax unless null, on the device of `on` and torch's current stream there.
void run_forward_cuda(const BoundProblem& bound, int64_t path, bool allow_tf32, const Tensor& on, Tensor& scores,
                      Tensor* argmax);

}  // namespace maxsim
