// Long rows on Hopper, between memory and the products: what loads rows that no tensor map describes, splits those that
// have to be, and adds up the squares of those that are normalised.
#pragma once

#include "sm90_deep_producer.cuh"
#include "sm90_shifted.cuh"
#include "sm90_split.cuh"
#include "sm90_unmapped.cuh"

namespace maxsim {
namespace cuda {

// Four lanes share 64 features of a row, two chunks each. kBatch: rows of a thread at once, so that one's instructions
// fill the time that another's wait.
template <class T, int kWarps, int kBatch>
struct WholeRows {
  static constexpr int kLanes = 4, kStep = kWarps * 32 / kLanes;
  static_assert(sizeof(T) == 2);

  unsigned thread;
  bool normalizes;

  // Of the first `present` rows, a multiple of eight. told(row, square): what one lane of a row's is told, the sum of
  // squares where rows are normalised.
  template <class Told>
  __device__ __forceinline__ void prepare(uint32_t rows, int present, const Told& told) const {
    each(
        present,
        [&](int row, uint4(&chunks)[2]) {
          for (int i = 0; i < 2; ++i) chunks[i] = ptx::load_shared_16(place(rows, row, 2 * lane() + i));
        },
        [](int, const uint4(&)[2]) {}, told);
  }
  // The same of rows that lie shifted, and are put where they belong.
  template <class Told>
  __device__ __forceinline__ void prepare(uint32_t rows, int present, const Shifted& lying, const Told& told) const {
    each(
        present,
        [&](int row, uint4(&chunks)[2]) {
          uint32_t words[12];
          load_words<8, 8>(lying, row, 2 * lane(), [&](unsigned chunk) { return place(rows, row, chunk); }, words);
          for (int i = 0; i < 2; ++i)
            chunks[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
        },
        [&](int row, const uint4(&chunks)[2]) {
          for (int i = 0; i < 2; ++i) ptx::store_shared_16(place(rows, row, 2 * lane() + i), chunks[i]);
        },
        told);
  }

 private:
  __device__ __forceinline__ unsigned lane() const { return thread % kLanes; }
  __device__ __forceinline__ static uint32_t place(uint32_t rows, int row, unsigned chunk) {
    return rows + row * 128 + ((chunk ^ row) % 8) * 16;
  }

  template <class Load, class Store, class Told>
  __device__ __forceinline__ void each(int present, const Load& load, const Store& store, const Told& told) const {
#pragma unroll 1
    for (int first = thread / kLanes; first < present; first += kBatch * kStep) {
      uint4 chunks[kBatch][2] = {};
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (const int row = first + b * kStep; row < present) load(row, chunks[b]);
      __syncwarp();  // the rows have been read
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (const int row = first + b * kStep; row < present) store(row, chunks[b]);
      if (!normalizes) continue;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        float square = square_of_sixteen<T>(chunks[b]);
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) square += __shfl_xor_sync(~0u, square, step);
        if (const int row = first + b * kStep; lane() == 0 && row < present) told(row, square);
      }
    }
  }
};

// No feature has to be seen before it is needed: each row of a stage is split with a unit of its own. Teams of warps
// take turns at the stages: one computes while others wait for shared memory.
template <class C, class T>
struct Sm90DeepPreparer {
  static constexpr int kWarps = C::kMoreWarps / C::kTeams, kThreads = kWarps * 32;
  using Rows = std::conditional_t<C::kSplit, RowSplitter<2, kWarps, C::kBatch>, WholeRows<T, kWarps, C::kBatch>>;
  static_assert(C::kTeams <= 128 / kStageFeatures + 1,
                "no more than a row has steps, which is longer than 128 features");

  const Sm90DeepArgs& args;
  Sm90Shared<C>& shared;
  uint32_t stages;  // shared address
  int team;
  unsigned thread;  // of the team

  __device__ __forceinline__ void run() const {
    Turn turn{Ring<C::kStages>{}, team};
    for (int i = 0; i < team; ++i) turn.ring.advance();
    bool more = start(turn);
    while (more) {
      Turn next = turn;
      if constexpr (C::kLoads) {  // the next turn's copies are under way meanwhile
        pass_on(next);
        more = start(next);
        ptx::copy_wait<1>();
        sync_team();
      }
      prepare(turn);
      if constexpr (!C::kLoads) {
        pass_on(next);
        more = start(next);
      }
      turn = next;
    }
    ptx::mbarrier_arrive(&shared.scaled[turn.ring.at]);
  }

