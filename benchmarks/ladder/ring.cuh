// What the rungs with a ring share: a producer warp keeps document tiles coming through the tensor memory accelerator
// (TMA), warpgroups consume them. A rung is the function that consumes.
#pragma once

#include <cudaTypedefs.h>

#include "hopper.cuh"
#include "ptx/tma.cuh"

namespace ladder {

// Some 100 KB on their way to each SM are what the memory likes best; four tiles are 104.
constexpr int kStages = 4;

struct Ring {
  uint64_t full[kStages], empty[kStages];
};

// Where a walk through the ring is: both sides count alike.
struct Place {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// What a consuming warp knows. Tiles come in the order of the documents.
struct Consumer {
  const Problem& problem;
  Ring& ring;
  uint32_t queries, tiles;  // shared addresses, the queries those of this warpgroup
  int query;

  __device__ __forceinline__ void wait(Place place) const { ptx::mbarrier_wait(&ring.full[place.stage], place.phase); }
  __device__ __forceinline__ void start(Products& c, int row_tile, Place place) const {
    issue(c, queries + row_tile * kRowTileBytes, tiles + place.stage * kTileBytes);
  }
  __device__ __forceinline__ void release(Place place) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&ring.empty[place.stage]);
  }
};

__device__ __forceinline__ void produce(const Problem& p, Ring& ring, char* tiles, const CUtensorMap* map) {
  Place place;
  for (int document = blockIdx.y; document < p.document_count; document += gridDim.y)
    for (int tile = 0; tile < kTilesADocument; ++tile) {
      ptx::mbarrier_wait(&ring.empty[place.stage], place.phase ^ 1);
      ptx::mbarrier_arrive_expect(&ring.full[place.stage], kTileBytes);
      char* to = tiles + place.stage * kTileBytes;
      for (int atom = 0; atom < 2; ++atom)
        ptx::tma_load(to + atom * kTile * 128, map, &ring.full[place.stage], atom * 64, first_token(p, tile), document,
                      0);
      place.advance();
    }
}

template <int kGroups>
constexpr int kThreads = (kGroups + 1) * 128;

template <int kGroups, void (*kConsume)(const Consumer&)>
__global__ void __launch_bounds__(kThreads<kGroups>, 1)
    ring_kernel(Problem p, const __grid_constant__ CUtensorMap documents) {
  extern __shared__ __align__(1024) char shared[];
  __shared__ Ring ring;
  char* tiles = shared + kGroups * kGroupBytes;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(&ring.full[stage], 1);
      ptx::mbarrier_init(&ring.empty[stage], kGroups * 4);
    }
    ptx::mbarrier_init_fence();
  }
  load_queries(shared, p, kGroups, threadIdx.x, kThreads<kGroups>);
  ptx::fence_async_proxy();
  __syncthreads();
  if (warp / 4 == kGroups) {
    if (threadIdx.x == kGroups * 128) produce(p, ring, tiles, &documents);
  } else {
    kConsume({p, ring, ptx::shared_address(shared) + warp / 4 * kGroupBytes, ptx::shared_address(tiles),
              static_cast<int>(blockIdx.x) * kGroups * kQueriesAGroup + warp});
  }
}

inline CUtensorMap describe(const Problem& p) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found), "driver");
  const cuuint64_t sizes[4] = {kDim, static_cast<cuuint64_t>(p.document_tokens),
                               static_cast<cuuint64_t>(p.document_count), 1};
  const cuuint64_t row = kDim * 2, document = row * sizes[1], strides[3] = {row, document, document * sizes[2]};
  const cuuint32_t box[4] = {64, kTile, 1, 1}, step[4] = {1, 1, 1, 1};
  CUtensorMap map;
  if (reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry)(
          &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<__nv_bfloat16*>(p.documents), sizes, strides, box, step,
          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
    fprintf(stderr, "the documents have no tensor map\n");
    exit(1);
  }
  return map;
}

template <int kGroups, void (*kConsume)(const Consumer&)>
void launch_ring(const Problem& problem) {
  check_tokens(problem);
  launch(ring_kernel<kGroups, kConsume>, problem, kGroups * kQueriesAGroup, kThreads<kGroups>,
         kGroups * kGroupBytes + kStages * kTileBytes, describe(problem));
}

}  // namespace ladder
