// Which query tokens a slice of a document's tokens won: all that met the document are looked through.
#pragma once

#include "backward_rows.cuh"
#include "backward_sort.cuh"

namespace maxsim {
namespace cuda {

// Hits are query tokens whose winner lies in the slice.
template <int Threads, int Capacity, int Tokens, int Blocks>
struct DocumentTile {
  static constexpr int kThreads = Threads;
  static constexpr int kGroups = Threads / kRowLanes;
  static constexpr int kWarps = Threads / 32;
  static constexpr int kCapacity = Capacity;  // hits that are summed in one go
  static constexpr int kTokens = Tokens;      // of a slice at most
  static constexpr int kBlocks = Blocks;      // an SM, which bounds the registers
};
// One query with a document of its own: most rows are zeros, which a plain fill writes faster, and the larger the
// slice, the less is looked up. A warp by itself never waits for another.
using FewHits = DocumentTile<32, 64, 512, 24>;
// A batch of queries: 60 KB, three blocks an SM, and one on sm_75. A slice is meant to have 3750 hits, so that few
// overflow; what a document's candidates cost is paid once for each slice.
using ManyHits = DocumentTile<256, 5632, 512, 3>;

// What all threads of a block know of their slice: in shared memory, so that registers are left for rows.
struct Slice {
  int64_t segment;
  PairRange range;
  int64_t first;                       // token of the document where the slice starts
  int64_t begin, norm_row, first_row;  // of the slice in the document, the norms and the gradient
  int tokens;                          // of the slice that the document has
};

template <typename T, typename Rows>
struct DocumentShared {
  using Sort = HitSort<T::kThreads, T::kCapacity, T::kTokens>;
  Slice slice;
  Sort sort;
  uint32_t number[T::kCapacity];  // of the candidate that hit
  struct Sums {
    float carry[T::kGroups][kRowFeatures];
    Hit<Rows> found[T::kGroups][kRowLanes];
  };
  union {
    typename Sort::Starts starts;  // while the hits are sorted
    Sums sums;                     // while they are summed
  };
  int carry_token[T::kGroups];
  int64_t next[T::kWarps];   // where each warp goes on to look
  float dots[T::kTokens];    // normalising over more than one chunk of features
  bool touched[T::kTokens];  // a row that nothing won is exactly zero, whatever it holds
  float sum[kRowFeatures];   // of a token that alone has more hits than fit
};
static_assert(sizeof(DocumentShared<ManyHits, AnyRows>) <= 63 * 1024, "the shared memory of an sm_75 block");

// A candidate is one query token of one of the document's pairs, numbered pair by pair. Without such a query token it
// is none, whatever the argmax says.
static __device__ __noinline__ bool exists(const BackwardArgs& args, const Slice& slice, uint32_t number) {
  const uint32_t width = static_cast<uint32_t>(args.problem.argmax_width), n = number / width;
  const int64_t query = nth_partner(args.problem, args.by_document, false, slice.segment, slice.range.from + n);
  return number - n * width < static_cast<uint32_t>(span_of(args.problem.queries, query).length);
}

// A unit is kStep candidates that lie together. Warps look through neighbouring shares of the units, 128 candidates at
// a time, and collect into segments of their own.
template <typename T, typename Rows>
struct HitCollector {
  using Sort = typename DocumentShared<T, Rows>::Sort;

  const BackwardArgs& args;
  const Problem& problem;
  DocumentShared<T, Rows>& shared;

  // Where a lane looks next, and how it gets there: its next unit is 32 further on.
  struct Walk {
    const int32_t* winners;  // of the first candidate, for pairs that need no looking up
    int64_t pair_stride;
    uint32_t pair, slot, width, step_pairs, step_slots;  // slots and width in units

    __device__ __forceinline__ void advance() {
      pair += step_pairs;
      slot += step_slots;
      if (slot >= width) slot -= width, ++pair;
    }
  };
  template <int kStep>
  __device__ __forceinline__ Walk walk_from(int64_t unit) const {
    const bool listed = problem.pairing == Pairing::list;
    Walk walk;
    walk.width = static_cast<uint32_t>(problem.argmax_width / kStep);
    walk.winners = args.argmax + (listed ? 0 : shared.slice.segment * problem.argmax_width);
    walk.pair_stride = problem.argmax_width * (listed ? 1 : problem.documents.count);
    walk.pair = static_cast<uint32_t>(quotient(unit, walk.width));
    walk.slot = static_cast<uint32_t>(unit - int64_t{walk.pair} * walk.width);
    walk.step_pairs = 32 / walk.width;
    walk.step_slots = 32 - walk.step_pairs * walk.width;
    asm volatile("" : "+r"(walk.step_pairs), "+r"(walk.step_slots));  // divided once, not at every step
    return walk;
  }