 private:
  // A stage of this team's, and the step of its features.
  struct Turn {
    Ring<C::kStages> ring;
    int step;
  };

  __device__ __forceinline__ void pass_on(Turn& turn) const {
    turn.step += C::kTeams;
    if (turn.step >= args.steps) turn.step -= args.steps;
    for (int i = 0; i < C::kTeams; ++i) turn.ring.advance();
  }

  // Waits for a stage, or for what is to be known about it: then its copies start. False at the end.
  __device__ __forceinline__ bool start(const Turn& turn) const {
    const int stage = turn.ring.at;
    ptx::mbarrier_wait(&shared.full[stage], turn.ring.phase);
    const int flags = shared.stages[stage].flags;
    const bool more = !(flags & StageInfo::kEnd);
    if constexpr (C::kLoads) {
      if (more) {
        load_queries(stage, turn.step);
        load_tokens(stage, turn.step, flags);
      }
      ptx::copy_commit();
    }
    return more;
  }

  __device__ __forceinline__ void prepare(const Turn& turn) const {
    const int stage = turn.ring.at, flags = shared.stages[stage].flags;
    const bool last = turn.step + 1 == args.steps, new_queries = flags & StageInfo::kNewQueries;
    if (last && new_queries) clear_scales(stage);
    prepare_queries(stage, new_queries);
    prepare_tokens(stage, flags);
    if (args.problem.normalize) add_squares(turn.ring, turn.step == 0, last, new_queries);
    ptx::fence_async_proxy();
    ptx::mbarrier_arrive(&shared.scaled[stage]);
  }

  __device__ __forceinline__ void clear_scales(int stage) const {
    const auto [present, buffer] = shared.queries[stage];
    for (int row = thread; row < present; row += kThreads) shared.row_scale[buffer][row] = 1.f;
  }

  __device__ __forceinline__ void sync_team() const {
    asm volatile("bar.sync %0, %1;" ::"r"(9 + team), "n"(kThreads) : "memory");
  }

  __device__ __forceinline__ uint32_t query_rows(int stage) const { return stages + stage * C::kStageBytes; }
  __device__ __forceinline__ uint32_t token_rows(int stage, int half) const {
    return query_rows(stage) + C::kQueryBytes + half * C::kHalfBytes;
  }
  __device__ __forceinline__ static int halves(int flags) { return flags & Sm90Shared<C>::kTwo ? 2 : 1; }

  // The shared address of a row's chunk behind its last one: of query rows, then of tokens.
  __device__ __forceinline__ uint32_t behind(int stage, int row) const {
    return stages + C::kStaged + stage * C::kStagedBytes + row * 16;
  }

  // What no tensor map describes.
  __device__ __forceinline__ void load_queries(int stage, int step) const {
    const auto [present, buffer] = shared.queries[stage];
#pragma unroll 1
    for (int b = 0; b < present / kBlockTokens; ++b) {
      const BlockInfo& block = shared.blocks[buffer][b];
      const uint32_t kept = block.kept, to = query_rows(stage) + Sm90DeepProducer<C>::block_place(b);
      load_rows<kBlockTokens, C::kOperandRows>(args.problem.queries, args.query_end, block.begin, step, to,
                                               behind(stage, b * kBlockTokens), !~kept,
                                               [=](int row) { return kept >> row & 1; });
    }
  }
  __device__ __forceinline__ void load_tokens(int stage, int step, int flags) const {
#pragma unroll 1
    for (int half = 0; half < halves(flags); ++half) {
      const auto [begin, rows] = shared.sources[stage][half];
      const int there = rows;
      load_rows<C::N, C::N>(args.problem.documents, args.document_end, begin, step, token_rows(stage, half),
                            behind(stage, C::kRows + half * C::N), there >= C::N, [=](int row) { return row < there; });
    }
  }
  template <int kRows, int kOperandRows, class Keeps>
  __device__ __forceinline__ void load_rows(const Segments& side, const char* end, int64_t begin, int step, uint32_t to,
                                            uint32_t behind, bool all, const Keeps& keeps) const {
    const int chunks = Sm90DeepProducer<C>::atoms(side) * 8, feature = step * kStageFeatures;
    const int thread = static_cast<int>(this->thread);
    if (side.feature_stride == 1) {
      const int size = static_cast<int>(element_size(side.dtype));
      ShiftedRows{static_cast<const char*>(side.data) + (begin + feature) * size, end, side.token_stride * size, chunks,
                  (static_cast<int>(side.dim) - feature) * size}
          .template copy<kRows, kWarps>(thread / 32, thread % 32, to, kOperandRows * 128, behind, all, keeps);
    } else {
      UnmappedRows<kThreads, 1>{side, end, kRows, chunks, thread, feature}.copy(
          begin, keeps, [=](int row, int chunk) { return to + swizzled(kOperandRows, row, chunk); });
    }
  }

