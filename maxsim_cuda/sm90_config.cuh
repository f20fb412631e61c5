// Tile shapes of the Hopper forward, a row each with its reason.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "forward_args.cuh"

namespace maxsim {
namespace cuda {

// Features of a 128-byte swizzled row.
template <class T>
constexpr int kAtom = 128 / sizeof(T);

// Elements of a row: bytes, where they hold the signs of eight features.
MAXSIM_INLINE int64_t row_elements(const Segments& side) {
  return side.dtype == DType::bit ? (side.dim + 7) / 8 : side.dim;
}

// What is stored in eight bits may have factors from its caller. Nothing else has, and no more than one row of 128
// bytes.
template <class T>
constexpr bool kStored = sizeof(T) == 1;

// What the columns of a product are multiplied by before their maximum is taken.
// `units`: of split operands, norms included.
// `affine`: and something is added to, for each column and row: a token's minimum, times the sum of a query row.
enum class Columns { plain, norms, given, affine, units };

// Whether columns have factors that their caller gave.
MAXSIM_INLINE constexpr bool has_factors(Columns columns) {
  return columns == Columns::given || columns == Columns::affine;
}

// Rows of so many bytes and fewer are cheaper to spread than to have copied one by one.
constexpr int kSpreadBytes = 48;

// Which rows come as they lie in memory, for other warps to put where products read them: none, those of whole 16-byte
// chunks up to kSpreadBytes, which the loader warps spread, or loose ones, which begin anywhere.
enum class Spread { none, chunks, loose };

// Bytes of a tile of signs as it lies in memory, which begins and ends within 16.
template <int N, int kAtoms>
constexpr int kSignBytes = N * kAtoms * 8 + 32;

// What a block may take of the 227 KB, less the barriers and descriptions that Sm90Shared holds.
constexpr int kSharedLimit = 215 * 1024;

// kGroups math warpgroups hold kTiles x 64 query rows each and meet N document tokens a step; rows of kAtoms x
// kAtomBytes. kMoreWarps make operands of what was loaded. kSplit: pairs of fp16 whose sum is the input. kWidens:
// document rows come as stored, a byte a feature or less. kTurned: they do and stay so, and kTiles x 64 of them are the
// rows of products of which one block of query tokens are the columns.
template <int kGroups_, int kTiles_, int N_, int kAtoms_, int kStageBytes, int kPerSm_ = 1, int kQueryBuffers_ = 1,
          int kMoreWarps_ = 0, int kAtomBytes_ = 128, Spread kSpread = Spread::none, bool kWidens_ = false,
          bool kTurned_ = false, bool kLoads_ = false>
struct Sm90Config {
  static constexpr int kGroups = kGroups_, kTiles = kTiles_, N = N_, kAtoms = kAtoms_, kPerSm = kPerSm_;
  static constexpr int kAtomBytes = kAtomBytes_, kRowBytes = kAtoms * kAtomBytes;
  static constexpr int kQueryBuffers = kQueryBuffers_;
  static constexpr bool kSplit = kMoreWarps_ > 0 && !kWidens_ && kSpread != Spread::loose;
  static constexpr bool kTurned = kTurned_;
  // Query rows as they lie in an operand, of two bytes a feature where documents have one.
  static constexpr int kQueryAtoms = kTurned ? kAtomBytes / 64 : kAtoms, kQueryAtomBytes = kTurned ? 128 : kAtomBytes;
  static constexpr int kQueryRowBytes = kQueryAtoms * kQueryAtomBytes, kOperandRows = kTurned ? kBlockTokens : 64;
  static constexpr int kRows = kTurned ? kBlockTokens : kGroups * kTiles * 64;
  static constexpr int kMaxima =
      kTurned ? 4 * kRows : kRows;  // handed over: warps share the columns of turned products
  static constexpr int kBlocks = kRows / kBlockTokens;
  static constexpr int kMoreWarps = kMoreWarps_;
  static constexpr bool kHolds = kSplit && kGroups == 1;  // query rows in registers
  static constexpr bool kLoads = kLoads_;  // who splits rows loads them, where no tensor map describes them
  static constexpr int kLoadBatch = 2;     // pairs of chunks that each of them loads at once
  static constexpr int kThreads = (kGroups + 1) * 128 + kMoreWarps * 32;
  static constexpr int kQueryBoxRows =
      kTiles == 1 || kTurned ? 32 : 16;  // rows of a block that lie together in an operand
  // Registers a thread, moved from the other warps to the math warpgroups where those need more than an even share.
  static constexpr bool kTight = kGroups == 2 && kPerSm == 2;  // an even share would be 80
  static constexpr int kMathRegisters = kGroups == 4               ? 104
                                        : kTight                   ? 96
                                        : kTurned                  ? 152
                                        : kHolds                   ? 160
                                        : kSplit && kThreads > 640 ? 120
                                        : kGroups * kTiles == 4    ? (kWidens_ ? 184 : 200)
                                                                   : 0;
  static constexpr int kOtherRegisters = kGroups == 4  ? 64
                                         : kTight      ? 48
                                         : kHolds      ? 80
                                         : kWidens_    ? 72
                                         : kMoreWarps_ ? 56
                                                       : 104;
  static constexpr int kTileBytes = N * kRowBytes;
  static constexpr int kQueryBytes = kRows * kQueryRowBytes;
  static constexpr bool kSpreads = kSpread == Spread::chunks, kLoose = kSpread == Spread::loose, kWidens = kWidens_;
  static constexpr bool kTogether = false;                // as Sm90Dense says
  static constexpr int kAtomStep = N * kAtomBytes;        // from one atom of a tile's rows to the next
  static constexpr int kGroupStep = 8 * kAtomBytes;       // and from eight rows to the next eight
  static constexpr int kStagedRowBytes = kRowBytes + 16;  // of a row that begins within 16
  static constexpr int kStagedBytes = kSpreads  ? N * kSpreadBytes
                                      : kLoose  ? N * kStagedRowBytes + 16  // what reading words reaches over
                                      : kWidens ? kSignBytes<N, kAtoms>
                                                : 0;
  static_assert(kStagedBytes % 16 == 0, "where a linear copy may begin");
  static constexpr int kStages = std::min(kStageBytes / (kTileBytes + kStagedBytes), 6);  // more change nothing
  static constexpr int kSharedBytes =
      1024 + kQueryBuffers * kQueryBytes + kStages * (kTileBytes + kStagedBytes);  // 1024 to align
  static_assert(N % 8 == 0 && N <= 160, "five words of kept bits, and a legal wgmma width");
  static_assert(!kTurned || (kGroups == 1 && kTiles * 64 == N && kAtoms == 1), "all rows of a tile, each whole");
  static_assert(kStages >= 2, "a tile must arrive while another is read");
  // Registers move only within what the block was launched with: whoever asks for more waits for ever.
  static_assert(!kMathRegisters || kGroups * 128 * kMathRegisters + (kThreads - kGroups * 128) * kOtherRegisters <=
                                       65536 / (kThreads * kPerSm) / 8 * 8 * kThreads);
  static_assert(kSharedBytes * kPerSm <= kSharedLimit, "the blocks of an SM share its memory");
};

// The shape of C for the plain case alone: `dense`, whole tiles, one piece a document, no sums in memory. A short call
// waits for its instructions, and these are an eighth of what every layout takes. kTogether: rows are two whole atoms,
// which alternate in a tile, eight rows of each, because one copy brings both. Other: for the rest.
template <class C, bool kTogether_ = false, class Other_ = C>
struct Sm90Dense : C {
  using Other = Other_;
  static constexpr bool kTogether = kTogether_;
  static constexpr int kAtomStep = kTogether ? 8 * C::kAtomBytes : C::kAtomStep;
  static constexpr int kGroupStep = kTogether ? 2 * kAtomStep : C::kGroupStep;
  static_assert(!kTogether || C::kAtoms == 2);
};

// The shape of C for packed documents alone, of whole atoms that alternate as above: whole tiles again, but documents
// of any lengths, and sums in memory where queries are packed too. kJoins: tiles are cut from the rows as they follow
// one another, and documents share them.
template <class C, bool kJoins>
struct Sm90Packed : Sm90Dense<C, true> {};

// The shape of C for padded documents alone of which some tokens do not count, otherwise as Sm90Packed. kNarrow:
// columns of a document's last tile, if it has no more, or 0 where all tiles are as wide.
template <class C, int kNarrow>
struct Sm90Marked : Sm90Dense<C, true> {};

template <class C>
constexpr bool kOnlyMarked = false;
template <class C, int kNarrow>
constexpr bool kOnlyMarked<Sm90Marked<C, kNarrow>> = true;
template <class C>
constexpr bool kOnlyPacked = false;
template <class C, bool kJoins>
constexpr bool kOnlyPacked<Sm90Packed<C, kJoins>> = true;
template <class C>
constexpr bool kJoinsDocuments = false;
template <class C>
constexpr bool kJoinsDocuments<Sm90Packed<C, true>> = true;
template <class C>
constexpr int kNarrowColumns = 0;
template <class C, int kNarrow>
constexpr int kNarrowColumns<Sm90Marked<C, kNarrow>> = kNarrow;
template <class C>
constexpr bool kOnlyDense = false;
template <class C, bool kTogether, class Other>
constexpr bool kOnlyDense<Sm90Dense<C, kTogether, Other>> = true;

// Kernels of one layout that a tensor map describes, with little in their loops.
template <class C>
constexpr bool kOnlyOne = kOnlyDense<C> || kOnlyPacked<C> || kOnlyMarked<C>;

// Whether one warp drives the copy engine in every call, and the loader warps never load a tile.
template <class C>
constexpr bool kOnlyCopies = kOnlyOne<C> || C::kLoose;

// Whether the first lane of a math warp reads for the others what a stage says: all kernels with more in their loop are
// slower for that. A lane that reads anything else of a stage lets go of it for itself: where the compiler knows a warp
// to be together, nothing is left of its barriers.
template <class C>
constexpr bool kFirstReads = kOnlyOne<C>;

// One short query: half of M idles and the copy engine is the limit. Two blocks an SM, so that one block's waits are
// the other's work, and no more in flight than the memory likes: over 10 000 documents three 16 KB tiles a ring beat
// four and five by 3 %. The next query is loaded beside the last one, for pair lists and candidates of many queries.
template <int kAtoms>
using Sm90Lean = Sm90Config<1, 1, 128 / kAtoms, kAtoms, 3 * 16384, 2, 2>;
// The same over so many documents that starting up no longer counts: wider tiles, one block an SM, 2 % faster.
template <int kAtoms>
using Sm90Long = Sm90Config<1, 1, 104, kAtoms, 3 * 104 * 128 * kAtoms, 1, 2>;
// The width of tiles that are to waste little on documents of a few hundred tokens. Integer products have none of 104.
template <class T>
constexpr int kThrifty = std::is_same_v<T, int8_t> ? 112 : 104;
// One short query, where tokens have factors: these cost time for each column, wasted or not.
template <class T>
using Sm90LeanScaled = Sm90Config<1, 1, kThrifty<T>, 1, 4 * kThrifty<T> * 128, 2, 2>;
// One short query and eight-bit rows of 64 bytes and fewer: half the shared memory and half the products of Lean. Twice
// as many rows want to come in the time, so no row of a tile should be idle.
template <class T>
using Sm90Narrow = Sm90Config<1, 1, kThrifty<T>, 1, 6 * kThrifty<T> * 64, 2, 2, 0, 64>;
// Where they follow one another in memory and are shorter still, they come as one piece and are spread.
using Sm90Spread = Sm90Config<1, 1, 128, 1, 6 * 128 * (64 + kSpreadBytes), 2, 2, 0, 64, Spread::chunks>;
// Up to 128 query tokens for each document token read: memory-bound still, one block an SM with a warpgroup for
// each 64. N follows the document's length (least waste).
template <int kAtoms, int N>
using Sm90Middle = Sm90Config<2, 1, N, kAtoms, kSharedLimit - 1024 - 128 * kAtoms * 128>;
// The same for stored rows, which are half as long: one block's handshakes would take longer than its bytes, so there
// are two, of as many columns as their registers hold.
using Sm90MiddleStored = Sm90Config<2, 1, 96, 1, 6 * 96 * 128, 2>;
// 256 query rows for each document tile: at 128 the tiles would come from L2 faster than it gives them. Four
// warpgroups take turns at the tensor cores; 104 columns are what their 104 registers a thread hold, and 10 % faster
// than 96 or 112. Integer products have no width of 104.
template <int kAtoms, class T>
using Sm90Wide =
    Sm90Config<4, 1, std::is_same_v<T, int8_t> ? 96 : 104, kAtoms, kSharedLimit - 1024 - 256 * kAtoms * 128>;
// The same rows where a thread keeps factors and winners, or normalises and is told more of a tile than Sm90Dense is:
// two warpgroups with two row tiles each, one product in flight while the other's max is taken.
template <int kAtoms, int N>
using Sm90Paired = Sm90Config<2, 2, N, kAtoms, kSharedLimit - 1024 - 256 * kAtoms * 128>;

// Split operands are twice the bytes and three products, and splitting is what takes longest: twelve warps, because
// four wait for their own instructions half of the time, which have eight rows of 96 each. One short query: its rows
// are in registers, because reading them competes with splitting for shared memory; a second query buffer has no room
// beside three tiles.
template <int kAtoms, bool kLoads = false>
using Sm90SplitLean = Sm90Config<1, 1, 96, kAtoms, 3 * 96 * 512, 1, 1, 12, 128, Spread::none, false, false, kLoads>;
// More query rows share the cost of splitting a tile, but 192 rows leave room for two tiles only and are no faster. N
// follows the document's length (least waste): of 96 columns, which are eight rows for each of twelve warps again, a
// product reads less of shared memory a column. Twelve warps have no registers to load rows in.
template <int kAtoms, int N, bool kLoads = false>
using Sm90SplitWide = Sm90Config<2, 1, N, kAtoms, (N == 96 ? 3 : 4) * N * 512, 1, 1, N == 96 ? 12 : 8, 128,
                                 Spread::none, false, false, kLoads>;

// Stored documents under 16-bit queries: four warps widen, one for each scheduler of an SM; eight are no faster. A tile
// has the space that it is widened to, and copying, widening and multiplying one takes longer than all that the next
// one waits for, so narrow tiles, four of two atoms or six of one in each of two blocks, are a fifth faster than three
// of 96 rows. One block an SM is slower, because a single math warpgroup then sets the pace. Where winners and factors
// are kept that is still better than 80 registers a thread.
template <int kAtoms, int kPerSm = 2>
using Sm90WidenLean =
    Sm90Config<1, 1, 64, kAtoms, (16 - 4 * kAtoms) / kPerSm * (64 * 128 * kAtoms + kSignBytes<64, kAtoms>), kPerSm, 2,
               4, 128, Spread::none, true>;
// 112 columns, winners and minima do not fit in its registers.
template <int kAtoms>
using Sm90WidenMiddle =
    Sm90Config<2, 1, 104, kAtoms, kSharedLimit - 1024 - 128 * kAtoms * 128, 1, 1, 4, 128, Spread::none, true>;
// Four math warpgroups and one that widens would have 80 registers a thread.
template <int kAtoms>
using Sm90WidenPaired =
    Sm90Config<2, 2, 104, kAtoms, kSharedLimit - 1024 - 256 * kAtoms * 128, 1, 1, 4, 128, Spread::none, true>;

// Stored documents under one short query of 16 bits, where every byte costs a warp instructions: two blocks an SM
// again. Two warps share a tile of 64 rows, which wastes little on documents of a few hundred tokens.
template <int kAtomBytes>
using Sm90Turned = Sm90Config<1, 1, 64, 1, 6 * 64 * kAtomBytes, 2, 2, 0, kAtomBytes, Spread::none, false, true>;

// Loose rows: as many tiles that have come as tiles that are placed, each a ring of its own. Six warps place a tile in
// less time than it takes to come; two take longer, most where rows lie at odd addresses, and thirteen wait for their
// instructions. So a short query has one block an SM: two blocks with two placing warps each are slower.
template <int N>
constexpr int kLooseStage = N * 256 + N * (256 + 16) + 16;  // a placed tile, and one as it came
using Sm90LooseLean = Sm90Config<1, 1, 104, 2, 3 * kLooseStage<104>, 1, 2, 4, 128, Spread::loose>;
using Sm90LooseMiddle = Sm90Config<2, 1, 112, 2, 3 * kLooseStage<112>, 1, 1, 4, 128, Spread::loose>;
// Four math warpgroups and one that places would have 80 registers a thread.
using Sm90LoosePaired = Sm90Config<2, 2, 104, 2, 2 * kLooseStage<104>, 1, 1, 4, 128, Spread::loose>;

struct Sm90Args : ForwardArgs {
  bool tma;                              // both sides can be described by a tensor map
  bool pass_through;                     // documents should not push other data out of L2
  bool masked;                           // and documents have a mask
  bool signs;                            // documents are signs whose tiles are pieces of memory
  const char *query_end, *document_end;  // behind the last of all rows
  bool dense;               // as `tma`, and both are padded with every token kept, in a cross product or slabs
  uint32_t dense_units;     // documents times the query groups that they meet one after the other
  uint32_t dense_share;     // of each thread block or cluster, which the first ones have one more than
  uint32_t average_tokens;  // of a packed document
  int32_t row_alignment;    // bytes, up to eight, of which the address of every document row is a multiple
  bool apart;               // rows are so far apart that each is a piece of its own
};

}  // namespace cuda
}  // namespace maxsim
