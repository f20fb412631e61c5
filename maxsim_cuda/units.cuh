// The work of a thread block: which documents meet which queries, and in which order.
#pragma once

#include "forward_args.cuh"

namespace maxsim {
namespace cuda {

// A document that meets resident queries.
struct Unit {
  Span document;
  int64_t group = -1;   // query group (cross) or query
  int64_t target = -1;  // document (cross) or pair
  int32_t inner = 0, outer = 0;
  int32_t parts = 1;    // query groups that this unit needs, one after the other
  bool release = true;  // the next unit meets other queries
};

// The work of packed documents, cut so that each of `blocks` thread blocks has as many tokens: what documents before
// one have is an offset. A document costs kDocumentCost tokens besides. Offsets that are not sorted give other shares,
// but still shares: whatever is compared, a larger cost never finds a smaller unit. Int: of a cost, and of a group
// times a block. Run by whole warps, of which each half looks after one cut.
template <int kDocumentCost, class Int>
struct TokenShares {
  const ForwardArgs& args;
  const Int groups, blocks;
  const int64_t origin;
  const Int group_cost;

  // In front of a thread block: in a group of query blocks, where so much is `behind`.
  struct Cut {
    Int group, behind;
  };

  __device__ __forceinline__ TokenShares(const ForwardArgs& args_, Int groups_, unsigned blocks_)
      : args(args_),
        groups(groups_),
        blocks(static_cast<Int>(blocks_)),
        origin(args_.problem.documents.offsets[args_.first]),
        group_cost(max(Int{1}, cost(static_cast<Int>(args_.count)))) {}

  // Of what is before a document.
  __device__ __forceinline__ Int cost(Int document) const {
    const Segments& side = args.problem.documents;
    const int64_t tokens = side.offsets[args.first + document] - origin;
    return static_cast<Int>(max(int64_t{0}, min(tokens, side.extent))) + document * kDocumentCost;
  }

  // Where a group is cut, a float says well enough, and to all blocks the same.
  __device__ __forceinline__ Cut at(unsigned block) const {
    const Int from = static_cast<Int>(block) * groups, group = divide(from, blocks);
    const float part = static_cast<float>(from - group * blocks) * __fdividef(1.f, static_cast<float>(blocks));
    return {group, static_cast<Int>(static_cast<float>(group_cost) * part)};
  }

  // The first document, from `from` on, that has no less before it: 16 are looked at together, because what takes time
  // is to wait for offsets.
  __device__ __forceinline__ Int find(Int behind, Int from = 0) const {
    const int half = threadIdx.x / 16 % 2, place = threadIdx.x % 16;
    Int to = static_cast<Int>(args.count);
    while (__any_sync(~0u, from < to)) {
      const Int step = (to - from + 15) / 16, probe = min(to, from + place * step);
      const unsigned enough = __ballot_sync(~0u, probe == to || cost(probe) >= behind) >> half * 16 & 0xffff;
      const int found = enough ? __ffs(enough) - 1 : 16;
      to = min(to, from + found * step);
      from = found ? from + (found - 1) * step + 1 : to;
    }
    return to;
  }

 private:
  __device__ __forceinline__ static int64_t divide(int64_t a, int64_t b) { return quotient(a, b); }
  __device__ __forceinline__ static int divide(int a, int b) {
    return static_cast<unsigned>(a) / static_cast<unsigned>(b);
  }
};

// Walks over the units of this thread block, for groups of kBlocks query blocks. Run by whole warps: each lane looks up
// one of the next 32 units ahead of time, because offsets and ids come from memory and 64-bit divisions are slow. What
// they find stays in shared memory, where it costs no registers. kColumns: tokens of a tile, or 0 where each thread
// block takes as many units, however many tokens these have.
template <int kBlocks, int kColumns = 0>
class UnitWalk {
 public:
  __device__ __forceinline__ UnitWalk(const ForwardArgs& args, Unit (&ahead)[32])
      : args_(args),
        ahead_(ahead),
        cross_(args.problem.pairing == Pairing::cross),
        block_(blockIdx.x / args.pieces),
        blocks_(gridDim.x / args.pieces) {
    const int64_t groups = cross_ ? quotient(block_count(args) + kBlocks - 1, kBlocks) : 1;
    const int64_t units = groups * args.count;
    // One query group: documents are dealt round-robin. Several: a contiguous range each, so that rows stay resident.
    const bool deal = cross_ && groups == 1;
    if (kColumns && cross_ && args.problem.documents.packed()) {
      const TokenShares<kColumns / 2, int64_t> shares(args, groups, blocks_);
      const auto cut = shares.at(block_ + threadIdx.x / 16 % 2);
      const int64_t unit = cut.group * args.count + shares.find(cut.behind);
      base_ = __shfl_sync(~0u, unit, 0);
      to_ = __shfl_sync(~0u, unit, 16);
      step_ = 1;
      return;
    }
    base_ = deal ? block_ : quotient(units * block_, blocks_);
    to_ = deal ? units : quotient(units * (block_ + 1), blocks_);
    step_ = deal ? blocks_ : 1;
  }

