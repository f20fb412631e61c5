// Hands a plan to the GPU, on the stream that torch's MPS backend is filling.
#pragma once

#include <array>
#include <cstdint>

#include "plan.h"

namespace maxsim {
namespace metal_backend {

// A tensor of the call: its Metal buffer (torch keeps the object where other devices keep a data pointer), where in it
// the tensor starts, and how far the tensor reaches. No storage where the call has no such tensor.
struct RoleBuffer {
  void* storage = nullptr;
  int64_t offset = 0;
  int64_t bytes = 0;
};
using RoleBuffers = std::array<RoleBuffer, static_cast<size_t>(Role::count)>;

// Enqueues all dispatches; does not wait. Throws std::runtime_error with Metal's own words.
void encode(const Plan& plan, const RoleBuffers& buffers);

}  // namespace metal_backend
}  // namespace maxsim
