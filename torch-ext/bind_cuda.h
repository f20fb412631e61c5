// What the bindings of CUDA tensors share.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <stdexcept>

#include "../maxsim_cuda/launch.h"
#include "torch_binding.h"

namespace maxsim {

// The tensors' device and torch's current stream there, for as long as it lives.
struct __attribute__((visibility("hidden"))) Launch {
  std::optional<torch::stable::accelerator::DeviceGuard> guard;  // only where the tensors live on another device
  const cuda::DeviceInUse in_use;
  cudaStream_t stream;

  explicit Launch(const Tensor& on) : in_use(on.get_device_index()), stream(nullptr) {
    int current_device = -1;
    const int32_t device = on.get_device_index();
    if (cudaGetDevice(&current_device) != cudaSuccess || current_device != device) guard.emplace(device);
    void* current = nullptr;
    if (aoti_torch_get_current_cuda_stream(device, &current))
      throw std::runtime_error("no current CUDA stream on the device of queries");
    stream = static_cast<cudaStream_t>(current);
  }
};

// Scores of a bound problem, and its argmax unless null, on the device of `on` and torch's current stream there.
void run_forward_cuda(const BoundProblem& bound, int64_t path, bool allow_tf32, const Tensor& on, Tensor& scores,
                      Tensor* argmax);

}  // namespace maxsim
