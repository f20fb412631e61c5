// The table of one instruction set. Included by each isa_*.cpp under its own target pragma.
#pragma once

#include "kernels.h"
#include "soft_kernels.h"

namespace maxsim {
namespace cpu {
namespace {

// Gradients of the soft maximum multiply probabilities, which are fp32 whatever the rows are.
template <class Simd, class Words>
constexpr Isa make_isa(Path path) {
  return Isa{path,
             Simd::lanes,
             Words::bf16_pairs,
             score<Simd, Words>,
             widen<Simd>,
             inverse_norms<Simd>,
             narrow<Simd>,
             dot<Simd>,
             accumulate<Simd>,
             add_buckets<Simd>,
             soft_score<Simd, Words>,
             soft_gradient<Simd, Fp32Words<Simd>>};
}

}  // namespace
}  // namespace cpu
}  // namespace maxsim
