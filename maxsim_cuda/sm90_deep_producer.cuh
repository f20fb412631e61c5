// Producer of the Hopper forward for long rows: which tiles a block meets, in which order, some features at a time.
#pragma once

#include "blocks.cuh"
#include "ptx/tma.cuh"
#include "sm90_deep_config.cuh"

namespace maxsim {
namespace cuda {

// One warp, which drives the copy engine, or tells others what to load.
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
    for (int team = 0; team < C::kTeams; ++team) {  // each waits for a stage of its own
      acquire();
      if (lane == 0) shared.stages[ring.at].flags = StageInfo::kEnd;
      publish(0);
      ring.advance();
    }
  }

  __device__ __forceinline__ void acquire() { ptx::mbarrier_wait(&shared.empty[ring.at], ring.phase); }

  // What a stage says is known with the arrival that counts its bytes.
  __device__ __forceinline__ void publish(int bytes) {
    uint64_t* barrier = &shared.full[ring.at];
    if (bytes && lane == 0)
      ptx::mbarrier_arrive_expect(barrier, bytes);
    else if (C::kLoads || lane == 0)
      ptx::mbarrier_arrive(barrier);
  }

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
      const int halves = C::kHalves == 1 || first.last ? 1 : 2;
      const bool last = first.last || (halves == 2 && second.last);
      if (halves == 2) flags |= Shared::kTwo;
      if (last) flags |= StageInfo::kLast | (unit.release ? StageInfo::kRelease : 0);
      for (int step = 0; step < args.steps; ++step) {
        acquire();
        if (step + 1 == args.steps) {
          describe(shared.stages[ring.at], unit, first, flags);
          if (halves == 2) describe(shared.second[ring.at], unit, second, 0);
        } else if (lane == 0) {
          shared.stages[ring.at].flags = flags;
        }
        if (C::kPrepares && lane == 0) tell_preparers(unit, first, second);
        __syncwarp();
        if constexpr (C::kLoads)
          publish(0);
        else
          copy(unit, step, length > 0 ? halves : 0, row + first.first, row + second.first);
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

  // Where a block of query rows begins, and its atoms in operands of 64 rows.
  __device__ __forceinline__ static int block_place(int block) {
    return block / 2 * C::kOperandRows * C::kRowBytes + block % 2 * kBlockTokens * 128;
  }

  // What those who prepare a stage have to know besides: how many query rows, and which tokens.
  __device__ __forceinline__ void tell_preparers(const Unit& unit, const Tile<C::N>& first, const Tile<C::N>& second) {
    shared.queries[ring.at] = {(32 - __clz(present)) * kBlockTokens,
                               buffer.at == 0 ? C::kQueryBuffers - 1 : buffer.at - 1};
    if (!C::kLoads) return;
    const auto rows_of = [&](const Tile<C::N>& tile) {
      return TokenRows{unit.document.begin + tile.first * args.problem.documents.token_stride, tile.rows};
    };
    shared.sources[ring.at][0] = rows_of(first);
    if (C::kHalves == 2) shared.sources[ring.at][1] = rows_of(second);
  }

  // A side's atoms in a stage.
  __device__ __forceinline__ static int atoms(const Segments& side) {
    return C::kSplit && side.dtype == DType::f32 ? 2 : 1;
  }

  // The features of a step, of the query rows and of a tile, whose halves begin at these rows of the map. Documents
  // without tokens may be without memory too.
  __device__ __forceinline__ void copy(const Unit& unit, int step, int halves, int first, int second) {
    char* to = stages + ring.at * C::kStageBytes;
    uint64_t* barrier = &shared.full[ring.at];
    const Segments& side = args.problem.queries;
    const int query_atoms = atoms(side), document_atoms = atoms(args.problem.documents);
    publish((__popc(present) * kBlockTokens * query_atoms + halves * C::N * document_atoms) * 128);
    __syncwarp();  // no byte may arrive before its count
    const int half = lane - C::kBlocks;
#pragma unroll
    for (int atom = 0; atom < C::kAtoms; ++atom) {
      if (atom < query_atoms && (present >> lane & 1))
        ptx::tma_load(to + block_place(lane) + atom * C::kOperandRows * 128, &queries, barrier,
                      (step * query_atoms + atom) * (kStageFeatures / query_atoms), block.row, 0,
                      side.packed() ? 0 : static_cast<int>(block.query));
      if (atom < document_atoms && half >= 0 && half < halves)
        ptx::tma_load(to + C::kQueryBytes + half * C::kHalfBytes + atom * C::N * 128, &documents, barrier,
                      (step * document_atoms + atom) * (kStageFeatures / document_atoms), half ? second : first,
                      unit.inner, unit.outer);
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
