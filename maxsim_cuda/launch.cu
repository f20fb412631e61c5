// Chooses a path and launches it; owns everything that is not specific to one architecture.
#include "launch.h"

#include <algorithm>

#include "check.h"
#include "fma_forward.cuh"
#include "forward_launch.h"
#include "mma_select.h"
#include "sm90_deep_select.h"
#include "sm90_select.h"

namespace maxsim {
namespace cuda {

static thread_local int device_in_use = -1;

DeviceInUse::DeviceInUse(int index) : before_(device_in_use) { device_in_use = index; }
DeviceInUse::~DeviceInUse() { device_in_use = before_; }

const Device& current_device() {
  static Device devices[kDevices];
  int index = device_in_use;
  if (index < 0) check(cudaGetDevice(&index), "cudaGetDevice");
  if (index >= kDevices) throw std::runtime_error("no more than 64 GPUs in a process");
  Device& device = devices[index];
  device.index = index;
  if (!device.sms) {
    check(cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, index), "compute capability");
    check(cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
          "shared memory of a block");
    check(cudaDeviceGetAttribute(&device.sm_shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index),
          "shared memory of a multiprocessor");
    check(cudaDeviceGetAttribute(&device.l2_bytes, cudaDevAttrL2CacheSize, index), "L2 size");
    check(cudaDeviceGetAttribute(&device.sms, cudaDevAttrMultiProcessorCount, index), "multiprocessor count");
  }
  return device;
}

// Whether both sides are exact in fp16 once their rows are divided by a power of two: what is stored without a minimum
// has eight bits at most, and a 16-bit query loses only what is below 2^-28 of its row.
bool one_product_is_exact(const Problem& problem) {
  const auto narrow = [](const Segments& side) { return side.dtype != DType::f32 && !side.minimum; };
  return is_stored(problem.documents.dtype) && narrow(problem.queries) && narrow(problem.documents);
}

bool is_short_stream(const Segments& documents) {
  const int64_t rows = documents.packed() ? documents.extent : documents.count * documents.extent;
  return rows * documents.dim * element_size(documents.dtype) < int64_t{4} * current_device().l2_bytes;
}

unsigned grid(int64_t wanted, int per_sm) {
  return static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(wanted, int64_t{per_sm} * current_device().sms)));
}

Path mma_path() { return mma_arch() < 80 ? Path::sm75 : Path::sm80; }

int64_t available_paths() {
  int64_t found = int64_t{1} << static_cast<int>(Path::fma) | int64_t{1} << static_cast<int>(mma_path());
  if (current_device().major == 9) found |= int64_t{1} << static_cast<int>(Path::sm90);
  return found;
}

Path choose_path(Path path, const Problem& problem) {
  const bool hopper = sm90_takes(problem) || sm90_takes_deep(problem);
  if (path == Path::choose) return current_device().major == 9 && hopper ? Path::sm90 : mma_path();
  const int number = static_cast<int>(path);
  if (number < 0 || number > 31 || !(available_paths() >> number & 1))
    throw std::runtime_error("path " + std::to_string(number) + " does not run on this GPU");
  if (path == Path::sm90 && !hopper) return mma_path();
  return path;
}

// Whether scores are NaN only where they should be: neither side is split, and no sum of a row's features is taken,
// which may have infinities of both signs where none of its products has.
static bool sm90_multiplies_whole(const Problem& problem) {
  return sm90_takes_stored(problem) || (sm90_takes_widened(problem) && !problem.documents.minimum);
}

int64_t forward_workspace(const Problem& problem, Path path) {
  path = choose_path(path, problem);
  return path == Path::fma ? 0 : tiled_workspace(problem, path);
}

void forward(const Problem& problem, Path path, bool allow_tf32, float* scores, int32_t* argmax, void* workspace,
             cudaStream_t stream) {
  if (problem.pairs == 0) return;
  path = choose_path(path, problem);
  if (path != Path::fma) {
    tiled_forward(problem, path, allow_tf32 || one_product_is_exact(problem), scores, argmax, workspace, stream);
    if (!mma_splits(problem) || (path == Path::sm90 && sm90_multiplies_whole(problem))) return;
    const unsigned blocks = grid(problem.pairs, 2);
    if (argmax)
      fma_mend<true><<<blocks, FmaTile::kThreads, 0, stream>>>(problem, scores, argmax);
    else
      fma_mend<false><<<blocks, FmaTile::kThreads, 0, stream>>>(problem, scores, nullptr);
    check(cudaGetLastError(), "fma_mend");
    return;
  }
  const unsigned blocks = grid(problem.pairs, 8);
  const DenseTokens documents{problem.documents};
  if (argmax)
    fma_forward<true><<<blocks, FmaTile::kThreads, 0, stream>>>(problem, documents, problem.normalize, scores, argmax);
  else
    fma_forward<false>
        <<<blocks, FmaTile::kThreads, 0, stream>>>(problem, documents, problem.normalize, scores, nullptr);
  check(cudaGetLastError(), "fma_forward");
}

}  // namespace cuda
}  // namespace maxsim
