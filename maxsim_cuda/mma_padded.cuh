// Forward on mma.sync for padded sides and more than one block of query tokens a document, or one under documents with
// padding, where no winner is asked for. What every layout takes (mma_rows.cuh) spends more instructions on saying what
// a tile is than on its products.
#pragma once

#include "mma_padded_tiles.cuh"
#include "ptx/mbarrier.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, PaddedForm kForm>
struct MmaPaddedWarp {
  static constexpr bool kMarked = kForm != PaddedForm::plain, kNormed = kForm == PaddedForm::normed;
  using Rows = QueryRows<T, C::kSteps, false, C::kHeld>;
  using Shared = MmaPaddedShared<C, kForm>;
  using Block = typename Shared::Block;

  // Documents that have ended, and where the next one hands its maxima over.
  struct Ended {
    uint32_t count;
    int slot, phase;
    __device__ __forceinline__ void advance() {
      ++count;
      slot ^= 1;
      phase ^= slot == 0;
    }
  };
  static_assert(C::kSlots == 2 && C::kAhead == 2,
                "slots alternate, and the second tile ahead is the one behind the next");

  const MmaPaddedArgs& args;
  Shared& shared;
  char* ring;
  const uint32_t warp;
  const int lane, row_warp, column_warp;
  Rows queries;
  Block held_blocks[C::kHeld];
  typename Rows::Tops tops;              // of the open document
  bool settled = false;                  // whether they are its maxima
  bool any_token = false, valid = true;  // of the open document

  __device__ __forceinline__ MmaPaddedWarp(const MmaPaddedArgs& args_, Shared& shared_, char* memory)
      : args(args_),
        shared(shared_),
        ring(memory),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        row_warp(warp / C::kColumnWarps),
        column_warp(warp % C::kColumnWarps) {}

  __device__ __forceinline__ int64_t target_of(uint32_t group, uint32_t document) const {
    return args.forward.first + document + (args.cross ? 0 : int64_t{group} * args.of_a_group);
  }

  // Rows of a tile, from one on.
  struct Part {
    int from, to;
  };

  // A tile is brought by one warp, which alone has to find out where it is.
  __device__ __forceinline__ void bring(const PaddedPlace<C>& place) {
    Part part{0, place.rows(args)};
    if constexpr (kMarked) part = mark(place);
    const int row0 = part.from + lane / C::kCopies, copy = lane % C::kCopies;
    const char* from = args.documents + (args.cross ? 0 : place.group) * args.slab_stride +
                       place.document * args.document_stride + (place.first_row(args) + row0) * args.token_stride +
                       copy * 16;
    char* to = ring + place.stage * args.width * C::kPitch + TilePieces<C::kPitch>::place(row0, copy);
    const int64_t step = C::kRowsACopy * args.token_stride;
    int bytes = copy < args.pieces ? 16 : 0, left = part.to - row0;
    asm volatile("" : "+r"(bytes));  // or it is found anew for each copy
    const auto copy_next = [&] {
      ptx::copy_16(to, from, bytes);
      to += C::kRowsACopy * C::kPitch;
      from += step;
    };
#pragma unroll 1
    for (; left > C::kRowsAtOnce - C::kRowsACopy; left -= C::kRowsAtOnce)
#pragma unroll
      for (int i = 0; i < C::kRowsAtOnce; i += C::kRowsACopy) copy_next();
#pragma unroll 1
    for (; left > 0; left -= C::kRowsACopy) copy_next();
    ptx::copy_arrive(&shared.full[place.stage]);
    if (kMarked) ptx::mbarrier_arrive(&shared.full[place.stage]);  // for the marks
  }

