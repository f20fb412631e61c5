// Forward on mma.sync for the plain case: one short query for each document, both sides padded, every token kept and no
// winner asked for. Such a call waits for memory, and a short one for its instructions, of which this kernel has a
// quarter of what every layout takes (mma_rows.cuh).
#pragma once

#include "mma_operands.cuh"
#include "ptx/load.cuh"
#include "ptx/mbarrier.cuh"

namespace maxsim {
namespace cuda {

// The tiles of a block's documents are dealt to its warps, whichever document they are of: so all have as much to do,
// and what they wait for comes in the order of memory. Each warp has a ring of its own, two tiles of 8 KB on their way.
// Two blocks of four warps an SM, where its shared memory holds as many rings: one of eight leaves more SMs with a
// document less, and takes 2 % longer.
template <int kSteps_>
struct MmaDenseConfig {
  static constexpr int kSteps = kSteps_, N = 128 / kSteps, kPitch = kSteps * 64, kTileBytes = N * kPitch;
  static constexpr int kMostWarps = 4, kPerSm = 2, kStages = 3, kRingBytes = kStages * kTileBytes;
  static constexpr int kCopies = kPitch / 16, kRowsACopy = 32 / kCopies;  // rows that a copy of each lane fills
  static constexpr int kSlots = 4;                                        // documents whose warps may have come apart
  static_assert(kRowsACopy % 2 == 0 && 8 % kRowsACopy == 0, "copies keep the exchange of halves");
};

// Few words, because a short call waits for each line of them.
struct MmaDenseArgs : PaddedSides {
  float* scores;
  uint32_t units, share;  // documents, and how many each block has, the first ones one more
  uint32_t of_a_query;    // documents
  bool pass_through;      // documents should not push other data out of L2
};

template <class C>
struct MmaDenseShared {
  uint64_t full[C::kSlots], free[C::kSlots];
  float maxima[C::kSlots][C::kMostWarps][kBlockTokens];
};

template <class C, class T>
struct MmaDenseWarp {
  using Rows = QueryRows<T, C::kSteps, false>;
  // A tile of a document of this block.
  struct Place {
    uint32_t document;
    int tile;
  };

  const MmaDenseArgs& args;
  MmaDenseShared<C>& shared;
  char* ring;
  const int warps, warp, lane, tiles;  // `tiles` of a document
  const bool deals;
  uint32_t first, count;  // the block's documents: neighbours, or every so many where all have one query
  const uint64_t stream_policy;
  Rows queries;

  __device__ __forceinline__ MmaDenseWarp(const MmaDenseArgs& args_, MmaDenseShared<C>& shared_, char* memory)
      : args(args_),
        shared(shared_),
        ring(memory + threadIdx.x / 32 * C::kRingBytes),
        warps(blockDim.x / 32),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        tiles((args_.tokens + C::N - 1) / C::N),
        deals(args_.of_a_query == args_.units),
        stream_policy(ptx::pass_through_l2()) {
    const uint32_t extra = args.units - args.share * gridDim.x;
    first = deals ? blockIdx.x : blockIdx.x * args.share + min(blockIdx.x, extra);
    count = args.share + (blockIdx.x < extra);
  }

  __device__ __forceinline__ uint32_t unit_of(const Place& place) const {
    return first + place.document * (deals ? gridDim.x : 1);
  }
  __device__ __forceinline__ Place after(Place place) const {
    for (place.tile += warps; place.tile >= tiles; place.tile -= tiles) ++place.document;
    return place;
  }

  // Of a document's last tile only as many eights are met as there are tokens left, the first reaching back.
  __device__ __forceinline__ int columns_of(const Place& place) const {
    return min(C::N, (args.tokens - place.tile * C::N + 7) & ~7);
  }

  // And moves on behind them.
  template <int kRows>
  __device__ __forceinline__ void copy_rows(char*& to, const char*& from, int bytes) const {
    const auto copy_all = [&](auto copy) {
#pragma unroll
      for (int i = 0; i < kRows; i += C::kRowsACopy) {
        copy(to + i * C::kPitch);
        from += C::kRowsACopy * args.token_stride;
      }
    };
    if (args.pass_through)
      copy_all([&](char* at) { ptx::copy_16(at, from, bytes, stream_policy); });
    else
      copy_all([&](char* at) { ptx::copy_16(at, from, bytes); });
    to += kRows * C::kPitch;
  }