  struct Look {
    int winner[4];
  };
  // Of the `left` units that a warp has yet to look at.
  template <int kStep>
  __device__ __forceinline__ Look look(Walk& walk, int lane, int left) const {
    Look out = {{-1, -1, -1, -1}};
#pragma unroll
    for (int i = 0; i < 4; i += kStep) {
      if (lane + 32 * (i / kStep) < left) {
        const int64_t pair = problem.pairing == Pairing::list
                                 ? args.by_document.order[shared.slice.range.from + walk.pair]
                                 : int64_t{walk.pair};
        const int32_t* from = walk.winners + pair * walk.pair_stride + walk.slot * kStep;
        if constexpr (kStep == 4) {
          const int4 four = __ldg(reinterpret_cast<const int4*>(from));
          out = {{four.x, four.y, four.z, four.w}};
        } else {
          out.winner[i] = __ldg(from);
        }
      }
      walk.advance();
    }
    return out;
  }

  // Those of a lane's four hits whose query token exists.
  __device__ __forceinline__ unsigned existing(uint32_t number, uint32_t step, unsigned hits) const {
    unsigned out = 0;
#pragma unroll 1
    for (int i = 0; i < 4; ++i)
      if (hits >> i & 1 && exists(args, shared.slice, number + i * step)) out |= 1u << i;
    return out;
  }

  // Goes on from `next` until all candidates have been looked at, or the segment might overflow.
  template <int kStep>
  __device__ __forceinline__ void collect(int64_t units) {
    constexpr int kUnits = 128 / kStep;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, below = (1u << lane) - 1;
    asm volatile("" : "+r"(lane), "+r"(warp), "+r"(below));  // kept, not asked of a special register at every use
    const unsigned base = warp * Sort::kSegment;
    const int64_t from = shared.next[warp], end = units * (warp + 1) / T::kWarps;
    const int first = static_cast<int>(shared.slice.first);
    const unsigned tokens = shared.slice.tokens;
    const bool ragged =
        problem.queries.packed() || problem.queries.lengths || problem.argmax_width > problem.queries.extent;
    int left = static_cast<int>(end - from);  // an eighth of the 2^32 query tokens that a document meets at most
    uint32_t number = static_cast<uint32_t>((from + lane) * kStep);
    Walk walk = walk_from<kStep>(from + lane);
    int filled = 0;
    Look now = look<kStep>(walk, lane, left);
    for (; left > 0 && filled + min(kUnits, left) * kStep <= Sort::kSegment; left -= kUnits, number += 128) {
      const Look next = look<kStep>(walk, lane, left - kUnits);
      unsigned hits = 0;  // of this lane's four
#pragma unroll
      for (int i = 0; i < 4; ++i) hits |= (static_cast<unsigned>(now.winner[i] - first) < tokens ? 1u : 0u) << i;
      if (ragged) hits &= existing(number, kStep == 4 ? 1 : 32, hits);
      // One of each lane at a time: few lanes have more.
      for (unsigned votes; (votes = __ballot_sync(~0u, hits)) != 0; hits &= hits - 1) {
        if (hits) {
          const int i = __ffs(hits) - 1;
          const int low = i & 1 ? now.winner[1] : now.winner[0], high = i & 1 ? now.winner[3] : now.winner[2];
          const unsigned token = (i & 2 ? high : low) - first, place = base + filled + __popc(votes & below);
          shared.sort.token[place] = static_cast<uint16_t>(token);
          shared.number[place] = number + i * (kStep == 4 ? 1 : 32);
          shared.touched[token] = true;
          Sort::add(shared.starts, token, warp);
        }
        filled += __popc(votes);
      }
      now = next;
    }
    __syncwarp();
    if (lane == 0) {
      shared.next[warp] = end - max(left, 0);
      shared.sort.count[warp] = filled;
    }
    __syncwarp();  // all lanes look at what the first one wrote
  }

  __device__ __forceinline__ bool in_fours() const {
    return problem.argmax_width % 4 == 0 && reinterpret_cast<uintptr_t>(args.argmax) % 16 == 0;
  }
  __device__ __forceinline__ int64_t units() const {
    const PairRange& range = shared.slice.range;
    return shared.slice.tokens ? (range.to - range.from) * problem.argmax_width / (in_fours() ? 4 : 1) : 0;
  }

  __device__ __forceinline__ void restart() {
    if (threadIdx.x < T::kWarps) shared.next[threadIdx.x] = units() * threadIdx.x / T::kWarps;
    for (int i = threadIdx.x; i < kRowFeatures; i += T::kThreads) shared.sum[i] = 0.f;
    __syncthreads();
  }

  // Whether every candidate has been looked at.
  __device__ __forceinline__ bool collect_hits() {
    const int warp = threadIdx.x / 32;
    Sort::clear(shared.starts, shared.slice.tokens);
    __syncthreads();
    if (in_fours())
      collect<4>(units());
    else
      collect<1>(units());
    return __syncthreads_and(shared.next[warp] >= units() * (warp + 1) / T::kWarps);
  }
};

}  // namespace cuda
}  // namespace maxsim
