// One side of a problem as the copy engine sees it.
#pragma once

#include <cudaTypedefs.h>

#include <algorithm>

#include "check.h"
#include "sm90_config.cuh"

namespace maxsim {
namespace cuda {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return found;
}

CUtensorMapDataType map_type(DType type) {
  if (is_stored(type)) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return type == DType::f32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
         : type == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

// A [dim, rows, inner, outer] view of one side, in boxes of so many rows and bytes of each. False where alignment or
// strides do not allow a tensor map.
bool describe(const Segments& side, int box_rows, CUtensorMap* map, int box_bytes = 128) {
  if (side.feature_stride != 1 || reinterpret_cast<uintptr_t>(side.data) % 16) return false;
  const int64_t outer = side.packed() ? 1 : side.count / side.inner;
  const cuuint64_t size = element_size(side.dtype);
  const cuuint64_t sizes[4] = {
      static_cast<cuuint64_t>(row_elements(side)), static_cast<cuuint64_t>(std::max<int64_t>(side.extent, 1)),
      static_cast<cuuint64_t>(side.packed() ? 1 : side.inner), static_cast<cuuint64_t>(std::max<int64_t>(outer, 1))};
  cuuint64_t strides[3] = {static_cast<cuuint64_t>(side.token_stride) * size,
                           static_cast<cuuint64_t>(side.segment_stride.inner) * size,
                           static_cast<cuuint64_t>(side.segment_stride.outer) * size};
  for (int i = 0; i < 3; ++i) {
    if (sizes[i + 1] == 1) strides[i] = 16;  // never stepped along
    if (strides[i] % 16 || strides[i] >> 40) return false;
  }
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(box_bytes / size), static_cast<cuuint32_t>(box_rows), 1, 1},
                   step[4] = {1, 1, 1, 1};
  const bool narrow = box_bytes == 64;  // of which L2 fetches two at once, and is slower at four
  return encoder()(map, map_type(side.dtype), 4, const_cast<void*>(side.data), sizes, strides, box, step,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, narrow ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
                   narrow ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