  // Says which columns of a tile are kept. Rows before the first word that has one and behind the last need not come.
  __device__ __forceinline__ Part mark(const PaddedPlace<C>& place) {
    constexpr int kWords = C::kMostColumns / 32;
    const Segments& side = args.forward.problem.documents;
    const Span document = span_of(side, target_of(place.group, place.document));
    const int first = place.first_row(args), rows = min(place.rows(args), document.length - first);
    int kept[kWords];
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const int column = word * 32 + lane;
      kept[word] = side.mask ? mask_byte(side, document, first + column, column < rows) : column < rows;
    }
    auto& marks = shared.marks[place.stage];
    uint32_t found = 0;
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const uint32_t bits = __ballot_sync(~0u, kept[word]);
      if (lane == 0) marks.bits[word] = bits;
      found |= bits ? 1u << word : 0;
    }
    if (lane == 0) {
      marks.bits[kWords] = 0;
      marks.any = found;
      marks.valid = document.valid;
    }
    return {found ? (__ffs(found) - 1) * 32 : 0, found ? min(place.rows(args), (32 - __clz(found)) * 32) : 0};
  }

  // Tile `number` of this block's, which comes behind `next`.
  __device__ __forceinline__ void bring_behind(PaddedPlace<C> next, uint32_t number) {
    next.advance(args);
    if (next.left <= 0) return;
    if (number >= static_cast<uint32_t>(args.stages)) ptx::mbarrier_wait(&shared.empty[next.stage], next.parity ^ 1);
    bring(next);
  }

  // Block `block` of a group: whose it is, and which of that query's.
  struct Owner {
    uint32_t query, chunk;
    bool exists;
  };
  __device__ __forceinline__ Owner owner_of(uint32_t group, uint32_t block) const {
    if (!args.cross) return {group, block, block < static_cast<uint32_t>(args.forward.chunks)};
    const uint32_t chunks = args.forward.chunks, number = group * C::kBlocks + block, query = number / chunks;
    return {query, number - query * chunks, number < args.blocks};
  }

  using Fetched = typename Rows::Fetched[C::kHeld];
  __device__ __forceinline__ void fetch_queries(uint32_t group, Fetched& fetched) {
#pragma unroll
    for (int held = 0; held < C::kHeld; ++held) {
      const Owner owner = owner_of(group, row_warp * C::kHeld + held);
      const int first = static_cast<int>(owner.chunk * kBlockTokens);
      int rows = args.query_tokens;
      if constexpr (kMarked) {
        const Segments& side = args.forward.problem.queries;
        const Span query = span_of(side, owner.query);
        rows = query.length;
        held_blocks[held].valid = query.valid;
        held_blocks[held].kept = __ballot_sync(
            ~0u, side.mask ? mask_byte(side, query, first + lane, owner.exists && first + lane < rows) : 1);
      }
      rows = owner.exists ? max(0, min(kBlockTokens, rows - first)) : 0;
      const uint32_t present = rows == 32 ? ~0u : (1u << rows) - 1;
      held_blocks[held].kept = kMarked ? held_blocks[held].kept & present : present;
      Rows::fetch(args.queries + owner.query * args.query_stride + int64_t{first} * args.query_token_stride,
                  args.query_token_stride, rows, args.pieces, fetched[held]);
    }
  }
  __device__ __forceinline__ void hold_queries(const Fetched& fetched) {
#pragma unroll
    for (int held = 0; held < C::kHeld; ++held) {
      queries.hold(fetched[held], held);
      if constexpr (kNormed)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float scale = inverse_norm(square_of<T>(fetched[held][part]));
          if (lane % 4 == 0) shared.row_scale[warp][(held * 4 + part) * 8 + lane / 4] = scale;  // and reads it
        }
    }
  }

  // This warp's share of the inverse norms of a tile's columns, eight at a time.
  __device__ __forceinline__ void scale_columns(const PaddedPlace<C>& place) {
    const int rows = place.rows(args);
    const uint32_t tile = ptx::shared_address(ring) + place.stage * args.width * C::kPitch;
    ptx::mbarrier_wait(&shared.full[place.stage], place.parity);
#pragma unroll 1
    for (int eight = warp * 8; eight < rows; eight += C::kWarps * 8) {
      const TilePieces<C::kPitch> pieces(tile + eight * C::kPitch);
      uint4 token[C::kSteps];
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) token[step] = pieces.load(step, 0);
      const float scale = inverse_norm(square_of<T>(token));
      if (lane % 4 == 0) shared.column_scale[place.stage][eight + lane / 4] = scale;
    }
    ptx::mbarrier_arrive(&shared.scaled[place.stage]);
  }

  static constexpr uint32_t kAll = ~0u >> (32 - C::kColumns);  // columns that are multiplied together

  // Which of the columns from `first` on are kept.
  __device__ __forceinline__ uint32_t kept_from(int stage, int first) const {
    if (!kMarked) return kAll;
    const uint32_t* word = &shared.marks[stage].bits[first / 32];
    return __funnelshift_r(word[0], word[1], first) & kAll;
  }

  // This warp's columns of a tile of `rows` tokens, kColumns at a time, of which some are kept. The last ones reach
  // back, so that all are tokens. What comes next is asked for while products are on their way: they would wait for it.
  // False where there are none.
  template <class Take>
  __device__ __forceinline__ bool multiply(int stage, int rows, const Take& take) {
    constexpr int kGroups = C::kColumns / 8;
    const uint32_t tile = ptx::shared_address(ring) + stage * args.width * C::kPitch;
    const auto first_of = [&](int column) { return min(column, rows - C::kColumns); };
    const auto pieces_at = [&](int column) {
      return TilePieces<C::kPitch>(tile + first_of(column) * C::kPitch, first_of(column) & 1);
    };
    uint32_t kept = 0;  // columns of those that come next
    const auto find = [&](int column) {
      for (; column < rows; column += C::kTogether)
        if ((kept = kept_from(stage, first_of(column)))) break;
      return column;
    };
    int column = find(column_warp * C::kColumns);
    if (column >= rows) return false;
    TilePieces<C::kPitch> pieces = pieces_at(column);
    uint4 ahead[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) ahead[group] = pieces.load(0, group);
#pragma unroll 1
    do {
      const uint32_t now = kept;
      float scale[kGroups][2];
      if constexpr (kNormed)
#pragma unroll
        for (int i = 0; i < 2 * kGroups; ++i)
          scale[i / 2][i % 2] = shared.column_scale[stage][first_of(column) + i / 2 * 8 + lane % 4 * 2 + i % 2];
      column = find(column + C::kTogether);
      const TilePieces<C::kPitch> next = pieces_at(column);
      float products[2 * C::kHeld][C::kColumns / 2] = {};
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step)
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          const uint4 token = step ? pieces.load(step, group) : ahead[group];
#pragma unroll
          for (int row = 0; row < 2 * C::kHeld; ++row)
            multiply_step<T>(&products[row][group * 4], queries.operands[row][step], token);
        }
      pieces = next;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) ahead[group] = pieces.load(0, group);
      if constexpr (kNormed)
