// The CUDA backend's entries. All of them only enqueue work on `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cuda {

// Numbers are part of the ops' schema (`path`).
// sm75 and sm80 are one kernel, as it was compiled for the GPU at hand.
enum class Path : int32_t { choose = 0, fma = 16, sm80 = 17, sm90 = 18, sm75 = 19 };

// Scratch memory a call needs, in bytes; 256-byte aligned.
int64_t forward_workspace(const Problem& problem, Path path);
void forward(const Problem& problem, Path path, bool allow_tf32, float* scores, int32_t* argmax, void* workspace,
             cudaStream_t stream);

// Stable sorts of a pair list's ids, null for other pairings.
struct SortedPairs {
  const int64_t* query_ids = nullptr;
  const int64_t* query_order = nullptr;
  const int64_t* document_ids = nullptr;
  const int64_t* document_order = nullptr;
};
int64_t backward_workspace(const Problem& problem);
// Gradients in the inputs' dtypes, contiguous; null = not needed. Those of a packed side are zeroed by the caller, and
// there is at least one pair and one query token.
void backward(const Problem& problem, const SortedPairs& sorted, const float* grad_scores, const int32_t* argmax,
              void* grad_queries, void* grad_documents, void* workspace, cudaStream_t stream);

constexpr int kDevices = 64;

struct Device {
  int index = 0, major = 0, sms = 0;  // index below kDevices
  int shared_bytes = 0;               // that a block may have
  int sm_shared_bytes = 0;            // that the blocks of an SM share, 1 KB of it for each block itself
  int l2_bytes = 0;
};
// Asked of the driver once for each device.
const Device& current_device();
// Tells this thread which device is the current one for as long as it lives: asking the runtime, a dozen times a call,
// is what a short call notices.
class DeviceInUse {
 public:
  explicit DeviceInUse(int index);
  ~DeviceInUse();
  DeviceInUse(const DeviceInUse&) = delete;
  DeviceInUse& operator=(const DeviceInUse&) = delete;

 private:
  int before_;
};
// Whether documents that are read once should pass through L2. A short stream leaves L2 to others: their dirty lines
// need not be written back to make room. A long one fills L2 whatever it says, and is up to 5 % slower for saying so.
bool is_short_stream(const Segments& documents);
// Blocks for as much work, at most so many an SM.
unsigned grid(int64_t wanted, int per_sm);

// Bit p is set where the current device runs path p.
int64_t available_paths();
Path choose_path(Path path, const Problem& problem);

}  // namespace cuda
}  // namespace maxsim
