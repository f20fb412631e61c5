// Forward on mma.sync for operands that are multiplied as they are, d up to 128: each warp keeps 32 query rows in
// registers and meets every tile of the block. Warps share tiles and nothing else: each sums its own rows.
#pragma once

#include "mma_operands.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "units.cuh"

namespace maxsim {
namespace cuda {

// Tiles of up to N tokens of kSteps x 32 features, multiplied kColumns at a time.
template <int kWarps_, int N_, int kColumns_, int kSteps_, int kPerSm_, int kStages_>
struct MmaRowsConfig {
  static constexpr int kWarps = kWarps_, N = N_, kColumns = kColumns_, kSteps = kSteps_, kPerSm = kPerSm_;
  static constexpr int kStages = kStages_, kThreads = kWarps * 32, kGroups = kColumns / 8, kWords = N / 32;
  static constexpr int kPitch = kSteps * 64;
  static constexpr int kCopies = kPitch / 16, kRowsACopy = kThreads / kCopies;  // rows that a copy of each thread fills
  static constexpr int shared_bytes(int width) { return kStages * width * kPitch; }
  static_assert(N % kColumns == 0 && kColumns % 32 == 0 && kColumns % kRowsACopy == 0 && kRowsACopy % 2 == 0,
                "copies keep the swizzle");
};

// One short query: each warp is a block and streams documents of its own, so that nobody waits for anybody. Eight an SM
// with two tiles of 8 KB on their way each are what memory likes; more warps with fewer registers gain 2 % over many
// documents and lose elsewhere.
template <int kSteps>
using MmaRowsLean = MmaRowsConfig<1, 128 / kSteps, 128 / kSteps, kSteps, 8, 3>;
// Products decide. 32 x 64 a warp and step are 64 registers of products beside the 64 of the query, and each operand
// from shared memory meets both row tiles; two warps a scheduler take turns at multiplying and comparing. Two blocks of
// four are faster than one of eight, and 192 tokens a tile 20 % faster than 64.
template <int kSteps>
using MmaRowsWide = MmaRowsConfig<4, 192, 64, kSteps, 2, 2>;

template <class C>
struct MmaRowsShared {
  struct Info {
    int64_t target, group;  // group of the queries that the tile meets, where they are new
    int32_t flags, first_token, rows, part;
    uint32_t bits[C::kWords];
  };
  uint64_t full[C::kStages];
  Unit ahead[32];
  Info infos[C::kWarps][C::kStages];
  BlockInfo blocks[C::kWarps];
};

template <class C, class T, bool kArgmax>
struct MmaRowsWarp {
  const ForwardArgs& args;
  MmaRowsShared<C>& shared;
  char* ring;
  const int width;  // tokens of a tile
  const int warp, lane;
  const Pieces documents;
  UnitWalk<C::kWarps> walk;
  QueryRows<T, C::kSteps, kArgmax> queries;
  float products[2][C::kGroups * 4];
  // The tile that is loaded next, described a step ahead so that its mask is there by then.
  const Unit* unit = nullptr;
  int from = 0, part = 0, flags = 0, first = 0, rows = 0;
  int64_t resident = -1, target = 0;  // `resident`: group of the last tile described
  int resident_part = 0;
  int kept[C::kWords];

  __device__ __forceinline__ MmaRowsWarp(const ForwardArgs& args_, MmaRowsShared<C>& shared_, char* ring_, int width_)
      : args(args_),
        shared(shared_),
        ring(ring_),
        width(width_),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        documents(args_.problem.documents),
        walk(args_, shared_.ahead) {}

