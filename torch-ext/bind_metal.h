// Tensors of a call as the Metal buffers that its plan names.
#pragma once

#include <cstdint>

#include "../maxsim_metal/encode.h"
#include "torch_binding.h"

namespace maxsim {

using metal_backend::Role;

constexpr int64_t kMetalPath = 24;  // the op schema's number for this backend's one path

class __attribute__((visibility("hidden"))) MetalBuffers {
 public:
  void set(Role role, const Tensor& t);
  void set(Role role, const MaybeTensor& t) {
    if (t) set(role, *t);
  }
  metal_backend::TokenOffsets token_offsets() const;
  // Scratch memory comes from the device of `on`.
  void run(const metal_backend::Plan& plan, const Tensor& on);

 private:
  metal_backend::RoleBuffers buffers_;
};

}  // namespace maxsim