  __device__ __forceinline__ bool cross() const { return cross_; }

  // Several warps may walk together: `sync` brings them to one place. Null at the end; else valid until the next call.
  template <class Sync>
  __device__ __forceinline__ const Unit* next(Sync sync) {
    if (at_ == batch_) {
      if (base_ >= to_) return nullptr;
      sync();  // the last of the units before has been read
      const int64_t mine = base_ + threadIdx.x % 32 * step_;
      ahead_[threadIdx.x % 32] = look_up(mine, mine + step_);
      at_ = 0;
      batch_ = static_cast<int>(min(int64_t{32}, (to_ - base_ + step_ - 1) / step_));
      base_ += 32 * step_;
      sync();
    }
    return &ahead_[at_++];
  }
  // The unit after this one, if it has been looked up.
  __device__ __forceinline__ const Unit* peek() const { return at_ < batch_ ? &ahead_[at_] : nullptr; }
  template <class Sync>
  __device__ __forceinline__ bool next(Unit& unit, Sync sync) {
    const Unit* found = next(sync);
    if (found) unit = *found;
    return found;
  }

 private:
  __device__ __forceinline__ int64_t group_of(int64_t unit) const {
    if (cross_) return quotient(unit, args_.count);
    const int64_t query = pair_ids(args_.problem, args_.first + unit).query;
    return query < 0 ? args_.problem.queries.count : query;  // out of range either way, and somebody writes the NaN
  }

  __device__ __forceinline__ Unit look_up(int64_t unit, int64_t next) const {
    const Problem& problem = args_.problem;
    Unit out;
    if (unit >= to_) return out;
    out.group = group_of(unit);
    out.target = args_.first + (cross_ ? unit - out.group * args_.count : unit);
    const int64_t id = cross_ ? out.target : pair_ids(problem, out.target).document;
    out.document = span_of(problem.documents, id);
    if (!problem.documents.packed()) {
      out.outer = static_cast<int>(quotient(max(id, int64_t{0}), problem.documents.inner));
      out.inner = static_cast<int>(id - out.outer * problem.documents.inner);
    }
    constexpr int kRows = kBlocks * kBlockTokens;
    if (!cross_) out.parts = max(1, (span_of(problem.queries, out.group).length + kRows - 1) / kRows);
    out.release = out.parts > 1 || next >= to_ || group_of(next) != out.group;
    return out;
  }

  const ForwardArgs& args_;
  Unit (&ahead_)[32];
  const bool cross_;
  const unsigned block_, blocks_;  // thread blocks that share documents count as one
  int64_t base_, to_, step_;
  int at_ = 0, batch_ = 0;
};

// Tiles of kColumns document tokens. The last one reaches back over tokens already met, which changes no max and no
// winner, rather than be partial; under a mask it may not, because the kept columns are named tile by tile.
template <int kColumns>
struct Tile {
  int first = 0, rows = 0;
  bool last = true;

  __device__ __forceinline__ Tile(int from, int length, bool masked) : first(from), last(from + kColumns >= length) {
    if (last && length >= kColumns && !masked) first = length - kColumns;
    rows = min(kColumns, length - first);
  }
};

}  // namespace cuda
}  // namespace maxsim
