// Producer of the Hopper forward for long rows: which tiles a block meets, in which order, atom by atom.
#pragma once

#include "blocks.cuh"
#include "ptx/tma.cuh"
#include "sm90_deep_config.cuh"

namespace maxsim {
namespace cuda {

template <class C>
struct Sm90DeepProducer {
  using Shared = Sm90Shared<C>;

  const Sm90DeepArgs& args;
  const CUtensorMap& queries;    // boxes of 32 rows
  const CUtensorMap& documents;  // boxes of N rows
  Shared& shared;
  char* stages;
  int lane;
  Ring<C::kStages> ring{0, 1};
  Ring<C::kQueryBuffers> buffer{0, 1};
  BlockInfo block;  // of this block's query rows, the one of this lane
  unsigned present = 0;

  __device__ __forceinline__ void run() {
    UnitWalk<C::kBlocks> walk(args, shared.ahead);
    const auto sync = [] { __syncwarp(); };
    int64_t resident = -1;
    Unit unit;
    while (walk.next(unit, sync)) {
      for (int part = 0; part < unit.parts; ++part) {
        const int64_t key = unit.group << 32 | part;
        if (key != resident) describe_queries(walk.cross(), unit.group, part);
        stream(unit, key != resident);
        resident = key;
      }
    }
    acquire();
    if (lane == 0) {
      shared.stages[ring.at].flags = StageInfo::kEnd;
      ptx::mbarrier_arrive(&shared.full[ring.at]);
    }
  }

  __device__ __forceinline__ void acquire() { ptx::mbarrier_wait(&shared.empty[ring.at], ring.phase); }

  __device__ __forceinline__ void describe_queries(bool cross, int64_t group, int part) {
    block = describe_block<C::kBlocks>(args, cross, group, part, lane);
    present = __ballot_sync(~0u, block.query >= 0 && block.kept);
    ptx::mbarrier_wait(&shared.queries_empty[buffer.at], buffer.phase);
    if (lane < C::kBlocks) shared.blocks[buffer.at][lane] = block;
    ptx::mbarrier_arrive(&shared.queries_full[buffer.at]);
    buffer.advance();
  }

  // A document's tokens in tiles of kHalves x N.
  __device__ __forceinline__ void stream(const Unit& unit, bool new_queries) {
    const Segments& side = args.problem.documents;
    const int length = unit.document.length;
    const int row = static_cast<int>(side.packed() ? unit.document.first_row : 0);
    int flags = (new_queries ? StageInfo::kNewQueries : 0) | (unit.document.valid ? 0 : StageInfo::kInvalid);
    for (int from = 0;; from += C::kHalves * C::N) {
      const Tile<C::N> first(from, length, side.mask);
      const Tile<C::N> second(from + C::N, length, side.mask);
      const bool last = first.last || second.last;
      if (!first.last) flags |= Shared::kTwo;
      if (last) flags |= StageInfo::kLast | (unit.release ? StageInfo::kRelease : 0);
      const int halves = first.last ? 1 : 2;
      for (int atom = 0; atom < args.atoms; ++atom) {
        acquire();
        if (atom + 1 == args.atoms) {
          describe(shared.stages[ring.at], unit, first, flags);
          if (halves == 2) describe(shared.second[ring.at], unit, second, 0);
        } else if (lane == 0) {
          shared.stages[ring.at].flags = flags;
        }
        __syncwarp();
        copy(unit, atom, length > 0 ? halves : 0, row + first.first, row + second.first);
        ring.advance();
      }
      if (last) return;
      flags &= StageInfo::kInvalid;
    }
  }

  // What the consumers are told about one half.
  __device__ __forceinline__ void describe(StageInfo& info, const Unit& unit, const Tile<C::N>& tile, int flags) {
    const Segments& side = args.problem.documents;
    if (tile.rows == C::N && !side.mask) {
      flags |= StageInfo::kFull | StageInfo::kAnyToken;
    } else {
      constexpr int kWords = (C::N + 31) / 32;
      int kept[kWords];
#pragma unroll
      for (int w = 0; w < kWords; ++w) {  // all bytes of the mask are on their way before the first is looked at
        const int column = w * 32 + lane;
        kept[w] = column < tile.rows;
        if (side.mask) kept[w] = mask_byte(side, unit.document, tile.first + column, kept[w]);
      }
      int count = 0;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const uint32_t bits = __ballot_sync(~0u, kept[w]);
        if (lane == 0) info.bits[w] = bits;
        count += __popc(bits);
      }
      flags |= (count ? StageInfo::kAnyToken : 0) | (count == C::N ? StageInfo::kFull : 0);
    }
    if (lane == 0) {
      info.flags = flags;
      info.first_token = tile.first;
      info.target = unit.target;
    }
  }

  // One atom of the query rows and of a tile, whose halves begin at these rows of the map. Documents without tokens
  // may be without memory too.
  __device__ __forceinline__ void copy(const Unit& unit, int atom, int halves, int first, int second) {
    char* to = stages + ring.at * C::kStageBytes;
    uint64_t* barrier = &shared.full[ring.at];
    if (lane == 0) ptx::mbarrier_arrive_expect(barrier, __popc(present) * kBlockTokens * 128 + halves * C::kHalfBytes);
    __syncwarp();  // no byte may arrive before its count
    const int feature = atom * kAtom<uint16_t>;
    if (present >> lane & 1)
      ptx::tma_load(to + lane * kBlockTokens * 128, &queries, barrier, feature, block.row, 0,
                    args.problem.queries.packed() ? 0 : static_cast<int>(block.query));
    const int half = lane - C::kBlocks;
    if (half >= 0 && half < halves)
      ptx::tma_load(to + C::kQueryBytes + half * C::kHalfBytes, &documents, barrier, feature, half ? second : first,
                    unit.inner, unit.outer);
  }
};

}  // namespace cuda
}  // namespace maxsim
