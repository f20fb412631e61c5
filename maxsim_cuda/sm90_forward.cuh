// Forward on Hopper: a producer warpgroup streams document tiles through a ring in shared memory, math warpgroups
// multiply them with resident query rows and keep the row maxima in registers. No score tile is ever written.
#pragma once

#include "row_max.cuh"
#include "sm90_producer.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, bool kArgmax, bool kNormalize>
struct Sm90Consumer {
  const Sm90Args& args;
  Sm90Shared<C>& shared;
  uint32_t queries, tiles;  // shared addresses
  int group, warp, lane;
  float products[C::kTiles][C::N / 2];
  RowState<kArgmax> rows[C::kTiles];
  bool any_token;  // the open document has kept one so far

  __device__ __forceinline__ void issue(int tile, int stage) {
    const uint32_t a = queries + (group * C::kTiles + tile) * 64 * C::kAtoms * 128;
    const uint32_t b = tiles + stage * C::kTileBytes;
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::kAtoms * 4; ++k)
      ptx::Wgmma<T, C::N>::run(products[tile], ptx::wgmma_descriptor(a + k / 4 * 64 * 128 + k % 4 * 32),
                               ptx::wgmma_descriptor(b + k / 4 * C::N * 128 + k % 4 * 32), k > 0);
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void take_maxima(int tile, int flags, int stage) {
    const StageInfo& info = shared.stages[stage];
    const bool full = __shfl_sync(~0u, flags, 0) & StageInfo::kFull;
    take_products(products[tile], rows[tile], info.first_token, lane % 4 * 2, full, info.bits,
                  ColumnScale<kNormalize>{shared.token_scale[stage]});
  }

  __device__ __forceinline__ void finish(int64_t target, bool valid) {
    const int block = C::kTiles == 1 ? group * 2 + warp / 2 : group * 4 + warp;
    const BlockInfo& owner = shared.blocks[block];
    const int64_t pair = pair_of(args, owner, target);
    double sums[C::kTiles];
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) {
      rows[tile].reduce();
      float value[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int token = (C::kTiles == 1 ? warp % 2 : tile) * 16 + lane / 4 + r * 8;
        const bool counts = owner.kept >> token & 1;
        const float scale = kNormalize ? shared.row_scale[block_row<C>(block, token)] : 1.f;
        value[r] = counts ? rows[tile].best[r] * scale : 0.f;
        if (kArgmax && owner.query >= 0 && lane % 4 == 0)
          write_winner(args, owner, pair, token, counts && any_token ? rows[tile].winner[r] : -1);
      }
      sums[tile] = sum_lanes<4>(static_cast<double>(value[0]) + value[1]);
    }
    double sum = sums[0];
    if (C::kTiles == 2) {
      sum += sums[C::kTiles - 1];
    } else {
      const int barrier = 1 + group * 2 + warp / 2;
      if (lane == 0) shared.halves[group * 4 + warp] = sum;
      asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory");
      sum = shared.halves[group * 4 + warp / 2 * 2] + shared.halves[group * 4 + warp / 2 * 2 + 1];
      asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory");
      if (warp % 2) return;
    }
    if (owner.query >= 0) write_sum(args, owner, target, pair, lane, sum, valid && owner.valid, any_token);
  }

  __device__ __forceinline__ void wait_stage(const Ring& ring) {
    ptx::mbarrier_wait(&shared.full[ring.stage], ring.phase);
    if (kNormalize && args.tma) ptx::mbarrier_wait(&shared.scaled[ring.stage], ring.phase);
  }

  // The same in every lane: what makes control flow around wgmma uniform for the compiler too.
  __device__ __forceinline__ int flags_of(int stage) const { return __shfl_sync(~0u, shared.stages[stage].flags, 0); }

  // The tile of `stage` has met every row: let it go, and close its document if it was the last.
  __device__ __forceinline__ void leave(int stage, int flags) {
    any_token |= (flags & StageInfo::kAnyToken) != 0;
    const int64_t target = shared.stages[stage].target;
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.empty[stage]);
    if (!(flags & StageInfo::kLast)) return;
    finish(target, !(flags & StageInfo::kInvalid));
    any_token = false;
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) rows[tile].reset();
  }

  __device__ __forceinline__ void run() {
    Ring ring;
    int query_phase = 0;
    any_token = false;
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) rows[tile].reset();
    bool primed = false;
    int flags = 0;
    while (true) {
      if (!primed) {
        wait_stage(ring);
        flags = flags_of(ring.stage);
        if (flags & StageInfo::kEnd) return;
        if (flags & StageInfo::kNewQueries) {
          ptx::mbarrier_wait(&shared.queries_full, query_phase);
          query_phase ^= 1;
        }
#pragma unroll
        for (int tile = 0; tile < C::kTiles; ++tile) issue(tile, ring.stage);
      }
      Ring next = ring;
      next.advance<C::kStages>();
      int ahead = 0;
      bool follows = false;
      // Each row tile's next product is in flight while the other tile's max is taken. `follows` is shuffled where it
      // is used: carried through the loop, the compiler takes it for divergent and serialises every product.
#pragma unroll
      for (int tile = 0; tile < C::kTiles; ++tile) {
        ptx::wgmma_wait<C::kTiles - 1>();
        ptx::wgmma_settled(products[tile]);
        take_maxima(tile, flags, ring.stage);
        if (tile == 0) {
          follows = !(__shfl_sync(~0u, flags, 0) & StageInfo::kRelease);
          const Ring look = follows ? next : ring;
          wait_stage(look);
          ahead = flags_of(look.stage);
        }
        if (follows)
          issue(tile, next.stage);
        else
          ptx::wgmma_commit();
      }
      leave(ring.stage, flags);
      if (!follows) {
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.queries_empty);
      }
      primed = follows;
      flags = ahead;
      ring = next;
    }
  }
};