  __device__ __forceinline__ static void sync() {
    if (C::kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  int64_t begin = 0;  // element of the next tile's first row

  __device__ __forceinline__ void describe() {
    const Segments& side = args.problem.documents;
    if (!unit) unit = walk.next(sync);
    if (!unit) {
      flags = StageInfo::kEnd;
      rows = 0;
      return;
    }
    const Span& document = unit->document;
    // The last tile reaches back, as others do, but is no wider than it must be.
    const int left = document.length - from;
    const bool last = left <= width;
    const int wanted = (left + C::kColumns - 1) / C::kColumns * C::kColumns;
    first = last && document.length >= wanted && !side.mask ? document.length - wanted : from;
    rows = min(width, document.length - first);
    target = unit->target;
    begin = document.begin + first * side.token_stride;
    flags = (document.valid ? 0 : StageInfo::kInvalid) | (last ? StageInfo::kLast : 0);
    if (side.mask)
#pragma unroll
      for (int word = 0; word < C::kWords; ++word) {
        const int column = word * 32 + lane;
        kept[word] = mask_byte(side, document, first + column, column < rows);
      }
    if (unit->group != resident || part != resident_part) {
      flags |= StageInfo::kNewQueries;
      resident = unit->group;
      resident_part = part;
    }
    from += width;
    if (!last) return;
    from = 0;
    if (++part == unit->parts) part = 0, unit = nullptr;
  }

  __device__ __forceinline__ void issue(int stage) {
    const Segments& side = args.problem.documents;
    auto& info = shared.infos[warp][stage];
    uint32_t found = 0;
    if (side.mask) {
#pragma unroll
      for (int word = 0; word < C::kWords; ++word) {
        const uint32_t bits = __ballot_sync(~0u, kept[word]);
        if (lane == 0) info.bits[word] = bits;
        found |= bits;
      }
    } else {
      found = rows > 0;
      if (lane < C::kWords) info.bits[lane] = rows >= lane * 32 + 32 ? ~0u : (1u << max(rows - lane * 32, 0)) - 1;
    }
    if (lane == 0) {
      info.target = target;
      info.group = resident;
      info.part = resident_part;
      info.first_token = first;
      info.flags = flags | (found ? StageInfo::kAnyToken : 0);
      info.rows = rows;
    }
    __syncwarp();
    const int copy = threadIdx.x % C::kCopies, row0 = threadIdx.x / C::kCopies;
    const int64_t row_step = C::kRowsACopy * side.token_stride * 2;
    const char* source = documents.at(begin + row0 * side.token_stride);
    char* to = ring + stage * width * C::kPitch + TilePieces<C::kPitch>::place(row0, copy);
    const int filled = max(rows + C::kColumns - 1, C::kColumns) / C::kColumns * C::kColumns;
    if (documents.aligned) {
      source += copy * 16;
      const int bytes = copy * 8 < side.dim ? 16 : 0;
      for (int part = 0; part < filled; part += C::kColumns)
#pragma unroll
        for (int i = 0; i < C::kColumns; i += C::kRowsACopy) {
          ptx::copy_16(to + (part + i) * C::kPitch, source, row0 + part + i < rows ? bytes : 0);
          source += row_step;
        }
    } else {
#pragma unroll 1
      for (int row = 0; row < filled; row += C::kRowsACopy) {
        *reinterpret_cast<uint4*>(to + row * C::kPitch) =
            row0 + row < rows ? documents.gather(source, copy) : make_uint4(0, 0, 0, 0);
        source += row_step;
      }
    }
    ptx::copy_commit();
  }

  // The tile of a stage, this warp's part of it, is there.
  __device__ __forceinline__ void arrive(int stage) {
    ptx::copy_wait<C::kStages - 2>();
    ptx::mbarrier_arrive(&shared.full[stage]);
  }

  __device__ __forceinline__ void load_queries(int64_t group, int32_t which) {
    const BlockInfo block = describe_block<C::kWarps>(args, walk.cross(), group, which, warp);
    queries.load(args, block);
    if (lane == 0) shared.blocks[warp] = block;
    __syncwarp();
  }

  // Of kColumns tokens at a shared address.
  __device__ __forceinline__ void multiply(uint32_t tokens) {
    const TilePieces<C::kPitch> pieces(tokens);
    float squares[C::kGroups];
    multiply_tile<T>(products, queries.operands, pieces);
    if (!args.problem.normalize) return;
#pragma unroll
    for (int group = 0; group < C::kGroups; ++group) {
      uint4 token[C::kSteps];
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) token[step] = pieces.load(step, group);
      squares[group] = square_of<T>(token);
      const float factor = inverse_norm(squares[group]);
      const float even = __shfl_sync(~0u, factor, lane % 4 * 8), odd = __shfl_sync(~0u, factor, lane % 4 * 8 + 4);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int e = 0; e < 4; ++e) products[tile][group * 4 + e] *= e % 2 ? odd : even;
    }
  }

  __device__ __forceinline__ void run() {
    const uint32_t ring_address = ptx::shared_address(ring);
    int stage = 0, free = C::kStages - 1, parity = 0;
    describe();
#pragma unroll 1
    for (int i = 0; i < C::kStages - 1; ++i) {
      issue(i);
      describe();
    }
    queries.reset();
    arrive(0);
    while (true) {
      const auto& info = shared.infos[warp][stage];
      const int now = info.flags;
      if (now & StageInfo::kEnd) return;
      if (now & StageInfo::kNewQueries) load_queries(info.group, info.part);
      ptx::mbarrier_wait(&shared.full[stage], parity);  // and everyone is done with the tile before
      issue(free);
      describe();
      const int next = stage + 1 == C::kStages ? 0 : stage + 1;
      const int columns = info.rows;
#pragma unroll 1
      for (int column = 0;; column += C::kColumns) {
        uint32_t bits[C::kColumns / 32];
        bool full = true;
#pragma unroll
        for (int word = 0; word < C::kColumns / 32; ++word) {
          bits[word] = info.bits[column / 32 + word];
          full &= bits[word] == ~0u;
        }
        multiply(ring_address + (stage * width + column) * C::kPitch);
        const bool last = column + C::kColumns >= columns;
        if (last) arrive(next);
        queries.take(products, info.first_token + column, full, bits);
        if (last) break;
      }
      queries.any_token |= (now & StageInfo::kAnyToken) != 0;
      if (now & StageInfo::kLast) queries.finish(args, shared.blocks[warp], info.target, !(now & StageInfo::kInvalid));
      __syncwarp();  // what a tile says has been read
      free = stage;
      parity ^= next == 0;
      stage = next;
    }
  }
};

template <class C, class T, bool kArgmax>
__global__ void __launch_bounds__(C::kThreads, C::kPerSm)
    mma_rows_forward(const __grid_constant__ ForwardArgs args, int width) {
  extern __shared__ __align__(128) char ring[];
  __shared__ MmaRowsShared<C> shared;
  if (threadIdx.x < C::kStages) ptx::mbarrier_init(&shared.full[threadIdx.x], C::kThreads);
  __syncthreads();
  MmaRowsWarp<C, T, kArgmax>(args, shared, ring, width).run();
}

}  // namespace cuda
}  // namespace maxsim
