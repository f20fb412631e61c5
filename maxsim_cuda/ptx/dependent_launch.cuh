// A kernel that starts while the one before it in the stream still runs. Other GPUs than Hopper and later start it
// after.
#pragma once

namespace maxsim {
namespace ptx {

// The next kernel may start.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// What the kernel before wrote is there from here on.
__device__ __forceinline__ void wait_for_prior_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace ptx
}  // namespace maxsim