// Fills the stages' and the rows' factors while the math warpgroups are busy with earlier tiles.
template <class C, class T>
__device__ __forceinline__ void scale_stages(Sm90Shared<C>& shared, const char* queries, const char* tiles,
                                             int thread) {
  constexpr int kThreads = 96;
  Ring ring;
  int query_phase = 0;
  while (true) {
    ptx::mbarrier_wait(&shared.full[ring.stage], ring.phase);
    const int flags = shared.stages[ring.stage].flags;
    if (flags & StageInfo::kNewQueries) {
      ptx::mbarrier_wait(&shared.queries_full, query_phase);
      query_phase ^= 1;
      for (int row = thread; row < C::kRows; row += kThreads)
        shared.row_scale[row] = inverse_norm_of<C, T>(queries + row / 64 * 64 * C::kAtoms * 128, 64, row % 64);
    }
    for (int row = thread; row < C::N; row += kThreads)
      shared.token_scale[ring.stage][row] = inverse_norm_of<C, T>(tiles + ring.stage * C::kTileBytes, C::N, row);
    ptx::mbarrier_arrive(&shared.scaled[ring.stage]);
    if (flags & StageInfo::kEnd) return;
    ring.advance<C::kStages>();
  }
}

template <class C, class T, bool kArgmax, bool kNormalize>
__global__ void __launch_bounds__(C::kThreads, C::kPerSm)
    sm90_forward(const __grid_constant__ Sm90Args args, const __grid_constant__ CUtensorMap query_map,
                 const __grid_constant__ CUtensorMap document_map, const __grid_constant__ CUtensorMap tail_map) {
  extern __shared__ char dynamic[];
  __shared__ Sm90Shared<C> shared;
  static_assert((C::kSharedBytes + sizeof(Sm90Shared<C>) + 1024) * C::kPerSm <= 228 * 1024, "what a block can have");
  char* queries = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(dynamic) + 1023) & ~uintptr_t{1023});
  char* tiles = queries + C::kQueryBytes;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == C::kGroups * 128 && args.tma) {
    ptx::tma_prefetch(&document_map);
    ptx::tma_prefetch(&query_map);
    ptx::tma_prefetch(&tail_map);
  }
  if (threadIdx.x == 0) {
    const int loaders = args.tma ? 1 : 4;
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(&shared.full[i], loaders);
      ptx::mbarrier_init(&shared.empty[i], C::kGroups * 4);
      ptx::mbarrier_init(&shared.scaled[i], 96);
    }
    ptx::mbarrier_init(&shared.queries_full, loaders);
    ptx::mbarrier_init(&shared.queries_empty, C::kGroups * 4);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (group == C::kGroups) {
    if (C::kGroups == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 104;");
    if (warp == 0 || !args.tma) {
      Sm90Producer<C, T, kNormalize>{args, query_map, document_map, tail_map, shared, queries, tiles, warp, lane}.run();
    } else if (kNormalize) {
      scale_stages<C, T>(shared, queries, tiles, threadIdx.x % 128 - 32);
    }
  } else {
    if (C::kGroups == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    Sm90Consumer<C, T, kArgmax, kNormalize>{
        args, shared, ptx::shared_address(queries), ptx::shared_address(tiles), group, warp, lane}
        .run();
  }
}

}  // namespace cuda
}  // namespace maxsim