  __device__ __forceinline__ void issue(int stage, const Place& place) {
    if (place.document < count) {
      const uint32_t unit = unit_of(place), slab = unit / args.of_a_query;
      const int columns = columns_of(place), row = min(place.tile * C::N, args.tokens - columns);
      const int row0 = lane / C::kCopies, copy = lane % C::kCopies;
      const char* from = args.documents + slab * args.slab_stride +
                         (unit - slab * args.of_a_query) * args.document_stride + (row + row0) * args.token_stride +
                         copy * 16;
      char* to = ring + stage * C::kTileBytes + TilePieces<C::kPitch>::place(row0, copy);
      // As the sum of a uniform register and another it would become an instruction that is none, under a policy (ptxas
      // 13.0 for 9.0a).
      asm volatile("" : "+l"(to));
      const int bytes = copy < args.pieces ? 16 : 0;
      if (columns < C::N)
#pragma unroll 1
        for (int eight = 0; eight < columns; eight += 8) copy_rows<8>(to, from, bytes);
      else
        copy_rows<C::N>(to, from, bytes);
    }
    ptx::copy_commit();
  }

  // Before tiles are asked for: loads come back in the order in which an SM asks for them.
  __device__ __forceinline__ void fetch_queries(uint32_t slab, typename Rows::Fetched& fetched) const {
    Rows::fetch(args.queries + slab * args.query_stride, args.query_token_stride, args.query_tokens, args.pieces,
                fetched);
  }
  // Lines that queries will be fetched from soon, a row a lane.
  __device__ __forceinline__ void prefetch_queries(uint32_t slab) const {
    const char* from = args.queries + slab * args.query_stride + lane * args.query_token_stride;
    if (lane < args.query_tokens)
      for (int piece = 0; piece < args.pieces; piece += 8) ptx::prefetch_to_l2(from + piece * 16);
  }

  // This warp has met its tiles of a document. The warp of the last one waits for the others.
  __device__ __forceinline__ void finish(const Place& place) {
    const int slot = place.document % C::kSlots, parity = place.document / C::kSlots % 2;
    int32_t winner;
    float value = queries.row_maximum(false, winner);
    queries.reset();
    if (place.document >= C::kSlots) ptx::mbarrier_wait(&shared.free[slot], parity ^ 1);
    shared.maxima[slot][place.tile % warps][lane] = value;
    ptx::mbarrier_arrive(&shared.full[slot]);
    if (place.tile + 1 < tiles) return;
    ptx::mbarrier_wait(&shared.full[slot], parity);
    for (int other = 0; other < min(tiles, warps); ++other) value = max_nan(value, shared.maxima[slot][other][lane]);
    ptx::mbarrier_arrive(&shared.free[slot]);
    const double sum = sum_lanes(lane < args.query_tokens ? static_cast<double>(value) : 0.);
    if (lane == 0) args.scores[unit_of(place)] = static_cast<float>(sum);
  }

  __device__ __forceinline__ void run() {
    Place now = after({0, warp - warps}), then = now;
    uint32_t resident = unit_of(now) / args.of_a_query, announced = resident;
    int stage = 0;
    typename Rows::Fetched fetched;
    if (now.document < count) fetch_queries(resident, fetched);
#pragma unroll 1
    for (int i = 0; i < C::kStages - 1; ++i) {
      issue(i, then);
      then = after(then);
    }
    if (threadIdx.x < C::kSlots) {
      ptx::mbarrier_init(&shared.full[threadIdx.x], min(tiles, warps) * 32);
      ptx::mbarrier_init(&shared.free[threadIdx.x], 32);
    }
    __syncthreads();
    if (now.document >= count) return;
    queries.hold(fetched);
    queries.reset();
    const uint32_t tiles_at = ptx::shared_address(ring);
    do {
      const uint32_t slab = unit_of(now) / args.of_a_query;
      if (slab != resident) {
        fetch_queries(slab, fetched);
        queries.hold(fetched);
        resident = slab;
      }
      ptx::copy_wait<C::kStages - 2>();
      __syncwarp();  // the tile has arrived, and all are done with the one before
      issue(stage == 0 ? C::kStages - 1 : stage - 1, then);
      then = after(then);
      if (const uint32_t ahead = unit_of(then) / args.of_a_query; ahead != announced && then.document < count) {
        prefetch_queries(ahead);
        announced = ahead;
      }
      float products[2][C::N / 2];
      const TilePieces<C::kPitch> tokens(tiles_at + stage * C::kTileBytes);
      if (const int columns = columns_of(now); columns < C::N)
        multiply_tile<T>(products, queries.operands, tokens, columns / 8);
      else
        multiply_tile<T>(products, queries.operands, tokens);
      if (!queries.take_positive(products)) queries.take_each(products);
      if (now.tile + warps >= tiles) finish(now);
      now = after(now);
      stage = stage + 1 == C::kStages ? 0 : stage + 1;
    } while (now.document < count);
  }
};

template <class C, class T>
__global__ void __launch_bounds__(C::kMostWarps * 32, C::kPerSm)
    mma_dense_forward(const __grid_constant__ MmaDenseArgs args) {
  extern __shared__ __align__(128) char memory[];
  __shared__ MmaDenseShared<C> shared;
  MmaDenseWarp<C, T>(args, shared, memory).run();
}

}  // namespace cuda
}  // namespace maxsim