  // The norms of query rows stay.
  __device__ __forceinline__ void prepare_queries(int stage, bool new_queries) const {
    const Segments& side = args.problem.queries;
    const auto [present, buffer] = shared.queries[stage];
    const bool normalizes = args.problem.normalize && new_queries;
    constexpr int kTogether = C::kLoads ? kBlockTokens : C::kOperandRows;
#pragma unroll 1
    for (int first = 0; first < present; first += kTogether)
      prepare_rows<C::kOperandRows>(query_rows(stage) + Sm90DeepProducer<C>::block_place(first / kBlockTokens),
                                    min(present - first, kTogether), side, normalizes,
                                    C::kLoads ? shared.blocks[buffer][first / kBlockTokens].begin : 0, stage, first);
  }
  __device__ __forceinline__ void prepare_tokens(int stage, int flags) const {
#pragma unroll 1
    for (int half = 0; half < (C::kHalves == 1 ? 1 : halves(flags)); ++half)
      prepare_rows<C::N>(token_rows(stage, half), C::N, args.problem.documents, args.problem.normalize,
                         C::kLoads ? shared.sources[stage][half].begin : 0, stage, C::kRows + half * C::N);
  }
  // Rows of which the first begins at an element of the side, and is number `first` of the stage.
  template <int kOperandRows>
  __device__ __forceinline__ void prepare_rows(uint32_t rows, int present, const Segments& side, bool normalizes,
                                               int64_t begin, int stage, int first) const {
    const Rows each{thread, normalizes};
    float* squares = &shared.squares[stage][first];
    const Shifted lying = C::kLoads ? shifted(side, begin, behind(stage, first)) : Shifted{};
    if constexpr (C::kSplit) {
      float* units = first < C::kRows ? &shared.row_unit[stage][first] : &shared.token_unit[stage][first - C::kRows];
      const auto told = [&](int row, float unit, float, float square) {
        units[row] = unit;
        if (normalizes) squares[row] = square;
      };
      if constexpr (C::kLoads)
        each.template split_rows<kOperandRows>(rows, side.dtype, present, lying, told);
      else
        each.template split_rows<kOperandRows, false>(rows, side.dtype, present, nullptr, nullptr, told);
    } else {
      const auto told = [&](int row, float square) { squares[row] = square; };
      if constexpr (C::kLoads)
        each.prepare(rows, present, lying, told);
      else if (normalizes)
        each.prepare(rows, present, told);
    }
  }

  // Sums of squares go from a stage to the next one, and become factors behind the last features. Teams wait for each
  // other here, so that a stage's are not overwritten before they are read.
  __device__ __forceinline__ void add_squares(const Ring<C::kStages>& ring, bool first, bool last,
                                              bool new_queries) const {
    const int stage = ring.at, before = (stage == 0 ? C::kStages : stage) - 1;
    ptx::mbarrier_wait(&shared.scaled[before], stage == 0 ? ring.phase ^ 1 : ring.phase);
    sync_team();
    for (int row = thread; row < C::kRows + C::kColumns; row += kThreads) {
      float square = shared.squares[stage][row];
      if (!first) square += shared.squares[before][row];
      shared.squares[stage][row] = last ? inverse_norm(square) : square;
      if (last && new_queries && row < shared.queries[stage].rows)
        shared.row_scale[shared.queries[stage].buffer][row] = inverse_norm(square);
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