#pragma unroll
        for (int row = 0; row < 2 * C::kHeld; ++row)
#pragma unroll
          for (int i = 0; i < C::kColumns / 2; ++i) products[row][i] *= scale[i / 4][i % 2];
      take(products, now >> lane % 4 * 2, now == kAll);  // bits of this thread's columns, two of every eight
    } while (column < rows);
    return true;
  }

  // Products are compared as integers, which is right once no maximum is negative, and stays so. Until then a tile is
  // met again with care.
  __device__ __forceinline__ void meet(int stage, int rows) {
    if constexpr (kMarked) {
      valid = shared.marks[stage].valid;
      any_token |= shared.marks[stage].any;
    }
    const bool met = multiply(stage, rows, [&](const auto& products, uint32_t own, bool all) {
      all ? tops.raise(products) : tops.raise(products, own);
    });
    if (settled || !met) return;
    if (!tops.positive()) tops.reduce();  // a thread's few products of a row may be negative where the row's are not
    settled = tops.positive();
    if (settled) return;
    tops = {};
    multiply(stage, rows, [&](const auto& products, uint32_t own, bool) { queries.take_each(products, own); });
  }

  // A document's maxima, for whoever adds them up.
  __device__ __forceinline__ void hand_over(int slot) {
    if (settled) queries.take(tops);
    settled = false;
    tops = {};
#pragma unroll
    for (int held = 0; held < C::kHeld; ++held)
      if (column_warp == 0 && lane == 0) shared.blocks[slot][row_warp * C::kHeld + held] = held_blocks[held];
#pragma unroll
    for (int tile = 0; tile < 2 * C::kHeld; ++tile) {
      queries.best[tile].reduce();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile * 16 + half * 8 + lane / 4;
        float value = queries.best[tile].best[half];
        if (lane % 4) continue;
        if constexpr (kNormed) value *= shared.row_scale[warp][row];
        shared.maxima[slot][column_warp][row_warp * C::kHeld * kBlockTokens + row] = value;
      }
    }
    queries.reset();
  }

  // A document that has ended.
  struct Open {
    uint32_t group, document;
    bool any_token, valid;
  };

  // By one warp: kLanes lanes a block.
  __device__ __forceinline__ void add_up(int slot, const Open& open) const {
    const int block = lane / C::kLanes, first = lane % C::kLanes * C::kTokens;
    const Owner owner = owner_of(open.group, block);
    const Block marks = shared.blocks[slot][block];
    double sum = 0;
#pragma unroll
    for (int i = 0; i < C::kTokens; ++i) {
      float value = shared.maxima[slot][0][block * kBlockTokens + first + i];
#pragma unroll
      for (int w = 1; w < C::kColumnWarps; ++w)
        value = max_nan(value, shared.maxima[slot][w][block * kBlockTokens + first + i]);
      sum += marks.kept >> (first + i) & 1 ? static_cast<double>(value) : 0.;
    }
#pragma unroll
    for (int step = 1; step < C::kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const bool has = lane % C::kLanes == 0 && owner.exists;
    BlockInfo info;
    info.query = owner.query;
    info.chunk = static_cast<int32_t>(owner.chunk);
    info.chunks = args.forward.chunks;
    info.slot = int64_t{open.group} * C::kBlocks + block;  // asked for under a cross product only
    info.valid = !kMarked || marks.valid;
    const int64_t target = target_of(open.group, open.document);
    if (args.forward.partials) return write_sums(args.forward, info, target, has, sum, open.valid, open.any_token);
    // All blocks of a query are here, side by side at a multiple of their number.
    for (int step = (args.cross ? args.forward.chunks : C::kBlocks) / 2; step; step /= 2)
      sum += __shfl_xor_sync(~0u, sum, step * C::kLanes);
    if (has && owner.chunk == 0) write_score(args.forward, info, target, sum, open.valid, open.any_token);
  }

  // The document before the next to end, by the warp whose turn it is: when it has met another tile, so that the others
  // are likely to be there.
  __device__ __forceinline__ void close(const Ended& next, const Open& open) {
    const int slot = next.slot ^ 1, phase = next.slot ? next.phase : next.phase ^ 1;
    ptx::mbarrier_wait(&shared.handed_over[slot], phase);
    add_up(slot, open);
    ptx::mbarrier_arrive(&shared.added_up[slot]);
  }

  __device__ __forceinline__ void run() {
    PaddedPlace<C> now(args), then = now;
    Fetched fetched;
    if (now.left > 0) fetch_queries(now.group, fetched);  // before tiles, as in mma_dense.cuh
#pragma unroll 1
    for (int i = 0; i < C::kAhead && then.left > 0; ++i) {
      if (i % C::kWarps == warp) bring(then);
      then.advance(args);
    }
    hold_queries(fetched);
    queries.reset();
    if constexpr (kNormed)
      if (now.left > 0) scale_columns(now);
    Ended ended{};
    bool closes = false;  // whether this warp is to add up the document that ended last
    Open open{};
    for (uint32_t tile = 0; now.left > 0; ++tile) {
      const uint32_t group = now.group, document = now.document;
      const bool last = now.last_tile(args);
      if constexpr (kNormed)
        ptx::mbarrier_wait(&shared.scaled[now.stage], now.parity);
      else
        ptx::mbarrier_wait(&shared.full[now.stage], now.parity);
      meet(now.stage, now.rows(args));
      ptx::mbarrier_arrive(&shared.empty[now.stage]);
      now.advance(args);
      if ((tile + C::kAhead) % C::kWarps == warp) bring_behind(now, tile + C::kAhead);
      if constexpr (kNormed)
        if (now.left > 0) scale_columns(now);
      if (closes) close(ended, open);
      closes = false;
      if (!last) continue;
      if (ended.count >= C::kSlots) ptx::mbarrier_wait(&shared.added_up[ended.slot], ended.phase ^ 1);
      hand_over(ended.slot);
      ptx::mbarrier_arrive(&shared.handed_over[ended.slot]);
      closes = ended.count % C::kWarps == warp;
      open = {group, document, !kMarked || any_token, !kMarked || valid};
      any_token = false;
      ended.advance();
      if (now.left > 0 && now.group != group) {
        fetch_queries(now.group, fetched);
        hold_queries(fetched);
      }
    }
    if (closes) close(ended, open);
  }
};

template <class C, class T, PaddedForm kForm>
__global__ void __launch_bounds__(C::kThreads, C::kPerSm)
    mma_padded_forward(const __grid_constant__ MmaPaddedArgs args) {
  extern __shared__ __align__(128) char memory[];
  __shared__ MmaPaddedShared<C, kForm> shared;
  if (threadIdx.x < C::kStages) {
    ptx::mbarrier_init(&shared.full[threadIdx.x], kForm == PaddedForm::plain ? 32 : 64);
    ptx::mbarrier_init(&shared.empty[threadIdx.x], C::kThreads);
    if constexpr (kForm == PaddedForm::normed) ptx::mbarrier_init(&shared.scaled[threadIdx.x], C::kThreads);
  }
  if (threadIdx.x < C::kSlots) {
    ptx::mbarrier_init(&shared.handed_over[threadIdx.x], C::kThreads);
    ptx::mbarrier_init(&shared.added_up[threadIdx.x], 32);
  }
  __syncthreads();
  MmaPaddedWarp<C, T, kForm>(args, shared, memory).run();
}

}  // namespace cuda
}  // namespace maxsim
