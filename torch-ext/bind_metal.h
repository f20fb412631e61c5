// Tensors of a call as the Metal buffers that its plan names.
#pragma once

#include <cstdint>
#include <vector>

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
  void set_problem(const ProblemArguments& arguments);
  // Stable order of a pair list's ids, so that a segment's pairs are neighbours in pair order.
  void set_sorted_pairs(const ProblemArguments& arguments, bool by_query, bool by_document);
  metal_backend::TokenOffsets token_offsets() const;
  // Scratch memory comes from the device of `on`.
  void run(const metal_backend::Plan& plan, const Tensor& on);

 private:
  void set_sorted(const Tensor& ids, Role values, Role order);

  metal_backend::RoleBuffers buffers_;
  std::vector<Tensor> sorted_;  // alive until the work is enqueued; torch's allocator keeps the order from there on
};

void require_path(int64_t path);  // throws unless it is 0 or this backend's

}  // namespace maxsim
